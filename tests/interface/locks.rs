//! flock, POSIX locks, OFD locks, leases.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use e2e::require;
use e2e::sys::lease;
use e2e::tree::LayerTree;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::FlockOperation;

use crate::same;

fn both(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn range(kind: libc::c_int, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

#[test]
fn whole_files_are_locked() {
    require!(Fuse, Union);
    same(&[LayerTree::new().file("f", "1").dir("d")], |root, seen| {
        for name in ["f", "d"] {
            let (one, two) = (File::open(root.join(name)).unwrap(), File::open(root.join(name)).unwrap());
            let lock = |file: &File, how| rustix::fs::flock(file, how);
            seen.note("shared", lock(&one, FlockOperation::NonBlockingLockShared));
            seen.note("shared too", lock(&two, FlockOperation::NonBlockingLockShared));
            seen.note("upgraded", lock(&one, FlockOperation::NonBlockingLockExclusive));
            seen.note("given back", lock(&two, FlockOperation::Unlock));
            seen.note("upgraded", lock(&one, FlockOperation::NonBlockingLockExclusive));
            // A copy-up in between does not lose it.
            std::fs::set_permissions(root.join(name), std::os::unix::fs::PermissionsExt::from_mode(0o750))
                .unwrap();
            seen.note("held", lock(&two, FlockOperation::NonBlockingLockShared));
            drop(one);
        }
    });
}

#[test]
fn ranges_are_locked_by_process_and_by_open_file() {
    require!(Fuse, Union);
    same(&[LayerTree::new().file("f", "0123456789")], |root, seen| {
        let (one, two) = (both(&root.join("f")), both(&root.join("f")));
        let write = |start, len| range(libc::F_WRLCK, start, len);
        let read = |start, len| range(libc::F_RDLCK, start, len);
        seen.note("posix", fcntl(&one, FcntlArg::F_SETLK(&write(0, 5))));
        seen.note("same process", fcntl(&two, FcntlArg::F_SETLK(&write(0, 5))));
        seen.note("ofd against posix", fcntl(&two, FcntlArg::F_OFD_SETLK(&write(3, 3))));
        seen.note("ofd elsewhere", fcntl(&two, FcntlArg::F_OFD_SETLK(&write(5, 5))));
        seen.note("ofd of another", fcntl(&one, FcntlArg::F_OFD_SETLK(&read(8, 1))));
        let mut asked = read(6, 1);
        seen.note("who", fcntl(&one, FcntlArg::F_OFD_GETLK(&mut asked)));
        seen.note("found", (asked.l_type, asked.l_start, asked.l_len, asked.l_pid));
        // Another process sees the first lock; python would be one more need, the shell's flock(1) is of util-linux.
        let other = Command::new("flock").args(["-n", "--fcntl"]).arg(root.join("f")).arg("true").status();
        seen.note("another process", other.is_ok_and(|status| status.success()));
        // Closing any descriptor of the file ends the process's locks, not those of open files.
        drop(both(&root.join("f")));
        seen.note("gone", fcntl(&two, FcntlArg::F_OFD_SETLK(&write(0, 5))));
        seen.note("writing to it", std::fs::write(root.join("f"), "abc").is_ok());
        seen.note("still held", fcntl(&one, FcntlArg::F_OFD_SETLK(&write(5, 1))));
    });
}

#[test]
fn leases_are_given_where_nobody_else_has_the_file_open() {
    require!(Fuse, Union);
    same(&[LayerTree::new().file("f", "1").dir("d")], |root, seen| {
        let file = File::open(root.join("f")).unwrap();
        seen.note("read", lease(&file, libc::F_RDLCK));
        seen.note("given back", lease(&file, libc::F_UNLCK));
        let writer = both(&root.join("f"));
        seen.note("read beside a writer", lease(&file, libc::F_RDLCK));
        seen.note("write beside a reader", lease(&writer, libc::F_WRLCK));
        seen.note("directory", lease(File::open(root.join("d")).unwrap(), libc::F_RDLCK));
        assert!(file.as_raw_fd() >= 0);
    });
}
