//! Every conversion between the types of fuser and ours. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileHandle, FileType, INodeNo, RenameFlags, Request, TimeOrNow};

use crate::error::{Errno, Result};
use crate::request::{Attr, Caller, Fh, FileKind, NodeId, RenameMode, SetTime, Timestamp};

/// The longest copy that one answer can tell: 32 bits, whole pages.
pub(super) const MAX_COPY: u64 = 0xffff_f000;

/// Returns the node that a request names.
pub(super) const fn node(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

/// Returns the handle that a request names.
pub(super) const fn fh(handle: FileHandle) -> Fh {
    Fh(handle.0)
}

/// Returns who asks. `umask` is the one of the request, which the kernel has not applied.
pub(super) fn caller(req: &Request, umask: u32) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid(), umask }
}

/// Returns the error number to reply with.
pub(crate) fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

/// Returns whether an error says that something is broken or used up, rather than answering the caller.
pub(crate) fn is_unexpected(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::IO
            | Errno::BADF
            | Errno::FAULT
            | Errno::MFILE
            | Errno::NFILE
            | Errno::NOMEM
            | Errno::NOTCONN
            | Errno::UCLEAN
    )
}

/// Returns attributes as fuser takes them; the number shown is the node's.
pub(crate) fn file_attr(node: NodeId, attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(node.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: attr.btime.map_or(UNIX_EPOCH, system_time),
        kind: file_type(attr.kind),
        perm: low_16_bits(attr.perm & 0o7777),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: device(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// Returns whether writing to the object may change its mode: set-id bits are taken away.
pub(super) fn may_lose_set_id(attr: &Attr) -> bool {
    attr.kind == FileKind::Regular && attr.perm & (libc::S_ISUID | libc::S_ISGID) != 0
}

/// Returns what makes an entry a negative one: there is no node.
pub(crate) fn negative_attr() -> FileAttr {
    dot_attr(0)
}

/// Returns what a directory entry without attributes carries: its number and that it is a directory. The kernel
/// takes nothing else from the entries `.` and `..`, and counts no lookup for them.
pub(crate) fn dot_attr(ino: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::Directory,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// Returns the type as fuser names it.
pub(crate) const fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// Returns what a rename may do.
///
/// # Errors
///
/// EINVAL for `RENAME_WHITEOUT` and for combinations: a program must not be able to make a whiteout.
pub(super) fn rename_mode(flags: RenameFlags) -> Result<RenameMode> {
    if flags.is_empty() {
        Ok(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Ok(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Ok(RenameMode::Exchange)
    } else {
        Err(Errno::INVAL.into())
    }
}

/// Returns a time to set.
pub(crate) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(requested_time(time)),
    }
}

/// Undoes fuser's reading of a time in a request: before 1970 it takes the nanoseconds away, where the protocol, as
/// timespec, adds them to the seconds.
fn requested_time(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => {
            Timestamp { sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nsec: after.subsec_nanos() }
        }
        Err(error) => {
            let before = error.duration();
            let sec = 0_i64.checked_sub_unsigned(before.as_secs()).unwrap_or(i64::MIN);
            Timestamp { sec, nsec: before.subsec_nanos() }
        }
    }
}

/// Returns a time as fuser takes it in replies. One that `SystemTime` cannot hold becomes the epoch.
fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.sec.unsigned_abs());
    let base = if time.sec < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    let exact = base.and_then(|base| base.checked_add(Duration::from_nanos(u64::from(time.nsec))));
    exact.unwrap_or(UNIX_EPOCH)
}

/// Returns a device number as the protocol carries it: the low half of `dev_t` holds all that the kernel knows.
fn device(rdev: u64) -> u32 {
    u32::try_from(rdev & u64::from(u32::MAX)).unwrap_or_default()
}

/// Returns the low half of `bits`.
fn low_16_bits(bits: u32) -> u16 {
    u16::try_from(bits & u32::from(u16::MAX)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_in_both_directions() {
        for (sec, nsec) in [(0, 0), (1_700_000_000, 999_999_999), (-1, 0), (-2, 800_000_000), (i64::MAX, 0)] {
            let time = Timestamp { sec, nsec };
            let shown = system_time(time);
            let signed = match shown.duration_since(UNIX_EPOCH) {
                Ok(after) => i128::try_from(after.as_nanos()).unwrap(),
                Err(before) => -i128::try_from(before.duration().as_nanos()).unwrap(),
            };
            assert_eq!(signed, i128::from(sec) * 1_000_000_000 + i128::from(nsec), "{time:?}");
            // What fuser makes of the same numbers in a request.
            let whole = Duration::new(sec.unsigned_abs(), nsec);
            let asked = if sec < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
            assert_eq!(requested_time(asked), time);
        }
    }

    #[test]
    fn only_plain_renames_are_let_through() {
        for (bits, want) in [
            (0, Some(RenameMode::Replace)),
            (libc::RENAME_NOREPLACE, Some(RenameMode::NoReplace)),
            (libc::RENAME_EXCHANGE, Some(RenameMode::Exchange)),
            (libc::RENAME_WHITEOUT, None),
            (libc::RENAME_WHITEOUT | libc::RENAME_NOREPLACE, None),
            (libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE, None),
            (1 << 20, None),
        ] {
            let mode = rename_mode(RenameFlags::from_bits_retain(bits));
            assert_eq!(mode.as_ref().ok(), want.as_ref(), "{bits:#x}");
            assert!(mode.is_ok() || mode.is_err_and(|error| error.is(Errno::INVAL)));
        }
    }

    #[test]
    fn device_numbers_keep_major_and_minor() {
        for (major, minor) in [(0, 0), (1, 3), (8, 257), (4095, 1_048_575)] {
            let rdev = libc::makedev(major, minor);
            assert_eq!(u64::from(device(rdev)), rdev, "{major}:{minor}");
        }
    }

    #[test]
    fn attributes_show_the_node_number_and_only_permission_bits() {
        let attr = Attr {
            ino: 99,
            kind: FileKind::Regular,
            perm: 0o104_755,
            nlink: 1,
            uid: 1,
            gid: 2,
            rdev: 0,
            size: 3,
            blocks: 8,
            blksize: 4096,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            btime: None,
        };
        let shown = file_attr(NodeId(7), &attr);
        assert_eq!((shown.ino, shown.perm, shown.kind), (INodeNo(7), 0o4755, FileType::RegularFile));
    }
}
