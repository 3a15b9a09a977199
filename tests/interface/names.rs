//! Names: long, odd, and deeper than a path can say.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use e2e::require;
use e2e::tree::LayerTree;
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::same;

#[test]
fn names_are_any_bytes_of_up_to_255() {
    require!(Fuse, Union);
    let odd: [&[u8]; 5] = [&[b'l'; 255], b"not \xff utf\x80", b"new\nline", b" ", b"\\040:,"];
    let lowers = [odd.iter().fold(LayerTree::new(), |tree, name| tree.file(name, "low"))];
    same(&lowers, |root, seen| {
        for name in odd {
            let path = root.join(OsStr::from_bytes(name));
            seen.note("lower", fs::read(&path));
            seen.note("written", fs::write(&path, "changed").is_ok());
            let moved = [&b"m"[..], &name[1..]].concat();
            seen.note("moved", fs::rename(&path, root.join(OsStr::from_bytes(&moved))).is_ok());
            seen.note("left", path.exists());
        }
        let longer = root.join(OsStr::from_bytes(&[b'x'; 256]));
        seen.note("longer", fs::write(&longer, "").map_err(|error| error.raw_os_error()));
        seen.note("longer, looked up", fs::metadata(&longer).map(drop).map_err(|error| error.raw_os_error()));
        seen.note("longest", fs::create_dir(root.join(OsStr::from_bytes(&[b'x'; 255]))).is_ok());
        let mut names: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        seen.note("names", names);
    });
}

const DEPTH: usize = 40;

/// Walks down, making what is missing.
fn walk_down(root: &Path, name: &str) -> Vec<OwnedFd> {
    let open = |fd: std::os::fd::BorrowedFd<'_>, name: &str| {
        rustix::fs::openat(fd, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    };
    let mut chain = vec![OwnedFd::from(fs::File::open(root).unwrap())];
    for _ in 0..DEPTH {
        let at = chain.last().unwrap().as_fd();
        let next = open(at, name).or_else(|_| {
            rustix::fs::mkdirat(at, name, Mode::from(0o755))?;
            open(at, name)
        });
        chain.push(next.unwrap());
    }
    chain
}

#[test]
fn a_tree_deeper_than_a_path_can_say_is_read_changed_and_removed() {
    require!(Fuse, Union);
    let name = "x".repeat(200);
    let scratch = e2e::mounted::scratch();
    let layers = e2e::mounted::Layers::below(scratch.path(), 1);
    let write = |dir: &OwnedFd, name: &str, bytes: &[u8]| {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::from(0o644)).unwrap();
        rustix::io::write(&file, bytes).unwrap();
    };
    write(walk_down(&layers.lowers[0], &name).last().unwrap(), "low", b"low");
    let mut mounted = e2e::mounted::Mounted::new(layers);
    let read = |root: &Path, file: &str| {
        let chain = walk_down(root, &name);
        let opened = rustix::fs::openat(chain.last().unwrap(), file, OFlags::RDONLY, Mode::empty()).unwrap();
        let mut bytes = [0; 64];
        let len = rustix::io::read(&opened, &mut bytes).unwrap();
        bytes[..len].to_vec()
    };
    assert_eq!(read(mounted.root(), "low"), b"low");
    write(walk_down(mounted.root(), &name).last().unwrap(), "low", b" and up");
    write(walk_down(mounted.root(), &name).last().unwrap(), "new", b"new");
    mounted.remount();
    assert_eq!(read(mounted.root(), "low"), b"low and up");
    assert_eq!(read(mounted.root(), "new"), b"new");
    let chain = walk_down(mounted.root(), &name);
    for file in ["low", "new"] {
        rustix::fs::unlinkat(chain.last().unwrap(), file, AtFlags::empty()).unwrap();
    }
    for dir in chain.iter().rev().skip(1) {
        rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR).unwrap();
    }
    drop(chain);
    assert_eq!(fs::read_dir(mounted.root()).unwrap().count(), 0);
    // What rm(1) of a path as long would need, for the lower that stays.
    let chain = walk_down(&mounted.layers().lowers[0], &name);
    rustix::fs::unlinkat(chain.last().unwrap(), "low", AtFlags::empty()).unwrap();
    for dir in chain.iter().rev().skip(1) {
        rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR).unwrap();
    }
}
