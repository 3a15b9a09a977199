//! The digest by which fs-verity protects a file.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::error::Errno;

/// `FS_IOC_MEASURE_VERITY` of linux/fsverity.h: `_IOWR('f', 134, struct fsverity_digest)`.
const FS_IOC_MEASURE_VERITY: libc::Ioctl = 0xc004_6686_u32 as libc::Ioctl;
/// Longest digest, in bytes: SHA-512.
const MAX_DIGEST: usize = 64;

#[repr(C)]
struct RawDigest {
    algorithm: u16,
    size: u16,
    digest: [u8; MAX_DIGEST],
}

/// Returns the algorithm and the digest of an open file.
///
/// # Errors
/// ENODATA for a file that is not protected, ENOTTY or EOPNOTSUPP where the file system or the kernel has no fs-verity.
pub(crate) fn measure(fd: BorrowedFd<'_>) -> Result<(u16, Vec<u8>), Errno> {
    let mut raw = RawDigest { algorithm: 0, size: MAX_DIGEST as u16, digest: [0; MAX_DIGEST] };
    // JUSTIFICATION: rustix has no such ioctl.
    // SAFETY: the kernel reads the two fields and writes at most `size` bytes of digest after them, and `raw` has room
    // for as many.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_MEASURE_VERITY, &raw mut raw) };
    if done < 0 {
        return Err(std::io::Error::last_os_error()
            .raw_os_error()
            .map_or(Errno::IO, Errno::from_raw_os_error));
    }
    let size = usize::from(raw.size).min(MAX_DIGEST);
    Ok((raw.algorithm, raw.digest.get(..size).unwrap_or_default().to_vec()))
}
