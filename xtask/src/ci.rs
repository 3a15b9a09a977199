//! What continuous integration checks, in the order in which a mistake is found soonest.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;

/// Returns the root of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Runs `program` with `arguments` in the workspace, and tells what failed.
pub(crate) fn call(program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Outcome {
    let shown = format!("{program} {}", arguments.join(" "));
    eprintln!("+ {shown}");
    let status = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(workspace())
        .status()
        .map_err(|error| format!("cannot run {shown}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{shown}: {status}")) }
}

/// Format, lints, every test (a skip is a failure), documentation.
pub(crate) fn run() -> Outcome {
    call("cargo", &["fmt", "--all", "--check"], &[])?;
    call("cargo", &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"], &[])?;
    crate::conformance::install()?;
    call("cargo", &["test", "--workspace"], &[("E2E_STRICT", "1")])?;
    call("cargo", &["doc", "--workspace", "--no-deps", "--quiet"], &[("RUSTDOCFLAGS", "-D warnings")])
}

/// Container engines on the union: ignored tests, because they take minutes and need the engines.
///
/// In a mount namespace of its own where that is allowed, so that nothing stays mounted; without the unified half of a hybrid
/// hierarchy of cgroups, which crun refuses.
pub(crate) fn engines() -> Outcome {
    let test = "exec cargo test --package e2e --test engines -- --ignored --test-threads=1";
    let apart = format!("mountpoint -q /sys/fs/cgroup/unified && umount /sys/fs/cgroup/unified; {test}");
    match call("unshare", &["-m", "true"], &[]) {
        Ok(()) => call("unshare", &["-m", "sh", "-c", &apart], &[]),
        Err(_) => call("sh", &["-c", test], &[]),
    }
}
