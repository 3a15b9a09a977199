//! One mount under full load for a long time: every call beside a plain directory, and nothing that grows.
//!
//! Measures for minutes, so it is run by `cargo xtask soak`. `E2E_SOAK_SECONDS` says how long.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use e2e::flatten::flatten;
use e2e::history::{Flavour, Generator, layers};
use e2e::mounted::{Layers, Mounted, scratch};
use e2e::require;
use e2e::require::say;
use e2e::shrink::{Pair, Plain, Tolerance, run};

use crate::THREADS;

/// Trees of each thread that the lowers hold. When they are used up, trees are made anew on the upper.
const SETS: u64 = 64;

/// Steps of one history.
const STEPS: usize = 400;

/// What may be in use after the first half and later not be given back.
/// Memory: what is known of directories goes with them, so that all of it fills in the first minutes.
const MEMORY_SLACK: u64 = 8 << 20;
const DESCRIPTOR_SLACK: u64 = 64;
/// Descriptors that a server may hold of files and directories used a while ago, and some of its own: on a
/// slow machine these caches are not full by half time.
const DESCRIPTORS_KEPT: u64 = 448 + 384 + 32;
/// Other mounts of the host count too; a leak would be a hundred times as much.
const INODE_SLACK: u64 = 20_000;

/// What a mount holds while nobody uses it.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// Resident memory of the server in bytes.
    memory: u64,
    descriptors: u64,
    /// Inodes of all FUSE mounts in the kernel; none if it cannot be asked.
    inodes: Option<u64>,
}

impl Held {
    /// Has the kernel forget what it does not need, then measures.
    fn by(server: u32) -> Self {
        // What only root may do is left out by others.
        let forgets = std::fs::write("/proc/sys/vm/drop_caches", "2").is_ok();
        std::thread::sleep(Duration::from_secs(1));
        let status = std::fs::read_to_string(format!("/proc/{server}/status")).unwrap();
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let slabs = std::fs::read_to_string("/proc/slabinfo").unwrap_or_default();
        let inodes = slabs.lines().find_map(|line| line.strip_prefix("fuse_inode ")).filter(|_| forgets);
        Self {
            memory: number(memory) * 1024,
            descriptors: std::fs::read_dir(format!("/proc/{server}/fd")).unwrap().count() as u64,
            inodes: inodes.map(number),
        }
    }

    fn assert_not_above(self, before: Self) {
        let held = format!("{before:?} became {self:?}");
        assert!(self.memory <= before.memory + MEMORY_SLACK, "memory: {held}");
        let descriptors = DESCRIPTORS_KEPT.max(before.descriptors + DESCRIPTOR_SLACK);
        assert!(self.descriptors <= descriptors, "descriptors: {held}");
        if let (Some(now), Some(then)) = (self.inodes, before.inodes) {
            assert!(now <= then + INODE_SLACK, "inodes: {held}");
        }
    }
}

fn number(text: &str) -> u64 {
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap()
}

/// The directory of one tree, on the union and on the plain side alike.
fn place(root: &Path, thread: u64, set: u64) -> PathBuf {
    root.join(format!("thread{thread}/tree{set}"))
}

/// The seed of the tree that is at a place first.
fn seed(thread: u64, set: u64) -> u64 {
    1 + thread * SETS + set
}

/// Makes histories on one tree after the other until `end`, the first turn being `first`; returns how many calls
/// succeeded.
fn work(union: &Path, plain: &Path, thread: u64, first: u64, end: Instant) -> usize {
    let flavour = Flavour { remount_every: usize::MAX, ..Flavour::full() };
    let mut good = 0;
    let mut turn = first;
    while Instant::now() < end {
        let set = turn % SETS;
        let start = flatten(&layers(seed(thread, set), 2));
        let sides = [union, plain].map(|root| place(root, thread, set));
        if turn >= SETS {
            for side in &sides {
                // There if the turns before did not come so far.
                drop(std::fs::remove_dir_all(side));
                start.build(side);
            }
        }
        let steps = Generator::new(turn * 1_000 + thread, flavour, &start).steps(STEPS);
        let [ours, oracle] = sides.clone().map(|side| Box::new(Plain(side)));
        let mut pair = Pair { ours, oracle, scratch: scratch() };
        match run(&mut pair, &steps, Tolerance::default()) {
            Ok(count) => good += count,
            Err(difference) => {
                panic!("thread {thread}, turn {turn}, step {}: {}", difference.step, difference.text)
            }
        }
        sides.iter().for_each(|side| std::fs::remove_dir_all(side).unwrap());
        turn += 1;
    }
    good
}

#[test]
#[ignore = "runs for minutes: cargo xtask soak"]
fn a_mount_under_load_for_long_differs_from_a_plain_directory_in_nothing_and_grows_in_nothing() {
    require!(Fuse, Union);
    let seconds = std::env::var("E2E_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let scratch = scratch();
    let lower = Layers::below(scratch.path(), 2);
    let plain = scratch.path().join("plain");
    for (thread, set) in (0..THREADS as u64).flat_map(|thread| (0..SETS).map(move |set| (thread, set))) {
        let trees = layers(seed(thread, set), 2);
        trees.iter().zip(&lower.lowers).for_each(|(tree, layer)| tree.build(&place(layer, thread, set)));
        flatten(&trees).build(&place(&plain, thread, set));
    }
    let mounted = Mounted::new(lower);
    let load = |first: u64, seconds: u64| {
        let end = Instant::now() + Duration::from_secs(seconds);
        std::thread::scope(|scope| {
            let (union, plain) = (mounted.root(), plain.as_path());
            let threads: Vec<_> = (0..THREADS as u64)
                .map(|thread| scope.spawn(move || work(union, plain, thread, first, end)))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        })
    };
    let warm = load(0, seconds / 2);
    let before = Held::by(mounted.pid());
    let rest = load(SETS, seconds - seconds / 2);
    let after = Held::by(mounted.pid());
    after.assert_not_above(before);
    assert!(!mounted.stderr().contains("panicked"), "{}", mounted.stderr());
    say(&format!("soak: {seconds} s, {} calls succeeded alike; {before:?}, then {after:?}", warm + rest));
}
