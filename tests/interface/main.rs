//! All of the file interface: each call does on the union what it does on a plain copy of the merged tree, over every
//! transport.

mod attributes;
mod calls;
mod data;
mod locks;
mod names;
mod nested;
mod notify;
mod special;
mod times;

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use e2e::flatten::flatten;
use e2e::mounted::{Layers, Mounted, scratch};
use e2e::oracle::copy_tree;
use e2e::require;
use e2e::tree::LayerTree;
use e2e::user::{Role, run_again};

/// What a test saw, a line for each call.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen(Vec<String>);

impl Seen {
    /// Notes the outcome of a call.
    fn note(&mut self, what: &str, outcome: impl Debug) {
        self.0.push(format!("{what}: {outcome:?}"));
    }
}

/// The transports that each test runs on.
const TRANSPORTS: [&str; 2] = ["", ",transport=fuser"];

/// The transport on which alone there is `O_TMPFILE`.
const OWN_TRANSPORT: [&str; 1] = [""];

/// A union of `lowers`, topmost first.
fn union(base: &Path, lowers: &[LayerTree], options: &str) -> Mounted {
    let mut layers = Layers::below(base, lowers.len());
    layers.extra.push_str(options);
    for (tree, lower) in lowers.iter().zip(&layers.lowers) {
        tree.build(lower);
    }
    Mounted::new(layers)
}

/// Calls `act` on a plain copy of the union of `lowers` and on the union itself, on each of the transports, and compares
/// what it has seen.
#[track_caller]
fn same_over(transports: &[&str], lowers: &[LayerTree], act: impl Fn(&Path, &mut Seen)) {
    let scratch = scratch();
    let merged = scratch.path().join("tree");
    flatten(lowers).build(&merged);
    let plain: PathBuf = copy_tree(&merged, scratch.path().join("plain"));
    let mut expected = Seen::default();
    act(&plain, &mut expected);
    for (number, transport) in transports.iter().enumerate() {
        let base = scratch.path().join(number.to_string());
        std::fs::create_dir(&base).unwrap();
        let mounted = union(&base, lowers, transport);
        let mut seen = Seen::default();
        act(mounted.root(), &mut seen);
        assert_eq!(seen, expected, "union{transport} (left) and plain directory (right)");
    }
}

/// As [`same_over`], on every transport.
#[track_caller]
fn same(lowers: &[LayerTree], act: impl Fn(&Path, &mut Seen)) {
    same_over(&TRANSPORTS, lowers, act);
}

#[test]
fn as_an_ordinary_user_through_fusermount3() {
    require!(Fuse, Union, Root, Tester);
    for module in ["attributes::", "calls::", "data::", "locks::", "names::", "notify::", "special::"] {
        run_again(Role::Plain, module);
    }
}
