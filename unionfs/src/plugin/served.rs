//! Layers of plugins over FUSE, read-only: a directory for each, by number.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::hash::{DefaultHasher, Hasher as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use fuser::{
    Errno as FuserErrno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyXattr, Request,
};
use nix::unistd::alarm;
use parking_lot::Mutex;

use super::{PATIENCE, limited};
use crate::error::{Errno, Result};
use crate::fuse::beneath::{Listed, add_names, send_attribute};
use crate::fuse::convert;
use crate::request::{Attr, FileKind, NodeId, Timestamp};
use crate::sys::plugin::Layer;

/// How long the kernel may remember: a layer does not change.
const EVER: Duration = Duration::from_secs(1_000_000_000);
const GENERATION: Generation = Generation(0);
/// Bits of a number that are the plugin's: what is above is the number of the layer, from 1 on.
const PLUGIN_BITS: u32 = 48;
/// The directory that has the layers.
const TOP: u64 = 1;

/// What the kernel asks.
pub(super) struct Server(Mutex<State>);

struct State {
    layers: Vec<Layer>,
    /// One of the paths of each object that the kernel was told of.
    paths: HashMap<u64, CString>,
    files: HashMap<u64, OwnedFd>,
    listings: HashMap<u64, Vec<Listed>>,
    /// Number of what is opened next.
    next: u64,
}

impl Server {
    pub(super) fn new(layers: Vec<Layer>) -> Self {
        let (paths, files, listings) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self(Mutex::new(State { layers, paths, files, listings, next: 1 }))
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> Result<T>) -> std::result::Result<T, FuserErrno> {
        limited(|| work(&mut self.0.lock())).map_err(|error| convert::errno(error.errno()))
    }
}

/// Returns the number of an object: what the plugin says, by which hard links are one, or else what its path says.
fn number(layer: u64, ino: u64, path: &CStr) -> u64 {
    let own = match ino {
        1.. if ino >> PLUGIN_BITS == 0 => ino,
        _ => {
            let mut hasher = DefaultHasher::new();
            hasher.write(path.to_bytes());
            hasher.finish() >> (u64::BITS - PLUGIN_BITS)
        }
    };
    ((layer + 1) << PLUGIN_BITS) | own
}

impl State {
    /// Returns the layer of an object, its number, and the object's path in it.
    fn place(&mut self, id: u64) -> Result<(&mut Layer, u64, &CStr)> {
        let layer = (id >> PLUGIN_BITS).checked_sub(1).ok_or(Errno::NOENT)?;
        let at = usize::try_from(layer).map_err(|_| Errno::NOENT)?;
        let layer_at = self.layers.get_mut(at).ok_or(Errno::NOENT)?;
        Ok((layer_at, layer, self.paths.get(&id).ok_or(Errno::STALE)?))
    }

    /// Finds what is at `path` in a layer, and remembers it.
    fn find(&mut self, layer: u64, path: CString) -> Result<FileAttr> {
        let at = usize::try_from(layer).map_err(|_| Errno::NOENT)?;
        let stat = self.layers.get_mut(at).ok_or(Errno::NOENT)?.stat(&path)?;
        let attr = attr(&stat, number(layer, stat.st_ino, &path));
        self.paths.entry(attr.ino.0).or_insert(path);
        Ok(attr)
    }

    fn lookup(&mut self, parent: u64, name: &OsStr) -> Result<FileAttr> {
        if parent == TOP {
            let number = std::str::from_utf8(name.as_bytes()).ok().and_then(|name| name.parse().ok());
            let layer = number.ok_or(Errno::NOENT)?;
            return self.find(layer, c".".to_owned());
        }
        let (_, layer, dir) = self.place(parent)?;
        let path = below(dir, name.as_bytes())?;
        self.find(layer, path)
    }

    fn attributes(&mut self, id: u64) -> Result<FileAttr> {
        if id == TOP {
            return Ok(top());
        }
        let (layer, _, path) = self.place(id)?;
        Ok(attr(&layer.stat(path)?, id))
    }

    fn list(&mut self, id: u64) -> Result<Vec<Listed>> {
        let mut listing: Vec<Listed> = [&b"."[..], b".."]
            .into_iter()
            .map(|name| Listed { id, kind: FileKind::Directory, name: name.to_vec() })
            .collect();
        let (layer, number_of_layer, dir) = self.place(id)?;
        for entry in layer.list(dir)? {
            if entry.name == b"." || entry.name == b".." {
                continue;
            }
            let path = below(dir, &entry.name)?;
            let kind = match kind_of(entry.kind) {
                Some(kind) => kind,
                None => FileKind::from_mode(layer.stat(&path)?.st_mode),
            };
            let id = number(number_of_layer, entry.ino, &path);
            listing.push(Listed { id, kind, name: entry.name });
        }
        Ok(listing)
    }

    fn opened(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// Returns the path of `name` in a directory.
fn below(dir: &CStr, name: &[u8]) -> Result<CString> {
    let path = if dir == c"." { name.to_vec() } else { [dir.to_bytes(), b"/", name].concat() };
    CString::new(path).map_err(|_| Errno::INVAL.into())
}

/// Returns the type that a listing tells, if it does.
fn kind_of(kind: u8) -> Option<FileKind> {
    // The bits of a mode that are the type.
    (kind != libc::DT_UNKNOWN).then(|| FileKind::from_mode(u32::from(kind) << 12))
}

fn attr(stat: &libc::stat, id: u64) -> FileAttr {
    let time = |sec, nsec: i64| Timestamp { sec, nsec: u32::try_from(nsec).unwrap_or(0) };
    let attr = Attr {
        ino: id,
        kind: FileKind::from_mode(stat.st_mode),
        perm: stat.st_mode & 0o7777,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev,
        size: stat.st_size.cast_unsigned(),
        blocks: stat.st_blocks.cast_unsigned(),
        blksize: 4096,
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        btime: None,
    };
    convert::file_attr(NodeId(id), &attr)
}

fn top() -> FileAttr {
    FileAttr { perm: 0o555, nlink: 2, ..convert::dot_attr(TOP) }
}

impl Filesystem for Server {
    fn destroy(&mut self) {
        // For all that is left to do: cleaning up and releasing.
        alarm::set(PATIENCE);
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.with(|state| state.lookup(parent.0, name)) {
            Ok(attr) => reply.entry(&EVER, &attr, GENERATION),
            Err(errno) if errno == FuserErrno::ENOENT => {
                reply.entry(&EVER, &convert::negative_attr(), GENERATION);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.with(|state| state.attributes(ino.0)) {
            Ok(attr) => reply.attr(&EVER, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.with(|state| {
            let (layer, _, path) = state.place(ino.0)?;
            Ok(layer.link_target(path)?)
        }) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.with(|state| {
            let (layer, _, path) = state.place(ino.0)?;
            let file = layer.open(path)?;
            let handle = state.opened();
            state.files.insert(handle, file);
            Ok(handle)
        });
        match opened {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buffer = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        let read = self.with(|state| {
            let file = state.files.get(&handle.0).ok_or(Errno::BADF)?;
            let mut len = 0;
            while let Some(rest) = buffer.get_mut(len..).filter(|rest| !rest.is_empty()) {
                match crate::sys::retry(|| rustix::io::pread(file, &mut *rest, offset + len as u64))? {
                    0 => break,
                    more => len += more,
                }
            }
            Ok(len)
        });
        match read {
            Ok(len) => reply.data(buffer.get(..len).unwrap_or_default()),
            Err(errno) => reply.error(errno),
        }
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.0.lock().files.remove(&handle.0);
        reply.ok();
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // The kernel stops asking.
        reply.error(FuserErrno::ENOSYS);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.with(|state| {
            let listing = state.list(ino.0)?;
            let handle = state.opened();
            state.listings.insert(handle, listing);
            Ok(handle)
        });
        match opened {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_CACHE_DIR),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let state = self.0.lock();
        let listing = state.listings.get(&handle.0).map(Vec::as_slice).unwrap_or_default();
        add_names(&mut reply, listing, offset);
        reply.ok();
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

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = self.with(|state| {
            let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
            let (layer, _, path) = state.place(ino.0)?;
            Ok(layer.xattr(path, &name)?)
        });
        send_attribute(reply, size, value);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.with(|state| {
            let (layer, _, path) = state.place(ino.0)?;
            Ok(layer.xattr_names(path)?)
        });
        send_attribute(reply, size, names);
    }
}
