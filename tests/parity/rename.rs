//! rename(2): every kind of object onto every other, replacing, not replacing, exchanging.

use e2e::operation::{Op, Over};
use e2e::require;

use crate::table::{NAMES, check, name};

/// Moves `from` onto every other name and back, comparing after each.
fn onto_everything(from: &str, over: Over) -> Vec<Op> {
    let mut ops = Vec::new();
    for to in NAMES.iter().filter(|to| **to != from) {
        ops.push(Op::Rename { from: name(from), to: name(to), over });
        ops.push(Op::Compare);
        ops.push(Op::Rename { from: name(to), to: name(from), over });
    }
    ops
}

#[test]
fn rename_not_replacing_is_the_same_for_every_pair() {
    require!(Fuse, Union);
    check(NAMES.map(|from| onto_everything(from, Over::NoReplace)));
}

#[test]
fn exchange_is_the_same_for_every_pair() {
    require!(Fuse, Union);
    check(NAMES.map(|from| onto_everything(from, Over::Exchange)));
}

#[test]
fn rename_replacing_is_the_same_for_every_pair() {
    require!(Fuse, Union);
    check(NAMES.map(|from| onto_everything(from, Over::Replace)));
}

#[test]
fn a_moved_directory_keeps_its_contents_through_more_moves() {
    require!(Fuse, Union);
    let rename = |from: &str, to: &str| Op::Rename { from: name(from), to: name(to), over: Over::Replace };
    check([
        vec![rename("low-dir", "x"), Op::Remount, rename("x", "both-dir/x"), rename("both-dir", "y")],
        vec![rename("low-dir/d", "d"), rename("low-dir", "z"), Op::Remount, rename("d", "z/d"), Op::Remount],
        vec![
            rename("low-dir", "x"),
            Op::Mkdir { path: name("low-dir"), mode: 0o755 },
            Op::Remount,
            Op::Compare,
        ],
        vec![
            rename("low-dir", "x"),
            Op::Put { path: name("x/d/b"), len: 9, seed: 1 },
            rename("x", "low-dir"),
        ],
        vec![
            rename("both-dir", "gone-dir"),
            Op::Remount,
            Op::Unlink { path: name("gone-dir/low") },
            Op::Remount,
        ],
        vec![
            rename("up-dir", "gone-dir"),
            rename("opaque-dir", "up-dir"),
            Op::Remount,
            rename("up-dir", "gone"),
        ],
        vec![rename("up-dir", "low-empty-dir"), Op::Remount, Op::RemoveAll { path: name("low-empty-dir") }],
    ]);
}
