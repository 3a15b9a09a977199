//! Everything that is mounted on a container's root, and in which order.
//!
//! All mounts are built detached and attached to a descriptor of their place, which was resolved inside the root: no
//! symbolic link of an image can lead a mount to the host. Needs Linux 5.12 (`mount_setattr`).

use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use crate::cgroup::layout::Home;
use crate::error::{During, Error, Result, shown};
use crate::root::Root;
use crate::spec::{Bind, Network, Tmpfs, depth};
use crate::sys::mount::{Reach, set_attributes};

mod device;
mod hide;
pub(crate) mod tree;

pub use device::Devices;

use tree::{Options, attach, bind, new};

/// The mounts of a container.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directories and files of the host.
    pub binds: Vec<Bind>,
    /// File systems in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// Which network the container sees: another namespace's sysfs cannot be mounted anew.
    pub network: Network,
    /// The group that owns terminals, if the container has it.
    pub tty_gid: Option<u32>,
    /// Generated files below `/etc`: name, and where the content lies on the host.
    pub etc_files: Vec<(&'static str, PathBuf)>,
    /// The hierarchies of cgroups to show.
    pub cgroups: Vec<Home>,
}

/// Group 5 owns terminals on every Linux system.
pub const TTY_GID: u32 = 5;

/// Places below `/proc` that may be covered by a bind: files that programs read to learn about their machine.
const PROC_FILES: [&str; 9] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
];

/// `PROC_SUPER_MAGIC`.
const PROC_MAGIC: u64 = 0x9fa0;

/// What mounting left for later, and for the user.
#[derive(Debug)]
pub struct Mounted {
    /// The container's `/dev`.
    pub devices: Devices,
    /// What had to be done otherwise.
    pub warnings: Vec<String>,
}

/// Makes mounts of the host arrive here but not the other way.
pub fn detach_propagation() -> Result<()> {
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::REC | rustix::mount::MountPropagationFlags::DOWNSTREAM,
    )
    .during("make all mounts private to the container")
}

/// Mounts everything below the root.
///
/// Preconditions: the process is root in the user namespace that owns its mount, pid, ipc and cgroup namespaces, and
/// still sees the host's `/proc`, without which the kernel refuses a new one.
pub fn populate(root: &Root, config: &Config) -> Result<Mounted> {
    let mut warnings = Vec::new();
    mount_proc(root, &mut warnings)?;
    mount_sys(root, config, &mut warnings)?;
    let devices = Devices::mount(root, config.tty_gid)?;
    let mut user: Vec<UserMount<'_>> =
        config.binds.iter().map(UserMount::Bind).chain(config.tmpfs.iter().map(UserMount::Tmpfs)).collect();
    // Outer directories first, or they would cover the inner ones.
    user.sort_by_key(|mount| depth(mount.target()));
    for mount in user {
        mount.apply(root)?;
    }
    for (name, source) in &config.etc_files {
        mount_etc_file(root, name, source)?;
    }
    Ok(Mounted { devices, warnings })
}

/// Covers what tells about or changes the host, and closes the root. To be called after the pivot.
pub fn close(read_only: bool) -> Result<()> {
    hide::mask()?;
    hide::protect()?;
    if read_only {
        let root =
            rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).during("open the root")?;
        set_attributes(&root, libc::MOUNT_ATTR_RDONLY, Reach::One).during("make the root read-only")?;
    }
    Ok(())
}

/// Makes the root the container's `/` and lets go of the host's.
pub fn pivot(root: &Root) -> Result<()> {
    rustix::process::fchdir(root.fd()).during("enter the new root")?;
    // Both at ".": the old root ends up on top of the new one and no directory has to be made for it.
    rustix::process::pivot_root(".", ".").during("pivot to the new root")?;
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH).during("detach the old root")?;
    rustix::process::chdir("/").during("enter the new root")
}

const PROC_FLAGS: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

fn mount_proc(root: &Root, warnings: &mut Vec<String>) -> Result<()> {
    let target = root.standard_directory("proc")?;
    let proc = match new("proc", &Options::default(), PROC_FLAGS) {
        // The kernel hands out no new proc while something covers a part of the visible one, as in most containers.
        Err(Errno::PERM) => {
            warnings.push(
                "/proc is the host's: something covers parts of it, so the kernel refuses a new one; processes of the \
                 host are visible and process numbers differ (an outer container needs systempaths=unconfined)"
                    .to_owned(),
            );
            bind(CWD, "/proc", Reach::Recursive)
        }
        result => result,
    }
    .during("mount /proc")?;
    attach(&proc, &target).during("attach /proc")
}

fn mount_sys(root: &Root, config: &Config, warnings: &mut Vec<String>) -> Result<()> {
    let target = root.standard_directory("sys")?;
    let flags = PROC_FLAGS | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let made = match config.network {
        Network::None => new("sysfs", &Options::default(), flags),
        Network::Host => Err(Errno::PERM),
    };
    let (sys, is_host) = match made {
        Err(Errno::PERM) => (bind(CWD, "/sys", Reach::Recursive).during("bind /sys")?, true),
        result => (result.during("mount /sys")?, false),
    };
    if is_host {
        set_attributes(&sys, libc::MOUNT_ATTR_RDONLY, Reach::Recursive).during("make /sys read-only")?;
    }
    attach(&sys, &target).during("attach /sys")?;
    if let Err(error) = mount_cgroups(root, config, is_host) {
        warnings.push(format!("/sys/fs/cgroup is empty: {}", error.text()));
    }
    Ok(())
}

/// Shows the container's own cgroups, read-only: a writable v1 tree would let it set a release agent.
fn mount_cgroups(root: &Root, config: &Config, cover: bool) -> Result<()> {
    let place = Path::new("/sys/fs/cgroup");
    let flags = PROC_FLAGS | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let Ok(target) = root.open(place, OFlags::PATH | OFlags::DIRECTORY) else { return Ok(()) };
    if let [home] = config.cgroups.as_slice()
        && home.is_unified()
    {
        let mount = new("cgroup2", &Options::default(), flags).during("mount cgroup2")?;
        return attach(&mount, &target).during("attach cgroup2");
    }
    if config.cgroups.is_empty() && !cover {
        return Ok(());
    }
    let base = new("tmpfs", &Options::default().string("mode", "755").string("size", "64k"), PROC_FLAGS)
        .during("mount a directory for cgroups")?;
    attach(&base, &target).during("attach a directory for cgroups")?;
    for home in &config.cgroups {
        let Some(name) = home.mount.file_name() else { continue };
        rustix::fs::mkdirat(&base, name, Mode::from_raw_mode(0o755))
            .during("make a directory for a cgroup")?;
        let place =
            rustix::fs::openat(&base, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
                .during("open a directory for a cgroup")?;
        let made = if home.is_unified() {
            new("cgroup2", &Options::default(), flags)
        } else {
            new(
                "cgroup",
                &home.controllers.iter().fold(Options::default(), |options, name| {
                    match name.strip_prefix("name=") {
                        Some(name) => options.string("name", name).flag("none"),
                        None => options.flag(name),
                    }
                }),
                flags,
            )
        };
        attach(&made.during(format_args!("mount cgroup {}", shown(name)))?, &place)
            .during("attach a cgroup")?;
    }
    set_attributes(&base, libc::MOUNT_ATTR_RDONLY, Reach::One).during("make the cgroups read-only")
}

/// A mount that the user asked for.
#[derive(Debug)]
enum UserMount<'a> {
    Bind(&'a Bind),
    Tmpfs(&'a Tmpfs),
}

impl UserMount<'_> {
    fn target(&self) -> &Path {
        match self {
            Self::Bind(bind) => &bind.target,
            Self::Tmpfs(tmpfs) => &tmpfs.target,
        }
    }

    fn apply(&self, root: &Root) -> Result<()> {
        match self {
            Self::Bind(config) => mount_bind(root, config),
            Self::Tmpfs(config) => {
                let target = root.ensure_directory(&config.target)?;
                check_target(root, &target, &config.target)?;
                let mut options = Options::default().string("mode", &format!("{:o}", config.mode));
                if let Some(size) = config.size {
                    options = options.string("size", &size.to_string());
                }
                let mount = new("tmpfs", &options, PROC_FLAGS)
                    .during(format_args!("mount a tmpfs for {}", shown(&config.target)))?;
                attach(&mount, &target).during(format_args!("attach a tmpfs at {}", shown(&config.target)))
            }
        }
    }
}

fn mount_bind(root: &Root, config: &Bind) -> Result<()> {
    let source = bind(CWD, config.source.as_os_str(), Reach::Recursive)
        .during(format_args!("bind {}", shown(&config.source)))?;
    let is_directory =
        tree::is_directory(&source).during(format_args!("look at {}", shown(&config.source)))?;
    let target =
        if is_directory { root.ensure_directory(&config.target)? } else { root.ensure_file(&config.target)? };
    check_target(root, &target, &config.target)?;
    let mut attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    if config.read_only {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    set_attributes(&source, attributes, Reach::Recursive)
        .during(format_args!("restrict the bind of {}", shown(&config.source)))?;
    attach(&source, &target).during(format_args!(
        "bind {} at {}",
        shown(&config.source),
        shown(&config.target)
    ))
}

/// Refuses places that would take the container's root or its view of processes away.
fn check_target(root: &Root, target: &OwnedFd, path: &Path) -> Result<()> {
    let refuse = |why: &str| Err(Error::usage(format!("cannot mount at {}: {why}", shown(path))));
    if root.is_root(target) {
        return refuse("it is the root of the container");
    }
    let stat = rustix::fs::fstatfs(target).during(format_args!("look at {}", shown(path)))?;
    let in_proc = u64::try_from(stat.f_type).is_ok_and(|magic| magic == PROC_MAGIC);
    if in_proc && !PROC_FILES.iter().any(|file| Path::new(file) == path) {
        return refuse("it lies in /proc");
    }
    Ok(())
}

fn mount_etc_file(root: &Root, name: &str, source: &Path) -> Result<()> {
    let target = root.ensure_file(&Path::new("/etc").join(name))?;
    let mount = bind(CWD, source.as_os_str(), Reach::One).during(format_args!("bind {}", shown(source)))?;
    set_attributes(&mount, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV, Reach::One)
        .during(format_args!("restrict {}", shown(source)))?;
    attach(&mount, &target).during(format_args!("attach /etc/{name}"))
}
