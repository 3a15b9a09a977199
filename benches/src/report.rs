//! What a run leaves behind: `raw.json`, a README with the tables, and the plots.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use crate::criterion_report::Micro;
use crate::failure::{During, Result};
use crate::plot::{self, Series};
use crate::samples::Results;
use crate::special::{LAYERS, mount_name};
use crate::stats::geometric_mean;
use crate::targets::{GEOMETRIC_MEAN, TARGETS, Target};

#[derive(Serialize)]
struct Raw<'a> {
    results: &'a Results,
    criterion: &'a [Micro],
}

/// Writes everything into `dir`.
pub fn write(dir: &Path, results: &Results, micro: &[Micro]) -> Result<()> {
    std::fs::create_dir_all(dir).during(format_args!("make {}", dir.display()))?;
    let raw = serde_json::to_string_pretty(&Raw { results, criterion: micro }).during("write raw.json")?;
    let mut files = vec![("raw.json".to_owned(), raw), ("README.md".to_owned(), readme(results, micro))];
    files.extend(plots(results, micro));
    for (name, text) in files {
        std::fs::write(dir.join(&name), text).during(format_args!("write {name}"))?;
    }
    println!("results: {}", dir.display());
    Ok(())
}

fn readme(results: &Results, micro: &[Micro]) -> String {
    let mut text = String::from("# Benchmark results\n\n");
    for (name, value) in &results.facts {
        push(&mut text, format_args!("- {name}: {value}"));
    }
    push(&mut text, format_args!("- load average at each round: {}", results.load.join("; ")));
    text.push_str(METHOD);
    if !results.samples.is_empty() || !results.requests.is_empty() {
        targets(&mut text, results);
        times(&mut text, results);
        requests(&mut text, results);
        server_time(&mut text, results);
    }
    memory(&mut text, results);
    if !micro.is_empty() {
        text.push_str("\n## Single operations (criterion; medians)\n\n![copy-up](copy_up.svg)\n");
        groups(&mut text, micro);
    }
    if !results.gaps.is_empty() {
        text.push_str("\n## Not measured\n\n");
        for gap in &results.gaps {
            push(&mut text, format_args!("- {}, {}: {}", gap.workload, gap.subject, gap.reason));
        }
    }
    text
}

const METHOD: &str = "
Every round runs each workload on each subject in turn, in rotating order, on a fresh mount with an empty upper. Times
are wall times of whole programs (or of the loop itself where `perf-load` makes the load); given are the median and, in
parentheses, half the interquartile range. Ratios are medians divided by medians: below 1 is faster than the peer.
`cold`: fresh mount, lower data and dentries in memory. `warm`: the same again on the same mount. Background load
(other work on the machine) disturbs all subjects of a round alike, not evenly: where the spread is large, read the
ratios, not the times. Requests were counted in a separate pass through the tracepoint `fuse:fuse_request_send`.
Plots show ratios to kernel overlayfs.

![ratios](ratios.svg)
";

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    writeln!(text, "{line}").ok();
}

/// Our configurations among the subjects.
fn ours(results: &Results) -> Vec<&String> {
    results.subjects.iter().filter(|s| s.starts_with("unionfs")).collect()
}

fn targets(text: &mut String, results: &Results) {
    for subject in ours(results) {
        push(text, format_args!("\n## Goals: `{subject}`\n"));
        text.push_str("| workloads | to kernel overlayfs | goal | to fuse-overlayfs 2 | goal |\n|---|---|---|---|---|\n");
        for target in TARGETS {
            let kernel = worst(results, target, subject, "kernel_overlay");
            let fuse = worst(results, target, subject, "fuse_overlayfs");
            let (k, f) = (verdict(kernel, target.kernel_overlay), verdict(fuse, target.fuse_overlayfs));
            push(
                text,
                format_args!(
                    "| {} | {k} | {} | {f} | {} |",
                    target.name, target.kernel_overlay, target.fuse_overlayfs
                ),
            );
        }
        let mean = |peer: &str| {
            let ratios: Vec<f64> =
                results.workloads.iter().filter_map(|(_, w)| results.ratio(w, subject, peer)).collect();
            geometric_mean(&ratios).map(|mean| (mean, format!("of {}", ratios.len())))
        };
        let k = verdict(mean("kernel_overlay"), GEOMETRIC_MEAN.0);
        let f = verdict(mean("fuse_overlayfs"), GEOMETRIC_MEAN.1);
        push(
            text,
            format_args!(
                "| geometric mean of all | {k} | {} | {f} | {} |",
                GEOMETRIC_MEAN.0, GEOMETRIC_MEAN.1
            ),
        );
    }
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
        Some((ratio, of)) if ratio <= goal => format!("{} ({of})", short(ratio)),
        Some((ratio, of)) => format!("**{}** ({of})", short(ratio)),
    }
}

fn short(ratio: f64) -> String {
    if ratio < 0.095 { format!("{ratio:.3}") } else { format!("{ratio:.2}") }
}

fn duration(ns: f64) -> String {
    match ns {
        _ if ns >= 1e9 => format!("{:.2} s", ns / 1e9),
        _ if ns >= 1e6 => format!("{:.1} ms", ns / 1e6),
        _ if ns >= 1e3 => format!("{:.1} us", ns / 1e3),
        _ => format!("{ns:.0} ns"),
    }
}

fn times(text: &mut String, results: &Results) {
    let mut section = "";
    for (next, workload) in &results.workloads {
        if !results.samples.iter().any(|s| s.workload == *workload) {
            continue;
        }
        if section != next {
            section = next;
            push(text, format_args!("\n## {section}\n"));
            let ratios: String = ours(results)
                .iter()
                .map(|o| format!(" {o} / kernel_overlay | {o} / fuse_overlayfs | {o} / fuse_overlayfs_1 |"))
                .collect();
            push(text, format_args!("| workload | {} |{ratios}", results.subjects.join(" | ")));
            let columns = 1 + results.subjects.len() + 3 * ours(results).len();
            push(text, format_args!("|{}", "---|".repeat(columns)));
        }
        let cells: Vec<String> = results
            .subjects
            .iter()
            .map(|s| {
                results.summary(workload, s).map_or_else(
                    || "-".to_owned(),
                    |c| format!("{} ({:.0} %)", duration(c.median), 50.0 * c.relative_spread()),
                )
            })
            .collect();
        let ratio = |s: &str, peer| results.ratio(workload, s, peer).map_or_else(|| "-".to_owned(), short);
        let ratios: String = ours(results)
            .iter()
            .flat_map(|s| ["kernel_overlay", "fuse_overlayfs", "fuse_overlayfs_1"].map(|p| ratio(s, p)))
            .map(|cell| format!(" {cell} |"))
            .collect();
        push(text, format_args!("| {workload} | {} |{ratios}", cells.join(" | ")));
    }
}

fn requests(text: &mut String, results: &Results) {
    if results.requests.is_empty() {
        return;
    }
    text.push_str("\n## FUSE requests of one execution\n\n");
    let servers: Vec<&String> =
        results.subjects.iter().filter(|s| results.requests.iter().any(|r| r.subject == **s)).collect();
    let names: Vec<&str> = servers.iter().map(|s| s.as_str()).collect();
    push(text, format_args!("| workload | {} | kinds (last column's server) |", names.join(" | ")));
    push(text, format_args!("|{}", "---|".repeat(servers.len() + 2)));
    for (_, workload) in &results.workloads {
        let counted = results.requests.iter().rfind(|r| r.workload == *workload);
        let Some(last) = counted else { continue };
        let cell =
            |s: &&String| results.requests(workload, s).map_or_else(|| "-".to_owned(), |n| n.to_string());
        let cells: Vec<String> = servers.iter().map(cell).collect();
        let mut kinds: Vec<(&String, &u64)> = last.by_kind.iter().collect();
        kinds.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        let kinds: Vec<String> = kinds.iter().map(|(k, n)| format!("{k} {n}")).collect();
        push(text, format_args!("| {workload} | {} | {} |", cells.join(" | "), kinds.join(", ")));
    }
}

/// Less disturbed by other load than the wall times, and what a battery pays for.
fn server_time(text: &mut String, results: &Results) {
    let servers: Vec<&String> = results
        .subjects
        .iter()
        .filter(|s| results.workloads.iter().any(|(_, w)| results.server_cpu(w, s).is_some()))
        .collect();
    if servers.is_empty() {
        return;
    }
    text.push_str("\n## Processor time of the server in one execution (medians)\n\n");
    let names: Vec<&str> = servers.iter().map(|s| s.as_str()).collect();
    push(text, format_args!("| workload | {} |", names.join(" | ")));
    push(text, format_args!("|{}", "---|".repeat(servers.len() + 1)));
    for (_, workload) in results.workloads.iter().filter(|(section, _)| section != "mount") {
        let cell = |s: &&String| results.server_cpu(workload, s).map_or_else(|| "-".to_owned(), duration);
        let cells: Vec<String> = servers.iter().map(cell).collect();
        push(text, format_args!("| {workload} | {} |", cells.join(" | ")));
    }
}

fn memory(text: &mut String, results: &Results) {
    if results.memory.is_empty() {
        return;
    }
    text.push_str("\n## Memory of the server after walking many inodes (`find`, one layer)\n\n");
    text.push_str(
        "| subject | inodes | before | after | bytes an inode | descriptors |\n|---|---|---|---|---|---|\n",
    );
    for m in &results.memory {
        let each =
            (m.after_kib.saturating_sub(m.before_kib) * 1024).checked_div(m.inodes as u64).unwrap_or(0);
        let (subject, inodes) = (&m.subject, m.inodes);
        push(
            text,
            format_args!(
                "| {subject} | {inodes} | {} KiB | {} KiB | {each} | {} |",
                m.before_kib, m.after_kib, m.descriptors
            ),
        );
    }
}

/// The values of `key` in order of their first appearance.
fn distinct<'a>(micro: &[&'a Micro], key: impl Fn(&'a Micro) -> &'a str) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for one in micro.iter().copied().map(key) {
        if !seen.contains(&one) {
            seen.push(one);
        }
    }
    seen
}

fn groups(text: &mut String, micro: &[Micro]) {
    let all: Vec<&Micro> = micro.iter().collect();
    for group in distinct(&all, |m| &m.group) {
        let members: Vec<&Micro> = micro.iter().filter(|m| m.group == group).collect();
        let subjects = distinct(&members, |m| &m.subject);
        push(
            text,
            format_args!(
                "\n### {group}\n\n| | {} |\n|{}",
                subjects.join(" | "),
                "---|".repeat(subjects.len() + 1)
            ),
        );
        let mut parameters = distinct(&members, |m| &m.parameter);
        parameters.sort_by_key(|p| size_order(p));
        for parameter in parameters {
            let cells: Vec<String> = subjects
                .iter()
                .map(|s| {
                    let cell = members.iter().find(|m| m.subject == *s && m.parameter == parameter);
                    cell.map_or_else(|| "-".to_owned(), |m| duration(m.median_ns))
                })
                .collect();
            push(text, format_args!("| {parameter} | {} |", cells.join(" | ")));
        }
    }
}

/// Orders `1_KiB`, `64_KiB`, `1_MiB`, `1_GiB` by size, other words alphabetically after them.
fn size_order(parameter: &str) -> (u64, String) {
    let (number, unit) = parameter.split_once('_').unwrap_or((parameter, ""));
    let unit = match unit {
        "KiB" => 1,
        "MiB" => 1 << 10,
        "GiB" => 1 << 20,
        _ => return (u64::MAX, parameter.to_owned()),
    };
    (number.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(unit), String::new())
}

fn plots(results: &Results, micro: &[Micro]) -> Vec<(String, String)> {
    let mut plots = Vec::new();
    if !results.samples.is_empty() {
        plots.push(("ratios.svg".to_owned(), ratio_plot(results)));
        plots.push(("mount.svg".to_owned(), mount_plot(results)));
    }
    if micro.iter().any(|m| m.group == "copy_up_whole") {
        plots.push(("copy_up.svg".to_owned(), copy_up_plot(micro)));
    }
    let start: Vec<(String, f64)> = micro
        .iter()
        .filter(|m| m.group == "container_start")
        .map(|m| (m.subject.clone(), m.median_ns / 1e6))
        .collect();
    if !start.is_empty() {
        let svg = plot::bars("Start, run true, end", "median of whole commands", "ms", &start);
        plots.push(("container_start.svg".to_owned(), svg));
    }
    plots
}

/// Ours first, then the peers.
fn ordered(results: &Results) -> Vec<&String> {
    let (ours, peers): (Vec<_>, Vec<_>) = results.subjects.iter().partition(|s| s.starts_with("unionfs"));
    ours.into_iter().chain(peers.into_iter().rev()).collect()
}

fn ratio_plot(results: &Results) -> String {
    let rows: Vec<&String> = results
        .workloads
        .iter()
        .map(|(_, w)| w)
        .filter(|w| results.summary(w, "kernel_overlay").is_some() && !w.starts_with("mount_"))
        .collect();
    let series: Vec<Series> = ordered(results)
        .into_iter()
        .filter(|s| *s != "kernel_overlay")
        .map(|s| Series {
            name: s.clone(),
            values: rows.iter().map(|w| results.ratio(w, s, "kernel_overlay")).collect(),
        })
        .collect();
    let labels: Vec<String> = rows.into_iter().cloned().collect();
    let subtitle = "median time divided by kernel overlayfs's (logarithmic): left of 1 is faster; at the edge: 0.005 or less";
    plot::ratios("Whole programs on the union", subtitle, &labels, &series)
}

fn mount_plot(results: &Results) -> String {
    let positions: Vec<String> = LAYERS.iter().map(|n| n.to_string()).collect();
    let series: Vec<Series> = ordered(results)
        .into_iter()
        .filter(|s| *s != "native")
        .map(|s| Series {
            name: s.clone(),
            values: LAYERS.iter().map(|n| Some(results.summary(&mount_name(*n), s)?.median / 1e6)).collect(),
        })
        .collect();
    plot::lines(
        "Mount of many layers",
        "median time in ms until the root is listed, by number of layers (logarithmic)",
        &positions,
        &series,
    )
}

fn copy_up_plot(micro: &[Micro]) -> String {
    let members: Vec<&Micro> = micro.iter().filter(|m| m.group == "copy_up_whole").collect();
    let mut sizes = distinct(&members, |m| &m.parameter);
    sizes.sort_by_key(|p| size_order(p));
    let mut subjects = distinct(&members, |m| &m.subject);
    subjects.sort_by_key(|s| !s.starts_with("unionfs"));
    let cell = |subject: &str, size: &str| {
        members.iter().find(|m| m.subject == subject && m.parameter == size).map(|m| m.median_ns / 1e3)
    };
    let series: Vec<Series> = subjects
        .iter()
        .map(|s| Series { name: (*s).to_owned(), values: sizes.iter().map(|p| cell(s, p)).collect() })
        .collect();
    let positions: Vec<String> = sizes.iter().map(|s| s.replace('_', " ")).collect();
    plot::lines(
        "First write of one byte to a lower file",
        "median time in us by the file's size (logarithmic); tmpfs, whole copy",
        &positions,
        &series,
    )
}
