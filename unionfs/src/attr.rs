//! Attributes: reading and changing them, and file system totals.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid};

use crate::copy_up::{self, Need};
use crate::error::{Errno, Error, Result};
use crate::file_io::{self, Resize};
use crate::inode::{Data, Inode};
use crate::name::NAME_MAX;
use crate::ondisk::WHITEOUT_PREFIX;
use crate::request::{Attr, Caller, FileKind, SetAttr, SetTime, StatFs};
use crate::stack::probe::WhiteoutForm;
use crate::sys::process::Rights;
use crate::sys::{self, Stat};
use crate::tree::Tree;

/// Nanoseconds value that means "leave this time as it is" to utimensat(2).
const UTIME_OMIT: i64 = libc::UTIME_OMIT;
/// Nanoseconds value that means "now".
const UTIME_NOW: i64 = libc::UTIME_NOW;

/// Returns the attributes to show.
pub(crate) fn getattr(tree: &Tree, inode: &Inode) -> Result<Attr> {
    let stat = tree.stat(inode)?;
    Ok(tree.attr(inode, &stat))
}

/// Changes attributes, in the order size, owner, mode, times: the earlier ones change the later ones by themselves.
///
/// # Errors
/// EISDIR and EINVAL for the size of what has none, EINVAL for an id that the mapping cannot store.
pub(crate) fn setattr(tree: &Tree, caller: &Caller, inode: &Arc<Inode>, change: &SetAttr) -> Result<Attr> {
    if change.size.is_some() && inode.kind != FileKind::Regular {
        return Err(Error::new(if inode.is_dir() { Errno::ISDIR } else { Errno::INVAL }));
    }
    // Through a file the times move in any case. open(2) with O_TRUNC does not say that it is one: it always has the size 0.
    let by_name = change.size.is_some_and(|size| size > 0) && !change.through_file;
    let resize =
        if by_name && change.size == Some(tree.stat(inode)?.size) { Resize::Never } else { Resize::Perhaps };
    let need = match change.size {
        None => Need::Metadata,
        Some(0) => Need::Truncate,
        Some(_) => Need::Data,
    };
    copy_up::ensure_upper(tree, inode, need)?;
    keep_marks_removable(tree, inode, change)?;
    if let Some(size) = change.size {
        file_io::truncate(tree, inode, (size, resize), change.kill_suidgid)?;
    }
    let mut owner = wanted_owner(tree, change)?;
    if change.is_empty() && !inode.is_dir() {
        // Before a change of the data that takes set-id bits away, and of chown(2) with both ids -1.
        owner = Some((None, None));
    }
    if owner.is_some() || (change.size.is_some() && change.kill_suidgid) {
        drop_set_gid(tree, caller, inode)?;
    }
    if owner.is_none() && change.mode.is_none() && change.atime.is_none() && change.mtime.is_none() {
        return getattr(tree, inode);
    }
    if inode.kind == FileKind::Symlink && change.mode.is_some() {
        return Err(Error::new(Errno::OPNOTSUPP));
    }
    // The background puts times back as they were before it copied.
    let parts = tree.parts(inode);
    let _still = parts.as_ref().map(|parts| parts.hold_still());
    let apply = |object: Object<'_>| apply(tree, object, owner, change);
    let stat = match tree.by_name(inode, |dir, name| apply(Object::Name(dir, name))) {
        Some(stat) => stat?,
        None => apply(Object::Open(tree.pin_upper(inode)?.as_fd()))?,
    };
    file_io::note_mode(inode, stat.mode);
    Ok(tree.attr(inode, &tree.shown_stat(inode, stat)))
}

/// Finishes a file before its mode forbids that to an ordinary user.
fn keep_marks_removable(tree: &Tree, inode: &Inode, change: &SetAttr) -> Result<()> {
    let upper = tree.stack.upper()?;
    let privileged = upper.features.chown || !upper.owners.are_inodes();
    if privileged || change.mode.is_none_or(|mode| mode & 0o200 != 0) {
        return Ok(());
    }
    tree.finish(inode)
}

/// Takes the set-group-id bit of a file away that its group may not execute, if who changes it or its owner is a stranger to
/// the group: the layer's file system would ask that of this process.
pub(crate) fn drop_set_gid(tree: &Tree, caller: &Caller, inode: &Arc<Inode>) -> Result<()> {
    const SET_GID: u32 = libc::S_ISGID;
    if inode.kind != FileKind::Regular {
        return Ok(());
    }
    if let Some(Data::Upper(file)) = &*inode.data.read_recursive()
        && !file.may_have_suid
    {
        return Ok(());
    }
    let stat = tree.own_stat(inode)?;
    if stat.mode & (SET_GID | libc::S_IXGRP) != SET_GID {
        return Ok(());
    }
    // Who is not to be seen, from another process namespace, is taken for a member.
    let keeps = Rights::of(caller.pid).is_none_or(|rights| rights.keep_set_gid(tree.gids.shown(stat.gid)));
    if keeps {
        return Ok(());
    }
    copy_up::ensure_upper(tree, inode, Need::Metadata)?;
    Ok(tree.stack.upper_owners().set_mode(tree.pin_upper(inode)?.as_fd(), stat.mode & !SET_GID)?)
}

/// How an upper object is named to the calls that change it.
#[derive(Clone, Copy)]
enum Object<'a> {
    /// By a descriptor, for attributes or for data.
    Open(BorrowedFd<'a>),
    /// By its name, while nothing renames it.
    Name(BorrowedFd<'a>, &'a [u8]),
}

fn apply(tree: &Tree, object: Object<'_>, owner: Option<Owner>, change: &SetAttr) -> Result<Stat> {
    if !tree.stack.upper_owners().are_inodes() {
        return match object {
            Object::Open(fd) => apply_recorded(tree, fd, owner, change),
            Object::Name(dir, name) => apply_recorded(tree, sys::pin_at(dir, name)?.as_fd(), owner, change),
        };
    }
    if let Some((uid, gid)) = owner {
        let done = match object {
            Object::Open(fd) => rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH),
            Object::Name(dir, name) => rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
        };
        tree.policy.owner_stored(done)?;
    }
    if let Some(mode) = change.mode {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        match object {
            Object::Open(fd) => sys::set_mode(fd, mode)?,
            // No symbolic link: its kind was checked.
            Object::Name(dir, name) => rustix::fs::chmodat(dir, name, mode, AtFlags::empty())?,
        }
    }
    if change.atime.is_some() || change.mtime.is_some() {
        set_times(object, change)?;
    }
    Ok(match object {
        Object::Open(fd) => sys::stat_fd(fd)?,
        Object::Name(dir, name) => tree.stack.upper()?.stat_at(dir, name)?,
    })
}

/// Changes an object of a layer that keeps owners and modes in records.
fn apply_recorded(tree: &Tree, fd: BorrowedFd<'_>, owner: Option<Owner>, change: &SetAttr) -> Result<Stat> {
    let owners = tree.stack.upper_owners();
    if let Some((uid, gid)) = owner {
        owners.set_owner(fd, uid, gid)?;
    }
    if let Some(mode) = change.mode {
        owners.set_mode(fd, mode)?;
    }
    if change.atime.is_some() || change.mtime.is_some() {
        set_times(Object::Open(fd), change)?;
    }
    Ok(owners.stat_fd(fd)?)
}

type Owner = (Option<Uid>, Option<Gid>);

/// Returns the ids to store, `None` if no owner is to be changed. Squashed ones stay, and chown(2) still takes set-id bits
/// away.
fn wanted_owner(tree: &Tree, change: &SetAttr) -> Result<Option<Owner>> {
    let invalid = Error::new(Errno::INVAL);
    let uid = change.uid.filter(|_| tree.uids.fixed.is_none());
    let gid = change.gid.filter(|_| tree.gids.fixed.is_none());
    let uid = uid.map(|uid| tree.uids.disk(uid).ok_or(Error::new(Errno::INVAL))).transpose()?;
    let gid = gid.map(|gid| tree.gids.disk(gid).ok_or(invalid)).transpose()?;
    Ok((change.uid.is_some() || change.gid.is_some())
        .then(|| (uid.map(Uid::from_raw), gid.map(Gid::from_raw))))
}

fn set_times(object: Object<'_>, change: &SetAttr) -> Result<()> {
    let time = |time: Option<SetTime>| match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(SetTime::At(at)) => at.into(),
    };
    let times = Timestamps { last_access: time(change.atime), last_modification: time(change.mtime) };
    let fd = match object {
        Object::Name(dir, name) => {
            return Ok(rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?);
        }
        Object::Open(fd) => fd,
    };
    Ok(sys::set_times(fd, &times)?)
}

/// Returns the totals of the upper's file system, or of the top lower's in a read-only mount.
pub(crate) fn statfs(tree: &Tree) -> Result<StatFs> {
    let mut namelen = NAME_MAX;
    let totals = match &tree.stack.upper {
        Some(upper) => {
            if upper.features.whiteouts == WhiteoutForm::DotWh {
                // A longer name could not be whited out.
                namelen -= WHITEOUT_PREFIX.len();
            }
            rustix::fs::fstatvfs(upper.root_fd())?
        }
        None => tree.stack.lowers.first().ok_or(Error::new(Errno::IO))?.statvfs()?,
    };
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Ok(StatFs {
        blocks: totals.f_blocks,
        bfree: totals.f_bfree,
        bavail: totals.f_bavail,
        files: totals.f_files,
        ffree: totals.f_ffree,
        bsize: small(totals.f_bsize),
        namelen: small(totals.f_namemax).min(u32::try_from(namelen).unwrap_or(u32::MAX)),
        frsize: small(totals.f_frsize),
    })
}
