//! What every benchmark of this project shares: the subjects compared, where they run, what they run on.
//!
//! Two users. The criterion groups beside this directory measure one operation at a time. The program `perf-report`
//! (behind `cargo xtask bench-report`) times whole programs on a real tree, interleaves the subjects, and writes a
//! directory below `benches/results/`. Both compare `unionfs` with `native` (a plain copy), `kernel_overlay` and
//! `fuse_overlayfs`; a subject that cannot run here is named with its reason.

pub mod cli;
pub mod container;
pub mod counts;
pub mod criterion_report;
pub mod failure;
pub mod fixture;
pub mod host;
pub mod load;
pub mod plot;
pub mod process;
pub mod raw;
pub mod report;
pub mod rootfs;
pub mod rounds;
pub mod samples;
pub mod sandbox;
pub mod special;
pub mod stats;
pub mod subject;
pub mod suite;
pub mod targets;
pub mod tree;
pub mod workload;

pub use failure::{During, Failure, Result, exit_code, or_exit};
pub use subject::{Layers, Mounted, Peers, Subject};
