//! mount_setattr(2), which neither rustix nor nix has.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Whether a change of attributes reaches the mounts below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// This mount only.
    One,
    /// This mount and everything mounted below it.
    Recursive,
}

/// Sets attributes (`MOUNT_ATTR_*`) of a mount.
pub(crate) fn set_attributes(mount: impl AsFd, attributes: u64, reach: Reach) -> io::Result<()> {
    let request = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let mut flags = libc::AT_EMPTY_PATH;
    if reach == Reach::Recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // JUSTIFICATION: no safe wrapper exists.
    // SAFETY: the path is an empty C string, `request` lives across the call and its size is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const request,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
