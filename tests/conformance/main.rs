//! The external suites on the union: what fails there and not on the plain file system below is listed, with
//! the reason, in tests/external/exclude.txt.

mod table;

use std::collections::BTreeMap;
use std::path::Path;

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::require;
use e2e::require::say;
use e2e::suites::{Ended, SHORT_STRESSORS, Verdict, fsx, pjdfstest, stress};
use e2e::tree::LayerTree;
use e2e::user::{Role, run_again};

/// Returns the cases that are known to fail, and why.
fn excluded() -> BTreeMap<String, String> {
    let text = include_str!("../external/exclude.txt");
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let pair =
        |line: &str| line.split_once(char::is_whitespace).map(|(a, b)| (a.to_owned(), b.trim().to_owned()));
    lines.map(|line| pair(line).unwrap_or_else(|| panic!("no reason: {line}"))).collect()
}

/// Runs pjdfstest to its end.
fn run_whole(root: &Path) -> (Verdict, String) {
    let (verdict, text) = pjdfstest(root);
    assert!(text.contains("Summary: ") && verdict.timed_out.is_empty(), "{text}");
    (verdict, text)
}

fn plain() -> Verdict {
    let scratch = scratch();
    run_whole(scratch.path()).0
}

#[test]
fn pjdfstest_fails_only_where_the_plain_file_system_does_or_a_reason_is_listed() {
    require!(Fuse, Union, Suites);
    let plain = plain();
    let scratch = scratch();
    let layers = Layers::below(scratch.path(), 1);
    LayerTree::new().with("pjd", e2e::tree::Kind::Directory, 0o777).build(&layers.lowers[0]);
    let mounted = Mounted::new(layers);
    let (ours, text) = run_whole(mounted.root());
    let known = excluded();
    say(&format!(
        "pjdfstest: union {} passed, {} failed; plain {} passed, {} failed",
        ours.passed,
        ours.failed.len(),
        plain.passed,
        plain.failed.len()
    ));
    let new: Vec<_> =
        ours.failed.difference(&plain.failed).filter(|case| !known.contains_key(*case)).collect();
    assert!(new.is_empty(), "{} cases fail that pass on the plain file system: {new:#?}\n{text}", new.len());
    let stale: Vec<_> = known.keys().filter(|case| !ours.failed.contains(*case)).collect();
    assert!(stale.is_empty() || Role::current().is_some(), "these pass, take them off the list: {stale:?}");
    // A case or two skip themselves by the limits that a file system tells (LINK_MAX).
    let total = |verdict: &Verdict| verdict.passed + verdict.failed.len();
    assert!(total(&ours) + 2 >= total(&plain), "not the same cases ran");
}

#[test]
fn fsx_finds_no_wrong_byte() {
    require!(Fuse, Union, Suites);
    let count = std::env::var("E2E_FSX_OPS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_000);
    for (seed, extra) in [(1, ""), (2, ",writeback=0"), (3, "")] {
        let scratch = scratch();
        let mut layers = Layers::below(scratch.path(), 1);
        layers.extra = extra.to_owned();
        LayerTree::new().file("lower", vec![b'x'; 100_000]).build(&layers.lowers[0]);
        let mounted = Mounted::new(layers);
        for name in ["lower", "new"] {
            let (ended, text) = fsx(mounted.root(), name, count, seed);
            assert_eq!(ended, Ended::Passed, "seed {seed}{extra} {name}: {text}");
        }
    }
    say(&format!("fsx: 6 runs of {count} operations"));
}

#[test]
fn stress_ng_finds_nothing_wrong_that_the_plain_file_system_does_right() {
    require!(Fuse, Union, StressNg);
    let (plain, scratch) = (scratch(), scratch());
    let layers = Layers::below(scratch.path(), 1);
    LayerTree::new().file("lower", "1").build(&layers.lowers[0]);
    let mounted = Mounted::new(layers);
    for stressor in SHORT_STRESSORS {
        let (ended, text) = stress(mounted.root(), stressor, 1);
        if [Ended::Failed, Ended::TimedOut].contains(&ended) {
            assert_eq!(stress(plain.path(), stressor, 1).0, ended, "{stressor}: {text}");
        }
    }
}

#[test]
fn as_root_of_a_user_namespace_with_ranges() {
    require!(Fuse, Union, Suites, Root, Tester, UserNamespace);
    run_again(Role::Namespace, "fsx_finds");
    run_again(Role::Namespace, "pjdfstest_fails");
}

#[test]
fn as_an_ordinary_user_through_fusermount3() {
    require!(Fuse, Union, Suites, Root, Tester);
    run_again(Role::Plain, "fsx_finds");
}
