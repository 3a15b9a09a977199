//! The operations, one method each: decode, call, reply.

use std::cell::Cell;
use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, FopenFlags, INodeNo, IoctlFlags, KernelConfig, LockOwner,
    OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::convert::{self, caller, fh, file_attr, file_type, negative_attr, node, rename_mode, set_time};
use super::{CONGESTION_THRESHOLD, FuseAdapter, GENERATION, MAX_BACKGROUND};
use crate::error::{Errno, Result};
use crate::request::{DirEntry, Entry, Fh, Opened, SetAttr};
use crate::sys::process::Rights;
use crate::union::Union;

thread_local! {
    /// The buffer that read requests of this thread are answered from. Taken while in use.
    static READ_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Replies by the size rules of getxattr(2) and listxattr(2): size 0 asks for the size.
pub(super) fn send_xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(fuser::Errno::ERANGE),
    }
}

/// The attribute whose change takes the set-group-id bit of a file from who is not in its group.
const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

/// Takes the set-group-id bit of a file whose access ACL `req` has changed, unless that one may keep it. The kernel tells
/// by a flag of the request that fuser does not know. Who is not to be seen is taken for a member of the group.
fn drop_set_gid(union: &Union, req: &Request, ino: INodeNo) -> Result<()> {
    let attr = union.getattr(node(ino), None)?;
    if attr.perm & libc::S_ISGID == 0
        || Rights::of(req.pid()).is_none_or(|rights| rights.keep_set_gid(attr.gid))
    {
        return Ok(());
    }
    let change = SetAttr { mode: Some(attr.perm & !libc::S_ISGID), ..SetAttr::default() };
    union.setattr(&caller(req, 0), node(ino), &change).map(drop)
}

impl FuseAdapter {
    /// Returns whether `req` may not keep set-id bits through a change of size. The kernel tells by a bit of the request
    /// that fuser does not show; only root of the host is taken to have the right, as almost everywhere.
    fn kills_suidgid(&self, req: &Request) -> bool {
        self.in_user_namespace || req.uid() != 0
    }
}

impl fuser::Filesystem for FuseAdapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = self.capabilities & config.capabilities();
        config.add_capabilities(wanted).map_err(|_| io::Error::from(io::ErrorKind::Unsupported))?;
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        // A size above fuser's own limit takes that limit.
        if let Err(largest) = config.set_max_write(self.max_write) {
            config.set_max_write(largest).map_err(|_| invalid())?;
        }
        config.set_max_background(MAX_BACKGROUND).map_err(|_| invalid())?;
        config.set_congestion_threshold(CONGESTION_THRESHOLD).map_err(|_| invalid())?;
        tracing::info!("kernel speaks FUSE {}, in use: {wanted:?}", config.kernel_abi());
        Ok(())
    }

    fn destroy(&mut self) {
        self.union.destroy();
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.guarded("lookup", parent, |union| union.lookup(node(parent), name.as_bytes())) {
            Ok(entry) => self.send_entry(reply, &entry),
            // An entry without a node is a negative one: the kernel remembers that there is nothing.
            Err(errno) if errno == fuser::Errno::ENOENT && !self.ttl.is_zero() => {
                reply.entry(&self.ttl, &negative_attr(), GENERATION);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        // There is no reply; `guarded` has logged what went wrong.
        if self
            .guarded("forget", ino, |union| {
                union.forget(node(ino), nlookup);
                Ok(())
            })
            .is_err()
        {}
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        let work = |union: &Union| union.getattr(node(ino), handle.map(fh));
        self.answer(("getattr", ino), reply, work, |reply, attr| self.send_attr(reply, node(ino), &attr));
    }

    fn setattr(
        &self,
        req: &Request,
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
        let change = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            through_file: handle.is_some(),
            kill_suidgid: size.is_some() && self.kills_suidgid(req),
        };
        let work = |union: &Union| union.setattr(&caller(req, 0), node(ino), &change);
        self.answer(("setattr", ino), reply, work, |reply, attr| self.send_attr(reply, node(ino), &attr));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.answer(
            ("readlink", ino),
            reply,
            |union| union.readlink(node(ino)),
            |reply, target| reply.data(&target),
        );
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (caller, rdev) = (caller(req, umask), u64::from(rdev));
        let work = |union: &Union| union.mknod(&caller, node(parent), name.as_bytes(), mode, rdev);
        self.answer(("mknod", parent), reply, work, |reply, entry| self.send_entry(reply, &entry));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let work = |union: &Union| union.mkdir(&caller(req, umask), node(parent), name.as_bytes(), mode);
        self.answer(("mkdir", parent), reply, work, |reply, entry| self.send_entry(reply, &entry));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let work = |union: &Union| union.unlink(node(parent), name.as_bytes());
        self.answer(("unlink", parent), reply, work, |reply, ()| reply.ok());
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let work = |union: &Union| union.rmdir(node(parent), name.as_bytes());
        self.answer(("rmdir", parent), reply, work, |reply, ()| reply.ok());
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        let work = |union: &Union| union.symlink(&caller(req, 0), node(parent), name.as_bytes(), target);
        self.answer(("symlink", parent), reply, work, |reply, entry| self.send_entry(reply, &entry));
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
        let (from, to) = ((node(parent), name.as_bytes()), (node(new_parent), new_name.as_bytes()));
        let work = |union: &Union| union.rename(from.0, from.1, to.0, to.1, rename_mode(flags)?);
        self.answer(("rename", parent), reply, work, |reply, ()| reply.ok());
    }

    fn link(&self, _req: &Request, ino: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let work = |union: &Union| union.link(node(ino), node(new_parent), new_name.as_bytes());
        self.answer(("link", ino), reply, work, |reply, entry| self.send_entry(reply, &entry));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let flags = flags.0.cast_unsigned();
        let work =
            |union: &Union| union.open_file(&caller(req, 0), node(ino), flags, self.kills_suidgid(req));
        let send = |reply: ReplyOpen, opened: Opened| {
            reply.opened(FileHandle(opened.fh.0), self.open_flags(&opened))
        };
        self.answer(("open", ino), reply, work, send);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (caller, flags) = (caller(req, umask), flags.cast_unsigned());
        let work = |union: &Union| union.create(&caller, node(parent), name.as_bytes(), mode, flags);
        self.answer(("create", parent), reply, work, |reply, (entry, opened)| {
            // fuser has one lifetime here for the name and the attributes.
            let (attr, ttl) = (file_attr(entry.node, &entry.attr), self.attr_ttl(&entry.attr));
            reply.created(&ttl, &attr, GENERATION, FileHandle(opened.fh.0), self.open_flags(&opened));
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buffer = READ_BUFFER.take();
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        buffer.resize(buffer.len().max(size), 0);
        let target = buffer.get_mut(..size).unwrap_or_default();
        let work = |union: &Union| union.read(node(ino), Some(fh(handle)), offset, target);
        match self.guarded("read", ino, work) {
            Ok(len) => reply.data(buffer.get(..len).unwrap_or_default()),
            Err(errno) => reply.error(errno),
        }
        READ_BUFFER.set(buffer);
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let work = |union: &Union| union.write(node(ino), Some(fh(handle)), offset, data, kill);
        self.answer(("write", ino), reply, work, |reply, len| {
            reply.written(u32::try_from(len).unwrap_or(u32::MAX))
        });
    }

    fn flush(
        &self,
        _req: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.answer(
            ("flush", ino),
            reply,
            |union| union.flush(node(ino), Some(fh(handle))),
            |reply, ()| reply.ok(),
        );
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.answer(
            ("release", ino),
            reply,
            |union| {
                union.release(fh(handle));
                Ok(())
            },
            |reply, ()| reply.ok(),
        );
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, handle: FileHandle, datasync: bool, reply: ReplyEmpty) {
        if !self.syncs {
            // The kernel stops asking and tells programs success.
            return reply.error(fuser::Errno::ENOSYS);
        }
        let work = |union: &Union| union.fsync(node(ino), Some(fh(handle)), datasync);
        self.answer(("fsync", ino), reply, work, |reply, ()| reply.ok());
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let caching = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
        let flags = if self.ttl.is_zero() { FopenFlags::empty() } else { caching };
        let send = |reply: ReplyOpen, handle: Fh| reply.opened(FileHandle(handle.0), flags);
        self.answer(("opendir", ino), reply, |union| union.opendir(node(ino)), send);
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let mut sink = |entry: DirEntry<'_>| {
            let name = OsStr::from_bytes(entry.name);
            full(reply.add(INodeNo(entry.ino), entry.next_offset, file_type(entry.kind), name))
        };
        match self.guarded("readdir", ino, |union| union.readdir(node(ino), fh(handle), offset, &mut sink)) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let mut sink = |entry: DirEntry<'_>, found: Option<Entry>| {
            let (attr, ttl) = match found {
                Some(found) => (file_attr(found.node, &found.attr), self.attr_ttl(&found.attr)),
                None if matches!(entry.name, b"." | b"..") => (convert::dot_attr(entry.ino), self.ttl),
                // It cannot be looked up, and fuser has no answer for that: not listed.
                None => return ControlFlow::Continue(()),
            };
            let name = OsStr::from_bytes(entry.name);
            full(reply.add(attr.ino, entry.next_offset, name, &ttl, &attr, GENERATION))
        };
        match self
            .guarded("readdirplus", ino, |union| union.readdirplus(node(ino), fh(handle), offset, &mut sink))
        {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(
        &self,
        _req: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.answer(
            ("releasedir", ino),
            reply,
            |union| {
                union.releasedir(fh(handle));
                Ok(())
            },
            |reply, ()| reply.ok(),
        );
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _handle: FileHandle, datasync: bool, reply: ReplyEmpty) {
        if !self.syncs {
            return reply.error(fuser::Errno::ENOSYS);
        }
        self.answer(
            ("fsyncdir", ino),
            reply,
            |union| union.fsyncdir(node(ino), datasync),
            |reply, ()| reply.ok(),
        );
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.answer(("statfs", ino), reply, Union::statfs, |reply, fs| {
            reply.statfs(fs.blocks, fs.bfree, fs.bavail, fs.files, fs.ffree, fs.bsize, fs.namelen, fs.frsize);
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        if !self.xattrs {
            // The kernel stops asking and tells programs ENOTSUP; so for the other three.
            return reply.error(fuser::Errno::ENOSYS);
        }
        let work = |union: &Union| {
            union.setxattr(node(ino), name.as_bytes(), value, flags.cast_unsigned())?;
            if name.as_bytes() == ACCESS_ACL { drop_set_gid(union, req, ino) } else { Ok(()) }
        };
        self.answer(("setxattr", ino), reply, work, |reply, ()| reply.ok());
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if !self.xattrs {
            return reply.error(fuser::Errno::ENOSYS);
        }
        let work = |union: &Union| union.getxattr(node(ino), name.as_bytes());
        self.answer(("getxattr", ino), reply, work, |reply, value| send_xattr(reply, size, &value));
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if !self.xattrs {
            return reply.error(fuser::Errno::ENOSYS);
        }
        let work = |union: &Union| union.listxattr(node(ino));
        self.answer(("listxattr", ino), reply, work, |reply, names| send_xattr(reply, size, &names));
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if !self.xattrs {
            return reply.error(fuser::Errno::ENOSYS);
        }
        let work = |union: &Union| union.removexattr(node(ino), name.as_bytes());
        self.answer(("removexattr", ino), reply, work, |reply, ()| reply.ok());
    }

    fn ioctl(
        &self,
        _req: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        let work = |union: &Union| union.ioctl(node(ino), cmd, in_data);
        self.answer(("ioctl", ino), reply, work, |reply, mut value| {
            value.truncate(usize::try_from(out_size).unwrap_or(usize::MAX));
            reply.ioctl(0, &value);
        });
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // The kernel stops asking; files are then always ready.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = mode.cast_unsigned();
        let work = |union: &Union| union.fallocate(node(ino), Some(fh(handle)), offset, length, mode);
        self.answer(("fallocate", ino), reply, work, |reply, ()| reply.ok());
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let work = |union: &Union| {
            // SEEK_DATA and SEEK_HOLE, the only ones that arrive, answer ENXIO for what is not in the file.
            let offset = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
            let found = union.lseek(node(ino), Some(fh(handle)), offset, whence.cast_unsigned())?;
            Ok(i64::try_from(found).map_err(|_| Errno::OVERFLOW)?)
        };
        self.answer(("lseek", ino), reply, work, |reply, offset| reply.offset(offset));
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        source: INodeNo,
        source_handle: FileHandle,
        source_offset: u64,
        target: INodeNo,
        target_handle: FileHandle,
        target_offset: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let from = (node(source), Some(fh(source_handle)), source_offset);
        let to = (node(target), Some(fh(target_handle)), target_offset);
        // The answer has 32 bits for the length; a shorter copy is what callers have to expect anyway.
        let work = |union: &Union| union.copy_file_range(from, to, len.min(convert::MAX_COPY));
        self.answer(("copy_file_range", target), reply, work, |reply, len| {
            reply.written(u32::try_from(len).unwrap_or(u32::MAX));
        });
    }
}

/// Turns fuser's "the buffer is full" into the word of a listing.
fn full(is_full: bool) -> ControlFlow<()> {
    if is_full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
