//! Tables: the same short histories for every kind of object in every place, instead of chance.

use e2e::operation::{Name, Op, Step};
use e2e::random::data;
use e2e::shrink::{Tolerance, run};
use e2e::sides::{Server, pair};
use e2e::tree::{Kind, LayerTree};

/// Every place an object can be in, seen from the root of the union.
pub const NAMES: [&str; 21] = [
    "low-file",
    "low-empty-file",
    "low-read-only",
    "low-setuid",
    "low-sparse",
    "low-linked",
    "low-link",
    "low-fifo",
    "low-dir",
    "low-empty-dir",
    "both-dir",
    "both-dir/low",
    "both-dir/mid",
    "opaque-dir",
    "opaque-dir/mid",
    "gone",
    "gone-dir",
    "up-file",
    "up-dir",
    "up-dir/inside",
    "changed",
];

/// The lowers of every table: the middle one hides and merges parts of the bottom one.
pub fn lowers() -> Vec<LayerTree> {
    let bottom = LayerTree::new()
        .file("low-file", data(1, 9000))
        .file("low-empty-file", "")
        .with("low-read-only", Kind::File(b"read only".to_vec()), 0o444)
        .with("low-setuid", Kind::File(data(2, 5000)), 0o4755)
        .with("low-sparse", Kind::Sparse(300_000, vec![(100_000, data(3, 4096))]), 0o644)
        .file("low-linked", "linked")
        .hardlink("low-linked-again", "low-linked")
        .symlink("low-link", "low-file")
        .with("low-fifo", Kind::Fifo, 0o644)
        .file("low-dir/a", "a")
        .file("low-dir/d/b", "b")
        .dir("low-empty-dir")
        .file("both-dir/low", "low")
        .file("both-dir/hidden", "hidden")
        .file("opaque-dir/hidden", "hidden")
        .file("gone", "gone")
        .file("gone-dir/gone", "gone")
        .file("changed", data(4, 70_000))
        .xattr("changed", "user.one", "low");
    let middle = LayerTree::new()
        .file("both-dir/mid", "mid")
        .whiteout("both-dir/hidden")
        .opaque("opaque-dir")
        .file("opaque-dir/mid", "mid")
        .whiteout("gone")
        .whiteout("gone-dir");
    vec![middle, bottom]
}

fn root(op: Op) -> Step {
    Step { op, as_user: false }
}

/// Makes a path.
pub fn name(path: &str) -> Name {
    path.into()
}

/// Makes what the lowers cannot have: objects of the upper alone, and one that was copied up.
fn beginning() -> Vec<Step> {
    let put = |path: &str, len, seed| Op::Put { path: path.into(), len, seed };
    let start = [
        put("up-file", 5000, 9),
        Op::Mkdir { path: "up-dir".into(), mode: 0o755 },
        put("up-dir/inside", 10, 8),
        Op::Append { path: "changed".into(), len: 10, seed: 7 },
    ];
    start.into_iter().map(root).collect()
}

/// Runs each history on a fresh union and a fresh plain copy: every result, the trees after every call that is
/// followed by [`Op::Compare`], and the trees before and after a remount at the end are the same.
pub fn check(histories: impl IntoIterator<Item = Vec<Op>>) {
    let trees = lowers();
    let mut faults = Vec::new();
    for ops in histories {
        let mut steps = beginning();
        let skipped = steps.len();
        steps.extend(ops.into_iter().map(root));
        steps.push(root(Op::Remount));
        let mut pair = pair(&trees, &Server::ours(), &Server::Plain);
        if let Err(found) = run(&mut pair, &steps, Tolerance::default()) {
            let done = &steps[skipped.min(found.step)..steps.len().min(found.step + 1)];
            let done: Vec<String> = done.iter().map(|step| format!("    {step:?}")).collect();
            faults.push(format!("{}\n{}", done.join("\n"), found.text));
        }
    }
    assert!(
        faults.is_empty(),
        "{} histories differ:\n{}",
        faults.len(),
        faults[..faults.len().min(8)].join("\n\n")
    );
}
