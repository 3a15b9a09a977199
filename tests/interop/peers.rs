//! Trees written by fuse-overlayfs, of any version that is installed, and read by the union.

use std::path::{Path, PathBuf};

use e2e::execute::Session;
use e2e::flatten::flatten;
use e2e::history::{Flavour, Generator, layers};
use e2e::mounted::{Layers, Mounted, scratch};
use e2e::operation::Op;
use e2e::require;
use e2e::require::say;
use e2e::snapshot::Snapshot;

/// Operations of one history.
const OPERATIONS: usize = 300;

/// Returns the programs of `E2E_PEERS`, or every `fuse-overlayfs` in the search path.
fn programs() -> Vec<PathBuf> {
    if let Some(list) = std::env::var_os("E2E_PEERS") {
        return std::env::split_paths(&list).collect();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|directory| directory.join("fuse-overlayfs"));
    let mut programs: Vec<PathBuf> = found.filter_map(|program| program.canonicalize().ok()).collect();
    programs.sort();
    programs.dedup();
    programs
}

/// Takes what both must show alike.
///
/// fuse-overlayfs counts the names that it has met instead of links, and times of directories change in its copy-up.
fn seen(root: &Path) -> Snapshot {
    let mut snapshot = Snapshot::take(root).unwrap_or_else(|error| panic!("{}: {error}", root.display()));
    snapshot.faults.clear();
    snapshot.forget_directory_times();
    snapshot.forget_links();
    snapshot
}

/// Lets `program` make a random history; the union then shows what the program shows after a remount, as the live
/// upper and as the top one of read-only layers.
fn read_what_was_written(program: &Path, seed: u64) {
    let scratch = scratch();
    let count = 1 + (seed % 3) as usize;
    let trees = layers(seed, count);
    let places = Layers { extra: String::new(), ..Layers::below(scratch.path(), count) };
    trees.iter().zip(&places.lowers).for_each(|(tree, lower)| tree.build(lower));
    let flavour = Flavour { handles: false, ..Flavour::full() };
    let steps = Generator::new(seed, flavour, &flatten(&trees)).steps(OPERATIONS);
    let mut writer = Mounted::with(program, places.clone());
    let mut session = Session::new(&places.target);
    for step in steps.iter().filter(|step| step.op != Op::Remount) {
        session.execute(step);
    }
    session.close_all();
    writer.remount();
    let written = seen(&places.target);
    writer.unmount();
    let lowers = places.upper.iter().chain(&places.lowers).cloned().collect();
    let stacked = Layers { lowers, upper: None, work: None, ..places.clone() };
    for (how, layers) in [("live", &places), ("read-only", &stacked)] {
        let mut reader = Mounted::new(layers.clone());
        let lines = written.diff(&seen(&layers.target), ("written", "read"));
        assert!(lines.is_empty(), "{}, seed {seed}, {how}:\n{}", program.display(), lines.join("\n"));
        reader.unmount();
    }
}

#[test]
fn the_union_shows_what_fuse_overlayfs_wrote() {
    require!(Fuse, Union, FuseOverlayfs);
    for program in programs() {
        // Odd seeds make no hard links in lowers: fuse-overlayfs shows wrong data of those after a remount.
        (0..super::histories()).for_each(|number| read_what_was_written(&program, 2 * number + 1));
        say(&format!("interop: {} histories of {}", super::histories(), program.display()));
    }
}
