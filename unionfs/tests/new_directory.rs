//! What is moved into a directory that was just made keeps what is known of it on disk, although new objects there have
//! nothing that would have to be read.

#[cfg(test)]
mod new_directory {
    use std::path::Path;

    use unionfs::request::{Caller, Entry, NodeId, RenameMode, SetAttr};
    use unionfs::{MountOptions, Union};

    const CONTENT: &str = "content of a lower file";

    fn union(base: &Path) -> Union {
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| base.join(name));
        for dir in [&lower, &upper, &work] {
            std::fs::create_dir(dir).unwrap();
        }
        for name in ["moved", "linked", "exchanged"] {
            std::fs::write(lower.join(name), CONTENT).unwrap();
        }
        let [lower, upper, work] = [lower, upper, work].map(|path| path.display().to_string());
        let text = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        let (options, _) = MountOptions::parse([text]).unwrap();
        Union::open(&options).unwrap()
    }

    fn caller() -> Caller {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Caller { uid, gid, pid: 1, umask: 0 }
    }

    /// Changes the mode, so that the upper has attributes without data.
    fn changed(union: &Union, name: &str) -> Entry {
        let entry = union.lookup(NodeId::ROOT, name.as_bytes()).unwrap();
        let change = SetAttr { mode: Some(0o600), ..SetAttr::default() };
        union.setattr(&caller(), entry.node, &change).unwrap();
        entry
    }

    /// Looks a name up that no node is known for.
    fn found_again(union: &Union, dir: NodeId, name: &str, was: &Entry, lookups: u64) {
        union.forget(was.node, lookups);
        let entry = union.lookup(dir, name.as_bytes()).unwrap();
        assert_eq!(
            (entry.attr.ino, entry.attr.perm, entry.attr.size),
            (was.attr.ino, 0o600, was.attr.size),
            "{name}"
        );
        let mut buffer = [0; 64];
        let len = union.read(entry.node, None, 0, &mut buffer).unwrap();
        assert_eq!(&buffer[..len], CONTENT.as_bytes(), "{name}");
    }

    #[test]
    fn an_object_with_a_past_keeps_it_in_a_new_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let union = union(scratch.path());
        let new = ["a", "b", "c"]
            .map(|name| union.mkdir(&caller(), NodeId::ROOT, name.as_bytes(), 0o755).unwrap().node);
        let [moved, linked, exchanged] = ["moved", "linked", "exchanged"].map(|name| changed(&union, name));

        union.rename(NodeId::ROOT, b"moved", new[0], b"moved", RenameMode::Replace).unwrap();
        union.link(linked.node, new[1], b"linked").unwrap();
        union.unlink(NodeId::ROOT, b"linked").unwrap();
        union.mkdir(&caller(), new[2], b"other", 0o755).unwrap();
        union.rename(NodeId::ROOT, b"exchanged", new[2], b"other", RenameMode::Exchange).unwrap();

        found_again(&union, new[0], "moved", &moved, 1);
        found_again(&union, new[1], "linked", &linked, 2);
        found_again(&union, new[2], "other", &exchanged, 1);
    }
}
