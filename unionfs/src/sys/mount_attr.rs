//! mount_setattr(2), which neither rustix nor nix has.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use crate::error::Errno;

/// Sets attributes (`MOUNT_ATTR_*`) of the mount that `mount` is the root of.
///
/// # Errors
/// EPERM without privilege over the mount, or where it is locked; ENOSYS before Linux 5.12.
pub(crate) fn set(mount: BorrowedFd<'_>, set: u64, clear: u64) -> Result<(), Errno> {
    let request = libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    // JUSTIFICATION: no safe wrapper exists.
    // SAFETY: the path is an empty C string, `request` lives across the call and its size is passed.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const request,
            size_of::<libc::mount_attr>(),
        )
    };
    if done < 0 { Err(super::last_errno()) } else { Ok(()) }
}
