//! Room that is kept for what frees room: where the disk is full, a removal must still find a place in the log.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use crate::error::{Errno, Result};
use crate::sys;

/// Name of the file in the store.
const NAME: &[u8] = b"reserve";
/// Its size in bytes: thousands of removals.
const SIZE: usize = 1 << 20;

/// The file that holds the room.
#[derive(Debug)]
pub(super) struct Reserve {
    /// None on a file system that cannot be written.
    file: Option<OwnedFd>,
    full: bool,
}

impl Reserve {
    /// Opens it and takes the room if there is any.
    pub(super) fn open(store: &OwnedFd) -> Result<Self> {
        let file = match sys::open_at(store.as_fd(), NAME, OFlags::RDWR | OFlags::CREATE, 0o600) {
            Ok(file) => Some(file),
            Err(Errno::ROFS | Errno::ACCESS | Errno::NOSPC) => None,
            Err(errno) => return Err(errno.into()),
        };
        let mut reserve = Self { file, full: false };
        reserve.fill()?;
        Ok(reserve)
    }

    /// Returns its descriptor.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Takes the room again, if it was given and there is any.
    pub(super) fn fill(&mut self) -> Result<()> {
        let Some(file) = self.file.as_ref().filter(|_| !self.full) else { return Ok(()) };
        if sys::stat_fd(file.as_fd())?.size >= SIZE as u64 {
            self.full = true;
            return Ok(());
        }
        match sys::copy::write_all(file.as_fd(), &vec![0; SIZE], 0) {
            Ok(()) => self.full = true,
            Err(Errno::NOSPC | Errno::DQUOT) => sys::retry(|| rustix::fs::ftruncate(file, 0))?,
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }

    /// Gives the room. Returns whether there was any.
    pub(super) fn spend(&mut self) -> Result<bool> {
        let Some(file) = self.file.as_ref().filter(|_| self.full) else { return Ok(false) };
        sys::retry(|| rustix::fs::ftruncate(file, 0))?;
        self.full = false;
        Ok(true)
    }
}
