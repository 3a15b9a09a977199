//! The suites that nobody in this project wrote: pjdfstest and fsx, as crates installed below target/tools, and
//! stress-ng.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The programs.
pub const NAMES: [&str; 2] = ["pjdfstest", "fsx"];

/// How long pjdfstest, or one run of fsx, may take.
pub const LIMIT: Duration = Duration::from_secs(240);

/// How much longer than it was told to a stressor may take, which a busy disk may hold up.
pub const GRACE: Duration = Duration::from_secs(60);

/// What pjdfstest may use: two users that every Debian has, and no remount.
const CONFIGURATION: &str = "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutimensat = {}\nutime_now = {}\n\
    [settings]\nnaptime = 0.01\nallow_remount = false\n\
    [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n";

/// Returns where a suite is installed.
pub fn program(name: &str) -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let tools =
        std::env::var_os("E2E_TOOLS").map_or_else(|| workspace.join("target/tools/bin"), PathBuf::from);
    tools.join(name)
}

/// How one case of a suite ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nothing was wrong.
    Passed,
    /// Something was wrong.
    Failed,
    /// It does not apply, cannot run here, or is not known to this version.
    Skipped,
    /// It did not end.
    TimedOut,
}

/// What a suite said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Number of cases that passed.
    pub passed: usize,
    /// The cases that do not apply.
    pub skipped: BTreeSet<String>,
    /// The cases that failed.
    pub failed: BTreeSet<String>,
    /// The cases that did not end.
    pub timed_out: BTreeSet<String>,
}

impl Verdict {
    /// Notes how a case ended.
    pub fn add(&mut self, case: &str, ended: Ended) {
        let cases = match ended {
            Ended::Passed => return self.passed += 1,
            Ended::Failed => &mut self.failed,
            Ended::Skipped => &mut self.skipped,
            Ended::TimedOut => &mut self.timed_out,
        };
        cases.insert(case.to_owned());
    }

    /// Reads the output of pjdfstest: lines "NAME ok", "NAME skipped", "NAME FAILED" with tabbed details.
    pub fn parse(output: &str) -> Self {
        let mut verdict = Self::default();
        for line in output.lines().filter(|line| !line.starts_with(['\t', ' '])) {
            let mut words = line.split_whitespace();
            match (words.next(), words.next(), words.next()) {
                (Some(name), Some("ok" | "success"), None) => verdict.add(name, Ended::Passed),
                (Some(name), Some("skipped"), None) => verdict.add(name, Ended::Skipped),
                (Some(name), Some(word), None) if word.eq_ignore_ascii_case("failed") => {
                    verdict.add(name, Ended::Failed);
                }
                _ => {}
            }
        }
        verdict
    }
}

/// Runs a program for at most `limit`; returns its exit code, if it ended by itself, and what it printed.
///
/// The output goes into a file: what a suite leaves running must not keep a pipe open.
fn run(limit: Duration, program: &Path, arguments: &[&OsStr], directory: &Path) -> (Option<i32>, String) {
    let log = tempfile::NamedTempFile::new().unwrap();
    let output = log.reopen().unwrap();
    let status = Command::new("timeout")
        .args(["--kill-after=5", &limit.as_secs().to_string()])
        .arg(program)
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .status()
        .unwrap();
    let text = std::fs::read(log.path()).unwrap().escape_ascii().to_string();
    let text = text.replace("\\n", "\n").replace("\\t", "\t");
    // 124 and 137 (SIGKILL) are what timeout(1) says of a program that it had to end.
    (status.code().filter(|code| ![124, 137].contains(code)), text)
}

/// Returns the end of what a suite printed.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().rev().take(30).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// Runs pjdfstest in a fresh directory below `root`.
pub fn pjdfstest(root: &Path) -> (Verdict, String) {
    let directory = root.join("pjd");
    std::fs::create_dir_all(&directory).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&directory, mode).unwrap();
    let configuration = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    std::fs::write(configuration.path(), CONFIGURATION).unwrap();
    let arguments =
        [OsStr::new("-c"), configuration.path().as_os_str(), OsStr::new("-p"), directory.as_os_str()];
    let (code, text) = run(LIMIT, &program("pjdfstest"), &arguments, Path::new("/"));
    let mut verdict = Verdict::parse(&text);
    match code {
        None => verdict.add("the rest", Ended::TimedOut),
        Some(_) if !text.contains("Summary: ") => verdict.add("the rest", Ended::Failed),
        Some(_) => {}
    }
    (verdict, text)
}

/// What fsx may do beside reading and writing, directly and through mappings, and truncating. What is written through a
/// mapping stays in memory: fsx would wait for the disk each time.
const OPERATIONS: &str = "nomsyncafterwrite = true\n[weights]\nclose_open = 0.5\ninvalidate = 0.5\nfsync = 0.02\nfdatasync = 0.02\n\
    posix_fallocate = 1.0\npunch_hole = 1.0\nsendfile = 0.5\ncopy_file_range = 1.0\n";

/// Runs `count` operations of fsx on a file `name` below `root`; returns its last words too.
pub fn fsx(root: &Path, name: &str, count: u64, seed: u64) -> (Ended, String) {
    let artifacts = tempfile::tempdir().unwrap();
    let configuration = artifacts.path().join("fsx.toml");
    std::fs::write(&configuration, OPERATIONS).unwrap();
    let [count, seed] = [count, seed].map(|number| number.to_string());
    let words = ["-N", &count, "-S", &seed, "-P"].map(OsStr::new);
    let file = root.join(name);
    let arguments = [
        &[OsStr::new("-f"), configuration.as_os_str()],
        words.as_slice(),
        &[artifacts.path().as_os_str(), file.as_os_str()],
    ];
    let (code, text) = run(LIMIT, &program("fsx"), &arguments.concat(), artifacts.path());
    let ended = match code {
        Some(0) => Ended::Passed,
        Some(_) => Ended::Failed,
        None => Ended::TimedOut,
    };
    (ended, tail(&text))
}

/// The stressors of stress-ng that work on files of a directory and can verify what they see. Not among them is fanotify,
/// which listens on every mount of the host.
pub const STRESSORS: [&str; 37] = [
    "access",
    "chattr",
    "chdir",
    "chmod",
    "chown",
    "copy-file",
    "dentry",
    "dir",
    "dirdeep",
    "dirmany",
    "dnotify",
    "dup",
    "fallocate",
    "fcntl",
    "fiemap",
    "file-ioctl",
    "filename",
    "flock",
    "fpunch",
    "fstat",
    "getdent",
    "hdd",
    "inode-flags",
    "inotify",
    "io",
    "iomix",
    "ioprio",
    "lease",
    "link",
    "locka",
    "lockf",
    "lockofd",
    "open",
    "rename",
    "symlink",
    "sync-file",
    "xattr",
];

/// The stressors that a short run does: one of each kind.
pub const SHORT_STRESSORS: [&str; 8] =
    ["chmod", "dentry", "fallocate", "flock", "hdd", "lockofd", "rename", "xattr"];

/// Runs one stressor for `seconds` in a directory of its own below `root`, with verification.
pub fn stress(root: &Path, stressor: &str, seconds: u32) -> (Ended, String) {
    let directory = root.join(format!("stress-{stressor}"));
    std::fs::create_dir_all(&directory).unwrap();
    let [option, seconds_text] = [format!("--{stressor}"), seconds.to_string()];
    let words = ["--verify", "--oomable", &option, "1", "--timeout", &seconds_text, "--temp-path"];
    let arguments = [words.map(OsStr::new).as_slice(), &[directory.as_os_str()]].concat();
    let limit = Duration::from_secs(seconds.into()) + GRACE;
    let (code, text) = run(limit, Path::new("stress-ng"), &arguments, Path::new("/"));
    let ended = match code {
        Some(0) if text.contains("skipp") && !text.contains("successful run") => Ended::Skipped,
        Some(0) => Ended::Passed,
        // Not implemented, or the stressor is not known.
        Some(1 | 3 | 4) => Ended::Skipped,
        Some(_) => Ended::Failed,
        None => Ended::TimedOut,
    };
    (ended, text)
}
