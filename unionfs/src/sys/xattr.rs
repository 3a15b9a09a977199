//! Extended attributes of any object, through the magic link of an open descriptor.
//!
//! The magic link works for every type and for descriptors opened with `O_PATH`, where fgetxattr(2) answers EBADF.

use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;

use crate::error::Errno;

/// Flag of [`set`]: the attribute must not exist.
pub(crate) const CREATE: u32 = XattrFlags::CREATE.bits();
/// Flag of [`set`]: the attribute must exist.
pub(crate) const REPLACE: u32 = XattrFlags::REPLACE.bits();
/// First guess at a value's length, in bytes: holds every value the union itself writes.
const GUESS: usize = 256;

/// Returns the value of attribute `name`.
pub(crate) fn get(fd: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>, Errno> {
    let path = super::proc_path(fd);
    fill(|buffer| rustix::fs::getxattr(path.as_str(), name, buffer))
}

/// Returns the value of attribute `name` of the object `file` in `dir`, a symbolic link not followed.
pub(crate) fn get_at(dir: BorrowedFd<'_>, file: &[u8], name: &[u8]) -> Result<Vec<u8>, Errno> {
    let path = [super::proc_path(dir).as_bytes(), b"/", file].concat();
    fill(|buffer| rustix::fs::lgetxattr(path.as_slice(), name, buffer))
}

/// Returns the names of the attributes of the object `file` in `dir`, a symbolic link not followed.
pub(crate) fn list_at(dir: BorrowedFd<'_>, file: &[u8]) -> Result<Vec<u8>, Errno> {
    let path = [super::proc_path(dir).as_bytes(), b"/", file].concat();
    fill(|buffer| rustix::fs::llistxattr(path.as_slice(), buffer))
}

/// Returns the names, each ended by NUL.
pub(crate) fn list(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let path = super::proc_path(fd);
    fill(|buffer| rustix::fs::listxattr(path.as_str(), buffer))
}

/// Sets attribute `name`. `flags` are `XATTR_CREATE` and `XATTR_REPLACE`.
pub(crate) fn set(fd: BorrowedFd<'_>, name: &[u8], value: &[u8], flags: u32) -> Result<(), Errno> {
    let path = super::proc_path(fd);
    rustix::fs::setxattr(path.as_str(), name, value, XattrFlags::from_bits_retain(flags))
}

/// Removes attribute `name`.
pub(crate) fn remove(fd: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::removexattr(super::proc_path(fd).as_str(), name)
}

/// Splits what [`list`] returns into names.
pub(crate) fn names(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&b| b == 0).filter(|name| !name.is_empty())
}

/// Calls `read` with a growing buffer: the value may change between the question for its size and the reading.
fn fill(mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; GUESS];
    loop {
        match read(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            Err(Errno::RANGE) => {
                let wanted = read(&mut [])?;
                buffer.resize(wanted.max(buffer.len() * 2), 0);
            }
            Err(errno) => return Err(errno),
        }
    }
}
