//! The sidecar: attributes of upper objects whose file system holds none, in a directory of the workdir.
//!
//! One file an object, named by the object's inode number, which survives renames and remounts as the object does. It is
//! replaced in one step, and before the object is published. A stamp in it (the file handle, or the time of birth)
//! tells whether the number belongs to another object by now. Nothing is kept in memory.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::error::{Errno, Error, Result};
use crate::ondisk::sidecar::{MAX, Record};
use crate::ondisk::{self, Namespace};
use crate::sys::{self, Stat, xattr};

/// Name of the directory in the workdir.
pub(crate) const SIDECAR: &[u8] = b"sidecar";
/// File in it that names the upper it belongs to.
const OWNER: &[u8] = b"upper";
/// Locks for changes, by inode number.
const SHARDS: usize = 64;

/// What tells an object from a later one with the same inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stamp {
    /// The file handle.
    Handle,
    /// The time of birth.
    Birth,
    /// Nothing: a record is removed when an object is born.
    None,
}

/// Who an object is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Key {
    ino: u64,
    stamp: Vec<u8>,
}

impl Key {
    /// Returns the name of the object's record.
    pub(crate) fn name(&self) -> Vec<u8> {
        format!("{:x}", self.ino).into_bytes()
    }
}

/// Returns the inode number of the object that a record of this name speaks of.
pub(crate) fn ino_of(name: &[u8]) -> Option<u64> {
    let ino = u64::from_str_radix(std::str::from_utf8(name).ok()?, 16).ok()?;
    (Key { ino, stamp: Vec::new() }.name() == name).then_some(ino)
}

/// How an object is named to the sidecar.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Object<'a> {
    /// By a descriptor.
    Open(BorrowedFd<'a>),
    /// By its name in a directory.
    At(BorrowedFd<'a>, &'a [u8]),
}

impl Object<'_> {
    fn stat(self) -> std::result::Result<Stat, Errno> {
        match self {
            Self::Open(fd) => sys::stat_fd(fd),
            Self::At(dir, name) => sys::stat_at(dir, name),
        }
    }

    fn handle(self) -> std::result::Result<(i32, Vec<u8>), Errno> {
        match self {
            Self::Open(fd) => sys::handle::handle_of(fd),
            Self::At(dir, name) => sys::handle::handle_at(dir, name),
        }
    }
}

/// An open sidecar.
pub(crate) struct Sidecar {
    dir: OwnedFd,
    stamp: Stamp,
    /// Under which names marks are asked for; stored they have none, so that root and an ordinary user read the same.
    namespace: Namespace,
    /// Records reach the disk before what they speak of.
    sync: bool,
    shards: [Mutex<()>; SHARDS],
}

impl fmt::Debug for Sidecar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sidecar").field("stamp", &self.stamp).finish_non_exhaustive()
    }
}

impl Sidecar {
    /// Opens the sidecar of a workdir if it has one.
    pub(crate) fn open(work: BorrowedFd<'_>, namespace: Namespace, sync: bool) -> Result<Option<Self>> {
        let dir = match sys::open_at(work, SIDECAR, OFlags::RDONLY | OFlags::DIRECTORY, 0) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(Error::new(errno).during("open in the workdir the directory", SIDECAR)),
        };
        let stamp = stamp_of(dir.as_fd());
        Ok(Some(Self { dir, stamp, namespace, sync, shards: [const { Mutex::new(()) }; SHARDS] }))
    }

    /// Makes the sidecar of a workdir.
    pub(crate) fn make(work: BorrowedFd<'_>, namespace: Namespace, sync: bool) -> Result<Self> {
        match rustix::fs::mkdirat(work, SIDECAR, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::new(errno).during("make in the workdir the directory", SIDECAR)),
        }
        Self::open(work, namespace, sync)?.ok_or(Error::new(Errno::IO))
    }

    /// Checks that the sidecar speaks of this upper, and notes it at the first time. Records of a copied upper would
    /// speak of other objects; one that is empty needs none, and they are thrown away.
    ///
    /// # Errors
    /// ESTALE if it belongs to another one.
    pub(crate) fn claim(&self, upper: BorrowedFd<'_>) -> Result<()> {
        if self.read_file(OWNER)?.is_some() {
            match self.check(upper) {
                Err(error) if error.is(Errno::STALE) && is_empty(upper)? => self.clear()?,
                checked => return checked,
            }
        }
        self.write_file(OWNER, &self.owner(upper)?)
    }

    /// Checks that the sidecar speaks of this upper.
    ///
    /// # Errors
    /// ESTALE if it belongs to another one.
    pub(crate) fn check(&self, upper: BorrowedFd<'_>) -> Result<()> {
        let mine = self.owner(upper)?;
        if self.read_file(OWNER)?.is_some_and(|owner| owner == mine) {
            return Ok(());
        }
        Err(Error::new(Errno::STALE).during("use in the workdir the directory", SIDECAR).hint(
            "it holds the attributes of another upper, perhaps the one that this is a copy of; \
             without it deleted names would come back",
        ))
    }

    fn owner(&self, upper: BorrowedFd<'_>) -> Result<Record> {
        let key = self.key(Object::Open(upper))?;
        Ok(Record { attributes: [(b"ino".to_vec(), key.name())].into(), stamp: key.stamp })
    }

    /// Returns whether there is a record of any object.
    pub(crate) fn is_used(&self) -> Result<bool> {
        let mut used = false;
        sys::dirents::for_each_name(self.dir.as_fd(), |entry| {
            used |= entry.name != OWNER;
            Ok(!used)
        })?;
        Ok(used)
    }

    /// Returns the names of all files but the one that names the upper.
    pub(crate) fn records(&self) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        sys::dirents::for_each_name(self.dir.as_fd(), |entry| {
            names.extend((entry.name != OWNER).then(|| entry.name.to_vec()));
            Ok(true)
        })?;
        names.sort_unstable();
        Ok(names)
    }

    fn clear(&self) -> Result<()> {
        self.records()?.iter().try_for_each(|name| self.remove_file(name))?;
        self.remove_file(OWNER)
    }

    /// Tells who an object is.
    pub(crate) fn key(&self, object: Object<'_>) -> Result<Key> {
        let stat = object.stat()?;
        let stamp = match self.stamp {
            Stamp::Handle => object.handle().map(|(_, handle)| handle)?,
            Stamp::Birth => stat.btime.map(birth).unwrap_or_default(),
            Stamp::None => Vec::new(),
        };
        Ok(Key { ino: stat.ino, stamp })
    }

    /// Returns the value of an attribute.
    pub(crate) fn get(&self, object: Object<'_>, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let record = self.read(&self.key(object)?)?;
        Ok(record.and_then(|mut record| record.attributes.remove(&*stored(name))))
    }

    /// Returns the names, each ended by NUL.
    pub(crate) fn list(&self, object: Object<'_>) -> Result<Vec<u8>> {
        let mut list = Vec::new();
        for name in self.read(&self.key(object)?)?.unwrap_or_default().attributes.keys() {
            match name.strip_prefix(MARK) {
                Some(mark) => list.extend_from_slice(&[&*self.namespace.name(""), mark].concat()),
                None => list.extend_from_slice(name),
            }
            list.push(0);
        }
        Ok(list)
    }

    /// Sets an attribute. `flags` are `XATTR_CREATE` and `XATTR_REPLACE`.
    pub(crate) fn set(&self, object: Object<'_>, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        let key = self.key(object)?;
        let _changes = self.lock(&key);
        let mut record = self.read(&key)?.unwrap_or_default();
        let name = stored(name);
        let exists = record.attributes.contains_key(&*name);
        if exists && flags & xattr::CREATE != 0 {
            return Err(Error::new(Errno::EXIST));
        }
        if !exists && flags & xattr::REPLACE != 0 {
            return Err(Error::new(Errno::NODATA));
        }
        record.attributes.insert(name.into_owned(), value.to_vec());
        record.stamp.clone_from(&key.stamp);
        let size: usize = record.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
        if size > MAX {
            return Err(Error::new(Errno::NOSPC));
        }
        self.write_file(&key.name(), &record)
    }

    /// Removes an attribute; tells whether there was one.
    pub(crate) fn remove(&self, object: Object<'_>, name: &[u8]) -> Result<bool> {
        let key = self.key(object)?;
        let _changes = self.lock(&key);
        let Some(mut record) = self.read(&key)? else { return Ok(false) };
        if record.attributes.remove(&*stored(name)).is_none() {
            return Ok(false);
        }
        if record.attributes.is_empty() {
            self.remove_file(&key.name())?;
        } else {
            self.write_file(&key.name(), &record)?;
        }
        Ok(true)
    }

    /// Returns whether an object has a record.
    pub(crate) fn has(&self, key: &Key) -> Result<bool> {
        Ok(self.read(key)?.is_some())
    }

    /// Removes the record of an object that is gone or about to go.
    pub(crate) fn forget(&self, key: &Key) -> Result<()> {
        let _changes = self.lock(key);
        self.remove_file(&key.name())
    }

    /// Notes that an object was made: what its inode number stood for before is gone.
    pub(crate) fn born(&self, object: Object<'_>) -> Result<()> {
        if self.stamp != Stamp::None {
            return Ok(());
        }
        self.forget(&self.key(object)?)
    }

    fn lock(&self, key: &Key) -> MutexGuard<'_, ()> {
        let shard = usize::try_from(key.ino % SHARDS as u64).unwrap_or(0);
        // There is always one: the number is below the length.
        self.shards.get(shard).unwrap_or(&self.shards[0]).lock()
    }

    fn read(&self, key: &Key) -> Result<Option<Record>> {
        Ok(self.read_file(&key.name())?.filter(|record| record.stamp == key.stamp))
    }

    fn read_file(&self, name: &[u8]) -> Result<Option<Record>> {
        let fd = match sys::open_at(self.dir.as_fd(), name, OFlags::RDONLY, 0) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::fs::File::from(fd), &mut bytes)?;
        let record = Record::decode(&bytes).ok_or(Errno::IO);
        record.map(Some).map_err(|e| Error::new(e).during("read in the sidecar the damaged record", name))
    }

    fn write_file(&self, name: &[u8], record: &Record) -> Result<()> {
        let temporary = [name, b".new"].concat();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let fd = sys::open_at(self.dir.as_fd(), &temporary, flags, 0o600)?;
        let written = sys::copy::write_all(fd.as_fd(), &record.encode(), 0)
            .and_then(|()| if self.sync { sys::retry(|| rustix::fs::fdatasync(&fd)) } else { Ok(()) });
        drop(fd);
        if let Err(errno) = written {
            self.remove_file(&temporary)?;
            return Err(errno.into());
        }
        Ok(rustix::fs::renameat(&self.dir, &*temporary, &self.dir, name)?)
    }

    /// Removes a file of the sidecar.
    pub(crate) fn remove_file(&self, name: &[u8]) -> Result<()> {
        match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// What marks begin with in the sidecar.
const MARK: &[u8] = b"overlay.";

/// Returns the name in the sidecar: that of a mark is the same in both namespaces.
fn stored(name: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    match ondisk::mark_of(name) {
        Some(mark) => [MARK, mark].concat().into(),
        None => name.into(),
    }
}

/// Finds out what tells objects apart on a file system.
fn stamp_of(dir: BorrowedFd<'_>) -> Stamp {
    if sys::handle::last(dir) && sys::handle::handle_of(dir).is_ok() {
        return Stamp::Handle;
    }
    if sys::stat_fd(dir).is_ok_and(|stat| stat.btime.is_some()) { Stamp::Birth } else { Stamp::None }
}

fn birth(time: crate::request::Timestamp) -> Vec<u8> {
    [&time.sec.to_le_bytes()[..], &time.nsec.to_le_bytes()].concat()
}

/// Returns whether a directory is empty.
pub(super) fn is_empty(dir: BorrowedFd<'_>) -> Result<bool> {
    let mut empty = true;
    let readable = sys::open_at(dir, b".", OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
    sys::dirents::for_each_name(readable.as_fd(), |_| {
        empty = false;
        Ok(false)
    })?;
    Ok(empty)
}
