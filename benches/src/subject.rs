//! Who is measured, and how each of them is mounted and unmounted.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};

use crate::failure::{During, Failure, Result};
use crate::process;

/// How long a mount may take, and a server may need to end after its unmount.
const MOUNT_LIMIT: Duration = Duration::from_secs(30);

/// One of the things compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// A plain copy of the merged tree, no union at all.
    Native,
    /// The kernel's overlayfs.
    KernelOverlay,
    /// fuse-overlayfs 1.x, the C program.
    FuseOverlayfs1,
    /// fuse-overlayfs 2.x, the Rust program.
    FuseOverlayfs2,
    /// This project, with more `-o` options (empty for the defaults).
    Unionfs(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native => f.write_str("native"),
            Self::KernelOverlay => f.write_str("kernel_overlay"),
            Self::FuseOverlayfs1 => f.write_str("fuse_overlayfs_1"),
            Self::FuseOverlayfs2 => f.write_str("fuse_overlayfs"),
            Self::Unionfs(options) if options.is_empty() => f.write_str("unionfs"),
            Self::Unionfs(options) => write!(f, "unionfs[{options}]"),
        }
    }
}

/// A subject that cannot run here, and why.
#[derive(Clone, Debug)]
pub struct Missing {
    /// The subject's name.
    pub subject: String,
    /// Why it cannot run.
    pub reason: String,
}

/// The programs found on this machine.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    fuse_overlayfs_1: Option<(PathBuf, String)>,
    fuse_overlayfs_2: Option<(PathBuf, String)>,
    unionfs: Option<PathBuf>,
    /// Mount options that kernel overlayfs needs here: `userxattr` in a user namespace, none in the initial one.
    kernel_options: &'static str,
    /// Whether this process is in the initial user namespace.
    initial: bool,
}

impl Peers {
    /// Looks for the peers: `PERF_FUSE_OVERLAYFS` and `PERF_FUSE_OVERLAYFS_1` name them, else `PATH` is searched for
    /// the right versions. `unionfs` is the program under test.
    pub fn detect(unionfs: Option<PathBuf>) -> Self {
        let initial = crate::sandbox::in_initial_user_namespace();
        Self {
            fuse_overlayfs_1: find_fuse_overlayfs("PERF_FUSE_OVERLAYFS_1", "1."),
            fuse_overlayfs_2: find_fuse_overlayfs("PERF_FUSE_OVERLAYFS", "2."),
            unionfs,
            kernel_options: if initial { "" } else { ",userxattr" },
            initial,
        }
    }

    /// Which of `wanted` can run, and which cannot and why. Each is tried on a small tree below `scratch`.
    pub fn available(&self, wanted: &[Subject], scratch: &Path) -> Result<(Vec<Subject>, Vec<Missing>)> {
        let mut usable = Vec::new();
        let mut missing = Vec::new();
        for subject in wanted {
            match self.trial(subject, scratch) {
                Ok(()) => usable.push(subject.clone()),
                Err(e) => {
                    println!("not measured: {subject}: {e}");
                    missing.push(Missing { subject: format!("{subject}"), reason: format!("{e}") });
                }
            }
        }
        Ok((usable, missing))
    }

    fn trial(&self, subject: &Subject, scratch: &Path) -> Result<()> {
        if let Subject::Unionfs(options) = subject
            && options.contains("data=passthrough")
            && !self.initial
        {
            return Err(Failure::new("only root of the initial user namespace may hand files to the kernel"));
        }
        let dir = scratch.join("trial");
        let layers = Layers::fresh(&dir, vec![dir.join("lower")])?;
        std::fs::create_dir_all(dir.join("lower")).during("make the trial layer")?;
        std::fs::write(dir.join("lower/file"), b"lower").during("fill the trial layer")?;
        let outcome = self.mount(subject, &layers).and_then(|mounted| {
            let written = mounted.path().join("file");
            if *subject == Subject::Native {
                return mounted.unmount();
            }
            std::fs::write(&written, b"upper").during("write on a trial mount")?;
            mounted.unmount()
        });
        std::fs::remove_dir_all(&dir).during("remove the trial tree")?;
        outcome
    }

    /// Versions of everything found, for the report.
    pub fn versions(&self) -> Vec<(String, String)> {
        let named =
            [("fuse_overlayfs_1", &self.fuse_overlayfs_1), ("fuse_overlayfs", &self.fuse_overlayfs_2)];
        named
            .iter()
            .filter_map(|(name, found)| {
                found.as_ref().map(|(_, version)| ((*name).to_owned(), version.clone()))
            })
            .collect()
    }

    /// The command that serves `layers` for `subject`, without `-f`; none for those without a server.
    pub fn server(&self, subject: &Subject, layers: &Layers) -> Result<Option<Command>> {
        let program = match subject {
            Subject::Native | Subject::KernelOverlay => return Ok(None),
            Subject::FuseOverlayfs1 => {
                found(&self.fuse_overlayfs_1, "fuse-overlayfs 1.x", "PERF_FUSE_OVERLAYFS_1")?
            }
            Subject::FuseOverlayfs2 => {
                found(&self.fuse_overlayfs_2, "fuse-overlayfs 2.x", "PERF_FUSE_OVERLAYFS")?
            }
            Subject::Unionfs(_) => {
                self.unionfs.clone().ok_or_else(|| Failure::new("the program perf-unionfs was not built"))?
            }
        };
        let mut options = layers.options();
        if let Subject::Unionfs(more) = subject
            && !more.is_empty()
        {
            options.push(",");
            options.push(more);
        }
        let mut command = Command::new(program);
        command.arg("-o").arg(options).arg(&layers.mountpoint);
        Ok(Some(command))
    }

    /// Mounts `subject` over `layers`. For `Native` the mount point itself is the tree.
    pub fn mount(&self, subject: &Subject, layers: &Layers) -> Result<Mounted> {
        let path = layers.mountpoint.clone();
        if *subject == Subject::Native {
            return Ok(Mounted { path, kind: Kind::Plain });
        }
        let Some(mut command) = self.server(subject, layers)? else {
            process::check(self.kernel_command(layers))?;
            return Ok(Mounted { path, kind: Kind::Kernel });
        };
        command.arg("-f").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let before = device(&path)?;
        let child = command.spawn().during(format_args!("run {command:?}"))?;
        let mut mounted = Mounted { path, kind: Kind::Server(child) };
        mounted.wait_live(before, &format!("{command:?}"))?;
        Ok(mounted)
    }

    /// The command that mounts kernel overlayfs over `layers`. It runs where the lowers are and names them from there,
    /// because the kernel takes no more than a page of options.
    pub fn kernel_command(&self, layers: &Layers) -> Command {
        let base = layers.lowers.first().and_then(|lower| lower.parent()).unwrap_or(Path::new("/"));
        let near =
            |lower: &PathBuf| lower.strip_prefix(base).map_or_else(|_| lower.clone(), Path::to_path_buf);
        let near = Layers { lowers: layers.lowers.iter().map(near).collect(), ..layers.clone() };
        let mut options = near.options();
        options.push(self.kernel_options);
        let mut command = Command::new("mount");
        command.args(["-t", "overlay", "-o"]).arg(options).arg("overlay").arg(&layers.mountpoint);
        command.current_dir(base);
        command
    }
}

fn found(program: &Option<(PathBuf, String)>, name: &str, variable: &str) -> Result<PathBuf> {
    match program {
        Some((path, _)) => Ok(path.clone()),
        None => Err(Failure::new(format!("no {name} in PATH; {variable} may name it"))),
    }
}

fn find_fuse_overlayfs(variable: &str, version: &str) -> Option<(PathBuf, String)> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let cargo = std::env::home_dir().unwrap_or_default().join(".cargo/bin");
    let searched = std::env::split_paths(&path).chain([cargo]).map(|d| d.join("fuse-overlayfs"));
    named.into_iter().chain(searched).find_map(|program| {
        let output = Command::new(&program).arg("--version").output().ok()?;
        let all = format!("{} {}", process::text(&output.stdout), process::text(&output.stderr));
        // Lines of libraries stand around the program's own.
        let (_, own) = all.split_once("fuse-overlayfs: version ")?;
        let found = own.split(' ').next()?;
        found.starts_with(version).then(|| (program, format!("fuse-overlayfs {found}")))
    })
}

/// The directories of one mount.
#[derive(Clone, Debug)]
pub struct Layers {
    /// Lower layers, topmost first.
    pub lowers: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// Its work directory.
    pub work: PathBuf,
    /// Where the union appears.
    pub mountpoint: PathBuf,
}

impl Layers {
    /// Empty `upper`, `work` and mount point below `dir`, which is emptied first, over `lowers`.
    pub fn fresh(dir: &Path, lowers: Vec<PathBuf>) -> Result<Self> {
        let layers =
            Self { lowers, upper: dir.join("upper"), work: dir.join("work"), mountpoint: dir.join("mnt") };
        for each in [&layers.upper, &layers.work, &layers.mountpoint] {
            if each.exists() {
                std::fs::remove_dir_all(each).during(format_args!("empty {}", each.display()))?;
            }
            std::fs::create_dir_all(each).during(format_args!("make {}", each.display()))?;
        }
        Ok(layers)
    }

    fn options(&self) -> OsString {
        let mut text = OsString::from("lowerdir=");
        for (i, lower) in self.lowers.iter().enumerate() {
            if i > 0 {
                text.push(":");
            }
            text.push(lower);
        }
        text.push(",upperdir=");
        text.push(&self.upper);
        text.push(",workdir=");
        text.push(&self.work);
        text
    }
}

#[derive(Debug)]
enum Kind {
    Plain,
    Kernel,
    Server(Child),
}

/// A live mount; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
    kind: Kind,
}

impl Mounted {
    /// The root of the tree.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The process that serves the mount.
    pub fn server_pid(&self) -> Option<u32> {
        match &self.kind {
            Kind::Server(child) => Some(child.id()),
            Kind::Plain | Kind::Kernel => None,
        }
    }

    /// The number under which the kernel lists the mount's FUSE connection.
    pub fn connection(&self) -> Option<u64> {
        self.server_pid()?;
        device(&self.path).ok()
    }

    /// Waits until the mount point is another file system. Only the mount table is asked before that: a stat of a
    /// mount whose server is broken would never return.
    fn wait_live(&mut self, before: u64, what: &str) -> Result<()> {
        let start = Instant::now();
        loop {
            if is_mounted(&self.path)? {
                break;
            }
            if let Kind::Server(child) = &mut self.kind
                && child.try_wait().during("wait for a server")?.is_some()
            {
                let mut stderr = Vec::new();
                if let Some(mut pipe) = child.stderr.take() {
                    std::io::Read::read_to_end(&mut pipe, &mut stderr).during("read a server's errors")?;
                }
                return Err(Failure::new(format!(
                    "{what} ended before its mount was live: {}",
                    process::text(&stderr)
                )));
            }
            if start.elapsed() > MOUNT_LIMIT {
                return Err(Failure::new(format!("{what} did not mount within {MOUNT_LIMIT:?}")));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        let mut stat = Command::new("stat");
        stat.arg("-c").arg("%d").arg(&self.path);
        process::timed(stat, MOUNT_LIMIT, || {})?;
        if device(&self.path)? == before {
            return Err(Failure::new(format!("{what}: the mount went away at once")));
        }
        Ok(())
    }

    /// Unmounts and waits for the server's end.
    pub fn unmount(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.kind, Kind::Plain) {
            Kind::Plain => Ok(()),
            Kind::Kernel => unmount(&self.path),
            Kind::Server(mut child) => {
                let unmounted = if is_mounted(&self.path)? { unmount(&self.path) } else { Ok(()) };
                process::reap(&mut child, MOUNT_LIMIT)?;
                unmounted
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(e) = self.end() {
            eprintln!("perf: {e}");
        }
    }
}

/// Unmounts `path`; lazily if it stays busy, with a word about it.
pub fn unmount(path: &Path) -> Result<()> {
    for _ in 0..50 {
        match umount2(path, MntFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(nix::errno::Errno::EBUSY) => std::thread::sleep(Duration::from_millis(20)),
            Err(e) => return Err(Failure::new(format!("cannot unmount {}: {e}", path.display()))),
        }
    }
    eprintln!("perf: {} is busy, detached", path.display());
    umount2(path, MntFlags::MNT_DETACH).during(format_args!("detach {}", path.display()))
}

/// Whether the mount table names `path`.
pub fn is_mounted(path: &Path) -> Result<bool> {
    let table = std::fs::read("/proc/self/mountinfo").during("read the mount table")?;
    let wanted = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str());
    Ok(table.split(|b| *b == b'\n').any(|line| line.split(|b| *b == b' ').nth(4) == Some(wanted)))
}

fn device(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).during(format_args!("stat {}", path.display()))?.dev())
}

/// Ends every request on a FUSE connection with an error, so that nothing waits for its server any longer.
pub fn abort_connection(connection: u64) {
    let path = format!("/sys/fs/fuse/connections/{connection}/abort");
    if let Err(e) = std::fs::write(&path, b"1") {
        eprintln!("perf: cannot write {path}: {e}");
    }
}
