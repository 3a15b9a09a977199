//! What stat and statvfs show.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::require;
use e2e::tree::LayerTree;

use crate::{Fixture, mark};

#[test]
fn a_merged_directory_has_one_link() {
    require!(Fuse, Union);
    let lowers = [LayerTree::new().dir("d/x").dir("only/y"), LayerTree::new().dir("d/z")];
    let union = Fixture::new(&lowers, "");
    assert_eq!(fs::metadata(union.at("d")).unwrap().nlink(), 1);
    // What one layer alone has is shown as that layer's file system counts.
    let (shown, own) = (fs::metadata(union.at("only")).unwrap(), fs::metadata(union.lower("only")).unwrap());
    assert_eq!(shown.nlink(), own.nlink());
}

#[test]
fn an_inode_number_is_that_of_the_lower_object_and_stays() {
    require!(Fuse, Union);
    let mut union = Fixture::new(&[LayerTree::new().file("f", "1").dir("d")], "");
    let ino = |union: &Fixture, name: &str| fs::metadata(union.at(name)).unwrap().ino();
    let (file, directory) = (ino(&union, "f"), ino(&union, "d"));
    assert_eq!(file, fs::metadata(union.lower("f")).unwrap().ino());
    fs::write(union.at("f"), "changed").unwrap();
    fs::rename(union.at("f"), union.at("d/g")).unwrap();
    assert_eq!((ino(&union, "d/g"), ino(&union, "d")), (file, directory));
    assert_ne!(fs::metadata(union.upper("d/g")).unwrap().ino(), file);
    union.mounted.remount();
    assert_eq!((ino(&union, "d/g"), ino(&union, "d")), (file, directory));
    let listed = fs::read_dir(union.at("d")).unwrap().next().unwrap().unwrap();
    assert_eq!(std::os::unix::fs::DirEntryExt::ino(&listed), file);
}

#[test]
fn the_origin_tells_the_inode_number_and_no_mark_has_to() {
    require!(Fuse, Union);
    let mut union = Fixture::new(&[LayerTree::new().file("f", "1").file("g", "1")], "");
    let ino = |union: &Fixture, name: &str| fs::metadata(union.at(name)).unwrap().ino();
    let numbers = (ino(&union, "f"), ino(&union, "g"));
    for name in ["f", "g"] {
        fs::write(union.at(name), "changed").unwrap();
    }
    if mark(&union.upper("f"), "origin").is_none() {
        return e2e::require::skip("semantics::attributes::the_origin_tells", "no file handles here");
    }
    assert_eq!(mark(&union.upper("f"), "ino"), None, "one attribute more may cost a block");
    union.mounted.remount();
    assert_eq!((ino(&union, "f"), ino(&union, "g")), numbers);
    // Where there is a mark, as written by earlier versions and for what came from a rotated upper, it counts.
    union.mounted.unmount();
    let upper = union.upper("g");
    let set = |space: &str| {
        let name = format!("{space}.overlay.ino");
        rustix::fs::setxattr(&upper, name, b"77", rustix::fs::XattrFlags::empty()).is_ok()
    };
    assert!(["trusted", "user"].map(set).contains(&true));
    union.mounted.remount();
    assert_eq!((ino(&union, "f"), ino(&union, "g")), (numbers.0, 77));
}

#[test]
fn access_times_are_not_kept_by_the_mount() {
    require!(Fuse, Union);
    let union = Fixture::new(&[LayerTree::new().file("f", "1")], "");
    let flags = rustix::fs::statvfs(union.at("")).unwrap().f_flag;
    assert!(flags.contains(rustix::fs::StatVfsMountFlags::NOATIME));
}

#[test]
fn size_and_blocks_of_a_metacopy_are_those_of_the_whole_file() {
    require!(Fuse, Union);
    let union = Fixture::new(&[LayerTree::new().file("f", vec![b'x'; 1 << 20])], "");
    let before = fs::metadata(union.at("f")).unwrap();
    fs::set_permissions(union.at("f"), fs::Permissions::from_mode(0o600)).unwrap();
    let after = fs::metadata(union.at("f")).unwrap();
    assert_eq!((after.size(), after.blocks()), (before.size(), before.blocks()));
    assert_eq!(after.mode() & 0o7777, 0o600);
}

#[test]
fn a_lower_on_another_file_system_has_its_place_in_the_high_bits() {
    require!(Fuse, Union);
    let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else {
        return e2e::require::skip("semantics::attributes::a_lower_on_another_file_system", "no /dev/shm");
    };
    let scratch = scratch();
    let mut layers = Layers::below(scratch.path(), 1);
    if fs::metadata(elsewhere.path()).unwrap().dev() == fs::metadata(scratch.path()).unwrap().dev() {
        return e2e::require::skip(
            "semantics::attributes::a_lower_on_another_file_system",
            "one file system",
        );
    }
    layers.lowers.push(elsewhere.path().to_path_buf());
    fs::write(elsewhere.path().join("f"), "1").unwrap();
    let own = fs::metadata(elsewhere.path().join("f")).unwrap().ino();
    let (own_options, upper) = (layers.extra.clone(), layers.upper.clone().unwrap());
    for (option, want) in [
        ("", (1 << 48) | own),
        (",xino=on", (1 << 48) | own),
        (",xino=auto", (1 << 48) | own),
        (",xino=off", own),
    ] {
        layers.extra = format!("{own_options}{option}");
        let mut mounted = Mounted::new(layers.clone());
        let ino = |mounted: &Mounted| fs::metadata(mounted.root().join("f")).unwrap().ino();
        assert_eq!(ino(&mounted), want, "{option}");
        fs::write(mounted.root().join("f"), "2").unwrap();
        assert_eq!(ino(&mounted), want, "{option}");
        mounted.remount();
        assert_eq!(ino(&mounted), want, "{option}");
        mounted.unmount();
        fs::remove_file(upper.join("f")).unwrap();
    }
}
