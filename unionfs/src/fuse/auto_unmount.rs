//! Takes a mount away whose server has ended, however it ended (`auto_unmount`).
//!
//! A server that is killed leaves a mount on which every access fails. So a small process outlives it: the *watcher*, which
//! waits for the end of a pipe whose writing side only the server has, and then takes the mount away, lazily. It is forked
//! before anything is opened, knows the path only, and is told which mount it is once there is one: what else is mounted
//! at that place by then, instead or on top, is none of its business.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;

use nix::sys::signal::SigSet;
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::pipe::PipeFlags;

use super::daemon::{self, Told};
use super::mount::{Busy, unmount};
use crate::error::{Errno, Error, Result};

/// The number of a mount that never comes back (Linux 6.8), in the request and in the answer of statx(2).
const UNIQUE_MOUNT_ID: u32 = 0x4000;

/// The server's end: while it is open, nobody touches the mount.
#[derive(Debug)]
pub struct Watched(File);

impl Watched {
    /// Starts a watcher over the mount that will be on `target`. To be called before any thread starts.
    ///
    /// # Errors
    ///
    /// What pipe(2) and fork(2) answer; EDEADLK if the process has several threads.
    pub fn over(target: &Path) -> Result<Self> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(Error::from)?;
        daemon::beside(Told::ToNobody, move || watch(File::from(reader), target))?;
        Ok(Self(File::from(writer)))
    }

    /// Tells the watcher which mount it is, now that it is there.
    ///
    /// # Errors
    ///
    /// The mount is gone, or the watcher.
    pub fn mounted(&mut self, target: &Path) -> Result<()> {
        let identity = Identity::of(target).map_err(|errno| Error::new(errno).during("look at", "mount"))?;
        self.0
            .write_all(identity.text.as_bytes())
            .map_err(|error| Error::from(error).during("report to", "watcher"))
    }
}

/// Waits for the end of the server, and takes its mount away.
fn watch(mut reader: File, target: &Path) -> Result<()> {
    // The server's end of the pipe among them, and whatever the caller waits for.
    daemon::keep_only(&[reader.as_fd()]);
    // Whatever ends the server is for the server, which then unmounts itself.
    SigSet::all().thread_block().map_err(|errno| Error::new(Errno::from_raw_os_error(errno as i32)))?;
    let mut told = Vec::new();
    reader.read_to_end(&mut told)?;
    if is_ours(target, &told) {
        unmount(target, Busy::Detached)?;
    }
    Ok(())
}

/// Returns whether the mount on `target`, if there is one, is the one whose server has ended.
fn is_ours(target: &Path, told: &[u8]) -> bool {
    match Identity::of(target) {
        // The server ended before it could tell. There was no dead mount when it began.
        Ok(_) if told.is_empty() => is_dead(target),
        // Numbers that come back may be those of a later mount, which answers.
        Ok(there) => there.text.as_bytes() == told && (there.unique || is_dead(target)),
        Err(_) => false,
    }
}

/// Returns whether a mount has no server any more.
fn is_dead(target: &Path) -> bool {
    matches!(rustix::fs::statfs(target), Err(Errno::NOTCONN | Errno::CONNABORTED))
}

/// Which mount it is.
struct Identity {
    text: String,
    /// No later mount has the same.
    unique: bool,
}

impl Identity {
    /// Looks at the mount on `target`, without asking its server.
    fn of(target: &Path) -> std::result::Result<Self, Errno> {
        let flags = AtFlags::from_bits_retain(libc::AT_STATX_DONT_SYNC.cast_unsigned());
        let wanted = StatxFlags::MNT_ID | StatxFlags::from_bits_retain(UNIQUE_MOUNT_ID);
        let stat = rustix::fs::statx(CWD, target, flags, wanted)?;
        let text = format!("{} {}:{}", stat.stx_mnt_id, stat.stx_dev_major, stat.stx_dev_minor);
        Ok(Self { text, unique: stat.stx_mask & UNIQUE_MOUNT_ID != 0 })
    }
}
