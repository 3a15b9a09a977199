//! System calls that do something else than on a plain directory, or nothing.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use e2e::require;
use e2e::tree::LayerTree;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::Fixture;

#[test]
fn reflinks_and_block_maps_are_not_passed_on() {
    require!(Fuse, Union);
    let union = Fixture::new(&[LayerTree::new().file("f", "12345")], "");
    let (from, to) = (File::open(union.at("f")).unwrap(), File::create(union.at("g")).unwrap());
    assert_eq!(rustix::fs::ioctl_ficlone(&to, &from), Err(Errno::OPNOTSUPP));
    assert_eq!(rustix::fs::copy_file_range(&from, None, &to, None, 5), Ok(5));
    assert_eq!(fs::read(union.at("g")).unwrap(), b"12345");
}

#[test]
fn locks_are_the_mounts_and_not_the_layers() {
    require!(Fuse, Union);
    let union = Fixture::new(&[LayerTree::new()], "");
    fs::write(union.at("f"), "1").unwrap();
    let lock = |file: &File| rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive);
    let (one, two) = (File::open(union.at("f")).unwrap(), File::open(union.at("f")).unwrap());
    let layer = File::open(union.upper("f")).unwrap();
    lock(&one).unwrap();
    assert_eq!(lock(&two), Err(Errno::WOULDBLOCK));
    lock(&layer).unwrap();
}

#[test]
fn syncfs_of_the_mount_answers_and_is_not_needed_for_the_layers_to_have_the_data() {
    require!(Fuse, Union);
    let union = Fixture::new(&[LayerTree::new()], "");
    fs::write(union.at("f"), "written").unwrap();
    assert_eq!(fs::read(union.upper("f")).unwrap(), b"written");
    rustix::fs::syncfs(File::open(union.at("f")).unwrap()).unwrap();
    File::open(union.at("f")).unwrap().sync_all().unwrap();
}

#[test]
fn the_fuser_transport_makes_no_unnamed_files_and_shows_node_numbers() {
    require!(Fuse, Union);
    let tree = LayerTree::new().file("a", "1").hardlink("b", "a");
    for (transport, unnamed, same) in [("dev", true, true), ("fuser", false, false)] {
        let union = Fixture::new(std::slice::from_ref(&tree), &format!(",index=off,transport={transport}"));
        let opened = rustix::fs::open(union.at(""), OFlags::TMPFILE | OFlags::RDWR, Mode::from(0o600));
        assert_eq!(opened.err(), (!unnamed).then_some(Errno::OPNOTSUPP), "{transport}");
        let ino = |name: &str| fs::metadata(union.at(name)).unwrap().ino();
        // Without an index two names of a lower file are two nodes, which one number cannot stand for.
        assert_eq!(ino("a") == ino("b"), same, "{transport}");
    }
}
