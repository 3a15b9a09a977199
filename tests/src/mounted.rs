//! A union mounted by a program under test, in the foreground, unmounted on drop, aborted if it hangs.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a mount or an unmount may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Returns the union program to test.
pub fn union_program() -> PathBuf {
    for variable in ["E2E_MOUNT_PROGRAM", "E2E_UNION"] {
        if let Some(program) = std::env::var_os(variable) {
            return program.into();
        }
    }
    built("unionfs-under-test")
}

/// Returns the path of a program that cargo built beside this test binary.
pub fn built(name: &str) -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let deps = here.parent().unwrap();
    let directory = if deps.ends_with("deps") { deps.parent().unwrap() } else { deps };
    directory.join(name)
}

/// Returns where scratch directories are made.
pub fn scratch_base() -> PathBuf {
    std::env::var_os("E2E_DIR").map_or_else(std::env::temp_dir, PathBuf::from)
}

/// Returns a fresh scratch directory, removed on drop.
pub fn scratch() -> tempfile::TempDir {
    let directory = tempfile::Builder::new().prefix("e-").tempdir_in(scratch_base()).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), mode).unwrap();
    directory
}

/// Returns where what else would stand in `base` is made: below the directory that an environment variable names, if it does.
pub fn elsewhere(variable: &str, base: &Path) -> PathBuf {
    match std::env::var_os(variable) {
        Some(directory) => Path::new(&directory).join(base.strip_prefix("/").unwrap_or(base)),
        None => base.to_path_buf(),
    }
}

/// Returns whether mounts are to speak through the fuser crate, which knows no O_TMPFILE and one number for a node.
pub fn over_fuser() -> bool {
    std::env::var("E2E_OPTIONS").is_ok_and(|options| options.contains("transport=fuser"))
}

/// The directories of a union.
#[derive(Clone, Debug)]
pub struct Layers {
    /// Lower layers, topmost first.
    pub lowers: Vec<PathBuf>,
    /// The writable layer.
    pub upper: Option<PathBuf>,
    /// The private directory beside it.
    pub work: Option<PathBuf>,
    /// Where the union is to be seen.
    pub target: PathBuf,
    /// More options, each with a comma before it.
    pub extra: String,
}

impl Layers {
    /// Lays out `base/lower0..`, `upper`, `work` and `merged`; lowers are made unless they are there.
    pub fn below(base: &Path, lowers: usize) -> Self {
        let lowers: Vec<PathBuf> = (0..lowers).map(|n| base.join(format!("lower{n}"))).collect();
        let writable = elsewhere("E2E_UPPER_DIR", base);
        let [upper, work] = ["upper", "work"].map(|name| writable.join(name));
        let target = base.join("merged");
        for directory in lowers.iter().chain([&upper, &work, &target]) {
            std::fs::create_dir_all(directory).unwrap();
        }
        let extra = std::env::var("E2E_OPTIONS").unwrap_or_default();
        Self { lowers, upper: Some(upper), work: Some(work), target, extra }
    }

    /// Returns the same layers without an upper, and without more options: the upper is the topmost lower.
    pub fn read_only(&self) -> Self {
        let lowers = self.upper.iter().chain(&self.lowers).cloned().collect();
        Self { lowers, upper: None, work: None, target: self.target.clone(), extra: String::new() }
    }

    /// Returns the text for `-o`.
    pub fn options(&self) -> OsString {
        let mut text = OsString::from("lowerdir=");
        text.push(self.lowers.iter().map(|l| l.as_os_str()).collect::<Vec<&OsStr>>().join(OsStr::new(":")));
        for (key, value) in [(",upperdir=", &self.upper), (",workdir=", &self.work)] {
            if let Some(value) = value {
                text.push(key);
                text.push(value);
            }
        }
        text.push(&self.extra);
        text
    }
}

/// Makes the catalogs of layers.
pub fn make_catalogs(program: &Path, layers: &[PathBuf]) {
    let made = Command::new(program).arg("catalog").args(layers).output().unwrap();
    assert!(made.status.success(), "{}", made.stderr.escape_ascii());
}

/// A live mount and the process that serves it.
#[derive(Debug)]
pub struct Mounted {
    layers: Layers,
    program: PathBuf,
    server: Option<Child>,
    device: u64,
    stderr: PathBuf,
    watchdog: Option<Watchdog>,
}

impl Mounted {
    /// Mounts with the union program under test.
    pub fn new(layers: Layers) -> Self {
        Self::with(&union_program(), layers)
    }

    /// Mounts with a given program.
    pub fn with(program: &Path, layers: Layers) -> Self {
        Self::try_with(program, layers).unwrap_or_else(|message| panic!("{message}"))
    }

    /// Mounts with a given program, or tells why not.
    pub fn try_with(program: &Path, layers: Layers) -> Result<Self, String> {
        let stderr = layers.target.with_extension("stderr");
        let mut mounted =
            Self { layers, program: program.to_path_buf(), server: None, device: 0, stderr, watchdog: None };
        mounted.try_mount()?;
        Ok(mounted)
    }

    /// Returns the root of the mounted tree.
    pub fn root(&self) -> &Path {
        &self.layers.target
    }

    /// Returns the layers.
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// Returns the process id of the server.
    pub fn pid(&self) -> u32 {
        self.server.as_ref().map_or(0, Child::id)
    }

    /// Returns what the server has said on standard error.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Mounts again after [`Self::unmount`] or [`Self::kill_server`].
    pub fn mount(&mut self) {
        self.try_mount().unwrap_or_else(|message| panic!("{message}"));
    }

    fn uses_catalogs(&self) -> bool {
        std::env::var_os("E2E_CATALOGS").is_some() && self.program == union_program()
    }

    /// Mounts, or tells why not.
    pub fn try_mount(&mut self) -> Result<(), String> {
        assert!(self.server.is_none());
        if self.uses_catalogs() {
            make_catalogs(&self.program, &self.layers.lowers);
        }
        let before = device(&self.layers.target);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.stderr).unwrap();
        let mut options = self.layers.options();
        if self.uses_catalogs() {
            options.push(",catalog=require");
        }
        let mut child = Command::new(&self.program)
            .args(["-f", "-o"])
            .arg(options)
            .arg(&self.layers.target)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", self.program.display()))?;
        let deadline = Instant::now() + PATIENCE;
        while device(&self.layers.target) == before {
            let ended = child.try_wait().unwrap();
            if ended.is_some() || Instant::now() > deadline {
                drop(child.kill());
                drop(child.wait());
                return Err(format!("no mount: {ended:?}: {}", self.stderr()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.device = device(&self.layers.target).unwrap_or(0);
        self.watchdog = Some(Watchdog::arm(child.id(), watchdog_limit()));
        self.server = Some(child);
        Ok(())
    }

    /// Gives a command to the server; the answer, or what it complains of.
    pub fn ctl(&self, words: &[&OsStr]) -> Result<String, String> {
        let output =
            Command::new(&self.program).arg("ctl").arg(&self.layers.target).args(words).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// Puts an empty upper on top, while everything goes on.
    pub fn rotate(&mut self) {
        let count = self.layers.lowers.len();
        let fresh = |old: &Option<PathBuf>, name: &str| {
            let path = old.as_ref().unwrap().with_file_name(format!("{name}{count}"));
            std::fs::create_dir(&path).unwrap();
            path
        };
        let (upper, work) = (fresh(&self.layers.upper, "upper"), fresh(&self.layers.work, "work"));
        let words = [
            OsStr::new("rotate"),
            OsStr::new("--upper"),
            upper.as_os_str(),
            OsStr::new("--work"),
            work.as_os_str(),
        ];
        self.ctl(&words).unwrap_or_else(|message| panic!("rotate: {message} {}", self.stderr()));
        let old = self.layers.work.replace(work).unwrap();
        let left = crate::sides::leftovers(&old);
        assert!(left.is_empty(), "left in the workdir before: {left:?}");
        self.layers.lowers.insert(0, self.layers.upper.replace(upper).unwrap());
    }

    /// Unmounts and waits for the server to end.
    pub fn unmount(&mut self) {
        if self.server.is_none() {
            return;
        }
        unmount(&self.layers.target);
        self.wait();
    }

    fn wait(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        let start = Instant::now();
        while server.try_wait().unwrap().is_none() {
            // Whoever made a mount namespace meanwhile has a copy of the mount, and the server serves it rightly.
            let copied = start.elapsed() > Duration::from_secs(1) && mounted_elsewhere(self.device);
            if copied || start.elapsed() > PATIENCE {
                drop(server.kill());
                drop(server.wait());
                self.watchdog = None;
                assert!(copied, "the server did not end after unmount: {}", self.stderr());
                return;
            }
            std::thread::sleep(Duration::from_millis(if start.elapsed().as_millis() > 500 { 50 } else { 2 }));
        }
        self.watchdog = None;
    }

    /// Unmounts and mounts again, so that only what is on disk remains.
    pub fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    /// Kills the server (SIGKILL); the dead mount stays until [`Self::clear`].
    pub fn kill_server(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        server.kill().unwrap();
        server.wait().unwrap();
        self.watchdog = None;
    }

    /// Removes the mount of a killed server.
    pub fn clear(&mut self) {
        unmount(&self.layers.target);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            drop(server.kill());
            drop(server.wait());
            self.watchdog = None;
            unmount(&self.layers.target);
        }
    }
}

/// Returns whether the file system of this device number is mounted in any mount namespace.
pub fn mounted_elsewhere(device: u64) -> bool {
    let wanted = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let shows = |text: String| text.lines().any(|line| line.split(' ').nth(2) == Some(&wanted));
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("mountinfo")).ok()).any(shows)
}

/// Returns after how long a server that does not end is killed.
pub fn watchdog_limit() -> Duration {
    let seconds = std::env::var("E2E_HANG_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(1200))
}

/// Returns the device number of a directory, or None if it cannot be asked.
fn device(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|meta| meta.dev())
}

/// Unmounts what is at `target`, by umount2 or fusermount3; lazily if it is busy.
pub fn unmount(target: &Path) {
    let flags = rustix::mount::UnmountFlags::empty();
    for _ in 0..100 {
        match rustix::mount::unmount(target, flags) {
            Ok(()) => return,
            Err(rustix::io::Errno::PERM) => {
                let status = Command::new("fusermount3")
                    .arg("-u")
                    .arg(target)
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status();
                if status.is_ok_and(|status| status.success()) {
                    return;
                }
            }
            Err(rustix::io::Errno::INVAL) => return,
            Err(_) => {}
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    if rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH).is_ok() {
        return;
    }
    drop(Command::new("fusermount3").args(["-uz".as_ref(), target.as_os_str()]).status());
}

/// Kills a server that does not answer for too long: its death aborts the connection and frees every caller.
#[derive(Debug)]
pub struct Watchdog {
    done: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watchdog {
    /// Kills process `pid` after `limit` unless dropped before.
    pub fn arm(pid: u32, limit: Duration) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            let deadline = Instant::now() + limit;
            while !flag.load(Ordering::Acquire) {
                if Instant::now() > deadline {
                    crate::require::say(&format!("watchdog: server {pid} killed after {limit:?}"));
                    let killed = Command::new("kill").arg("-KILL").arg(pid.to_string()).status();
                    assert!(killed.is_ok_and(|status| status.success()));
                    return;
                }
                std::thread::park_timeout(Duration::from_millis(500));
            }
        });
        Self { done, thread: Some(thread) }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            drop(thread.join());
        }
    }
}
