//! What the union wrote, kernel overlayfs shows the same; what kernel overlayfs wrote, the union shows the same.
//! What fuse-overlayfs wrote, the union shows the same; and with owners in records also the reverse.

mod peers;
mod records;

use std::path::Path;

use e2e::disk::LoopDisk;
use e2e::execute::Session;
use e2e::flatten::flatten;
use e2e::history::{Flavour, Generator, layers};
use e2e::mounted::{Layers, Mounted, scratch};
use e2e::operation::Op;
use e2e::oracle::KernelOverlay;
use e2e::require;
use e2e::require::{say, skip};
use e2e::snapshot::Snapshot;

/// Operations of one history.
const OPERATIONS: usize = 800;

/// What the kernel must be told to read everything the union may write.
const KERNEL_OPTIONS: &str = ",redirect_dir=on,index=on,metacopy=on";

fn histories() -> u64 {
    std::env::var("E2E_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(6)
}

/// One of the two sides, mounted.
enum Writer {
    Union(Mounted),
    Kernel(KernelOverlay),
}

impl Writer {
    fn new(union: bool, layers: &Layers) -> Self {
        let mut layers = layers.clone();
        if union {
            return Self::Union(Mounted::new(layers));
        }
        layers.extra = KERNEL_OPTIONS.to_owned();
        Self::Kernel(KernelOverlay::new(layers))
    }

    fn snapshot(&self) -> Snapshot {
        let root = match self {
            Self::Union(mounted) => mounted.root(),
            Self::Kernel(overlay) => overlay.root(),
        };
        let mut snapshot = Snapshot::take(root).unwrap();
        // Numbers of listings are a matter of the parity tier.
        snapshot.faults.clear();
        snapshot
    }

    fn unmount(&mut self) {
        match self {
            Self::Union(mounted) => mounted.unmount(),
            Self::Kernel(overlay) => overlay.unmount(),
        }
    }
}

/// Lets one side make a random history below `base`, and compares what the other shows; then the other goes on, and so on.
fn take_turns(base: &Path, seed: u64, mut union_writes: bool) {
    let count = 1 + (seed % 3) as usize;
    let trees = layers(seed, count);
    let places = Layers::below(base, count);
    trees.iter().zip(&places.lowers).for_each(|(tree, lower)| tree.build(lower));
    let mut generator = Generator::new(seed, Flavour::full(), &flatten(&trees));
    for turn in 0..4 {
        let mut writer = Writer::new(union_writes, &places);
        let mut session = Session::new(&places.target);
        for step in generator.steps(OPERATIONS / 4).iter().filter(|step| step.op != Op::Remount) {
            session.execute(step);
        }
        session.close_all();
        let written = writer.snapshot();
        writer.unmount();
        let mut reader = Writer::new(!union_writes, &places);
        let lines = written.diff(&reader.snapshot(), ("writer", "reader"));
        let who = if union_writes { "the union" } else { "kernel overlayfs" };
        assert!(lines.is_empty(), "seed {seed}, turn {turn}, {who} wrote:\n{}", lines.join("\n"));
        reader.unmount();
        union_writes = !union_writes;
    }
}

#[test]
fn the_union_and_kernel_overlayfs_take_turns_on_one_upper() {
    require!(Fuse, Union, Root, KernelOverlay);
    for seed in 0..histories() {
        take_turns(scratch().path(), seed, seed % 2 == 0);
    }
    say(&format!("interop: {} histories of {OPERATIONS} operations in turns of four", histories()));
}

/// Each tells in its own way by which identifier records of origin name it.
#[test]
fn the_union_and_kernel_overlayfs_take_turns_on_btrfs_xfs_and_ext4() {
    require!(Fuse, Union, Root, KernelOverlay);
    for kind in ["btrfs", "xfs", "ext4"] {
        let scratch = scratch();
        let disk = match LoopDisk::new(kind, scratch.path()) {
            Ok(disk) => disk,
            Err(reason) => {
                skip(&format!("turns on {kind}"), &reason);
                continue;
            }
        };
        for seed in 0..histories() / 2 {
            let base = disk.root().join(seed.to_string());
            std::fs::create_dir(&base).unwrap();
            take_turns(&base, seed, seed % 2 == 0);
            // The disk is small.
            std::fs::remove_dir_all(&base).unwrap();
        }
    }
}
