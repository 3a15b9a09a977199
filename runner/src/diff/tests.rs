use std::fs;

use super::*;

/// Makes a tree: names that end in `/` are directories.
fn tree(root: &Path, names: &[&str]) {
    for name in names {
        let path = root.join(name);
        if name.ends_with('/') {
            fs::create_dir_all(path).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, *name).unwrap();
        }
    }
}

fn shown_changes(upper: &Path, lowers: &[PathBuf]) -> Vec<String> {
    compare(upper, lowers)
        .unwrap()
        .into_iter()
        .map(|change| {
            let letter = std::str::from_utf8(change.kind.letter()).unwrap();
            format!("{letter} {}", change.path.escape_ascii())
        })
        .collect()
}

struct Layers {
    directory: tempfile::TempDir,
}

impl Layers {
    fn new(lowers: &[&[&str]], upper: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (index, names) in lowers.iter().enumerate() {
            let root = directory.path().join(format!("l{index}"));
            fs::create_dir(&root).unwrap();
            tree(&root, names);
        }
        let root = directory.path().join("upper");
        fs::create_dir(&root).unwrap();
        tree(&root, upper);
        Self { directory }
    }

    fn upper(&self, name: &str) -> PathBuf {
        self.directory.path().join("upper").join(name)
    }

    fn changes(&self, lowers: usize) -> Vec<String> {
        let lowers: Vec<PathBuf> =
            (0..lowers).map(|index| self.directory.path().join(format!("l{index}"))).collect();
        shown_changes(&self.upper(""), &lowers)
    }
}

#[test]
fn added_changed_and_deleted_are_told_apart() {
    let layers =
        Layers::new(&[&["etc/motd", "etc/gone", "usr/x"]], &["etc/motd", "etc/new", "etc/.wh.gone", "opt/a"]);
    assert_eq!(
        layers.changes(1),
        ["C /etc", "D /etc/gone", "C /etc/motd", "A /etc/new", "A /opt", "A /opt/a"]
    );
}

#[test]
fn a_whiteout_of_nothing_deletes_nothing() {
    let layers = Layers::new(&[&["a"]], &[".wh.b"]);
    assert!(layers.changes(1).is_empty());
}

#[test]
fn an_opaque_directory_deletes_what_it_does_not_have_again() {
    let layers = Layers::new(&[&["d/old", "d/same"]], &["d/same", "d/.wh..wh..opq"]);
    assert_eq!(layers.changes(1), ["C /d", "D /d/old", "C /d/same"]);
}

#[test]
fn a_file_in_place_of_a_directory_deletes_its_content() {
    let layers = Layers::new(&[&["d/old"]], &["d"]);
    assert_eq!(layers.changes(1), ["C /d", "D /d/old"]);
}

#[test]
fn a_renamed_directory_is_deleted_and_added() {
    let layers = Layers::new(&[&["old/a", "old/sub/b"]], &["new/c", "new/.wh.a", ".wh.old"]);
    match rustix::fs::setxattr(
        layers.upper("new"),
        "user.overlay.redirect",
        b"old",
        rustix::fs::XattrFlags::empty(),
    ) {
        Ok(()) => {}
        Err(error) => {
            eprintln!("SKIP a_renamed_directory_is_deleted_and_added: no user xattrs here: {error}");
            return;
        }
    }
    assert_eq!(layers.changes(1), ["A /new", "A /new/c", "A /new/sub", "A /new/sub/b", "D /old"]);
}

#[test]
fn lower_layers_hide_each_other() {
    let layers = Layers::new(&[&[".wh.a", "d/.wh.x"], &["a", "d/x", "d/y"]], &["a", "d/x", "d/y"]);
    assert_eq!(layers.changes(2), ["A /a", "C /d", "A /d/x", "C /d/y"]);
}

#[test]
fn nothing_in_a_layer_leads_out_of_it() {
    let layers = Layers::new(&[&["keep"]], &["link/passwd", "moved/"]);
    std::os::unix::fs::symlink("/etc", layers.directory.path().join("l0/link")).unwrap();
    // The host's /etc/passwd is not what was at /link/passwd before.
    assert_eq!(layers.changes(1), ["C /link", "A /link/passwd", "A /moved"]);
    let redirect = b"/../../../../etc";
    if rustix::fs::setxattr(
        layers.upper("moved"),
        "user.overlay.redirect",
        redirect,
        rustix::fs::XattrFlags::empty(),
    )
    .is_ok()
    {
        assert_eq!(layers.changes(1), ["C /link", "A /link/passwd", "A /moved"]);
    }
}

#[test]
fn a_directory_moved_by_a_lower_layer_is_found_below() {
    let layers =
        Layers::new(&[&["new/b", ".wh.old"], &["old/a", "old/sub/c"]], &["new/a", "new/sub/c", "new/sub/d"]);
    let moved = layers.directory.path().join("l0/new");
    if rustix::fs::setxattr(moved, "user.overlay.redirect", b"old", rustix::fs::XattrFlags::empty()).is_ok() {
        assert_eq!(layers.changes(2), ["C /new", "C /new/a", "C /new/sub", "C /new/sub/c", "A /new/sub/d"]);
    }
}
