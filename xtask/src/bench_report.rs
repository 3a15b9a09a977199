//! `cargo xtask bench-report`: the criterion groups, then whole programs; results go to benches/results/DATE.

use std::ffi::OsString;
use std::process::Command;

use crate::Outcome;

/// The criterion groups, one file each in `benches/`.
const GROUPS: [&str; 7] =
    ["lookup", "readdir", "small_read", "sequential", "create_unlink", "copy_up", "container_start"];

/// What to measure; everything unknown here is for the program `perf-report` (see `-- --help`).
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Small sizes, few samples: indicative only.
    #[arg(long)]
    quick: bool,
    /// Only these criterion groups, workloads, sections, `mount` or `memory` (separated by commas).
    #[arg(long, value_delimiter = ',', value_name = "GROUP")]
    only: Vec<String>,
    /// Directory of the results (benches/results/DATE).
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
    let mut report = cargo();
    report.args(["run", "--release", "--package", "perf", "--bin", "perf-report", "--"]);
    if arguments.quick {
        report.arg("--quick");
    }
    if !arguments.only.is_empty() {
        // A word that names nothing leaves every workload out when only criterion groups are wanted.
        let words: Vec<&str> = rest.iter().map(|o| o.as_str()).chain(["criterion"]).collect();
        report.arg("--only").arg(words.join(","));
    }
    if let Some(out) = &arguments.out {
        report.arg("--out").arg(out);
    }
    report.args(&arguments.more);
    succeed(report)
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
