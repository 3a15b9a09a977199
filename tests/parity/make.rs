//! mkdir, mknod, symlink, link, create, O_TMPFILE: over nothing, over what was removed, over what is there.

use e2e::operation::{Op, Special};
use e2e::require;

use crate::table::{NAMES, check, name};

fn all(path: &str) -> [Op; 8] {
    [
        Op::Create { path: name(path), mode: 0o604 },
        Op::Mkdir { path: name(path), mode: 0o2771 },
        Op::Symlink { path: name(path), target: name("somewhere") },
        Op::Mknod { path: name(path), special: Special::Fifo, mode: 0o600 },
        Op::Mknod { path: name(path), special: Special::Socket, mode: 0o600 },
        Op::Mknod { path: name(path), special: Special::File, mode: 0o4755 },
        Op::Link { from: name("low-file"), to: name(path) },
        Op::Tmpfile { directory: name("both-dir"), to: name(path), len: 100, seed: 5 },
    ]
}

#[test]
fn making_anything_anywhere_is_the_same() {
    require!(Fuse, Union);
    let histories = (0..8).map(|which| {
        let mut ops = Vec::new();
        for path in NAMES {
            ops.extend([all(path)[which].clone(), Op::Compare]);
            for below in ["new", "gone", "hidden", "low"] {
                ops.push(all(&format!("{path}/{below}"))[which].clone());
            }
            ops.push(Op::Compare);
        }
        ops
    });
    check(histories);
}

#[test]
fn a_link_to_anything_is_the_same_object() {
    require!(Fuse, Union);
    check(NAMES.map(|path| {
        vec![
            Op::Link { from: name(path), to: name("second") },
            Op::Link { from: name(path), to: name("both-dir/third") },
            Op::Stat { path: name(path) },
            Op::Append { path: name("second"), len: 20, seed: 1 },
            Op::Read { path: name(path), offset: 0, len: 400_000 },
            Op::Compare,
            Op::Unlink { path: name(path) },
            Op::Stat { path: name("second") },
            Op::Remount,
            Op::Chmod { path: name("both-dir/third"), mode: 0o640 },
            Op::Stat { path: name("second") },
        ]
    }));
}
