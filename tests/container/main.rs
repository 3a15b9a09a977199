//! The runner end to end: a static probe program reports from inside.
//!
//! As root of the host the whole tier runs three times: as root, as the ordinary user `tester` with ranges of ids,
//! and as `nobody`, who has one id only.

mod files;
mod fixture;
mod isolation;
mod life;
mod limits;
mod terminal;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{mounted, require};
use runner::idmap::Kind;

/// Who runs the tests of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Root,
    Ranges,
    OneId,
}

fn who() -> Who {
    match runner::idmap::plan(&runner::idmap::Caller::load().unwrap()).kind {
        Kind::Identity => Who::Root,
        Kind::Ranges => Who::Ranges,
        Kind::Single => Who::OneId,
    }
}

/// Runs the whole tier again as another user.
fn run_again(user: &str) {
    let scratch = tempfile::Builder::new().prefix("e2e-user-").tempdir_in(mounted::scratch_base()).unwrap();
    std::fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o1777)).unwrap();
    let copy = |program: &Path, name: &str| -> PathBuf {
        let target = scratch.path().join(name);
        e2e::user::install(program, &target);
        target
    };
    let test = copy(&std::env::current_exe().unwrap(), "container");
    let runner = copy(&fixture::runner_program(), "runner");
    let probe = copy(&fixture::probe_program(), "probe");
    let group = Command::new("id").args(["-g", user]).output().unwrap();
    let group = String::from_utf8(group.stdout).unwrap();
    let output = Command::new("setpriv")
        .args([&format!("--reuid={user}"), &format!("--regid={}", group.trim()), "--init-groups", "--"])
        .args(["timeout", "900"])
        .arg(&test)
        .args(["--test-threads=2", "--skip", "again_as", "--skip", "a_covered_proc"])
        .env("E2E_RUNNER", &runner)
        .env("E2E_PROBE", &probe)
        .env("E2E_DIR", scratch.path())
        .env("HOME", scratch.path())
        .env("TMPDIR", scratch.path())
        .current_dir(scratch.path())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap_or_else(|error| error.to_string());
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    for line in stderr.lines().filter(|line| line.starts_with("SKIP ")) {
        e2e::require::say(&format!("{line} (as {user})"));
    }
    let summary = stdout.lines().find(|line| line.starts_with("test result:")).unwrap_or("no result");
    e2e::require::say(&format!("as {user}: {summary}"));
    assert!(output.status.success(), "as {user}: {}\n{stdout}\n{stderr}", output.status);
}

#[test]
fn again_as_an_ordinary_user_with_ranges() {
    require!(Root, Fuse, Tester);
    run_again("tester");
}

#[test]
fn again_as_an_ordinary_user_with_one_id() {
    require!(Root, Fuse);
    run_again("nobody");
}
