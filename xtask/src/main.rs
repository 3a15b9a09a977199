//! Project tasks: `cargo xtask ci | tidy | external-suites | conformance | engines | soak | bench-report`, one file each.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench_report;
mod ci;
mod conformance;
mod soak;
mod tidy;

/// Runs a task of the project.
#[derive(Debug, Parser)]
#[command(name = "xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Runs what continuous integration runs: format, lints, tests, documentation.
    Ci,
    /// Checks file sizes, the order of files and where unsafe code may stand.
    Tidy,
    /// Installs the external suites (pjdfstest, fsx) below target/tools.
    ExternalSuites,
    /// Runs the external suites on plain, kernel overlayfs, the peers and ours; writes docs/conformance.md.
    Conformance(conformance::Arguments),
    /// Runs podman, buildah and docker on the union: builds, runs, commits, saves, loads. Needs the engines.
    Engines,
    /// Loads each transport for minutes beside a plain directory, then fuzzes the parser of requests.
    Soak(soak::Arguments),
    /// Measures ours beside native, kernel overlayfs and fuse-overlayfs; writes benches/results/DATE.
    BenchReport(bench_report::Arguments),
}

/// The result of a task: a message for the user if it fails.
pub(crate) type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Ci => ci::run(),
        Task::Tidy => tidy::run(),
        Task::ExternalSuites => conformance::install(),
        Task::Conformance(arguments) => conformance::run(&arguments),
        Task::Engines => ci::engines(),
        Task::Soak(arguments) => soak::run(&arguments),
        Task::BenchReport(arguments) => bench_report::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
