//! Reading extended attributes by directory and name (Linux 6.13): a third of the time of a path through /proc.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use crate::error::Errno;

/// The numbers are the same on all architectures.
const SYS_GETXATTRAT: libc::c_long = 464;
const SYS_LISTXATTRAT: libc::c_long = 465;

/// `struct xattr_args` of linux/xattr.h.
#[repr(C)]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// Reads the value of attribute `name` of `file` in `dir`, a symbolic link not followed.
///
/// # Errors
/// As lgetxattr(2); ENOSYS from older kernels and EPERM from filters that do not know the call.
pub(super) fn get(dir: BorrowedFd<'_>, file: &[u8], name: &[u8], buffer: &mut [u8]) -> Result<usize, Errno> {
    let (file, name) = (terminated(file)?, terminated(name)?);
    let args = XattrArgs {
        value: buffer.as_mut_ptr().expose_provenance() as u64,
        size: u32::try_from(buffer.len()).unwrap_or(u32::MAX),
        flags: 0,
    };
    // JUSTIFICATION: no library has the call.
    // SAFETY: both strings end with NUL; `args` has the kernel's layout and names a buffer of that size; all outlive
    // the call.
    let done = unsafe {
        libc::syscall(
            SYS_GETXATTRAT,
            dir.as_raw_fd(),
            file.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            name.as_ptr(),
            &raw const args,
            size_of::<XattrArgs>(),
        )
    };
    length(done)
}

/// Reads the names of the attributes of `file` in `dir`, a symbolic link not followed.
///
/// # Errors
/// As [`get`].
pub(super) fn list(dir: BorrowedFd<'_>, file: &[u8], buffer: &mut [u8]) -> Result<usize, Errno> {
    let file = terminated(file)?;
    // JUSTIFICATION: no library has the call.
    // SAFETY: the string ends with NUL; the kernel writes at most `buffer.len()` bytes to `buffer`.
    let done = unsafe {
        libc::syscall(
            SYS_LISTXATTRAT,
            dir.as_raw_fd(),
            file.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    length(done)
}

fn terminated(text: &[u8]) -> Result<CString, Errno> {
    CString::new(text).map_err(|_| Errno::INVAL)
}

fn length(done: libc::c_long) -> Result<usize, Errno> {
    usize::try_from(done)
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}
