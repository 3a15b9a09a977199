//! statx(2), reduced to what a union needs.

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Statx, StatxAttributes, StatxFlags, makedev, statx};

use crate::error::Errno;
use crate::request::{FileKind, Timestamp};

/// The attributes of an object on a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    /// Type and permission bits.
    pub mode: u32,
    /// Type and permission bits of the inode, where a record beside it says otherwise.
    pub inode_mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner in this process's user namespace.
    pub uid: u32,
    /// Group in this process's user namespace.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of data.
    pub mtime: Timestamp,
    /// Last change of attributes.
    pub ctime: Timestamp,
    /// Creation, if the file system tells.
    pub btime: Option<Timestamp>,
    /// Device of the file system.
    pub dev: u64,
    /// Inode number there.
    pub ino: u64,
    /// The object is the root of a mount.
    pub mount_root: bool,
}

impl Stat {
    /// Returns the type.
    pub(crate) const fn kind(&self) -> FileKind {
        FileKind::from_mode(self.mode)
    }

    /// Returns whether this is a directory.
    pub(crate) const fn is_dir(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }

    /// Returns whether the kernel lets the inode have attributes in `user.*`.
    pub(crate) const fn may_have_user_attributes(&self) -> bool {
        matches!(self.inode_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR)
    }

    /// Returns whether this is the whiteout of kernel overlayfs: a character device 0:0.
    pub(crate) const fn is_whiteout(&self) -> bool {
        self.inode_mode & libc::S_IFMT == libc::S_IFCHR && self.rdev == 0
    }

    /// Returns the mode without the set-id bits that an unprivileged change of the data takes away, if it has any.
    pub(crate) fn mode_without_set_id(&self) -> Option<u32> {
        let mode = self.mode & 0o7777;
        let mut kept = mode & !libc::S_ISUID;
        if mode & libc::S_IXGRP != 0 {
            kept &= !libc::S_ISGID;
        }
        (kept != mode).then_some(kept)
    }
}

/// Returns the attributes of `name` in `dir`, without following a symbolic link.
///
/// Never waits for another FUSE server or a network: a mount point below a layer may be our own.
pub(crate) fn stat_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Stat, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    statx(dir, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME).map(|x| from_statx(&x))
}

/// As [`stat_at`], where the file system may remember attributes that are not those of now, such as another FUSE mount after
/// a write: it is asked, unless another file system is mounted there.
pub(crate) fn stat_at_asking(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Stat, Errno> {
    let known = stat_at(dir, name)?;
    if known.mount_root {
        return Ok(known);
    }
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    statx(dir, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME).map(|x| from_statx(&x))
}

/// Returns the attributes of an open object.
pub(crate) fn stat_fd(fd: BorrowedFd<'_>) -> Result<Stat, Errno> {
    statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::BTIME).map(|x| from_statx(&x))
}

/// `STATX_MNT_ID_UNIQUE`, which rustix does not name.
const UNIQUE_MOUNT: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// Returns the attributes of an open object, and the number of the mount as [`mount_number`], 0 before Linux 6.8.
pub(crate) fn stat_with_mount(fd: BorrowedFd<'_>) -> Result<(Stat, u64), Errno> {
    with_mount(fd, Path::new(""), AtFlags::EMPTY_PATH)
}

/// As [`stat_with_mount`] of what a path leads to.
pub(crate) fn stat_path_with_mount(path: &Path) -> Result<(Stat, u64), Errno> {
    with_mount(CWD, path, AtFlags::empty())
}

fn with_mount(dir: BorrowedFd<'_>, path: &Path, flags: AtFlags) -> Result<(Stat, u64), Errno> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME | UNIQUE_MOUNT;
    let x = statx(dir, path, flags, wanted)?;
    let mount = if x.stx_mask & UNIQUE_MOUNT.bits() == 0 { 0 } else { x.stx_mnt_id };
    Ok((from_statx(&x), mount))
}

/// Returns the number of the mount that an open object lies on, which no other mount of this boot ever has.
///
/// # Errors
/// EOPNOTSUPP before Linux 6.8.
pub(crate) fn mount_number(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let x = statx(fd, c"", AtFlags::EMPTY_PATH, UNIQUE_MOUNT)?;
    if x.stx_mask & UNIQUE_MOUNT.bits() == 0 {
        return Err(Errno::OPNOTSUPP);
    }
    Ok(x.stx_mnt_id)
}

fn from_statx(x: &Statx) -> Stat {
    let time = |t: &rustix::fs::StatxTimestamp| Timestamp { sec: t.tv_sec, nsec: t.tv_nsec };
    let has_btime = x.stx_mask & StatxFlags::BTIME.bits() != 0;
    Stat {
        mode: u32::from(x.stx_mode),
        inode_mode: u32::from(x.stx_mode),
        nlink: x.stx_nlink,
        uid: x.stx_uid,
        gid: x.stx_gid,
        rdev: makedev(x.stx_rdev_major, x.stx_rdev_minor),
        size: x.stx_size,
        blocks: x.stx_blocks,
        blksize: x.stx_blksize,
        atime: time(&x.stx_atime),
        mtime: time(&x.stx_mtime),
        ctime: time(&x.stx_ctime),
        btime: has_btime.then(|| time(&x.stx_btime)),
        dev: makedev(x.stx_dev_major, x.stx_dev_minor),
        ino: x.stx_ino,
        mount_root: x.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    }
}
