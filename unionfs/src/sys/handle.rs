//! File handles: a name for an inode that survives renames and remounts.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::error::Errno;

/// Longest handle that the kernel makes, in bytes (`MAX_HANDLE_SZ`).
const MAX_HANDLE: usize = 128;

#[repr(C)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    handle: [u8; MAX_HANDLE],
}

/// Returns the type and bytes of the handle of `name` in `dir`, a symbolic link not followed.
///
/// # Errors
/// EOPNOTSUPP where the file system has none.
pub(crate) fn handle_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(i32, Vec<u8>), Errno> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    handle(dir, &name, 0)
}

/// Returns the type and bytes of the handle of an open object.
///
/// # Errors
/// EOPNOTSUPP where the file system has none.
pub(crate) fn handle_of(fd: BorrowedFd<'_>) -> Result<(i32, Vec<u8>), Errno> {
    handle(fd, c"", libc::AT_EMPTY_PATH)
}

/// The type that statfs(2) gives FUSE file systems.
const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;

/// Returns whether handles of an open object's file system name the same objects after a remount: those of FUSE file
/// systems end with the mount.
pub(crate) fn last(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|stat| stat.f_type != FUSE_SUPER_MAGIC)
}

fn handle(dir: BorrowedFd<'_>, name: &CStr, flags: libc::c_int) -> Result<(i32, Vec<u8>), Errno> {
    let mut raw = RawHandle { bytes: MAX_HANDLE as u32, kind: 0, handle: [0; MAX_HANDLE] };
    let mut mount_id = 0;
    // JUSTIFICATION: rustix has no name_to_handle_at.
    // SAFETY: `name` ends with NUL; `raw` begins with the two fields of `struct file_handle` and has room for as many
    // bytes as its first field says; both outlive the call.
    let done = unsafe {
        libc::name_to_handle_at(
            dir.as_raw_fd(),
            name.as_ptr(),
            (&raw mut raw).cast(),
            &raw mut mount_id,
            flags,
        )
    };
    if done < 0 {
        return Err(super::last_errno());
    }
    let len = usize::try_from(raw.bytes).unwrap_or(MAX_HANDLE).min(MAX_HANDLE);
    Ok((raw.kind, raw.handle.get(..len).unwrap_or_default().to_vec()))
}
