//! Data: opening a file and everything that goes through an open one.
//!
//! A handle holds the node, not a descriptor: every request asks the node for the file that serves it now. So a handle
//! opened before a copy-up reads what is written after it. Requests hold the node's `data` lock for reading across
//! their I/O; copy-up takes it for writing to switch the file.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::RwLockWriteGuard;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};

use crate::copy_up::{self, Need};
use crate::error::{Errno, Error, Result};
use crate::handles::FileHandle;
use crate::inode::{Data, Inode, UpperFile};
use crate::request::{FileKind, Opened};
use crate::stack::owners::Owners;
use crate::sys;
use crate::tree::Tree;
use crate::upper_file::{self, Access};

/// Bytes that one copy_file_range request moves at most, so that it can be interrupted.
const COPY_RANGE_MAX: u64 = 64 << 20;

/// Smallest page size of the platforms, in bytes.
const PAGE: u64 = 4096;

/// Opens a file. `flags` are those of open(2).
///
/// # Errors
/// EISDIR, ELOOP and ENXIO for what is no regular file; EROFS; what copy-up answers.
pub(crate) fn open(tree: &Tree, inode: &Arc<Inode>, flags: u32, kill_suidgid: bool) -> Result<Opened> {
    match inode.kind {
        FileKind::Regular => {}
        FileKind::Directory => return Err(Error::new(Errno::ISDIR)),
        FileKind::Symlink => return Err(Error::new(Errno::LOOP)),
        _ => return Err(Error::new(Errno::NXIO)),
    }
    let flags = flags.cast_signed();
    let truncates = flags & libc::O_TRUNC != 0;
    let writes = flags & libc::O_ACCMODE != libc::O_RDONLY || truncates;
    if writes {
        copy_up::ensure_upper(tree, inode, if truncates { Need::Truncate } else { Need::Data })?;
    }
    let mut data = inode.data.write();
    load(tree, inode, &mut data, if writes { Access::Write } else { Access::Read })?;
    if let (true, Some(Data::Upper(file))) = (truncates, &mut *data) {
        set_size(file, 0)?;
        drop_set_id(tree.stack.upper_owners(), file, kill_suidgid)?;
    }
    inode.opens.fetch_add(1, Ordering::Relaxed);
    drop(data);
    Ok(Opened { fh: tree.files.insert(FileHandle { inode: Arc::clone(inode) }), keep_cache: true })
}

/// Closes a handle; the last one closes the file.
pub(crate) fn release(handle: &FileHandle) {
    let mut data = handle.inode.data.write();
    if handle.inode.opens.fetch_sub(1, Ordering::Relaxed) == 1 {
        let closed = data.take();
        drop(data);
        drop(closed);
    }
}

/// Closes a handle; the file stays open like one that is used without a handle.
pub(crate) fn park(tree: &Tree, handle: &FileHandle) {
    handle.inode.opens.fetch_sub(1, Ordering::Relaxed);
    tree.idle.used(&handle.inode);
}

/// Makes `data` hold a file that serves `access`.
fn load(tree: &Tree, inode: &Inode, data: &mut Option<Data>, access: Access) -> Result<()> {
    match data {
        Some(Data::Upper(file)) if access == Access::Read || file.writable => return Ok(()),
        Some(Data::Lower(_)) if access == Access::Read => return Ok(()),
        _ => {}
    }
    let on_upper = inode.on_upper() && !inode.is_metacopy();
    *data = Some(match access {
        _ if on_upper => Data::Upper(upper_file::open(tree, inode, access)?),
        Access::Read => Data::Lower(upper_file::open_lower_data(tree, inode)?),
        Access::Write => return Err(Error::new(Errno::IO)),
    });
    Ok(())
}

/// Calls `act` with the file that serves the node, which stays the same for so long.
fn with_data<T>(
    tree: &Tree,
    inode: &Arc<Inode>,
    access: Access,
    act: impl FnOnce(&Data) -> Result<T>,
) -> Result<T> {
    let serves = |data: &Data| match data {
        Data::Upper(file) => access == Access::Read || file.writable,
        Data::Lower(_) => access == Access::Read,
    };
    {
        // Recursive: copying within one file holds the lock twice.
        let data = inode.data.read_recursive();
        if let Some(data) = data.as_ref().filter(|data| serves(data)) {
            return act(data);
        }
    }
    let mut data = inode.data.write();
    load(tree, inode, &mut data, access)?;
    let idle = inode.opens.load(Ordering::Relaxed) == 0;
    let data = RwLockWriteGuard::downgrade(data);
    let result = act(data.as_ref().ok_or(Error::new(Errno::IO))?);
    drop(data);
    if idle {
        tree.idle.used(inode);
    }
    result
}

/// Calls `act` with the upper file, after copy-up.
fn with_upper<T>(tree: &Tree, inode: &Arc<Inode>, act: impl FnOnce(&UpperFile) -> Result<T>) -> Result<T> {
    copy_up::ensure_upper(tree, inode, Need::Data)?;
    with_data(tree, inode, Access::Write, |data| match data {
        Data::Upper(file) => act(file),
        Data::Lower(_) => Err(Error::new(Errno::IO)),
    })
}

/// As [`with_upper`], with all the data there.
fn with_upper_whole<T>(
    tree: &Tree,
    inode: &Arc<Inode>,
    act: impl FnOnce(&UpperFile) -> Result<T>,
) -> Result<T> {
    with_upper(tree, inode, |file| {
        file.complete()?;
        act(file)
    })
}

/// Reads at `offset` until `buffer` is full or the file ends.
pub(crate) fn read(tree: &Tree, inode: &Arc<Inode>, offset: u64, buffer: &mut [u8]) -> Result<usize> {
    with_data(tree, inode, Access::Read, |data| {
        if let Data::Upper(file) = data
            && let Some(parts) = file.parts()
        {
            return parts.read(file.fd.as_fd(), buffer, offset);
        }
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset + done as u64;
            let got = match data {
                Data::Lower(file) => file.read_at(rest, at)?,
                Data::Upper(file) => sys::retry(|| rustix::io::pread(&file.fd, &mut *rest, at))?,
            };
            let short = got < rest.len();
            done += got;
            // The page cache ends a read early at the end of the file only, which is seldom the end of a page.
            if got == 0 || (short && !(at + got as u64).is_multiple_of(PAGE)) {
                break;
            }
        }
        Ok(done)
    })
}

/// Calls `act` with the file that has the data at `offset`, and how many of the `size` bytes there are; not if they may be in
/// two files.
pub(crate) fn lend_data<T>(
    tree: &Tree,
    inode: &Arc<Inode>,
    offset: u64,
    size: usize,
    act: impl FnOnce(BorrowedFd<'_>, usize) -> Option<T>,
) -> Result<Option<T>> {
    let lend = |file: BorrowedFd<'_>| {
        let end = u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0);
        let len = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
        Ok(act(file, len.min(size)))
    };
    with_data(tree, inode, Access::Read, |data| match data {
        Data::Lower(file) => file.lend(lend)?,
        Data::Upper(file) if file.parts().is_none() => lend(file.fd.as_fd()),
        Data::Upper(_) => Ok(None),
    })
}

/// Writes all of `bytes` at `offset`.
///
/// # Errors
/// What the upper answers, ENOSPC and EDQUOT among them; part may have been written then, as with write(2).
pub(crate) fn write(
    tree: &Tree,
    inode: &Arc<Inode>,
    offset: u64,
    bytes: &[u8],
    kill_suidgid: bool,
) -> Result<usize> {
    with_upper(tree, inode, |file| {
        let owners = tree.stack.upper_owners();
        let set_id = if file.may_have_suid { Some(owners.stat_fd(file.fd.as_fd())?.mode) } else { None };
        match file.parts() {
            Some(parts) => parts.write(file.fd.as_fd(), bytes, offset)?,
            None => sys::copy::write_all(file.fd.as_fd(), bytes, offset)?,
        }
        match set_id {
            Some(mode) if !kill_suidgid => keep_set_id(owners, file, mode)?,
            _ => drop_set_id(owners, file, kill_suidgid)?,
        }
        Ok(bytes.len())
    })
}

/// Gives set-id bits back that the layer took away because this process may not keep them: who wrote may, or wrote
/// through a mapping, which takes none.
fn keep_set_id(owners: Owners, file: &UpperFile, mode: u32) -> Result<()> {
    owners.drop_capability(file.fd.as_fd())?;
    if owners.stat_fd(file.fd.as_fd())?.mode != mode {
        owners.set_mode(file.fd.as_fd(), mode)?;
    }
    Ok(())
}

/// Takes the set-id bits away after a change of the data by a caller that may not keep them.
fn drop_set_id(owners: Owners, file: &UpperFile, kill: bool) -> Result<()> {
    if !file.may_have_suid {
        return Ok(());
    }
    owners.drop_capability(file.fd.as_fd())?;
    let stat = owners.stat_fd(file.fd.as_fd())?;
    if let Some(mode) = stat.mode_without_set_id().filter(|_| kill) {
        owners.set_mode(file.fd.as_fd(), mode)?;
    }
    Ok(())
}

/// Notes a changed mode: a later write may have to take set-id bits away.
pub(crate) fn note_mode(inode: &Inode, mode: u32) {
    if mode & (libc::S_ISUID | libc::S_ISGID) != 0
        && let Some(Data::Upper(file)) = &mut *inode.data.write()
    {
        file.may_have_suid = true;
    }
}

/// Whether a size is to be set that a file may not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resize {
    /// It may have another one, or its times move in any case.
    Perhaps,
    /// truncate(2) to the size that it has: whether its times move is for the upper's file system to say.
    Never,
}

/// Sets the size.
pub(crate) fn truncate(
    tree: &Tree,
    inode: &Arc<Inode>,
    (size, resize): (u64, Resize),
    kill_suidgid: bool,
) -> Result<()> {
    with_upper(tree, inode, |file| {
        match resize {
            Resize::Perhaps => set_size(file, size)?,
            Resize::Never => match keep_size(file, size) {
                // Not for this process's user to open for writing by now, or there is no /proc.
                Err(Errno::ACCESS | Errno::TXTBSY | Errno::NOENT) => set_size(file, size)?,
                done => done?,
            },
        }
        drop_set_id(tree.stack.upper_owners(), file, kill_suidgid)
    })
}

/// Sets the size that a file has by its name.
fn keep_size(file: &UpperFile, size: u64) -> std::result::Result<(), Errno> {
    let parts = file.parts();
    // The background would put the times back that it saw before.
    let _still = parts.as_ref().map(|parts| parts.hold_still());
    sys::truncate_by_path(file.fd.as_fd(), size)
}

fn set_size(file: &UpperFile, size: u64) -> Result<()> {
    match file.parts() {
        Some(parts) => parts.truncate(file.fd.as_fd(), size),
        None => Ok(sys::retry(|| rustix::fs::ftruncate(&file.fd, size))?),
    }
}

/// Writes data back to the disk.
pub(crate) fn fsync(tree: &Tree, inode: &Arc<Inode>, datasync: bool) -> Result<()> {
    if !inode.on_upper() || !tree.policy.sync_requests {
        return Ok(());
    }
    // An object that was just copied up is the old one after a power cut until it is finished.
    tree.finish(inode)?;
    with_data(tree, inode, Access::Read, |data| {
        let Data::Upper(file) = data else { return Ok(()) };
        let sync =
            |fd: BorrowedFd<'_>| if datasync { rustix::fs::fdatasync(fd) } else { rustix::fs::fsync(fd) };
        Ok(sys::retry(|| sync(file.fd.as_fd()))?)
    })
}

/// Writes a directory's names back to the disk.
pub(crate) fn fsyncdir(tree: &Tree, dir: &Inode, datasync: bool) -> Result<()> {
    if !dir.on_upper() || !tree.policy.sync_requests {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let fd = sys::open_at(tree.upper_fd(dir)?.as_fd(), b".", flags, 0)?;
    Ok(sys::retry(|| if datasync { rustix::fs::fdatasync(&fd) } else { rustix::fs::fsync(&fd) })?)
}

/// Allocates, punches or zeroes a range. `mode` is that of fallocate(2).
pub(crate) fn fallocate(tree: &Tree, inode: &Arc<Inode>, offset: u64, length: u64, mode: u32) -> Result<()> {
    let flags = FallocateFlags::from_bits_retain(mode);
    with_upper_whole(tree, inode, |file| {
        Ok(sys::retry(|| rustix::fs::fallocate(&file.fd, flags, offset, length))?)
    })
}

/// Finds the next data or hole. `whence` is `SEEK_DATA` or `SEEK_HOLE`.
pub(crate) fn lseek(tree: &Tree, inode: &Arc<Inode>, offset: u64, whence: u32) -> Result<u64> {
    let from = match whence.cast_signed() {
        libc::SEEK_DATA => SeekFrom::Data(offset),
        libc::SEEK_HOLE => SeekFrom::Hole(offset),
        _ => return Err(Error::new(Errno::INVAL)),
    };
    with_data(tree, inode, Access::Read, |data| match data {
        Data::Lower(file) => file.seek(from),
        Data::Upper(file) => {
            file.complete()?;
            Ok(rustix::fs::seek(&file.fd, from)?)
        }
    })
}

/// Copies between two files without moving the data through the caller. Returns how many bytes were copied.
pub(crate) fn copy_file_range(
    tree: &Tree,
    source: (&Arc<Inode>, u64),
    target: (&Arc<Inode>, u64),
    len: u64,
) -> Result<u64> {
    let len = usize::try_from(len.min(COPY_RANGE_MAX)).unwrap_or(usize::MAX);
    with_upper_whole(tree, target.0, |to| {
        with_data(tree, source.0, Access::Read, |from| {
            let (mut from_at, mut to_at) = (source.1, target.1);
            let copied = match from {
                Data::Lower(file) => file.copy_range_to(from_at, to.fd.as_fd(), to_at, len)?,
                Data::Upper(file) => {
                    file.complete()?;
                    sys::retry(|| {
                        rustix::fs::copy_file_range(
                            &file.fd,
                            Some(&mut from_at),
                            &to.fd,
                            Some(&mut to_at),
                            len,
                        )
                    })?
                }
            };
            Ok(copied as u64)
        })
    })
}
