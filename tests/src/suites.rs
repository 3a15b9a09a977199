//! The suites that nobody in this project wrote: pjdfstest and fsx, as crates installed below target/tools, and
//! stress-ng.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The programs.
pub const NAMES: [&str; 2] = ["pjdfstest", "fsx"];

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

/// What pjdfstest said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Number of cases that passed.
    pub passed: usize,
    /// Number of cases that do not apply.
    pub skipped: usize,
    /// The cases that failed.
    pub failed: BTreeSet<String>,
    /// The end of the output, if there is no summary in it.
    pub broken: Option<String>,
}

impl Verdict {
    /// Reads the output: lines "NAME ok", "NAME skipped", "NAME FAILED" with tabbed details.
    pub fn parse(output: &str) -> Self {
        let mut verdict = Self::default();
        for line in output.lines().filter(|line| !line.starts_with(['\t', ' '])) {
            let mut words = line.split_whitespace();
            match (words.next(), words.next(), words.next()) {
                (Some(_), Some("ok" | "success"), None) => verdict.passed += 1,
                (Some(_), Some("skipped"), None) => verdict.skipped += 1,
                (Some(name), Some(word), None) if word.eq_ignore_ascii_case("failed") => {
                    verdict.failed.insert(name.to_owned());
                }
                _ => {}
            }
        }
        if !output.contains("Summary: ") {
            let tail: Vec<&str> = output.lines().rev().take(5).collect();
            verdict.broken = Some(tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        verdict
    }
}

/// Runs pjdfstest in a fresh directory below `root`.
pub fn pjdfstest(root: &Path) -> (Verdict, String) {
    let directory = root.join("pjd");
    std::fs::create_dir_all(&directory).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&directory, mode).unwrap();
    let configuration = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    std::fs::write(configuration.path(), CONFIGURATION).unwrap();
    let output = Command::new("timeout")
        .arg("300")
        .arg(program("pjdfstest"))
        .arg("-c")
        .arg(configuration.path())
        .arg("-p")
        .arg(&directory)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat().escape_ascii().to_string().replace("\\n", "\n");
    let text = text.replace("\\t", "\t");
    (Verdict::parse(&text), text)
}

/// What fsx may do beside reading and writing, directly and through mappings, and truncating.
const OPERATIONS: &str = "[weights]\nclose_open = 0.5\ninvalidate = 0.5\nfsync = 0.02\nfdatasync = 0.02\n\
    posix_fallocate = 1.0\npunch_hole = 1.0\nsendfile = 0.5\ncopy_file_range = 1.0\n";

/// Runs `count` operations of fsx on a file `name` below `root`; returns its output if it fails.
pub fn fsx(root: &Path, name: &str, count: u64, seed: u64) -> Result<(), String> {
    let artifacts = tempfile::tempdir().unwrap();
    let configuration = artifacts.path().join("fsx.toml");
    std::fs::write(&configuration, OPERATIONS).unwrap();
    let output = Command::new("timeout")
        .arg("900")
        .arg(program("fsx"))
        .arg("-f")
        .arg(&configuration)
        .args(["-N", &count.to_string(), "-S", &seed.to_string(), "-P"])
        .arg(artifacts.path())
        .arg(root.join(name))
        .current_dir(artifacts.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat().escape_ascii().to_string().replace("\\n", "\n");
    let tail: Vec<&str> = text.lines().rev().take(30).collect();
    Err(format!("{}: {}", output.status, tail.into_iter().rev().collect::<Vec<_>>().join("\n")))
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

/// What one stressor said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stressed {
    /// Nothing was wrong.
    Passed,
    /// It found something wrong, or did not end.
    Failed,
    /// It cannot run here: no privilege, or not known to this version.
    Skipped,
}

/// Runs one stressor for `seconds` in a directory of its own below `root`, with verification.
pub fn stress(root: &Path, stressor: &str, seconds: u32) -> (Stressed, String) {
    let directory = root.join(format!("stress-{stressor}"));
    std::fs::create_dir_all(&directory).unwrap();
    // Into a file: what a stressor leaves running must not keep a pipe open.
    let log = tempfile::NamedTempFile::new().unwrap();
    let output = log.reopen().unwrap();
    let status = Command::new("timeout")
        .args(["--kill-after=5", &format!("{}", seconds + 60), "stress-ng", "--verify", "--oomable"])
        .args([&format!("--{stressor}"), "1", "--timeout", &seconds.to_string(), "--temp-path"])
        .arg(&directory)
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .status()
        .unwrap();
    let text = std::fs::read(log.path()).unwrap().escape_ascii().to_string().replace("\\n", "\n");
    let verdict = match status.code() {
        Some(0) if text.contains("skipp") && !text.contains("successful run") => Stressed::Skipped,
        Some(0) => Stressed::Passed,
        // Not implemented, or the stressor is not known.
        Some(1 | 3 | 4) => Stressed::Skipped,
        _ => Stressed::Failed,
    };
    (verdict, text)
}
