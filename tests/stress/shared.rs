//! Many threads at once on the same names. No call has one right answer, but what is left must be one tree: the
//! same before and after a remount, and the same under kernel overlayfs; the lowers are what they were.

use e2e::execute::{Outcome, Session};
use e2e::flatten::flatten;
use e2e::history::{Flavour, Generator, layers};
use e2e::mounted::{Layers, Mounted, scratch};
use e2e::operation::{Op, Step};
use e2e::oracle::KernelOverlay;
use e2e::require;
use e2e::require::{Need, say};
use e2e::snapshot::Snapshot;

use crate::{THREADS, rounds};

fn snapshot(root: &std::path::Path) -> Snapshot {
    Snapshot::take(root).unwrap_or_else(|error| panic!("{}: {error}", root.display()))
}

/// Makes different random histories in several threads; returns how many calls succeeded.
fn storm(root: &std::path::Path, seed: u64, trees: &[e2e::tree::LayerTree]) -> usize {
    let flavour = Flavour { remount_every: usize::MAX, ..Flavour::full() };
    let start = flatten(trees);
    let one = |thread: u64| {
        let steps = Generator::new(seed * 1000 + thread, flavour, &start).steps(rounds());
        let mut session = Session::new(root);
        let mut good = 0;
        // Not through mappings: another thread may cut the file meanwhile, and a page beyond its end is SIGBUS everywhere.
        let mapped = |step: &&Step| matches!(step.op, Op::MapWrite { .. } | Op::MapRead { .. });
        for step in steps.iter().filter(|step| !mapped(step)) {
            match session.execute(step) {
                // Two readings of a file that others write may differ; a call may not fail without an errno.
                Outcome::Broken(text) if !matches!(step.op, Op::Holes { .. }) => panic!("{step:?}: {text}"),
                Outcome::Failed(errno) => {
                    let odd = [libc::EIO, libc::ESTALE, libc::ENOTCONN, libc::EBADFD, libc::ENOSYS];
                    assert!(!odd.contains(&errno), "seed {seed}: {step:?}: errno {errno}");
                }
                _ => good += 1,
            }
        }
        good
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS as u64).map(|thread| scope.spawn(move || one(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}

fn round(seed: u64, options: &str) -> usize {
    let scratch = scratch();
    let count = 1 + (seed % 3) as usize;
    let trees = layers(seed, count);
    let mut places = Layers::below(scratch.path(), count);
    places.extra = options.to_owned();
    trees.iter().zip(&places.lowers).for_each(|(tree, lower)| tree.build(lower));
    let lowers: Vec<Snapshot> = places.lowers.iter().map(|lower| snapshot(lower)).collect();
    let mut mounted = Mounted::new(places.clone());
    let good = storm(mounted.root(), seed, &trees);
    let live = snapshot(mounted.root());
    mounted.remount();
    let lines = live.diff(&snapshot(mounted.root()), ("live", "remounted"));
    assert!(lines.is_empty(), "seed {seed}: the remount changed the tree:\n{}", lines.join("\n"));
    mounted.unmount();
    assert!(!mounted.stderr().contains("panicked"), "{}", mounted.stderr());
    for (lower, before) in places.lowers.iter().zip(&lowers) {
        let lines = before.diff(&snapshot(lower), ("before", "after"));
        assert!(lines.is_empty(), "seed {seed}: a lower was written:\n{}", lines.join("\n"));
    }
    let left = e2e::sides::leftovers(places.work.as_ref().unwrap());
    assert!(left.is_empty(), "seed {seed}: left in the workdir: {left:?}");
    if Need::Root.missing().is_none() && Need::KernelOverlay.missing().is_none() {
        places.extra = ",redirect_dir=on,index=on,metacopy=on".to_owned();
        let kernel = KernelOverlay::new(places);
        let mut theirs = snapshot(kernel.root());
        theirs.faults.clear();
        let lines = live.diff(&theirs, ("union", "kernel overlayfs"));
        assert!(lines.is_empty(), "seed {seed}: the kernel sees another tree:\n{}", lines.join("\n"));
    }
    good
}

#[test]
fn what_a_storm_of_calls_leaves_is_one_tree() {
    require!(Fuse, Union);
    let histories = std::env::var("E2E_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(6);
    let first = std::env::var("E2E_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut good = 0;
    for seed in first..first + histories {
        let options = ["", ",transport=fuser", ",writeback=0"][(seed % 3) as usize];
        good += round(seed, options);
    }
    say(&format!("storm: {histories} trees, {THREADS} threads, {} calls each, {good} successful", rounds()));
}
