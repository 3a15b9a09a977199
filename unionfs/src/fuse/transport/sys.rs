//! The unsafe part of the transports: the device's ioctl, and the memory shared with an io_uring.
#![allow(unsafe_code)]

pub(super) mod ring;

use std::ffi::c_uint;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::error::Errno;

/// `FUSE_DEV_IOC_CLONE`: makes a freshly opened device another door to a connection.
const FUSE_DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500;

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

/// Opens another descriptor of the connection behind `device`, with its own file flags.
///
/// # Errors
///
/// What open(2) of /dev/fuse and the ioctl answer; it is only a means to go faster.
pub(super) fn clone_device(device: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    let door = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC | flags, Mode::empty())?;
    let connected = c_uint::try_from(device.as_raw_fd()).map_err(|_| Errno::BADF)?;
    // JUSTIFICATION: the ioctl takes a pointer to a number; no library has it.
    // SAFETY: both descriptors are open, and the kernel reads four bytes from `connected`, which lives on.
    let result = unsafe { libc::ioctl(door.as_raw_fd(), FUSE_DEV_IOC_CLONE, &raw const connected) };
    if result == 0 { Ok(door) } else { Err(last_errno()) }
}

/// Returns the error of the system call that just failed.
fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
