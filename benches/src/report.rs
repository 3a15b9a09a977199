//! What a run leaves behind: `raw.json`, a README with the tables, and the plots.

use std::fmt::Write;
use std::path::Path;

use crate::criterion_report::Micro;
use crate::failure::{During, Result};
use crate::plot::{self, Series};
use crate::raw::Raw;
use crate::samples::Results;
use crate::special::{LAYERS, mount_name};

mod goals;

/// Writes everything into `dir`.
pub fn write(dir: &Path, raw: &Raw) -> Result<()> {
    raw.save(dir)?;
    let mut files = vec![("README.md".to_owned(), readme(raw))];
    files.extend(raw.parts.iter().enumerate().flat_map(|(i, part)| plots(part, i)));
    files.extend(micro_plots(&raw.criterion));
    for (name, text) in files {
        std::fs::write(dir.join(&name), text).during(format_args!("write {name}"))?;
    }
    println!("results: {}", dir.display());
    Ok(())
}

fn readme(raw: &Raw) -> String {
    let mut text = String::from("# Benchmark results\n\n");
    for (i, part) in raw.parts.iter().enumerate() {
        if i > 0 {
            let privilege = part.fact("privilege").unwrap_or("another privilege");
            push(&mut text, format_args!("\n# The same, {privilege}\n"));
        }
        for (name, value) in &part.facts {
            push(&mut text, format_args!("- {name}: {value}"));
        }
        push(&mut text, format_args!("- load average at each round: {}", part.load.join("; ")));
        if i == 0 {
            text.push_str(METHOD);
        }
        tables(&mut text, part, i);
    }
    if !raw.criterion.is_empty() {
        text.push_str("\n# Single operations (criterion; medians)\n");
        for (name, _) in micro_plots(&raw.criterion) {
            push(&mut text, format_args!("\n![{0}]({0})", name));
        }
        groups(&mut text, &raw.criterion);
    }
    text
}

fn tables(text: &mut String, results: &Results, part: usize) {
    if !results.samples.is_empty() || !results.requests.is_empty() {
        for (name, _) in plots(results, part) {
            push(text, format_args!("\n![{0}]({0})", name));
        }
        goals::write(text, results);
        times(text, results);
        requests(text, results);
        server_time(text, results);
    }
    memory(text, results);
    if !results.gaps.is_empty() {
        text.push_str("\n## Not measured\n\n");
        for gap in &results.gaps {
            push(text, format_args!("- {}, {}: {}", gap.workload, gap.subject, gap.reason));
        }
    }
}

const METHOD: &str = "
Every round runs each workload on each subject in turn, in rotating order, on a fresh mount with an empty upper. Times
are wall times of whole programs (or of the loop itself where `perf-load` makes the load); given are the median and, in
parentheses, half the interquartile range. Ratios are medians divided by medians: below 1 is faster than the peer.
`cold`: fresh mount, lower data and dentries in memory. `warm`: the same again on the same mount. Background load
(other work on the machine) disturbs all subjects of a round alike, not evenly: where the spread is large, read the
ratios, not the times. Requests were counted in a separate pass through the tracepoint `fuse:fuse_request_send`.
Plots show ratios to kernel overlayfs. `NAME@20`: the real tree in 20 layers. `seq_read_new` reads what was just written.
";

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    writeln!(text, "{line}").ok();
}

/// Our configurations among the subjects.
fn ours(results: &Results) -> Vec<&String> {
    results.subjects.iter().filter(|s| s.starts_with("unionfs")).collect()
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

/// The plots of a part; those of the first have the plain names.
fn plots(results: &Results, part: usize) -> Vec<(String, String)> {
    let name = |of: &str| if part == 0 { format!("{of}.svg") } else { format!("{of}-{}.svg", part + 1) };
    let mut plots = Vec::new();
    if results.samples.iter().any(|s| !s.workload.starts_with("mount_")) {
        plots.push((name("ratios"), ratio_plot(results)));
    }
    if results.samples.iter().any(|s| s.workload.starts_with("mount_")) {
        plots.push((name("mount"), mount_plot(results)));
    }
    plots
}

fn micro_plots(micro: &[Micro]) -> Vec<(String, String)> {
    let mut plots = Vec::new();
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
