//! The tables of goals, one for each configuration of ours.

use super::{ours, push, short};
use crate::samples::Results;
use crate::special::LARGE;
use crate::stats::geometric_mean;
use crate::targets::{GEOMETRIC_MEAN, LARGE_MOUNT, MEMORY, TARGETS, Target};

const PLAIN: &str = "
Bold: the goal is missed. `plain`: what a plain directory, no union at all, takes of the peer's time for that workload; a goal
below it is out of any union's reach.
";

/// Writes all of them.
pub(super) fn write(text: &mut String, results: &Results) {
    if !ours(results).is_empty() {
        text.push_str(PLAIN);
    }
    for subject in ours(results) {
        push(text, format_args!("\n## Goals: `{subject}`\n"));
        text.push_str("| workloads | to kernel overlayfs | goal | to fuse-overlayfs 2 | goal |\n|---|---|---|---|---|\n");
        for target in TARGETS.iter().filter(|t| subject.contains(t.option)) {
            let kernel = worst(results, target, subject, "kernel_overlay");
            let fuse = worst(results, target, subject, "fuse_overlayfs");
            if kernel.is_some() || fuse.is_some() {
                line(text, target.name, (kernel, target.kernel_overlay), (fuse, target.fuse_overlayfs));
            }
        }
        let (kernel, fuse) =
            (mean(results, subject, "kernel_overlay"), mean(results, subject, "fuse_overlayfs"));
        line(text, "geometric mean of all", (kernel, GEOMETRIC_MEAN.0), (fuse, GEOMETRIC_MEAN.1));
        absolute(text, results, subject);
    }
}

/// Ours compared with a peer.
struct Found {
    ratio: f64,
    /// The workload it comes from, or what else.
    of: String,
    /// A plain directory compared with the peer, in the same.
    plain: Option<f64>,
}

/// What was found, and the largest ratio that meets the goal.
type Goal = (Option<Found>, f64);

fn line(text: &mut String, name: &str, (kernel, k): Goal, (fuse, f): Goal) {
    push(text, format_args!("| {name} | {} | {k} | {} | {f} |", verdict(kernel, k), verdict(fuse, f)));
}

fn mean(results: &Results, subject: &str, peer: &str) -> Option<Found> {
    let ratios: Vec<f64> =
        results.workloads.iter().filter_map(|(_, w)| results.ratio(w, subject, peer)).collect();
    let ratio = geometric_mean(&ratios)?;
    Some(Found { ratio, of: format!("of {}", ratios.len()), plain: None })
}

/// The goals that are not ratios.
fn absolute(text: &mut String, results: &Results, subject: &str) {
    let (inodes, bytes) = MEMORY;
    let memory = results.memory.iter().find(|m| m.subject == subject && m.inodes == inodes);
    let mount = results.summary(LARGE, subject);
    if memory.is_none() && mount.is_none() {
        return;
    }
    text.push_str("\n| what | measured | goal |\n|---|---|---|\n");
    if let Some(found) = memory {
        let cell =
            marked(found.after_kib * 1024 <= bytes, format!("{} MB", found.after_kib * 1024 / 1_000_000));
        push(text, format_args!("| memory at {inodes} inodes | {cell} | {} MB |", bytes / 1_000_000));
    }
    if let Some(found) = mount {
        let ms = found.median / 1e6;
        let cell = marked(ms <= LARGE_MOUNT, format!("{ms:.1} ms"));
        push(text, format_args!("| {LARGE}, with catalogs | {cell} | {LARGE_MOUNT} ms |"));
    }
}

/// Bold where a goal is missed.
fn marked(met: bool, cell: String) -> String {
    if met { cell } else { format!("**{cell}**") }
}

/// The worst ratio of a target.
fn worst(results: &Results, target: &Target, subject: &str, peer: &str) -> Option<Found> {
    let found = target.workloads.iter().filter_map(|workload| {
        let ratio = results.ratio(workload, subject, peer)?;
        Some(Found { ratio, of: (*workload).to_owned(), plain: results.ratio(workload, "native", peer) })
    });
    found.max_by(|a, b| a.ratio.total_cmp(&b.ratio))
}

fn verdict(found: Option<Found>, goal: f64) -> String {
    let Some(Found { ratio, of, plain }) = found else { return "-".to_owned() };
    let met = ratio <= goal;
    let plain = plain.filter(|_| !met).map(|plain| format!(", plain {}", short(plain))).unwrap_or_default();
    format!("{} ({of}{plain})", marked(met, short(ratio)))
}
