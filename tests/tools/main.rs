//! The commands beside the mount: what they say of a tree and make of it is what the union shows.

mod check;
mod hostile;
mod listing;
mod merge;
mod round_trip;
mod sidecar;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use e2e::execute::Session;
use e2e::flatten::flatten;
use e2e::history::{Flavour, Generator, layers};
use e2e::mounted::{Layers, Mounted, union_program};
use e2e::operation::Op;
use e2e::require;
use e2e::snapshot::Snapshot;
use e2e::user::{Role, run_again};

/// Operations of one history.
const OPERATIONS: usize = 500;

/// Returns the seeds of random histories.
fn seeds() -> std::ops::Range<u64> {
    let count = std::env::var("E2E_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(6);
    let first = std::env::var("E2E_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    first..first + count
}

/// Returns a path of a test, which is text, as an argument.
fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Returns the options of a test's mount as an argument.
fn options_text(options: &std::ffi::OsStr) -> String {
    options.display().to_string()
}

/// Runs a command of the program under test.
fn tool<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Output {
    Command::new("timeout")
        .arg("120")
        .arg(union_program())
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Runs a command that must succeed, and returns what it printed.
#[track_caller]
fn succeed<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Vec<u8> {
    let output = tool(arguments);
    assert!(output.status.success(), "{}: {}", output.status, output.stderr.escape_ascii());
    output.stdout
}

/// Runs a command that must fail with one line that holds each of `words`.
#[track_caller]
fn fail<S: AsRef<std::ffi::OsStr>>(arguments: &[S], words: &[&str]) {
    let output = tool(arguments);
    let line = output.stderr.escape_ascii().to_string();
    assert_eq!(output.status.code(), Some(1), "{line}");
    for word in words {
        assert!(line.contains(word), "{word:?} is not in: {line}");
    }
}

/// A union that a random history has changed, no longer mounted.
struct Changed {
    layers: Layers,
    /// What it showed before and after.
    before: Snapshot,
    after: Snapshot,
}

/// Builds the layers of a seed below `base` and changes their union.
fn changed(seed: u64, base: &Path) -> Changed {
    changed_with(seed, base, "")
}

/// As [`changed`], with more options, a comma first.
fn changed_with(seed: u64, base: &Path, options: &str) -> Changed {
    let count = 1 + (seed % 3) as usize;
    let trees = layers(seed, count);
    let mut places = Layers::below(base, count);
    places.extra.push_str(options);
    trees.iter().zip(&places.lowers).for_each(|(tree, lower)| tree.build(lower));
    let mut mounted = Mounted::new(places.clone());
    let before = snapshot(&places.target);
    let mut generator = Generator::new(seed, Flavour::full(), &flatten(&trees));
    let mut session = Session::new(&places.target);
    for step in generator.steps(OPERATIONS).iter().filter(|step| step.op != Op::Remount) {
        session.execute(step);
    }
    session.close_all();
    // Sockets stand in no layer.
    let target = places.target.to_path_buf();
    let status = Command::new("find").arg(&target).args(["-type", "s", "-delete"]).status().unwrap();
    assert!(status.success());
    mounted.remount();
    let after = snapshot(&places.target);
    mounted.unmount();
    Changed { layers: places, before, after }
}

fn snapshot(root: &Path) -> Snapshot {
    let mut snapshot = Snapshot::take(root).unwrap();
    // Numbers of listings are a matter of the parity tier.
    snapshot.faults.clear();
    snapshot
}

/// Returns what the union of `lowers`, read-only, shows.
fn shown(lowers: Vec<PathBuf>, base: &Path) -> Snapshot {
    let mut layers = Layers { lowers, ..Layers::below(base, 0) };
    (layers.upper, layers.work) = (None, None);
    let mut mounted = Mounted::new(layers);
    let shown = snapshot(mounted.root());
    mounted.unmount();
    shown
}

#[test]
fn as_root_of_a_user_namespace() {
    require!(Fuse, Union, Root, Tester, UserNamespace);
    for module in ["round_trip::", "listing::", "hostile::", "check::", "merge::", "sidecar::"] {
        run_again(Role::Namespace, module);
    }
}

#[test]
fn as_an_ordinary_user() {
    require!(Fuse, Union, Root, Tester);
    for module in ["hostile::", "listing::"] {
        run_again(Role::Plain, module);
    }
}
