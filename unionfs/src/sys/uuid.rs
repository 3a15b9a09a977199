//! The identifier of a file system, by which records of origin name it.
//!
//! Kernel overlayfs takes it from the superblock, and follows no record with another one. Programs can ask most file systems since
//! Linux 6.9. Before, and btrfs to this day, some have a request of their own.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use crate::error::Errno;

/// An identifier.
pub(crate) type Uuid = [u8; 16];

/// `FS_IOC_GETFSUUID` of linux/fs.h: `_IOR(0x15, 0, struct fsuuid2)`.
const ANY: libc::Ioctl = 0x8011_1500_u32 as libc::Ioctl;
/// `EXT4_IOC_GETFSUUID` (Linux 6.0): `_IOR('f', 44, struct fsuuid)`, which is told how much room follows it.
const EXT4: libc::Ioctl = 0x8008_662c_u32 as libc::Ioctl;
/// `XFS_IOC_FSGEOMETRY_V1`: `_IOR('X', 100, struct xfs_fsop_geom_v1)`.
const XFS: libc::Ioctl = 0x8070_5864_u32 as libc::Ioctl;
/// `BTRFS_IOC_FS_INFO`: `_IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)`.
const BTRFS: libc::Ioctl = 0x8400_941f_u32 as libc::Ioctl;

/// Returns the identifier of the file system that an open file or directory is on.
///
/// # Errors
/// ENOTTY where the file system has none, or this kernel does not tell.
pub(crate) fn of(fd: BorrowedFd<'_>) -> Result<Uuid, Errno> {
    any(fd).or_else(|errno| of_its_own(fd).ok_or(errno))
}

fn any(fd: BorrowedFd<'_>) -> Result<Uuid, Errno> {
    // A length comes first.
    let mut out = [0; 17];
    ask::<17, ANY>(fd, &mut out)?;
    Ok(part(&out, 1))
}

/// Asks as those can be asked that do not answer all alike.
fn of_its_own(fd: BorrowedFd<'_>) -> Option<Uuid> {
    // Room for 16 bytes, and no flags. It is what the disk says: changed since the mount (tune2fs), the superblock has another one.
    let mut ext4 = [0; 24];
    ext4[..4].copy_from_slice(&16_u32.to_ne_bytes());
    if ask::<24, EXT4>(fd, &mut ext4).is_ok() {
        return Some(part(&ext4, 8));
    }
    let mut xfs = [0; 112];
    if ask::<112, XFS>(fd, &mut xfs).is_ok() {
        return Some(part(&xfs, 64));
    }
    let mut btrfs = [0; 1024];
    ask::<1024, BTRFS>(fd, &mut btrfs).is_ok().then(|| part(&btrfs, 16))
}

/// Returns the identifier at byte `at` of an answer.
fn part(answer: &[u8], at: usize) -> Uuid {
    answer.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default()
}

/// Makes a request that `LEN` bytes are answered to at most.
fn ask<const LEN: usize, const REQUEST: libc::Ioctl>(
    fd: BorrowedFd<'_>,
    out: &mut [u8; LEN],
) -> Result<(), Errno> {
    #[repr(C, align(8))]
    struct Aligned<const LEN: usize>([u8; LEN]);
    let mut answer = Aligned(*out);
    // JUSTIFICATION: rustix has no such ioctl.
    // SAFETY: `answer` is aligned as the kernel's structures are; the kernel writes as many bytes as the request's number encodes,
    // and for ext4 as many more as the answer says that there is room for: 17, 8 and 16, 112, and 1,024.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), REQUEST, &raw mut answer) };
    *out = answer.0;
    if done < 0 { Err(super::last_errno()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn what_a_file_system_tells_itself_is_what_any_is_asked_for() {
        for place in [std::env::temp_dir(), env!("CARGO_MANIFEST_DIR").into()] {
            let dir = std::fs::File::open(&place).unwrap();
            match (any(dir.as_fd()), of_its_own(dir.as_fd())) {
                // Nothing but zeros: it was given since the mount.
                (Ok(any), Some(own)) if any != [0; 16] => assert_eq!(any, own),
                (any, own) => eprintln!("SKIP {}: told {any:?} and {own:?}", place.display()),
            }
        }
    }
}
