//! The suites that nobody in this project wrote, and the table of who passes them.

use std::path::PathBuf;

use clap::Args;

use crate::Outcome;
use crate::ci::{call, workspace};

/// The suites, as crates at fixed versions.
const SUITES: [(&str, &str); 2] = [("pjdfstest", "0.2.2"), ("fsx", "0.3.2")];

/// What to compare.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Number of fsx operations on each file system.
    #[arg(long, default_value_t = 20_000)]
    pub(crate) fsx_ops: u32,
}

/// Returns where the suites are installed.
pub(crate) fn tools() -> PathBuf {
    workspace().join("target/tools")
}

/// Installs the suites below target/tools unless they are there.
pub(crate) fn install() -> Outcome {
    for (suite, version) in SUITES {
        if tools().join("bin").join(suite).exists() {
            continue;
        }
        let arguments = [
            "install",
            "--quiet",
            "--locked",
            "--debug",
            "--root",
            "target/tools",
            "--version",
            version,
            suite,
        ];
        call("cargo", &arguments, &[])?;
    }
    Ok(())
}

/// Runs every suite on every file system through the `conformance` tier and writes docs/conformance.md.
pub(crate) fn run(arguments: &Arguments) -> Outcome {
    install()?;
    let ops = arguments.fsx_ops.to_string();
    let words = "test --package e2e --test conformance -- --ignored --exact table::table --nocapture";
    let test: Vec<&str> = words.split(' ').collect();
    call("cargo", &test, &[("E2E_FSX_OPS", &ops), ("E2E_CONFORMANCE_TABLE", "docs/conformance.md")])
}
