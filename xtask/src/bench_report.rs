//! `cargo xtask bench-report`: the criterion groups, then whole programs in a user namespace, then, as root, those in
//! which it matters whether the kernel moves the data; results go to benches/results/DATE.

use std::ffi::OsString;
use std::process::Command;

use crate::Outcome;

/// The criterion groups, one file each in `benches/`.
const GROUPS: [&str; 7] =
    ["lookup", "readdir", "small_read", "sequential", "create_unlink", "copy_up", "container_start"];

/// What is measured as root of the machine as well, and how: only there may files be handed to the kernel.
const AS_ROOT: [&str; 6] = [
    "--root",
    "--only=data,durability",
    "--subjects=native,kernel_overlay,fuse_overlayfs,unionfs",
    "--ours=data=passthrough",
    "--ours=data=passthrough,transport=dev",
    "--layers=3",
];

/// What to measure; everything unknown here is for the program `perf-report` (see `-- --help`).
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Small sizes, few samples: indicative only.
    #[arg(long)]
    quick: bool,
    /// Only these criterion groups, workloads, sections, `mount`, `memory` or `root` (what is measured as root too),
    /// separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "GROUP")]
    only: Vec<String>,
    /// Directory of the results (benches/results/DATE). What it has already of the same commit and scale is not measured
    /// again, so a run that was ended goes on, and runs with `--only` add up.
    #[arg(long, value_name = "DIR")]
    out: Option<OsString>,
    /// Leave the criterion groups out; what they measured in the last hours is still reported.
    #[arg(long)]
    no_criterion: bool,
    /// More arguments for `perf-report`.
    #[arg(last = true)]
    more: Vec<OsString>,
}

/// Builds, measures, writes.
pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let mut build = cargo();
    build.args(["build", "--release", "--package", "perf", "--bins"]);
    succeed(build)?;
    let (groups, rest): (Vec<&String>, Vec<&String>) =
        arguments.only.iter().partition(|o| GROUPS.contains(&o.as_str()));
    if !arguments.no_criterion {
        for group in GROUPS.iter().filter(|g| arguments.only.is_empty() || groups.iter().any(|o| o == *g)) {
            let mut bench = cargo();
            bench.args(["bench", "--package", "perf", "--bench", group, "--", "--noplot"]);
            if arguments.quick {
                bench.arg("--quick");
            }
            succeed(bench)?;
        }
    }
    let words: Vec<&str> = rest.iter().map(|o| o.as_str()).collect();
    if arguments.only.is_empty() || words != ["root"] {
        // A word that names nothing leaves every workload out when only criterion groups are wanted.
        let only = (!arguments.only.is_empty()).then(|| format!("--only={},criterion", words.join(",")));
        report(arguments, only)?;
    }
    let all_as_root = arguments.more.iter().any(|word| word == "--root");
    if is_root() && !all_as_root && (arguments.only.is_empty() || words.contains(&"root")) {
        report(arguments, AS_ROOT.map(str::to_owned))?;
    }
    Ok(())
}

/// Runs `perf-report` with what was asked for and `more`.
fn report(arguments: &Arguments, more: impl IntoIterator<Item = String>) -> Outcome {
    let mut report = cargo();
    report.args(["run", "--release", "--package", "perf", "--bin", "perf-report", "--"]);
    if arguments.quick {
        report.arg("--quick");
    }
    if let Some(out) = &arguments.out {
        report.arg("--out").arg(out);
    }
    report.args(more).args(&arguments.more);
    succeed(report)
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn succeed(mut command: Command) -> Outcome {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?} failed: {status}")),
        Err(e) => Err(format!("cannot run {command:?}: {e}")),
    }
}
