//! The statistics count the bytes that were copied, and no others.

#[cfg(test)]
mod copied_bytes {
    use std::os::unix::fs::FileExt;

    use unionfs::request::{Caller, NodeId, SetAttr};
    use unionfs::{MountOptions, Union};

    /// Bytes of the hole before the data of a sparse file.
    const HOLE: u64 = 1 << 20;

    #[test]
    fn what_stays_on_the_lower_or_is_a_hole_is_not_counted() {
        let scratch = tempfile::tempdir().unwrap();
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| scratch.path().join(name));
        for dir in [&lower, &upper, &work] {
            std::fs::create_dir(dir).unwrap();
        }
        std::fs::write(lower.join("whole"), [1; 8192]).unwrap();
        std::fs::File::create(lower.join("sparse")).unwrap().write_all_at(&[1; 4096], HOLE).unwrap();
        let [lower, upper, work] = [lower, upper, work].map(|path| path.display().to_string());
        let (options, _) =
            MountOptions::parse([format!("lowerdir={lower},upperdir={upper},workdir={work}")]).unwrap();
        let union = Union::open(&options).unwrap();
        let copied = || union.stats().get("copied_up_bytes");
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let caller = Caller { uid, gid, pid: 1, umask: 0 };

        let whole = union.lookup(NodeId::ROOT, b"whole").unwrap().node;
        let change = SetAttr { mode: Some(0o600), ..SetAttr::default() };
        union.setattr(&caller, whole, &change).unwrap();
        assert_eq!(copied(), Some(0), "the data stays where it is");
        union.write(whole, None, 0, b"x", false).unwrap();
        assert_eq!(copied(), Some(8192), "it follows at the first write");

        let sparse = union.lookup(NodeId::ROOT, b"sparse").unwrap().node;
        union.write(sparse, None, 0, b"x", false).unwrap();
        assert_eq!(copied(), Some(8192 + 4096), "a hole costs nothing");
    }
}
