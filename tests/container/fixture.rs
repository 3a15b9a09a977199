//! A store, a tiny root and the runner under test.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use e2e::mounted;

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The 14 capabilities of docker's default.
pub const DEFAULT_CAPS: &str = "00000000a80425fb";

/// Returns the runner to test.
pub fn runner_program() -> PathBuf {
    std::env::var_os("E2E_RUNNER").map_or_else(|| mounted::built("runner-under-test"), PathBuf::from)
}

/// Returns the probe, built once for each run of the tier.
pub fn probe_program() -> PathBuf {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    if let Some(probe) = std::env::var_os("E2E_PROBE") {
        return PathBuf::from(probe);
    }
    PROBE
        .get_or_init(|| {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("container/probe.rs");
            let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("probe-{}", std::process::id()));
            let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
            let status = Command::new(rustc)
                .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-o"])
                .args([&target, &source])
                .status()
                .unwrap();
            assert!(status.success(), "the probe does not build: {status}");
            target
        })
        .clone()
}

/// A store and a root with nothing but the probe.
#[derive(Debug)]
pub struct Fixture {
    scratch: tempfile::TempDir,
}

/// What a finished runner said.
#[derive(Debug)]
pub struct Said {
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Fixture {
    /// Makes a fresh store and root.
    pub fn new() -> Self {
        let fixture = Self { scratch: mounted::scratch() };
        let root = fixture.root();
        for directory in ["", "etc", "proc", "sys", "dev", "tmp"] {
            std::fs::create_dir(root.join(directory)).unwrap();
        }
        e2e::user::install(&probe_program(), &root.join("probe"));
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nann:x:7:8::/home/ann:/bin/sh\n")
            .unwrap();
        std::fs::write(root.join("etc/group"), "root:x:0:\nusers:x:8:\naudio:x:29:ann\n").unwrap();
        fixture
    }

    /// A directory for the test's own files.
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// The root layer.
    pub fn root(&self) -> PathBuf {
        self.path().join("root")
    }

    /// The store.
    pub fn store(&self) -> PathBuf {
        self.path().join("store")
    }

    /// A command line of the runner on this store.
    pub fn command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--foreground", "-s", "KILL", "60"]).arg(runner_program());
        command.arg("--store").arg(self.store()).args(words);
        command
    }

    /// Runs the runner to its end.
    pub fn runner(&self, words: &[&str]) -> Said {
        said(&self.command(words).stdin(Stdio::null()).output().unwrap())
    }

    /// Runs a command on the probe's root: flags, then the command.
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Said {
        self.run_on(&self.root(), flags, command)
    }

    /// Runs a command on a root.
    pub fn run_on(&self, root: &Path, flags: &[&str], command: &[&str]) -> Said {
        let mut line = self.command(["run", "--rootfs"]);
        line.arg(root).args(flags).arg("--").args(command);
        said(&line.stdin(Stdio::null()).output().unwrap())
    }

    /// Starts a container on the probe's root, without `timeout` around it, and waits for its first line.
    pub fn start(&self, flags: &[&str], command: &[&str]) -> Started {
        let mut line = Command::new(runner_program());
        line.arg("--store").arg(self.store()).args(["run", "--rootfs"]).arg(self.root());
        line.args(flags)
            .arg("--")
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = line.spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut first_line = String::new();
        out.read_line(&mut first_line).unwrap();
        Started { child, _out: out, first_line }
    }

    /// What a container changed.
    pub fn diff(&self, name: &str) -> Vec<String> {
        let said = self.runner(&["diff", name]);
        assert_eq!(said.code, Some(0), "{said:?}");
        said.out.lines().map(str::to_owned).collect()
    }
}

/// A container that runs.
#[derive(Debug)]
pub struct Started {
    /// The runner.
    pub child: Child,
    /// Its output after the first line, held open for it.
    _out: BufReader<std::process::ChildStdout>,
    /// The first line of the command.
    pub first_line: String,
}

impl Started {
    /// The runner's own children by the name they show: `runner-server` and `init`.
    pub fn child_named(&self, name: &str) -> u32 {
        let end = Instant::now() + PATIENCE;
        loop {
            let path = format!("/proc/{0}/task/{0}/children", self.child.id());
            let children = std::fs::read_to_string(path).unwrap_or_default();
            let found = children.split_whitespace().find(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
            });
            if let Some(pid) = found {
                return pid.parse().unwrap();
            }
            assert!(Instant::now() < end, "no child {name}: {children}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Every process of the container, as the host numbers them: descendants of the runner.
    pub fn processes(&self) -> Vec<u32> {
        let mut all = vec![self.child.id()];
        let mut index = 0;
        while let Some(pid) = all.get(index).copied() {
            let children =
                std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
            index += 1;
        }
        all
    }
}

/// Waits until a process has ended; one that nobody has reaped yet has.
pub fn wait_gone(pid: u32) {
    wait_until(&format!("the end of process {pid}"), || {
        match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X'])),
            Err(_) => true,
        }
    });
}

/// Waits until something holds.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal.
pub fn kill(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Turns a finished process into text.
pub fn said(output: &Output) -> Said {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    Said { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

impl Said {
    /// Asserts success and returns the output.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// The values of a key in a report of the probe.
    pub fn values(&self, key: &str) -> Vec<&str> {
        self.out.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(' ')).collect()
    }

    /// The only value of a key.
    #[track_caller]
    pub fn value(&self, key: &str) -> &str {
        let values = self.values(key);
        assert_eq!(values.len(), 1, "{key} in {self:?}");
        values[0]
    }
}
