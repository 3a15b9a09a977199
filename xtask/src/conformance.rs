//! The suites that nobody in this project wrote, and the table of who passes them.

use clap::Args;

use crate::Outcome;
use crate::ci::{call, workspace};

/// The suites, as crates at fixed versions.
const SUITES: [(&str, &str); 2] = [("pjdfstest", "0.2.2"), ("fsx", "0.3.2")];

/// What to compare.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Number of fsx operations on each file system.
    #[arg(long, default_value_t = 100_000)]
    pub(crate) fsx_ops: u32,
    /// Seconds for each stressor of stress-ng.
    #[arg(long, default_value_t = 2)]
    pub(crate) stress_seconds: u32,
    /// Number of random histories of the parity suite.
    #[arg(long, default_value_t = 20)]
    pub(crate) histories: u32,
    /// Measures only the file systems whose name contains this, and writes no document.
    #[arg(long)]
    pub(crate) only: Option<String>,
}

/// The newest fuse-overlayfs, to be compared with beside the one that is installed on the system.
const PEER: (&str, &str) = ("fuse-overlayfs", "2.0.0");

/// Installs the suites below target/tools unless they are there.
pub(crate) fn install() -> Outcome {
    SUITES.iter().try_for_each(|(suite, version)| install_crate(suite, version, "target/tools", "--debug"))
}

fn install_crate(name: &str, version: &str, root: &str, profile: &str) -> Outcome {
    if workspace().join(root).join("bin").join(name).exists() {
        return Ok(());
    }
    let arguments = ["install", "--quiet", "--locked", profile, "--root", root, "--version", version, name];
    call("cargo", &arguments, &[])
}

/// Returns the programs to compare with: those of `E2E_PEERS`, or the one of the system, if it is there, and the newest, which
/// is installed below target/peers unless it is there.
fn peers() -> Result<String, String> {
    if let Ok(peers) = std::env::var("E2E_PEERS") {
        return Ok(peers);
    }
    install_crate(PEER.0, PEER.1, "target/peers", "--profile=release")?;
    let newest = workspace().join("target/peers/bin").join(PEER.0).display().to_string();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let of_system = std::env::split_paths(&path)
        .filter(|directory| !directory.ends_with(".cargo/bin"))
        .map(|directory| directory.join(PEER.0))
        .find(|program| program.exists());
    Ok(of_system.map_or(newest.clone(), |program| format!("{}:{newest}", program.display())))
}

/// Runs every suite on every file system through the `conformance` tier and writes docs/conformance.md.
pub(crate) fn run(arguments: &Arguments) -> Outcome {
    install()?;
    let peers = peers()?;
    let numbers = [arguments.fsx_ops, arguments.stress_seconds, arguments.histories].map(|n| n.to_string());
    let words = "test --package e2e --test conformance -- --ignored --exact table::table --nocapture";
    let test: Vec<&str> = words.split(' ').collect();
    let mut settings = vec![
        ("E2E_FSX_OPS", numbers[0].as_str()),
        ("E2E_STRESS_SECONDS", numbers[1].as_str()),
        ("E2E_HISTORIES", numbers[2].as_str()),
        ("E2E_PEERS", peers.as_str()),
        ("E2E_CONFORMANCE_TABLE", "docs/conformance.md"),
    ];
    settings.extend(arguments.only.as_deref().map(|only| ("E2E_ONLY", only)));
    call("cargo", &test, &settings)
}
