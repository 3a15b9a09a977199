//! What the upper holds after a change, by option.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use e2e::mounted::{Layers, Mounted, built, scratch};
use e2e::require;
use e2e::tree::LayerTree;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use crate::{Fixture, errno, mark, names_in};

const LATER: Timestamps = {
    let time = Timespec { tv_sec: 2_000_000_000, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
};

#[test]
fn a_renamed_lower_directory_leaves_a_redirect_or_answers_exdev() {
    require!(Fuse, Union);
    let tree = LayerTree::new().file("d/f", "1");
    let mut union = Fixture::new(std::slice::from_ref(&tree), "");
    fs::rename(union.at("d"), union.at("e")).unwrap();
    assert_eq!(mark(&union.upper("e"), "redirect").as_deref(), Some(&b"d"[..]));
    assert!(!union.upper("e/f").exists(), "its files stay on the lower");
    union.mounted.remount();
    assert_eq!(fs::read(union.at("e/f")).unwrap(), b"1");
    for policy in ["off", "follow", "nofollow"] {
        let union = Fixture::new(std::slice::from_ref(&tree), &format!(",redirect_dir={policy}"));
        assert_eq!(errno(fs::rename(union.at("d"), union.at("e"))), libc::EXDEV, "{policy}");
        assert_eq!(fs::read(union.at("d/f")).unwrap(), b"1");
    }
}

#[test]
fn a_directory_takes_the_place_of_an_emptied_one_also_without_flags_for_rename() {
    require!(Fuse, Union, Root);
    for program in ["unionfs-under-test", "unionfs-without-rename-flags"] {
        let scratch = scratch();
        let layers = Layers::below(scratch.path(), 1);
        LayerTree::new().file("emptied/f", "1").file("emptied/d/f", "2").build(&layers.lowers[0]);
        let mut union = Mounted::with(&built(program), layers);
        let at = |path: &str| union.root().join(path);
        fs::remove_dir_all(at("emptied/d")).unwrap();
        fs::remove_file(at("emptied/f")).unwrap();
        fs::create_dir(at("new")).unwrap();
        fs::write(at("new/g"), "3").unwrap();
        fs::rename(at("new"), at("emptied")).unwrap();
        union.remount();
        assert_eq!(names_in(&union.root().join("emptied")), ["g"], "{program}");
    }
}

#[test]
fn a_redirect_longer_than_the_kernel_follows_answers_exdev() {
    require!(Fuse, Union);
    let (name, target) = ("x".repeat(200), "elsewhere");
    let tree = LayerTree::new().file(format!("{name}/{name}/f"), "1").dir(target);
    let union = Fixture::new(&[tree], "");
    let deep = format!("{name}/{name}");
    assert_eq!(errno(fs::rename(union.at(&deep), union.at(target).join("d"))), libc::EXDEV);
    // Beside itself a name is enough, and a name always fits.
    fs::rename(union.at(&deep), union.at(&name).join("d")).unwrap();
    assert_eq!(fs::read(union.at(&name).join("d/f")).unwrap(), b"1");
}

#[test]
fn a_change_of_attributes_copies_no_data_unless_metacopy_is_off() {
    require!(Fuse, Union);
    let tree = LayerTree::new().file("f", vec![b'x'; 1 << 20]);
    for (option, copies) in [("", false), (",metacopy=on", false), (",metacopy=off", true)] {
        let mut union = Fixture::new(std::slice::from_ref(&tree), option);
        fs::set_permissions(union.at("f"), fs::Permissions::from_mode(0o600)).unwrap();
        let upper = fs::metadata(union.upper("f")).unwrap();
        // Attributes may fill a block or two.
        assert_eq!((upper.size(), upper.blocks() > 1000), (1 << 20, copies), "{option}");
        assert_eq!(mark(&union.upper("f"), "metacopy").is_none(), copies, "{option}");
        union.mounted.remount();
        assert_eq!(fs::read(union.at("f")).unwrap(), vec![b'x'; 1 << 20], "{option}");
    }
}

#[test]
fn without_an_index_a_changed_name_is_split_from_the_others() {
    require!(Fuse, Union);
    let tree = LayerTree::new().file("a", "old").hardlink("b", "a");
    for (option, other) in [("", "new"), (",index=off", "old")] {
        let mut union = Fixture::new(std::slice::from_ref(&tree), option);
        fs::write(union.at("a"), "new").unwrap();
        for _ in 0..2 {
            assert_eq!(fs::read(union.at("a")).unwrap(), b"new", "{option}");
            assert_eq!(fs::read(union.at("b")).unwrap(), other.as_bytes(), "{option}");
            union.mounted.remount();
        }
    }
}

/// The marks of ordinary users are attributes that only files and directories may have.
#[test]
fn links_of_what_can_hold_no_mark_are_split() {
    require!(Fuse, Union);
    let tree = LayerTree::new().symlink("a", "target").hardlink("b", "a");
    let times = |path: &Path| fs::symlink_metadata(path).unwrap().mtime();
    let mut union = Fixture::new(&[tree], ",userxattr");
    let before = times(&union.at("b"));
    utimensat(CWD, union.at("a"), &LATER, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    for _ in 0..2 {
        assert_eq!((times(&union.at("a")), times(&union.at("b"))), (LATER.last_modification.tv_sec, before));
        union.mounted.remount();
    }
}

#[test]
fn a_whiteout_is_written_only_where_a_lower_has_the_name() {
    require!(Fuse, Union);
    let union = Fixture::new(&[LayerTree::new().file("d/lower", "1")], "");
    fs::write(union.at("d/upper"), "2").unwrap();
    fs::remove_file(union.at("d/upper")).unwrap();
    fs::remove_file(union.at("d/lower")).unwrap();
    let left: Vec<_> =
        fs::read_dir(union.upper("d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let device =
        fs::symlink_metadata(union.upper("d/lower")).is_ok_and(|meta| meta.file_type().is_char_device());
    assert_eq!(left, if device { ["lower"] } else { [".wh.lower"] });
}

#[test]
fn a_second_mount_of_a_workdir_is_told_and_not_refused() {
    require!(Fuse, Union);
    let union = Fixture::new(&[LayerTree::new().file("f", "1")], "");
    let mut layers = union.mounted.layers().clone();
    layers.target = layers.target.with_file_name("second");
    fs::create_dir(&layers.target).unwrap();
    layers.extra.push_str(",debug");
    let second = e2e::mounted::Mounted::new(layers);
    assert_eq!(fs::read(second.root().join("f")).unwrap(), b"1");
    assert!(second.stderr().contains("workdir is in use by another mount"), "{}", second.stderr());
}
