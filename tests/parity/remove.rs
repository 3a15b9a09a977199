//! unlink(2), rmdir(2), and making things again where something was.

use e2e::operation::{How, Op};
use e2e::require;

use crate::table::{NAMES, check, name};

#[test]
fn removing_and_making_again_is_the_same_for_every_object() {
    require!(Fuse, Union);
    check(NAMES.map(|path| {
        vec![
            Op::Unlink { path: name(path) },
            Op::Rmdir { path: name(path) },
            Op::Compare,
            Op::RemoveAll { path: name(path) },
            Op::Compare,
            Op::Unlink { path: name(path) },
            Op::Put { path: name(path), len: 100, seed: 3 },
            Op::Remount,
            Op::Unlink { path: name(path) },
            Op::Mkdir { path: name(path), mode: 0o750 },
            Op::List { path: name(path) },
            Op::Remount,
            Op::Rmdir { path: name(path) },
            Op::Symlink { path: name(path), target: name("low-file") },
        ]
    }));
}

#[test]
fn an_open_file_lives_on_without_a_name() {
    require!(Fuse, Union);
    let names = ["low-file", "low-setuid", "low-sparse", "low-linked", "up-file", "changed", "both-dir/low"];
    let hows = [How::Read, How::Both];
    check(names.into_iter().flat_map(|path| hows.map(move |how| (path, how))).map(|(path, how)| {
        vec![
            Op::Open { slot: 0, path: name(path), how },
            Op::Unlink { path: name(path) },
            Op::StatHandle { slot: 0 },
            Op::ReadHandle { slot: 0, offset: 0, len: 400_000 },
            Op::WriteHandle { slot: 0, offset: 10, len: 20, seed: 1 },
            Op::TruncateHandle { slot: 0, size: 5 },
            Op::ChmodHandle { slot: 0, mode: 0o640 },
            Op::StatHandle { slot: 0 },
            Op::Put { path: name(path), len: 3, seed: 2 },
            Op::ReadHandle { slot: 0, offset: 0, len: 400_000 },
            Op::SyncHandle { slot: 0 },
            Op::CloseHandle { slot: 0 },
        ]
    }));
}
