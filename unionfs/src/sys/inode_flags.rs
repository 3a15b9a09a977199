//! Flags and other attributes of an inode that only ioctl(2) knows.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use crate::error::Errno;

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extended {
    /// `FS_XFLAG_*`.
    pub flags: u32,
    /// Preferred size of extents.
    pub extent_size: u32,
    /// Number of extents; only read.
    pub extents: u32,
    /// Project that the space is counted for.
    pub project: u32,
    /// Preferred size of extents of copies.
    pub copy_extent_size: u32,
    reserved: [u8; 8],
}

impl Extended {
    /// Size on the wire.
    pub(crate) const SIZE: usize = 28;

    /// Reads what a program gave.
    pub(crate) fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let mut words = bytes.chunks_exact(4).map(|word| word.try_into().map_or(0, u32::from_ne_bytes));
        let mut word = || words.next().unwrap_or(0);
        Self {
            flags: word(),
            extent_size: word(),
            extents: word(),
            project: word(),
            copy_extent_size: word(),
            reserved: [0; 8],
        }
    }

    /// Returns what a program is given.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let words = [self.flags, self.extent_size, self.extents, self.project, self.copy_extent_size];
        words.into_iter().flat_map(u32::to_ne_bytes).chain(self.reserved).collect()
    }
}

const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f_u32 as libc::Ioctl;
const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401c_5820_u32 as libc::Ioctl;
/// Its number names a long, what is written is an int.
const FS_IOC_GETVERSION: libc::Ioctl = 0x8008_7601_u32 as libc::Ioctl;

/// Returns the extended attributes of an open file or directory.
///
/// # Errors
/// ENOTTY or EOPNOTSUPP where the file system has none.
pub(crate) fn extended(fd: BorrowedFd<'_>) -> Result<Extended, Errno> {
    let mut out = Extended::default();
    // JUSTIFICATION: rustix has no such ioctl.
    // SAFETY: the kernel writes `size_of::<Extended>()` bytes, which the request's number encodes.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut out) };
    if done < 0 { Err(super::last_errno()) } else { Ok(out) }
}

/// Sets the extended attributes of an open file or directory.
pub(crate) fn set_extended(fd: BorrowedFd<'_>, to: &Extended) -> Result<(), Errno> {
    // JUSTIFICATION: rustix has no such ioctl.
    // SAFETY: the kernel reads `size_of::<Extended>()` bytes, which the request's number encodes.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSSETXATTR, std::ptr::from_ref(to)) };
    if done < 0 { Err(super::last_errno()) } else { Ok(()) }
}

/// Returns the generation of an open file's inode.
///
/// # Errors
/// ENOTTY where the file system has none.
pub(crate) fn generation(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut out: libc::c_ulong = 0;
    // JUSTIFICATION: rustix has no such ioctl.
    // SAFETY: the kernel writes an int, or as the request's number says a long; there is room for either.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_GETVERSION, &raw mut out) };
    if done < 0 {
        return Err(super::last_errno());
    }
    let bytes = out.to_ne_bytes();
    Ok(bytes.first_chunk().map_or(0, |int| u32::from_ne_bytes(*int)))
}
