//! Running a tier again as an ordinary user: with fusermount3, in a user namespace with or without ranges.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::mounted;

/// Who runs the tests of a re-executed tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An ordinary user of the host; mounts go through fusermount3.
    Plain,
    /// Root of a user namespace with a range of ids.
    Namespace,
    /// Root of a user namespace that maps only one id.
    SingleId,
}

impl Role {
    const fn word(self) -> &'static str {
        match self {
            Self::Plain => "user",
            Self::Namespace => "userns",
            Self::SingleId => "single",
        }
    }

    /// Returns the words before a command that make it run in this role.
    fn command(self) -> Vec<&'static str> {
        let mut words: Vec<&str> = Vec::new();
        if is_real_root() {
            words.extend(["setpriv", "--reuid=tester", "--regid=tester", "--init-groups", "--"]);
        }
        match self {
            Self::Plain => {}
            Self::Namespace => words.extend(["unshare", "-m", "--map-root-user", "--map-auto", "--"]),
            Self::SingleId => words.extend(["unshare", "-m", "--map-root-user", "--"]),
        }
        words
    }

    /// Returns the role that this process was started in by [`run_again`], if any.
    pub fn current() -> Option<Self> {
        let word = std::env::var("E2E_AS").ok()?;
        [Self::Plain, Self::Namespace, Self::SingleId].into_iter().find(|role| role.word() == word)
    }
}

/// Returns whether this process is root in the initial user namespace.
pub fn is_real_root() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
    rustix::process::geteuid().is_root() && whole
}

/// Returns the number of ids that this process may give to files, 1 if only its own.
pub fn owned_ids() -> u64 {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let count = |line: &str| line.split_whitespace().nth(2).and_then(|n| n.parse::<u64>().ok());
    if rustix::process::geteuid().is_root() { map.lines().filter_map(count).sum() } else { 1 }
}

/// Runs the tests named by `filter` of this test binary again in `role`, and panics if they fail.
///
/// As root of the host the user `tester` is taken; otherwise the present one. The programs are copied to a
/// directory that this user can reach.
pub fn run_again(role: Role, filter: &str) {
    rerun(Some(role), &["--test-threads=2", filter], &[]);
}

/// Runs the tests named by `filter` of this test binary again, in `role` or as now, with catalogs of all lower layers.
pub fn run_with_catalogs(role: Option<Role>, filter: &str) {
    rerun(role, &["--test-threads=2", filter], &[("E2E_CATALOGS", OsStr::new("1"))]);
}

/// Runs an ignored test again, in `role` or as now, with more variables.
pub fn run_measurement(role: Option<Role>, filter: &str, environment: &[(&str, &OsStr)]) {
    rerun(role, &["--ignored", "--exact", filter], environment);
}

fn rerun(role: Option<Role>, arguments: &[&str], environment: &[(&str, &OsStr)]) {
    let scratch = tempfile::Builder::new().prefix("u-").tempdir_in(mounted::scratch_base()).unwrap();
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
    let test = copy_program(&std::env::current_exe().unwrap(), scratch.path());
    let union = copy_program(&mounted::union_program(), scratch.path());
    for suite in crate::suites::NAMES.map(crate::suites::program).iter().filter(|program| program.exists()) {
        copy_program(suite, scratch.path());
    }
    let mut words = role.map_or_else(Vec::new, Role::command);
    words.extend(["timeout", if arguments.contains(&"--ignored") { "7200" } else { "900" }]);
    let word = role.map_or("root", Role::word);
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .arg(&test)
        .args(arguments)
        .env("E2E_UNION", &union)
        .env("E2E_TOOLS", scratch.path())
        .env("E2E_DIR", scratch.path())
        .env("HOME", scratch.path())
        .env("TMPDIR", scratch.path())
        .envs(environment.iter().copied())
        .current_dir(scratch.path());
    if role.is_some() {
        command.env("E2E_AS", word);
    }
    // Into files: the end of a pipe would be waited for until the last server has let go of it that a failed test left.
    let [out, err] = ["stdout", "stderr"].map(|name| scratch.path().join(name));
    command.stdin(Stdio::null());
    command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
    if arguments.contains(&"--ignored") {
        // The rows of a measurement show as they come.
        command.stderr(Stdio::inherit());
    }
    let status = command.status().unwrap();
    let [stdout, stderr] = [out, err].map(|path| {
        String::from_utf8(std::fs::read(path).unwrap())
            .unwrap_or_else(|error| error.as_bytes().escape_ascii().to_string())
    });
    for line in stderr.lines().filter(|line| !line.is_empty()) {
        crate::require::say(&format!("{line} (as {word})"));
    }
    let summary = stdout.lines().find(|line| line.starts_with("test result:")).unwrap_or("no result");
    crate::require::say(&format!("as {word}: {summary}"));
    assert!(status.success(), "as {word}: {status}\n{stdout}\n{stderr}");
    assert!(!summary.contains(" 0 passed"), "as {word}: no test ran: {summary}");
}

/// Copies a program into a directory, to be executed by anybody, and returns where.
pub fn copy_program(program: &Path, directory: &Path) -> PathBuf {
    let target = directory.join(program.file_name().unwrap());
    install(program, &target);
    target
}

/// Copies a program to `target`, to be executed by anybody.
///
/// By another process: a descriptor for writing in this one would be inherited by what other tests start just then, and the
/// program could not be executed (ETXTBSY) until they have let go of it.
pub fn install(program: &Path, target: &Path) {
    let status =
        Command::new("install").args(["-m", "0755", "--"]).arg(program).arg(target).status().unwrap();
    assert!(status.success(), "install {}: {status}", program.display());
}
