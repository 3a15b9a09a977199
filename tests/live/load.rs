//! Rotations of the upper under programs that go on: each call gives what it gives on a plain directory.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use e2e::execute::{Outcome, Session};
use e2e::flatten::flatten;
use e2e::history::{Flavour, Generator, layers};
use e2e::mounted::{Layers, Mounted, scratch};
use e2e::operation::Op;
use e2e::oracle::KernelOverlay;
use e2e::require;
use e2e::require::{Need, say};
use e2e::shrink::{Tolerance, run, shrink};
use e2e::sides::{Server, leftovers, pair};
use e2e::tree::{Kind, LayerTree, at};
use e2e::user::is_real_root;

use crate::{Stop, TRANSPORTS, number, snapshot};

/// Programs at once, each in a directory of its own.
const PROGRAMS: u64 = 3;

/// Calls that a program thinks of at once.
const BATCH: usize = 100;

/// Makes random histories in `ours` and in `plain` until `done`; returns the number of calls.
fn program(
    seed: u64,
    start: &LayerTree,
    ours: &Path,
    plain: &Path,
    over_fuser: bool,
    done: &AtomicBool,
) -> usize {
    let flavour = Flavour { remount_every: usize::MAX, ..Flavour::full() };
    let mut generator = Generator::new(seed, flavour, start);
    let (mut left, mut right) = (Session::new(ours), Session::new(plain));
    let mut calls = 0;
    while !done.load(Ordering::Relaxed) {
        for step in generator.steps(BATCH) {
            if done.load(Ordering::Relaxed) {
                break;
            }
            if over_fuser && matches!(step.op, Op::Tmpfile { .. })
                || refuses_rotation(&step.op, plain)
                || differs_on_tmpfs(&step.op, plain)
            {
                continue;
            }
            let (a, b) = (left.execute(&step), right.execute(&step));
            assert!(
                a == b && !matches!(a, Outcome::Broken(_)),
                "seed {seed}, call {calls}: {step:?}\n{a:?}\n{b:?}"
            );
            calls += 1;
        }
    }
    left.close_all();
    right.close_all();
    calls
}

/// Returns whether a call does something else in `root` itself than on every mount of FUSE there: the kernel takes set-id
/// bits of an ordinary user's file before it asks for room, tmpfs keeps them.
fn differs_on_tmpfs(op: &Op, root: &Path) -> bool {
    const TMPFS: i64 = 0x0102_1994;
    let is_tmpfs = || rustix::fs::statfs(root).is_ok_and(|stat| stat.f_type == TMPFS);
    matches!(op, Op::Allocate { .. }) && !is_real_root() && is_tmpfs()
}

/// Returns whether a call in `root` makes a mount of an ordinary user one that cannot be rotated.
fn refuses_rotation(op: &Op, root: &Path) -> bool {
    let Op::Link { from, .. } = op else { return false };
    let is_file = || at(root, &from.0).symlink_metadata().is_ok_and(|metadata| metadata.is_file());
    !is_real_root() && !is_file()
}

fn differences(ours: &Path, plain: &Path) -> Vec<String> {
    snapshot(ours).diff(&snapshot(plain), ("union", "plain"))
}

/// Builds the layers of each program in `places`, and their merged trees in `plain`. Returns the latter.
fn build(seed: u64, places: &Layers, plain: &Path) -> Vec<LayerTree> {
    let start: Vec<Vec<LayerTree>> =
        (0..PROGRAMS).map(|n| layers(seed * 10 + n, places.lowers.len())).collect();
    for (index, lower) in places.lowers.iter().enumerate() {
        for (name, trees) in start.iter().enumerate() {
            trees[index].build(&lower.join(format!("p{name}")));
        }
    }
    std::fs::create_dir(plain).unwrap();
    let merged: Vec<LayerTree> = start.iter().map(|trees| flatten(trees)).collect();
    merged.iter().enumerate().for_each(|(name, tree)| tree.build(&plain.join(format!("p{name}"))));
    merged
}

fn rotate_under_load(seed: u64, options: &str) {
    let scratch = scratch();
    let mut places = Layers::below(scratch.path(), 2);
    let own_options = places.extra.clone();
    places.extra.push_str(options);
    let plain: PathBuf = scratch.path().join("plain");
    let start = build(seed, &places, &plain);
    let lowers: Vec<_> = places.lowers.iter().map(|lower| snapshot(lower)).collect();
    let mut mounted = Mounted::new(places.clone());
    let (done, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    let rotations = number("E2E_ROTATIONS", if is_real_root() { 20 } else { 10 });
    let root = mounted.root().to_path_buf();
    std::thread::scope(|scope| {
        for (name, tree) in start.iter().enumerate() {
            let (ours, plain) = (root.join(format!("p{name}")), plain.join(format!("p{name}")));
            let (done, calls) = (&done, &calls);
            let over_fuser = options.contains("fuser");
            scope.spawn(move || {
                let stop = Stop(done);
                let made = program(seed * 10 + name as u64, tree, &ours, &plain, over_fuser, done);
                calls.fetch_add(made, Ordering::Relaxed);
                std::mem::forget(stop);
            });
        }
        let _stop = Stop(&done);
        for _ in 0..rotations {
            if done.load(Ordering::Relaxed) {
                break;
            }
            mounted.rotate();
        }
        done.store(true, Ordering::Relaxed);
    });
    let lines = differences(mounted.root(), &plain);
    assert!(lines.is_empty(), "seed {seed}{options}: the live trees differ:\n{}", lines.join("\n"));
    mounted.remount();
    let lines = differences(mounted.root(), &plain);
    assert!(lines.is_empty(), "seed {seed}{options}: after a remount:\n{}", lines.join("\n"));
    mounted.unmount();
    assert!(!mounted.stderr().contains("panicked"), "{}", mounted.stderr());
    for (lower, before) in places.lowers.iter().zip(&lowers) {
        let lines = before.diff(&snapshot(lower), ("before", "after"));
        assert!(lines.is_empty(), "seed {seed}: a lower was written:\n{}", lines.join("\n"));
    }
    let mut places = mounted.layers().clone();
    let left = leftovers(places.work.as_ref().unwrap());
    assert!(left.is_empty(), "seed {seed}: left in the workdir: {left:?}");
    if Need::Root.missing().is_none() && Need::KernelOverlay.missing().is_none() && own_options.is_empty() {
        places.extra = ",redirect_dir=on,index=on,metacopy=on".to_owned();
        let kernel = KernelOverlay::new(places);
        let (mut theirs, plain) = (snapshot(kernel.root()), snapshot(&plain));
        theirs.faults.clear();
        let lines = theirs.diff(&plain, ("kernel overlayfs", "plain"));
        assert!(lines.is_empty(), "seed {seed}: the kernel sees another tree:\n{}", lines.join("\n"));
    }
    let calls = calls.load(Ordering::Relaxed);
    say(&format!("rotation: seed {seed}, options \"{options}\": {rotations} rotations under {calls} calls"));
}

#[test]
fn what_is_rotated_under_load_stays_equal_to_a_plain_directory() {
    require!(Fuse, Union);
    let seed = number("E2E_SEED", 1) as u64;
    for (index, options) in TRANSPORTS.iter().enumerate() {
        rotate_under_load(seed + index as u64, options);
    }
}

#[test]
fn histories_that_are_rotated_equal_a_plain_directory() {
    require!(Fuse, Union);
    let flavour = Flavour { rotate_every: 40, ..Flavour::full() };
    for (seed, options) in (number("E2E_SEED", 1) as u64..).zip(TRANSPORTS) {
        let mut trees = layers(seed, 2);
        if !is_real_root() {
            trees
                .iter_mut()
                .for_each(|tree| tree.retain(|_, kind| !matches!(kind, Kind::Symlink(_) | Kind::Fifo)));
        }
        let mut steps = Generator::new(seed, flavour, &flatten(&trees)).steps(number("E2E_OPS", 1_000));
        let place = scratch();
        steps.retain(|step| !differs_on_tmpfs(&step.op, place.path()));
        steps.retain(|step| is_real_root() || !matches!(step.op, Op::Symlink { .. } | Op::Mknod { .. }));
        let tolerance = Tolerance { exdev: false, tmpfile: options.contains("fuser") };
        let make = || pair(&trees, &Server::ours_with(options), &Server::Plain);
        if let Err(difference) = run(&mut make(), &steps, tolerance) {
            let budget = std::time::Duration::from_secs(number("E2E_SHRINK_SECONDS", 60) as u64);
            let (short, found) = shrink(&make, &steps, difference, tolerance, budget);
            panic!("seed {seed}{options}: {short:#?}\n{}", found.text);
        }
    }
}
