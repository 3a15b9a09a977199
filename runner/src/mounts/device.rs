//! The container's `/dev`: bound nodes of the host, its own terminals, shared memory and message queues.

use std::ffi::OsStr;

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::tree::{Options, attach, bind, new};
use crate::error::{During, Error, Result};
use crate::root::{Root, open_beside};
use crate::sys::mount::{Reach, set_attributes};

/// The mounted `/dev` of a container.
#[derive(Debug)]
pub struct Devices {
    dev: OwnedFd,
    pts: OwnedFd,
}

/// Nodes that every program may expect: name, major and minor number.
const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Links that every program may expect.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

const NO_EXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

impl Devices {
    /// Mounts `/dev` and everything in it.
    pub(super) fn mount(root: &Root, tty_gid: Option<u32>) -> Result<Self> {
        let target = root.standard_directory("dev")?;
        let options = Options::default().string("mode", "755").string("size", "64m");
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_STRICTATIME;
        let dev = new("tmpfs", &options, attributes).during("mount /dev")?;
        attach(&dev, &target).during("attach /dev")?;
        for (name, major, minor) in NODES {
            bind_node(&dev, name, makedev(major, minor))?;
        }
        for (name, link) in LINKS {
            rustix::fs::symlinkat(link, &dev, name).during(format_args!("make link /dev/{name}"))?;
        }
        let mut options =
            Options::default().string("mode", "0620").string("ptmxmode", "0666").flag("newinstance");
        if let Some(gid) = tty_gid {
            options = options.string("gid", &gid.to_string());
        }
        let terminal = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let pts = mount_in(&dev, "pts", "devpts", &options, terminal)?;
        let shm = Options::default().string("mode", "1777").string("size", "64m");
        mount_in(&dev, "shm", "tmpfs", &shm, NO_EXEC)?;
        mount_in(&dev, "mqueue", "mqueue", &Options::default(), NO_EXEC)?;
        Ok(Self { dev, pts })
    }

    /// The directory of terminals.
    pub fn pts(&self) -> &OwnedFd {
        &self.pts
    }

    /// Shows a terminal as `/dev/console`.
    pub fn set_console(&self, terminal: &OwnedFd) -> Result<()> {
        let mount = bind(terminal, "", Reach::One).during("bind the terminal")?;
        let place = make_file(&self.dev, "console")?;
        attach(&mount, &place).during("attach /dev/console")
    }
}

fn mount_in(
    dev: &OwnedFd,
    name: &str,
    kind: &str,
    options: &Options,
    attributes: MountAttrFlags,
) -> Result<OwnedFd> {
    rustix::fs::mkdirat(dev, name, Mode::from_raw_mode(0o755)).during(format_args!("make /dev/{name}"))?;
    let place = open_beside(dev, OsStr::new(name), OFlags::PATH | OFlags::DIRECTORY)
        .during(format_args!("open /dev/{name}"))?;
    let mount = new(kind, options, attributes).during(format_args!("mount {kind} for /dev/{name}"))?;
    attach(&mount, &place).during(format_args!("attach /dev/{name}"))?;
    Ok(mount)
}

/// Binds a node of the host; a user namespace may not make nodes itself.
fn bind_node(dev: &OwnedFd, name: &str, number: u64) -> Result<()> {
    let path = format!("/dev/{name}");
    let node = match bind(CWD, &path, Reach::One) {
        Err(Errno::NOENT) => return Ok(()),
        result => result.during(format_args!("bind {path} of the host"))?,
    };
    let stat = rustix::fs::fstat(&node).during(format_args!("look at {path} of the host"))?;
    if !FileType::from_raw_mode(stat.st_mode).is_char_device() || stat.st_rdev != number {
        return Err(Error::setup(format!(
            "cannot use {path} of the host: it is not the device it should be"
        )));
    }
    // A device is written to through a read-only mount as well; what this stops is a change of the host's node
    // itself, whose owner the container's root may be.
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    set_attributes(&node, attributes, Reach::One).during(format_args!("protect {path} of the host"))?;
    let place = make_file(dev, name)?;
    attach(&node, &place).during(format_args!("attach {path}"))
}

fn make_file(dev: &OwnedFd, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dev, name, flags, Mode::from_raw_mode(0o666))
        .during(format_args!("make /dev/{name}"))?;
    open_beside(dev, OsStr::new(name), OFlags::PATH).during(format_args!("open /dev/{name}"))
}
