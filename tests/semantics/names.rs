//! Names and objects that mean something to the union itself.

use std::fs;
use std::os::unix::fs::symlink;

use e2e::require;
use e2e::tree::LayerTree;
use rustix::fs::{CWD, FileType, Mode, RenameFlags, XattrFlags};

use crate::{Fixture, errno};

#[test]
fn names_that_begin_with_dot_wh_are_refused_and_not_shown() {
    require!(Fuse, Union);
    let lowers = [
        LayerTree::new().file(".wh.gone", "").file(".wh..wh.aufs", "").file("seen", "1"),
        LayerTree::new().file("gone", "2"),
    ];
    let union = Fixture::new(&lowers, "");
    let shown: Vec<_> = fs::read_dir(union.at("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(shown, ["seen"]);
    for name in [".wh.gone", ".wh.seen", ".wh.", ".wh..wh..opq"] {
        assert_eq!(errno(fs::metadata(union.at(name))), libc::ENOENT, "{name}");
        assert_eq!(errno(fs::write(union.at(name), "")), libc::EINVAL, "{name}");
        assert_eq!(errno(fs::create_dir(union.at(name))), libc::EINVAL, "{name}");
        assert_eq!(errno(symlink("x", union.at(name))), libc::EINVAL, "{name}");
        assert_eq!(errno(fs::hard_link(union.at("seen"), union.at(name))), libc::EINVAL, "{name}");
        assert_eq!(errno(fs::rename(union.at("seen"), union.at(name))), libc::EINVAL, "{name}");
    }
    assert_eq!(fs::read(union.at("seen")).unwrap(), b"1");
}

#[test]
fn a_program_cannot_make_a_whiteout() {
    require!(Fuse, Union);
    let union = Fixture::new(&[LayerTree::new().file("f", "1")], "");
    let made = rustix::fs::mknodat(CWD, union.at("n"), FileType::CharacterDevice, Mode::from(0o600), 0);
    assert_eq!(made, Err(rustix::io::Errno::PERM));
    let moved = rustix::fs::renameat_with(CWD, union.at("f"), CWD, union.at("g"), RenameFlags::WHITEOUT);
    assert_eq!(moved, Err(rustix::io::Errno::INVAL));
    assert_eq!(fs::read(union.at("f")).unwrap(), b"1");
    assert!(!union.at("g").exists() && !union.at("n").exists());
}

#[test]
fn with_dot_wh_whiteouts_names_are_shorter() {
    require!(Fuse, Union);
    let long = "x".repeat(255);
    let union = Fixture::new(&[LayerTree::new().file(&long, "1")], ",dot_wh_whiteouts");
    assert_eq!(rustix::fs::statvfs(union.at("")).unwrap().f_namemax, 251);
    fs::write(union.at("y".repeat(251)), "2").unwrap();
    assert_eq!(errno(fs::write(union.at("y".repeat(252)), "2")), libc::ENAMETOOLONG);
    // A name of a lower may be longer: it can be read and changed, but not removed.
    fs::write(union.at(&long), "3").unwrap();
    assert_eq!(errno(fs::remove_file(union.at(&long))), libc::ENAMETOOLONG);
    assert_eq!(fs::read(union.at(&long)).unwrap(), b"3");
}

#[test]
fn marks_that_a_program_sets_are_stored_escaped() {
    require!(Fuse, Union);
    let lowers = [LayerTree::new().dir("d"), LayerTree::new().file("d/below", "1")];
    let union = Fixture::new(&lowers, "");
    let set = |name: &str| rustix::fs::setxattr(union.at("d"), name, b"y", XattrFlags::empty());
    set("user.overlay.opaque").unwrap();
    assert!(union.at("d/below").exists(), "the attribute hides nothing");
    let mut names = vec![0; 4096];
    let len = rustix::fs::listxattr(union.at("d"), &mut names[..]).unwrap();
    assert!(names[..len].split(|byte| *byte == 0).any(|name| name == b"user.overlay.opaque"));
    let mut value = [0; 8];
    assert_eq!(rustix::fs::getxattr(union.upper("d"), "user.overlay.overlay.opaque", &mut value[..]), Ok(1));
    assert_eq!(set("user.fuseoverlayfs.opaque"), Err(rustix::io::Errno::PERM));
}
