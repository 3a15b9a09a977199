//! Changes of data and attributes of every kind of object, first and second time, and what a handle sees.

use e2e::operation::{How, Op, Over, Space};
use e2e::require;

use crate::table::{NAMES, check, name};

/// Makes each change on every object, as the first thing that happens to it, and again after a remount.
fn each(changes: &[fn(&'static str) -> Op]) {
    check(changes.iter().map(|change| {
        let mut ops = Vec::new();
        for path in NAMES {
            let path_name = name(path);
            ops.extend([
                change(path),
                Op::Stat { path: path_name.clone() },
                Op::Xattrs { path: path_name.clone() },
            ]);
            ops.extend([Op::Holes { path: path_name }, Op::Compare]);
        }
        ops.push(Op::Remount);
        ops.extend(NAMES.map(change));
        ops
    }));
}

#[test]
fn changes_of_data_are_the_same_for_every_object() {
    require!(Fuse, Union);
    each(&[
        |path| Op::Write { path: name(path), offset: 50, len: 100, seed: 1 },
        |path| Op::Append { path: name(path), len: 5000, seed: 2 },
        |path| Op::Truncate { path: name(path), size: 100 },
        |path| Op::Truncate { path: name(path), size: 500_000 },
        |path| Op::Put { path: name(path), len: 30, seed: 3 },
        |path| Op::Allocate { path: name(path), space: Space::Punch, offset: 100, len: 5000 },
        |path| Op::Allocate { path: name(path), space: Space::Keep, offset: 100, len: 500_000 },
        |path| Op::MapWrite { path: name(path), offset: 10, len: 100, seed: 4 },
    ]);
}

#[test]
fn changes_of_attributes_are_the_same_for_every_object() {
    require!(Fuse, Union);
    each(&[
        |path| Op::Chmod { path: name(path), mode: 0o6751 },
        |path| Op::Times { path: name(path), seconds: Some(1_111_111_111) },
        |path| Op::Times { path: name(path), seconds: None },
        |path| Op::SetXattr {
            path: name(path),
            name: name("user.one"),
            value: name("1"),
            flag: Over::Replace,
        },
        |path| Op::SetXattr {
            path: name(path),
            name: name("user.one"),
            value: name("1"),
            flag: Over::NoReplace,
        },
        |path| Op::RemoveXattr { path: name(path), name: name("user.one") },
        |path| Op::Chown { path: name(path), uid: None, gid: None },
        |path| Op::Access { path: name(path), bits: 3 },
    ]);
}

#[test]
fn a_reader_from_before_sees_every_change() {
    require!(Fuse, Union);
    let names =
        ["low-file", "low-empty-file", "low-setuid", "low-sparse", "low-linked", "changed", "up-file"];
    let changes: [fn(&str) -> Op; 6] = [
        |path| Op::Write { path: name(path), offset: 0, len: 5000, seed: 1 },
        |path| Op::Put { path: name(path), len: 7000, seed: 2 },
        |path| Op::Truncate { path: name(path), size: 4097 },
        |path| Op::CopyRange { from: name("up-file"), to: name(path), source: 0, target: 100, len: 4000 },
        |path| Op::MapWrite { path: name(path), offset: 0, len: 50, seed: 3 },
        |path| Op::Rename { from: name("up-file"), to: name(path), over: Over::Replace },
    ];
    let pairs = names.into_iter().flat_map(|path| changes.iter().map(move |change| (path, change)));
    check(pairs.map(|(path, change)| {
        vec![
            Op::Open { slot: 0, path: name(path), how: How::Read },
            Op::ReadHandle { slot: 0, offset: 0, len: 10_000 },
            change(path),
            Op::ReadHandle { slot: 0, offset: 0, len: 400_000 },
            Op::StatHandle { slot: 0 },
            Op::Write { path: name(path), offset: 1, len: 1, seed: 9 },
            Op::ReadHandle { slot: 0, offset: 0, len: 400_000 },
        ]
    }));
}
