//! The door to the kernel: thin functions over system calls, relative to a directory descriptor.
//!
//! Everything here is `rustix` where it has the call; the few calls it lacks are in the children, the only places
//! with `unsafe`. Nothing here knows layers.

pub(crate) mod copy;
pub(crate) mod dirents;
pub(crate) mod handle;
pub(crate) mod inode_flags;
pub(crate) mod mount_attr;
pub(crate) mod plugin;
pub(crate) mod process;
pub(crate) mod stat;
pub(crate) mod uuid;
pub(crate) mod verity;
pub(crate) mod write_back;
pub(crate) mod xattr;

use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Timestamps};

use crate::error::Errno;
use crate::request::Timestamp;

pub(crate) use stat::{Stat, stat_at, stat_at_asking, stat_fd};

/// How an object is named to a call that has no `*at` form: the magic link of an open descriptor.
pub(crate) fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Sets the times of an open object, as utimensat(2), also of one that was opened for attributes only.
pub(crate) fn set_times(fd: BorrowedFd<'_>, times: &Timestamps) -> Result<(), Errno> {
    match rustix::fs::utimensat(fd, c"", times, AtFlags::EMPTY_PATH) {
        Err(Errno::INVAL) => {}
        result => return result,
    }
    // Before Linux 5.8 only the magic link reaches a descriptor that was opened with O_PATH.
    rustix::fs::utimensat(CWD, proc_path(fd), times, AtFlags::empty())
}

/// Sets the times of access and modification of an open object, also of one that was opened for attributes only.
pub(crate) fn set_both_times(fd: BorrowedFd<'_>, atime: Timestamp, mtime: Timestamp) -> Result<(), Errno> {
    set_times(fd, &Timestamps { last_access: atime.into(), last_modification: mtime.into() })
}

/// Sets the permission bits of an open object, also of one that was opened for attributes only.
pub(crate) fn set_mode(fd: BorrowedFd<'_>, mode: Mode) -> Result<(), Errno> {
    match rustix::fs::fchmod(fd, mode) {
        Err(Errno::BADF) => rustix::fs::chmodat(CWD, proc_path(fd), mode, AtFlags::empty()),
        result => result,
    }
}

/// Opens `name` in `dir` without following a symbolic link.
pub(crate) fn open_at(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    retry(|| rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode)))
}

/// Opens `name` in `dir` for reading, without moving its access time where this process may ask for that (the owner,
/// or with `CAP_FOWNER`).
pub(crate) fn open_quietly(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    match open_at(dir, name, flags | OFlags::NOATIME, 0) {
        Err(Errno::PERM) => open_at(dir, name, flags, 0),
        result => result,
    }
}

/// Opens a handle on `name` in `dir` that reads no data: for attributes, or as a base for `*at` calls.
pub(crate) fn pin_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    open_at(dir, name, OFlags::PATH, 0)
}

/// Opens the directory at `path`, of one or more components, below `dir`, without symbolic links, `..` or mount
/// points on the way.
///
/// Where openat2(2) is missing or refused (an old kernel, a seccomp filter), walks one component at a time.
pub(crate) fn open_dir_beneath(dir: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    if path.len() < PATH_MAX {
        match retry(|| rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve)) {
            Err(Errno::NOSYS | Errno::PERM) => {}
            result => return result,
        }
    }
    let mut at: Option<OwnedFd> = None;
    for component in path.split(|&b| b == b'/').filter(|c| !c.is_empty()) {
        let base = at.as_ref().map_or(dir, |fd| std::os::fd::AsFd::as_fd(fd));
        at = Some(retry(|| rustix::fs::openat(base, component, flags, Mode::empty()))?);
    }
    at.ok_or(Errno::NOENT)
}

/// Longest path that one call takes, in bytes, with the final NUL.
const PATH_MAX: usize = 4096;

/// Returns the target of a symbolic link that was opened without following it, or of a regular file that stands for one.
pub(crate) fn link_target(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    match rustix::fs::readlinkat(fd, c"", Vec::new()) {
        Err(Errno::INVAL | Errno::NOENT) => {}
        target => return target.map(std::ffi::CString::into_bytes),
    }
    let file =
        retry(|| rustix::fs::openat(CWD, proc_path(fd), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()))?;
    let mut target = vec![0; PATH_MAX];
    let len = retry(|| rustix::io::pread(&file, &mut *target, 0))?;
    target.truncate(len);
    Ok(target)
}

/// Sets the size of an open file as truncate(2) does, which leaves the times of a file that has the size already to the file
/// system; ftruncate(2) moves them.
pub(crate) fn truncate_by_path(fd: BorrowedFd<'_>, size: u64) -> Result<(), Errno> {
    let size = i64::try_from(size).map_err(|_| Errno::FBIG)?;
    let set = || nix::unistd::truncate(proc_path(fd).as_str(), size);
    retry(|| set().map_err(|errno| Errno::from_raw_os_error(errno as i32)))
}

/// Returns the absolute path, without symbolic links, of an open directory that was found at `given`.
pub(crate) fn real_path(dir: BorrowedFd<'_>, given: &Path) -> PathBuf {
    let shown = rustix::fs::readlink(proc_path(dir), Vec::new());
    let shown = shown.map(|path| PathBuf::from(OsString::from_vec(path.into_bytes())));
    match shown {
        Ok(path) if path.is_absolute() => path,
        _ => std::fs::canonicalize(given).unwrap_or_else(|_| given.to_path_buf()),
    }
}

/// Returns the text of a file of /proc or /sys that says one thing, so that one call reads all of it.
pub(crate) fn read_setting(path: &str) -> Result<String, Errno> {
    let file = retry(|| rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()))?;
    let mut text = vec![0; SETTING_MAX];
    let len = retry(|| rustix::io::read(&file, &mut *text))?;
    text.truncate(len);
    String::from_utf8(text).map_err(|_| Errno::INVAL)
}

/// Longest text of a setting, in bytes.
const SETTING_MAX: usize = 4096;

/// Calls again what a signal interrupted.
pub(crate) fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Returns what the C library noted of the last call.
fn last_errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}
