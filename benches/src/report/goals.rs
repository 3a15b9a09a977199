//! The tables of goals, one for each configuration of ours.

use super::{ours, push, short};
use crate::samples::Results;
use crate::special::LARGE;
use crate::stats::geometric_mean;
use crate::targets::{GEOMETRIC_MEAN, LARGE_MOUNT, MEMORY, TARGETS, Target};

/// Writes all of them.
pub(super) fn write(text: &mut String, results: &Results) {
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

/// What is compared with a peer, and the largest ratio that meets the goal.
type Goal = (Option<(f64, String)>, f64);

fn line(text: &mut String, name: &str, (kernel, k): Goal, (fuse, f): Goal) {
    push(text, format_args!("| {name} | {} | {k} | {} | {f} |", verdict(kernel, k), verdict(fuse, f)));
}

fn mean(results: &Results, subject: &str, peer: &str) -> Option<(f64, String)> {
    let ratios: Vec<f64> =
        results.workloads.iter().filter_map(|(_, w)| results.ratio(w, subject, peer)).collect();
    geometric_mean(&ratios).map(|mean| (mean, format!("of {}", ratios.len())))
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

/// The worst ratio of a target and the workload it comes from.
fn worst(results: &Results, target: &Target, subject: &str, peer: &str) -> Option<(f64, String)> {
    let ratios =
        target.workloads.iter().filter_map(|w| Some((results.ratio(w, subject, peer)?, (*w).to_owned())));
    ratios.max_by(|a, b| a.0.total_cmp(&b.0))
}

fn verdict(found: Option<(f64, String)>, goal: f64) -> String {
    match found {
        None => "-".to_owned(),
        Some((ratio, of)) => format!("{} ({of})", marked(ratio <= goal, short(ratio))),
    }
}
