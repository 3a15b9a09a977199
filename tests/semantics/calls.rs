//! System calls that do something else than on a plain directory, or nothing.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};

use e2e::mounted::{Layers, Mounted, scratch, union_program};
use e2e::require;
use e2e::tree::LayerTree;
use e2e::user::install;
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
    for (transport, unnamed, born, same) in [("dev", true, true, true), ("fuser", false, false, false)] {
        let union = Fixture::new(std::slice::from_ref(&tree), &format!(",index=off,transport={transport}"));
        let opened = rustix::fs::open(union.at(""), OFlags::TMPFILE | OFlags::RDWR, Mode::from(0o600));
        assert_eq!(opened.err(), (!unnamed).then_some(Errno::OPNOTSUPP), "{transport}");
        let ino = |name: &str| fs::metadata(union.at(name)).unwrap().ino();
        let flags = rustix::fs::StatxFlags::BTIME;
        let stat =
            rustix::fs::statx(rustix::fs::CWD, union.at("a"), rustix::fs::AtFlags::empty(), flags).unwrap();
        let born = born && e2e::require::kernel() >= (6, 6);
        assert_eq!(stat.stx_mask & flags.bits() != 0, born, "{transport}");
        // Without an index two names of a lower file are two nodes, which one number cannot stand for.
        assert_eq!(ino("a") == ino("b"), same, "{transport}");
    }
}

#[test]
fn a_file_that_is_open_can_be_used_whatever_its_mode_has_become() {
    require!(Fuse, Union);
    let scratch = scratch();
    let layers = Layers::below(scratch.path(), 1);
    let tree = (0..100).fold(LayerTree::new(), |tree, n| tree.file(format!("old{n}"), "old"));
    let tree = tree.file("cut", "old");
    tree.build(&layers.lowers[0]);
    // So few descriptors that the server has to close files that are open.
    let (text, program) = (scratch.path().join("text"), scratch.path().join("few"));
    fs::write(&text, format!("#!/bin/sh\nulimit -n 300\nexec '{}' \"$@\"\n", union_program().display()))
        .unwrap();
    install(&text, &program);
    let mounted = Mounted::with(&program, layers);
    let mut files = Vec::new();
    for n in 0..100 {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true);
        let mode = [0o400, 0o000, 0o200][n % 3];
        files.push((mode, options.mode(mode).open(mounted.root().join(format!("new{n}"))).unwrap()));
        let old = options.open(mounted.root().join(format!("old{n}"))).unwrap();
        old.set_permissions(fs::Permissions::from_mode(mode)).unwrap();
        files.push((mode, old));
    }
    let cut = fs::OpenOptions::new().write(true).open(mounted.root().join("cut")).unwrap();
    cut.set_permissions(fs::Permissions::from_mode(0o400)).unwrap();
    cut.set_len(0).unwrap();
    assert_eq!((cut.metadata().unwrap().mode() & 0o7777, cut.metadata().unwrap().len()), (0o400, 0));
    for (mode, file) in &files {
        file.write_all_at(b"data", 0).unwrap();
        let mut read = [0; 4];
        file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!((&read, file.metadata().unwrap().mode() & 0o7777), (b"data", *mode));
    }
}
