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

/// Seeds at which fuse-overlayfs shows what is not in the layers: 57, the data of another file with the same number
/// (1.10); 137, a lower directory that an opaque one above it hides (2.0.0).
pub(crate) const THEIR_FAULTS: &[u64] = &[57, 137];

/// Returns the programs of `E2E_PEERS`, or every `fuse-overlayfs` in the search path.
pub(crate) fn programs() -> Vec<PathBuf> {
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
pub(crate) fn seen(root: &Path) -> std::io::Result<Snapshot> {
    let mut snapshot = Snapshot::take(root)?;
    snapshot.faults.clear();
    snapshot.forget_directory_times();
    snapshot.forget_links();
    Ok(snapshot)
}

/// Lets `program` make a random history; the union then shows what the program shows after a remount, as the live
/// upper and as the top one of read-only layers. Returns false if the program does not show its own tree then as it did before.
fn read_what_was_written(program: &Path, seed: u64) -> Result<bool, String> {
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
    let before = seen(&places.target);
    writer.remount();
    let (Ok(before), Ok(written)) = (before, seen(&places.target)) else { return Ok(false) };
    if !before.diff(&written, ("before", "after")).is_empty() {
        return Ok(false);
    }
    writer.unmount();
    let lowers = places.upper.iter().chain(&places.lowers).cloned().collect();
    let stacked = Layers { lowers, upper: None, work: None, ..places.clone() };
    for (how, layers) in [("live", &places), ("read-only", &stacked)] {
        let mut reader = Mounted::new(layers.clone());
        let lines = written.diff(&seen(&layers.target).unwrap(), ("written", "read"));
        reader.unmount();
        if !lines.is_empty() {
            return Err(format!("{}, seed {seed}, {how}:\n{}", program.display(), lines.join("\n")));
        }
    }
    Ok(true)
}

#[test]
fn the_union_shows_what_fuse_overlayfs_wrote() {
    require!(Fuse, Union, FuseOverlayfs);
    for program in programs() {
        // Odd seeds make no hard links in lowers: fuse-overlayfs shows wrong data of those after a remount.
        let seeds =
            (0..super::histories()).map(|number| 2 * number + 1).filter(|seed| !THEIR_FAULTS.contains(seed));
        let results: Vec<_> = seeds.map(|seed| read_what_was_written(&program, seed)).collect();
        let equal = results.iter().filter(|result| **result == Ok(true)).count();
        let all = results.len();
        say(&format!(
            "interop: {equal} of {all} histories of {}, others it does not keep",
            program.display()
        ));
        let faults: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        assert!(faults.is_empty(), "{} differ:\n{}", faults.len(), faults.join("\n"));
    }
}
