//! Where measurements run: private mounts, fresh file systems, and (for `userns`) no privilege outside.
//!
//! Everything mounted here lives in a mount namespace of this process and vanishes with it. As root the process first
//! makes a tmpfs and loop-mounted ext4 and xfs images, each fresh, then, if asked, enters a user namespace with an
//! identity map: same owners, no capability in the initial namespace. An ordinary user gets the user namespace from
//! unshare(1) and works on a tmpfs and a plain directory.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use crate::failure::{During, Failure, Result};
use crate::process;

/// Tells the process started again inside the sandbox what was prepared for it.
const PLACES: &str = "PERF_PLACES";
/// Ids that the user namespace of a privileged start maps to themselves.
const IDENTITY_MAP: &str = "0 0 65536\n";

/// The file systems prepared for a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Places {
    /// A tmpfs: nothing but processor time counts here.
    pub memory: PathBuf,
    /// A file system that has to write to a device, for everything where durability costs.
    pub disk: PathBuf,
    /// What `disk` is.
    pub disk_kind: String,
    /// A file system that can share blocks between files, if one could be made.
    pub reflink: Option<PathBuf>,
    /// Whether the measurements run in a user namespace.
    pub userns: bool,
}

/// On which side of the door the caller is now.
#[derive(Debug)]
pub enum Entered {
    /// Inside: go on and measure.
    Inside(Places),
    /// Outside: the work was done by a process inside, which ended thus.
    Done(ExitCode),
}

/// Enters the sandbox, with directories below `base`. Call it first thing: the process must have one thread.
pub fn enter(base: &Path, userns: bool) -> Result<Entered> {
    if let Some(text) = std::env::var_os(PLACES) {
        let places: Places = serde_json::from_slice(std::os::unix::ffi::OsStrExt::as_bytes(text.as_os_str()))
            .during("understand PERF_PLACES")?;
        return inside(places);
    }
    std::fs::create_dir_all(base).during(format_args!("make {}", base.display()))?;
    let root = rustix::process::geteuid().is_root();
    match (root, userns) {
        (false, false) => Err(Failure::new("measuring without a user namespace needs root")),
        (false, true) => ordinary(base),
        (true, _) => {
            let places = privileged(base, userns)?;
            if userns { identity(&places) } else { Ok(Entered::Inside(places)) }
        }
    }
}

/// Whether this process is in the machine's first user namespace.
pub fn in_initial_user_namespace() -> bool {
    let map = std::fs::read("/proc/self/uid_map").unwrap_or_default();
    map.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty()).eq([&b"0"[..], b"0", b"4294967295"])
}

fn private_mounts() -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).during("make all mounts private")
}

fn memory(base: &Path) -> Result<PathBuf> {
    let dir = made(base, "memory")?;
    mount(Some("perf"), &dir, Some("tmpfs"), MsFlags::empty(), Some("size=60%,nr_inodes=0,mode=755"))
        .during(format_args!("mount a tmpfs on {}", dir.display()))?;
    Ok(dir)
}

fn made(base: &Path, name: &str) -> Result<PathBuf> {
    let dir = base.join(name);
    std::fs::create_dir_all(&dir).during(format_args!("make {}", dir.display()))?;
    dir.canonicalize().during(format_args!("find {}", dir.display()))
}

fn privileged(base: &Path, userns: bool) -> Result<Places> {
    unshare(CloneFlags::CLONE_NEWNS).during("make a mount namespace")?;
    private_mounts()?;
    if !Path::new("/sys/kernel/tracing/events").exists() {
        let none: Option<&str> = None;
        if let Err(e) = mount(Some("tracefs"), "/sys/kernel/tracing", Some("tracefs"), MsFlags::empty(), none)
        {
            println!("requests are not counted: cannot mount tracefs: {e}");
        }
    }
    let disk = image(base, "disk", 12, &["mkfs.ext4", "-qF", "-N", "600000", "-E", "lazy_itable_init=0"])?;
    let reflink = image(base, "reflink", 8, &["mkfs.xfs", "-qf", "-m", "reflink=1"]);
    if let Err(e) = &reflink {
        println!("not measured: reflinking file system: {e}");
    }
    let disk_kind = "fresh ext4 (journal) on a loop device over a file of the host".to_owned();
    Ok(Places { memory: memory(base)?, disk, disk_kind, reflink: reflink.ok(), userns })
}

/// A fresh file system of `gib` GiB in a sparse file that loses its name at once, so that nothing stays behind.
fn image(base: &Path, name: &str, gib: u64, mkfs: &[&str]) -> Result<PathBuf> {
    let dir = made(base, name)?;
    let file = base.join(format!("{name}-{}.img", std::process::id()));
    let outcome = make_image(&file, &dir, gib, mkfs);
    std::fs::remove_file(&file).during(format_args!("unlink {}", file.display()))?;
    outcome.map(|()| dir)
}

fn make_image(file: &Path, dir: &Path, gib: u64, mkfs: &[&str]) -> Result<()> {
    let made = std::fs::File::create(file).during(format_args!("make {}", file.display()))?;
    made.set_len(gib << 30).during(format_args!("grow {}", file.display()))?;
    let (program, arguments) = mkfs.split_first().ok_or_else(|| Failure::new("no mkfs command"))?;
    let mut format = Command::new(program);
    format.args(arguments).arg(file);
    process::check(format)?;
    let mut attach = Command::new("mount");
    attach.arg("-o").arg("loop").arg(file).arg(dir);
    process::check(attach).map(|_| ())
}

/// Starts this program again; it enters the user namespace by itself and waits for its id maps, written here.
fn identity(places: &Places) -> Result<Entered> {
    let mut child =
        again(Command::new(this_program()?), places)?.stdin(Stdio::piped()).spawn().during("start again")?;
    let mine = std::fs::read_link("/proc/self/ns/user").during("read the user namespace")?;
    let theirs = PathBuf::from(format!("/proc/{}/ns/user", child.id()));
    while std::fs::read_link(&theirs).during("read the child's user namespace")? == mine {
        if let Some(status) = child.try_wait().during("wait for the child")? {
            return Err(Failure::new(format!("the process in the user namespace ended early: {status}")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    for file in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{}/{file}", child.id()), IDENTITY_MAP)
            .during(format_args!("write {file}"))?;
    }
    child
        .stdin
        .take()
        .ok_or_else(|| Failure::new("no pipe to the child"))?
        .write_all(b"\n")
        .during("release it")?;
    end_of(child)
}

fn end_of(mut child: Child) -> Result<Entered> {
    let status = child.wait().during("wait for the process in the user namespace")?;
    Ok(Entered::Done(
        status.code().and_then(|c| u8::try_from(c).ok()).map_or(ExitCode::FAILURE, ExitCode::from),
    ))
}

fn this_program() -> Result<PathBuf> {
    std::env::current_exe().during("find this program")
}

fn again(mut command: Command, places: &Places) -> Result<Command> {
    let text = serde_json::to_string(places).during("describe the places")?;
    command.args(std::env::args_os().skip(1)).env(PLACES, text);
    Ok(command)
}

/// An ordinary user: unshare(1) makes the namespace, with subordinate ids where there are any.
fn ordinary(base: &Path) -> Result<Entered> {
    let places = Places {
        memory: made(base, "memory")?,
        disk: made(base, "disk")?,
        disk_kind: "a directory of the host".to_owned(),
        reflink: None,
        userns: true,
    };
    println!("not measured: reflinking file system: a loop device needs root");
    let common = ["--user", "--map-root-user", "--mount"];
    let mut probe = Command::new("unshare");
    probe.args(common).args(["--map-auto", "true"]);
    let mut command = Command::new("unshare");
    command.args(common);
    if process::check(probe).is_ok() {
        command.arg("--map-auto");
    } else {
        println!("one id only: no subordinate ids for this user");
    }
    command.arg(this_program()?);
    end_of(again(command, &places)?.spawn().during("run unshare")?)
}

fn inside(places: Places) -> Result<Entered> {
    let map = std::fs::read("/proc/self/uid_map").during("read the id map")?;
    if in_initial_user_namespace() {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).during("make a user namespace")?;
        std::io::stdin().read_exact(&mut [0]).during("wait for the id maps")?;
        private_mounts()?;
    } else if !map.is_empty() {
        private_mounts()?;
        if let Some(base) = places.memory.parent() {
            memory(base)?;
        }
    }
    Ok(Entered::Inside(places))
}

/// The directory in which cargo put this program: `target`, known by its tag.
pub fn target_dir() -> Result<PathBuf> {
    let program = this_program()?;
    let found = program.ancestors().find(|d| d.join("CACHEDIR.TAG").exists() || d.ends_with("target"));
    found
        .map(Path::to_path_buf)
        .ok_or_else(|| Failure::new(format!("{} is in no target directory", program.display())))
}

/// A sibling program built by cargo, in the same profile.
pub fn sibling(name: &str) -> Result<PathBuf> {
    let program = this_program()?;
    let dirs = program.ancestors().skip(1).take(2);
    dirs.map(|d| d.join(name))
        .find(|p| p.exists())
        .ok_or_else(|| Failure::new(format!("{name} was not built beside {}", program.display())))
}
