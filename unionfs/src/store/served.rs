//! The store over FUSE, by the fuser crate: each operation decodes its request, calls [`Files`], and replies.
//!
//! Only the kernel asks, for the union above, and every change passes through here: it may remember everything. One thread
//! answers, because one log is written.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;

use super::files::{Change, Expected, Files, New, Place, Renaming, Seek, now};
use crate::error::{Errno, Result};
use crate::fuse::beneath::{self, Listed, add_names, send_attribute};
use crate::fuse::convert;
use crate::request::{Attr, FileKind, NodeId, SetTime, Timestamp};

/// How long the kernel may remember: until it is told otherwise, by a change that passes through it.
const EVER: Duration = Duration::from_secs(1_000_000_000);
/// Numbers are never given again.
const GENERATION: Generation = Generation(0);
/// Largest write request.
const MAX_WRITE: u32 = 1 << 20;
/// Bytes of a block of st_blocks.
const BLOCK: u64 = 512;
/// Preferred size of reads and writes.
const BLKSIZE: u32 = 4096;

/// Serves a store until its mount ends.
///
/// # Errors
/// The connection broke otherwise than by its end.
pub(super) fn serve(files: Files, device: OwnedFd) -> Result<()> {
    let server = Server(Mutex::new(State { files, listings: HashMap::new(), next: 1 }));
    beneath::serve(server, device)
}

struct Server(Mutex<State>);

struct State {
    files: Files,
    /// What open directories hold, as it was when reading them began.
    listings: HashMap<u64, Vec<Listed>>,
    /// Number of the next open directory.
    next: u64,
}

impl Server {
    /// Runs `work`, and logs what is unexpected.
    fn with<T>(&self, work: impl FnOnce(&mut State) -> Result<T>) -> std::result::Result<T, fuser::Errno> {
        work(&mut self.0.lock()).map_err(|error| {
            if convert::is_unexpected(error.errno()) {
                tracing::error!("store: {error}");
            }
            convert::errno(error.errno())
        })
    }

    fn empty(&self, reply: ReplyEmpty, work: impl FnOnce(&mut Files) -> Result<()>) {
        match self.with(|state| work(&mut state.files)) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn entry(&self, reply: ReplyEntry, work: impl FnOnce(&mut Files) -> Result<u64>) {
        let found = self.with(|state| {
            let id = work(&mut state.files)?;
            attr(&state.files, id)
        });
        match found {
            Ok(attr) => reply.entry(&EVER, &attr, GENERATION),
            Err(errno) => reply.error(errno),
        }
    }
}

fn attr(files: &Files, id: u64) -> Result<FileAttr> {
    let object = files.get(id)?;
    let shown = &object.shown;
    let attr = Attr {
        ino: id,
        size: shown.size,
        blocks: shown.size.div_ceil(BLOCK),
        atime: shown.atime,
        mtime: shown.mtime,
        ctime: shown.ctime,
        btime: None,
        kind: object.kind(),
        perm: shown.mode & 0o7777,
        nlink: object.links(),
        uid: shown.uid,
        gid: shown.gid,
        rdev: shown.rdev,
        blksize: BLKSIZE,
    };
    Ok(convert::file_attr(NodeId(id), &attr))
}

fn place(dir: INodeNo, name: &OsStr) -> Place<'_> {
    Place { dir: dir.0, name: name.as_bytes() }
}

fn time(time: TimeOrNow) -> Timestamp {
    match convert::set_time(time) {
        SetTime::Now => now(),
        SetTime::At(time) => time,
    }
}

/// Checks that objects can have an attribute of this name. ACLs would have to be inherited and kept in step with modes.
fn check_attribute(name: &OsStr) -> Result<()> {
    let rest = [&b"user."[..], b"trusted.", b"security."]
        .iter()
        .find_map(|space| name.as_bytes().strip_prefix(*space));
    match rest {
        None => Err(Errno::OPNOTSUPP.into()),
        Some(b"") => Err(Errno::INVAL.into()),
        Some(_) => Ok(()),
    }
}

impl Filesystem for Server {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_BIG_WRITES
            | InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS;
        let unsupported = || io::Error::from(io::ErrorKind::Unsupported);
        config.add_capabilities(wanted & config.capabilities()).map_err(|_| unsupported())?;
        config.set_max_write(MAX_WRITE).map_err(|_| unsupported())?;
        Ok(())
    }

    fn destroy(&mut self) {
        if let Err(error) = self.0.lock().files.close() {
            tracing::error!("store: cannot bring it to the disk: {error}");
        }
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let at = place(parent, name);
        match self.with(|state| {
            let id = state.files.lookup(at)?;
            attr(&state.files, id)
        }) {
            Ok(attr) => reply.entry(&EVER, &attr, GENERATION),
            Err(errno) if errno == fuser::Errno::ENOENT => {
                reply.entry(&EVER, &convert::negative_attr(), GENERATION);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, times: u64) {
        // There is no reply; `with` has logged what went wrong.
        if self.with(|state| state.files.forget(ino.0, times)).is_err() {}
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.with(|state| attr(&state.files, ino.0)) {
            Ok(attr) => reply.attr(&EVER, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (atime, mtime) = (atime.map(time), mtime.map(time));
        let change = Change { mode, uid, gid, size, by_open_file: handle.is_some(), atime, mtime };
        match self.with(|state| {
            state.files.set(ino.0, &change)?;
            attr(&state.files, ino.0)
        }) {
            Ok(attr) => reply.attr(&EVER, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.with(|state| Ok(state.files.get(ino.0)?.target.clone())) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let new = New { mode, owner: (req.uid(), req.gid()), rdev: u64::from(rdev), target: b"" };
        self.entry(reply, |files| files.make(place(parent, name), new));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let mode = libc::S_IFDIR | (mode & 0o7777);
        let new = New { mode, owner: (req.uid(), req.gid()), rdev: 0, target: b"" };
        self.entry(reply, |files| files.make(place(parent, name), new));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.empty(reply, |files| files.remove(place(parent, name), Expected::Other));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.empty(reply, |files| files.remove(place(parent, name), Expected::Directory));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (mode, target) = (libc::S_IFLNK | 0o777, target.as_os_str().as_bytes());
        let new = New { mode, owner: (req.uid(), req.gid()), rdev: 0, target };
        self.entry(reply, |files| files.make(place(parent, name), new));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let how = match flags {
            flags if flags.is_empty() => Renaming::Replace,
            RenameFlags::RENAME_NOREPLACE => Renaming::NoReplace,
            RenameFlags::RENAME_EXCHANGE => Renaming::Exchange,
            RenameFlags::RENAME_WHITEOUT => Renaming::Whiteout,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        self.empty(reply, |files| files.rename(place(parent, name), place(new_parent, new_name), how));
    }

    fn link(&self, _req: &Request, ino: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        self.entry(reply, |files| files.link(ino.0, place(new_parent, new_name)).map(|()| ino.0));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // The kernel stops asking: an object is there as long as it is known.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buffer = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        match self.with(|state| state.files.read(ino.0, offset, &mut buffer)) {
            Ok(len) => reply.data(buffer.get(..len).unwrap_or_default()),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.with(|state| state.files.write(ino.0, offset, data)) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // The kernel stops asking: what was written is in its file.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.empty(reply, |files| files.sync(ino.0));
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let found = self.with(|state| {
            let offset = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
            state.files.seek(ino.0, offset, what)
        });
        match found {
            Ok(at) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
            Err(errno) => reply.error(errno),
        }
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let handle = self.with(|state| {
            state.next += 1;
            Ok(state.next)
        });
        match handle {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let read = self.with(|state| {
            if offset == 0 || !state.listings.contains_key(&handle.0) {
                state.listings.insert(handle.0, list(&state.files, ino.0)?);
            }
            let listing = state.listings.get(&handle.0).map(Vec::as_slice).unwrap_or_default();
            add_names(&mut reply, listing, offset);
            Ok(())
        });
        match read {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.0.lock().listings.remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.empty(reply, |files| files.sync(ino.0));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.with(|state| state.files.room()) {
            Ok((room, objects)) => {
                let short = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
                let (size, fragment) = (short(room.f_bsize), short(room.f_frsize));
                // exFAT and vfat tell no number.
                let (all, free) = match room.f_files {
                    0 => (objects + MANY, MANY),
                    all => (all, room.f_ffree),
                };
                let (blocks, free_blocks, available) = (room.f_blocks, room.f_bfree, room.f_bavail);
                reply.statfs(blocks, free_blocks, available, all, free, size, LONGEST_NAME, fragment);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.empty(reply, |files| {
            check_attribute(name)?;
            files.set_attribute(ino.0, name.as_bytes(), value, flags.cast_unsigned())
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = self.with(|state| {
            check_attribute(name)?;
            Ok(state.files.attribute(ino.0, name.as_bytes())?.to_vec())
        });
        send_attribute(reply, size, value);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.with(|state| {
            let names = state.files.get(ino.0)?.attributes.keys();
            Ok(names.flat_map(|name| [name, &b"\0"[..]].concat()).collect())
        });
        send_attribute(reply, size, names);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.empty(reply, |files| {
            check_attribute(name)?;
            files.remove_attribute(ino.0, name.as_bytes())
        });
    }
}

/// How many more objects there is room for where nobody tells.
const MANY: u64 = 1 << 32;

/// Longest name that statfs(2) tells.
const LONGEST_NAME: u32 = 255;

/// Lists a directory, itself and the one that has it first.
fn list(files: &Files, id: u64) -> Result<Vec<Listed>> {
    let dir = files.get(id)?;
    let dots = [(b".".to_vec(), id), (b"..".to_vec(), dir.parent)];
    let mut listing: Vec<Listed> =
        dots.into_iter().map(|(name, id)| Listed { name, id, kind: FileKind::Directory }).collect();
    for (name, &id) in &dir.entries {
        listing.push(Listed { name: name.clone(), id, kind: files.get(id)?.kind() });
    }
    Ok(listing)
}
