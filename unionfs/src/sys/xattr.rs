//! Extended attributes of any object, by the shortest way that there is.
//!
//! The magic link of a descriptor works for every type, for descriptors opened with `O_PATH`, where fgetxattr(2)
//! answers EBADF, and on every kernel. It takes three times as long as the calls that are therefore tried before it.

mod at;

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
    fill(|buffer| match rustix::fs::fgetxattr(fd, name, &mut *buffer) {
        // A directory opened for its names finds itself in itself.
        Err(Errno::BADF) => match at::get(fd, b".", name, buffer) {
            Err(Errno::NOTDIR | Errno::NOSYS | Errno::PERM | Errno::ACCESS) => {
                rustix::fs::getxattr(super::proc_path(fd).as_str(), name, buffer)
            }
            result => result,
        },
        result => result,
    })
}

/// Returns the value of attribute `name` of the object `file` in `dir`, a symbolic link not followed.
pub(crate) fn get_at(dir: BorrowedFd<'_>, file: &[u8], name: &[u8]) -> Result<Vec<u8>, Errno> {
    fill(|buffer| match at::get(dir, file, name, buffer) {
        Err(Errno::NOSYS | Errno::PERM | Errno::ACCESS) => {
            rustix::fs::lgetxattr(path_in(dir, file).as_slice(), name, buffer)
        }
        result => result,
    })
}

/// Returns the names of the attributes of the object `file` in `dir`, a symbolic link not followed.
pub(crate) fn list_at(dir: BorrowedFd<'_>, file: &[u8]) -> Result<Vec<u8>, Errno> {
    fill(|buffer| match at::list(dir, file, buffer) {
        Err(Errno::NOSYS | Errno::PERM | Errno::ACCESS) => {
            rustix::fs::llistxattr(path_in(dir, file).as_slice(), buffer)
        }
        result => result,
    })
}

/// Returns the names, each ended by NUL.
pub(crate) fn list(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    fill(|buffer| match rustix::fs::flistxattr(fd, &mut *buffer) {
        Err(Errno::BADF) => match at::list(fd, b".", buffer) {
            Err(Errno::NOTDIR | Errno::NOSYS | Errno::PERM | Errno::ACCESS) => {
                rustix::fs::listxattr(super::proc_path(fd).as_str(), buffer)
            }
            result => result,
        },
        result => result,
    })
}

/// As [`list`], of a directory that was opened for attributes only: the first call of `list` would be in vain.
pub(crate) fn list_dir(dir: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let listed = fill(|buffer| at::list(dir, b".", buffer));
    match listed {
        Err(Errno::NOTDIR | Errno::NOSYS | Errno::PERM | Errno::ACCESS) => list(dir),
        listed => listed,
    }
}

fn path_in(dir: BorrowedFd<'_>, file: &[u8]) -> Vec<u8> {
    [super::proc_path(dir).as_bytes(), b"/", file].concat()
}

/// Sets attribute `name`. `flags` are `XATTR_CREATE` and `XATTR_REPLACE`.
pub(crate) fn set(fd: BorrowedFd<'_>, name: &[u8], value: &[u8], flags: u32) -> Result<(), Errno> {
    let flags = XattrFlags::from_bits_retain(flags);
    match rustix::fs::fsetxattr(fd, name, value, flags) {
        Err(Errno::BADF) => rustix::fs::setxattr(super::proc_path(fd).as_str(), name, value, flags),
        result => result,
    }
}

/// Removes attribute `name`.
pub(crate) fn remove(fd: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::fremovexattr(fd, name) {
        Err(Errno::BADF) => rustix::fs::removexattr(super::proc_path(fd).as_str(), name),
        result => result,
    }
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
