//! A second mount of a tree on which owners are shown shifted (`MOUNT_ATTR_IDMAP`).

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

/// One run of ids: `stored..stored + len` on the file system is shown as `shown..shown + len`.
#[derive(Clone, Copy, Debug)]
pub struct Shift {
    /// First id on the file system.
    pub stored: u32,
    /// First id shown.
    pub shown: u32,
    /// Number of ids.
    pub len: u32,
}

/// An idmapped mount, gone when dropped.
#[derive(Debug)]
pub struct Idmapped {
    target: PathBuf,
}

impl Idmapped {
    /// Mounts what is mounted on `source` on the directory `target` too, users and groups shifted.
    ///
    /// # Errors
    /// What mount_setattr(2) says.
    pub fn new(source: &Path, target: &Path, shift: Shift) -> io::Result<Self> {
        let namespace = namespace(shift)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let clone = open_tree(rustix::fs::CWD, source, flags)?;
        crate::sys::set_idmap(&clone, &namespace)?;
        move_mount(&clone, "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(Self { target: target.to_path_buf() })
    }
}

impl Drop for Idmapped {
    fn drop(&mut self) {
        // Gone already if the namespace that held it is.
        if unmount(&self.target, UnmountFlags::DETACH).is_err() {}
    }
}

/// A process that waits in a user namespace of its own.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Returns a user namespace with this mapping.
fn namespace(shift: Shift) -> io::Result<OwnedFd> {
    let sleep = ["--user", "--", "sleep", "60"];
    let sleeper = Sleeper(Command::new("unshare").args(sleep).stdin(Stdio::null()).spawn()?);
    let proc = PathBuf::from(format!("/proc/{}", sleeper.0.id()));
    let own = std::fs::read_link("/proc/self/ns/user")?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::fs::read_link(proc.join("ns/user"))? == own {
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let map = format!("{} {} {}\n", shift.stored, shift.shown, shift.len);
    std::fs::write(proc.join("uid_map"), &map)?;
    std::fs::write(proc.join("gid_map"), &map)?;
    Ok(std::fs::File::open(proc.join("ns/user"))?.into())
}
