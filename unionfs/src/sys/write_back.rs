//! Writing the data of a file back to its device without waiting for a journal.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::error::Errno;

/// Starts writing all data back and returns.
pub(crate) fn start(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    sync_file_range(fd, libc::SYNC_FILE_RANGE_WRITE)
}

/// Writes all data back and waits until the device has taken it. Neither the device's cache nor what the file system
/// must remember to find the data is written out.
pub(crate) fn wait(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let all =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    super::retry(|| sync_file_range(fd, all))
}

fn sync_file_range(fd: BorrowedFd<'_>, flags: u32) -> Result<(), Errno> {
    // JUSTIFICATION: neither rustix nor nix has sync_file_range.
    // SAFETY: the call takes numbers only; the descriptor is open while it is borrowed.
    let done = unsafe { libc::sync_file_range(fd.as_raw_fd(), 0, 0, flags) };
    if done == 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
}
