//! The unsafe part of the transports: the device's ioctl, and the memory shared with an io_uring.
#![allow(unsafe_code)]

pub(super) mod ring;

use std::os::fd::{AsRawFd as _, BorrowedFd};

use crate::error::Errno;

/// `FUSE_DEV_IOC_BACKING_OPEN` and `FUSE_DEV_IOC_BACKING_CLOSE`.
const FUSE_DEV_IOC_BACKING_OPEN: libc::c_ulong = 0x4010_e501;
const FUSE_DEV_IOC_BACKING_CLOSE: libc::c_ulong = 0x4004_e502;

/// `struct fuse_backing_map`.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// Makes `file` known as a backing file and returns its number.
///
/// # Errors
///
/// What the ioctl answers.
pub(super) fn backing_open(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<u32, Errno> {
    let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    // JUSTIFICATION: the ioctl takes a pointer to a struct; no library has it.
    // SAFETY: the kernel reads 16 bytes from `map`, which lives on; both descriptors are open.
    let id = unsafe { libc::ioctl(device.as_raw_fd(), FUSE_DEV_IOC_BACKING_OPEN, &raw const map) };
    u32::try_from(id).ok().filter(|id| *id > 0).ok_or_else(last_errno)
}

/// Takes the number of a backing file back.
///
/// # Errors
///
/// What the ioctl answers.
pub(super) fn backing_close(device: BorrowedFd<'_>, id: u32) -> Result<(), Errno> {
    // JUSTIFICATION: the ioctl takes a pointer to a number; no library has it.
    // SAFETY: the kernel reads four bytes from `id`, which lives on.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), FUSE_DEV_IOC_BACKING_CLOSE, &raw const id) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Lets the calling thread run only where nobody else wants to.
///
/// # Errors
///
/// What the system call answers.
pub(super) fn run_when_idle() -> Result<(), Errno> {
    // SAFETY: all bytes zero is a value of this struct of numbers.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // JUSTIFICATION: no library has the class for one thread.
    // SAFETY: the kernel reads the struct, which lives on; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Returns the error of the system call that just failed.
fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
