//! The store as a file system: one method for each thing that can be asked of it. Knows no FUSE.
//!
//! A change is a list of facts: to the log first, all of them or none, then to memory. Contents are written before the log
//! says how long they are, and cut after. A server that is killed in between leaves what was true before or after.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, Mode, OFlags, StatVfs};

use super::contents::Contents;
use super::log::{Log, Opened};
use super::objects::{Object, Objects, ROOT};
use super::reserve::Reserve;
use super::{UPPER, WORK};
use crate::error::{Errno, Error, Result};
use crate::ondisk::store::{Fact, Shown};
use crate::request::{FileKind, Timestamp};
use crate::stack::upper::STORE;
use crate::sys::{self, Stat, xattr};

/// How long the server that has the store is waited for: after umount(2) it still writes.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// Longest name.
const NAME_MAX: usize = 255;
/// Most bytes that the attributes of one object may take.
const ATTRIBUTES_MAX: usize = 1 << 20;

/// An open store.
#[derive(Debug)]
pub(super) struct Files {
    /// Its directory. Holds the lock.
    dir: OwnedFd,
    log: Log,
    objects: Objects,
    contents: Contents,
    reserve: Reserve,
}

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub dir: u64,
    pub name: &'a [u8],
}

/// What is to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct New<'a> {
    /// Type and permission bits.
    pub mode: u32,
    /// Owner and group, if the directory does not give its own.
    pub owner: (u32, u32),
    /// Device number.
    pub rdev: u64,
    /// Where it points, if it is a symbolic link.
    pub target: &'a [u8],
}

/// What is to be changed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Change {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    /// By ftruncate(2) or open(2), which move times whatever the size was; truncate(2) leaves those of an empty file that
    /// stays empty.
    pub by_open_file: bool,
    pub atime: Option<Timestamp>,
    pub mtime: Option<Timestamp>,
}

/// What a rename does with what it meets and leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Renaming {
    Replace,
    NoReplace,
    Exchange,
    /// Leaves a character device 0:0.
    Whiteout,
}

/// What is looked for in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seek {
    Data,
    Hole,
}

impl Files {
    /// Opens the store of an upper, or makes one in an empty directory, with an upper that shows what `root` does.
    ///
    /// # Errors
    /// ENOTEMPTY if there is something else, EBUSY if a server has it, EUCLEAN if it is damaged.
    pub(super) fn open(upper: &OwnedFd, root: &Stat) -> Result<Self> {
        let dir = open_or_make(upper)?;
        lock(&dir)?;
        let (log, objects, closed) = match Log::open(&dir)? {
            Some(Opened { log, objects, closed }) => (log, objects, closed),
            None => {
                let objects = fresh(root)?;
                (Log::first(&dir, &objects)?, objects, true)
            }
        };
        let contents = Contents::open(&dir)?;
        let reserve = Reserve::open(&dir)?;
        let mut files = Self { dir, log, objects, contents, reserve };
        if files.log.is_writable() {
            files.objects.lost().into_iter().try_for_each(|id| files.discard(id))?;
            if !closed {
                files.contents.sweep(|id| files.objects.get(id).is_ok())?;
                files.change_anyway(vec![Fact::Epoch(new_epoch()?)])?;
            }
        }
        Ok(files)
    }

    /// Returns what is another one when something that was written may have been lost.
    pub(super) const fn epoch(&self) -> [u8; 16] {
        self.objects.epoch
    }

    /// Returns all that a process must have open that goes on with it.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let all = [self.dir.as_fd(), self.log.as_fd(), self.contents.as_fd()];
        all.into_iter().chain(self.reserve.descriptor()).collect()
    }

    /// Brings everything to the disk and says that this was all.
    pub(super) fn close(&mut self) -> Result<()> {
        if !self.log.is_writable() {
            return Ok(());
        }
        rustix::fs::syncfs(&self.dir)?;
        self.log.append(&[Fact::Closed])?;
        self.log.sync()
    }

    /// Returns an object.
    pub(super) fn get(&self, id: u64) -> Result<&Object> {
        Ok(self.objects.get(id)?)
    }

    /// Returns a number that no object had.
    #[cfg(test)]
    pub(super) const fn next_id(&self) -> u64 {
        self.objects.next()
    }

    /// Finds the object under a name and counts that the kernel is told of it.
    pub(super) fn lookup(&mut self, at: Place<'_>) -> Result<u64> {
        if at.name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        let id = self.objects.entry(at.dir, at.name)?;
        self.objects.count_lookup(id);
        Ok(id)
    }

    /// Counts that the kernel has forgotten an object.
    pub(super) fn forget(&mut self, id: u64, times: u64) -> Result<()> {
        if self.objects.forget(id, times) { self.discard(id) } else { Ok(()) }
    }

    /// Makes an object and counts that the kernel is told of it.
    pub(super) fn make(&mut self, at: Place<'_>, new: New<'_>) -> Result<u64> {
        let parent = self.free(at)?.shown;
        let (id, now) = (self.objects.next(), now());
        let mut shown = Shown {
            mode: new.mode,
            uid: new.owner.0,
            gid: new.owner.1,
            rdev: new.rdev,
            size: new.target.len() as u64,
            atime: now,
            mtime: now,
            ctime: now,
        };
        if parent.mode & libc::S_ISGID != 0 {
            shown.gid = parent.gid;
            if FileKind::from_mode(new.mode) == FileKind::Directory {
                shown.mode |= libc::S_ISGID;
            }
        }
        let mut facts = vec![Fact::Object(id, shown)];
        if !new.target.is_empty() {
            facts.push(Fact::Target(id, new.target.to_vec()));
        }
        facts.push(Fact::Enter(at.dir, at.name.to_vec(), id));
        facts.push(self.changed_dir(at.dir, now)?);
        self.change(facts)?;
        self.objects.count_lookup(id);
        Ok(id)
    }

    /// Gives an object another name and counts that the kernel is told of it.
    pub(super) fn link(&mut self, id: u64, at: Place<'_>) -> Result<()> {
        self.free(at)?;
        let object = self.get(id)?;
        if object.is_dir() {
            return Err(Errno::PERM.into());
        }
        let now = now();
        let entered = Fact::Enter(at.dir, at.name.to_vec(), id);
        self.change(vec![entered, self.moved(id, now)?, self.changed_dir(at.dir, now)?])?;
        self.objects.count_lookup(id);
        Ok(())
    }

    /// Removes a name. `kind` is what it has to be: a directory, or anything else.
    pub(super) fn remove(&mut self, at: Place<'_>, expected: Expected) -> Result<()> {
        let id = self.objects.entry(at.dir, at.name)?;
        let object = self.get(id)?;
        match (expected, object.is_dir()) {
            (Expected::Directory, false) => return Err(Errno::NOTDIR.into()),
            (Expected::Other, true) => return Err(Errno::ISDIR.into()),
            _ if !object.entries.is_empty() => return Err(Errno::NOTEMPTY.into()),
            _ => {}
        }
        let now = now();
        let left = Fact::Leave(at.dir, at.name.to_vec());
        self.change_anyway(vec![left, self.moved(id, now)?, self.changed_dir(at.dir, now)?])?;
        self.discard_if_lost(id)
    }

    /// Moves what has a name to another one.
    pub(super) fn rename(&mut self, from: Place<'_>, to: Place<'_>, how: Renaming) -> Result<()> {
        let id = self.objects.entry(from.dir, from.name)?;
        if to.name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        let met = match self.objects.entry(to.dir, to.name) {
            Ok(met) => Some(met),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno.into()),
        };
        self.check_met(id, met, how)?;
        if met == Some(id) {
            return Ok(());
        }
        let now = now();
        let mut facts = vec![Fact::Leave(from.dir, from.name.to_vec())];
        if let Some(met) = met {
            facts.extend([Fact::Leave(to.dir, to.name.to_vec()), self.moved(met, now)?]);
        }
        facts.extend([Fact::Enter(to.dir, to.name.to_vec(), id), self.moved(id, now)?]);
        match (how, met) {
            (Renaming::Exchange, Some(met)) => {
                facts.push(Fact::Enter(from.dir, from.name.to_vec(), met));
            }
            (Renaming::Whiteout, _) => {
                let (whiteout, mode) = (self.objects.next(), libc::S_IFCHR);
                let shown = Shown { mode, atime: now, mtime: now, ctime: now, ..Shown::default() };
                facts.push(Fact::Object(whiteout, shown));
                facts.push(Fact::Enter(from.dir, from.name.to_vec(), whiteout));
            }
            _ => {}
        }
        facts.push(self.changed_dir(from.dir, now)?);
        facts.push(self.changed_dir(to.dir, now)?);
        self.change_anyway(facts)?;
        met.map_or(Ok(()), |met| self.discard_if_lost(met))
    }

    /// Checks that a rename of `id` may meet what it meets.
    fn check_met(&self, id: u64, met: Option<u64>, how: Renaming) -> Result<()> {
        let Some(met) = met else {
            return if how == Renaming::Exchange { Err(Errno::NOENT.into()) } else { Ok(()) };
        };
        let (object, met) = (self.get(id)?, self.get(met)?);
        match how {
            Renaming::Exchange => Ok(()),
            Renaming::NoReplace => Err(Errno::EXIST.into()),
            _ if object.is_dir() && !met.is_dir() => Err(Errno::NOTDIR.into()),
            _ if !object.is_dir() && met.is_dir() => Err(Errno::ISDIR.into()),
            _ if !met.entries.is_empty() => Err(Errno::NOTEMPTY.into()),
            Renaming::Replace | Renaming::Whiteout => Ok(()),
        }
    }

    /// Changes what an object shows.
    pub(super) fn set(&mut self, id: u64, change: &Change) -> Result<()> {
        let now = now();
        let object = self.get(id)?;
        let mut shown = Shown { ctime: now, ..object.shown };
        if let Some(size) = change.size {
            if object.kind() != FileKind::Regular {
                return Err(Errno::INVAL.into());
            }
            if size != 0 || shown.size != 0 || change.by_open_file {
                (shown.size, shown.mtime) = (size, now);
            }
        }
        if let Some(mode) = change.mode {
            shown.mode = (shown.mode & libc::S_IFMT) | (mode & 0o7777);
        }
        shown.uid = change.uid.unwrap_or(shown.uid);
        shown.gid = change.gid.unwrap_or(shown.gid);
        shown.atime = change.atime.unwrap_or(shown.atime);
        shown.mtime = change.mtime.unwrap_or(shown.mtime);
        let cut = shown.size < object.shown.size;
        self.change_anyway(vec![Fact::Object(id, shown)])?;
        if cut { self.contents.cut(id, shown.size) } else { Ok(()) }
    }

    /// Returns the value of an attribute.
    pub(super) fn attribute(&self, id: u64, name: &[u8]) -> Result<&[u8]> {
        self.get(id)?.attributes.get(name).map(Vec::as_slice).ok_or(Errno::NODATA.into())
    }

    /// Sets an attribute. `flags` are `XATTR_CREATE` and `XATTR_REPLACE`.
    pub(super) fn set_attribute(&mut self, id: u64, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        let attributes = &self.get(id)?.attributes;
        match attributes.contains_key(name) {
            true if flags & xattr::CREATE != 0 => return Err(Errno::EXIST.into()),
            false if flags & xattr::REPLACE != 0 => return Err(Errno::NODATA.into()),
            _ => {}
        }
        let held: usize = attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
        if held + name.len() + value.len() > ATTRIBUTES_MAX {
            return Err(Errno::NOSPC.into());
        }
        self.change(vec![Fact::Set(id, name.to_vec(), value.to_vec()), self.moved(id, now())?])
    }

    /// Removes an attribute.
    pub(super) fn remove_attribute(&mut self, id: u64, name: &[u8]) -> Result<()> {
        self.attribute(id, name)?;
        self.change(vec![Fact::Unset(id, name.to_vec()), self.moved(id, now())?])
    }

    /// Reads the contents of a file; returns how much there was.
    pub(super) fn read(&mut self, id: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let size = self.get(id)?.shown.size;
        self.contents.read(id, size, offset, buffer)
    }

    /// Writes all of `data`.
    pub(super) fn write(&mut self, id: u64, offset: u64, data: &[u8]) -> Result<()> {
        let before = self.get(id)?.shown;
        let end = offset.checked_add(data.len() as u64).ok_or(Errno::FBIG)?;
        let now = now();
        let shown = Shown { size: before.size.max(end), mtime: now, ctime: now, ..before };
        let written = self
            .contents
            .write(id, before.size, offset, data)
            .and_then(|()| self.change(vec![Fact::Object(id, shown)]));
        if written.is_err() {
            // What was written in part must not show when the object grows.
            self.contents.cut(id, before.size)?;
        }
        written
    }

    /// Finds the first data or the first hole from `offset` on. What is known of holes is the one at the end.
    pub(super) fn seek(&mut self, id: u64, offset: u64, what: Seek) -> Result<u64> {
        let size = self.get(id)?.shown.size;
        let end = self.contents.end(id, size)?;
        match what {
            Seek::Data if offset < end => Ok(offset),
            Seek::Hole if offset < size => Ok(offset.max(end)),
            Seek::Data | Seek::Hole => Err(Errno::NXIO.into()),
        }
    }

    /// Brings an object to the disk.
    pub(super) fn sync(&mut self, id: u64) -> Result<()> {
        let shown = self.get(id)?.shown;
        if FileKind::from_mode(shown.mode) == FileKind::Regular {
            self.contents.sync(id, shown.size)?;
        }
        self.log.sync()
    }

    /// Tells how much room there is, and how many objects.
    pub(super) fn room(&self) -> Result<(StatVfs, u64)> {
        Ok((rustix::fs::fstatvfs(&self.dir)?, self.objects.count() as u64))
    }

    /// Returns the directory in which a new name may be entered.
    fn free(&self, at: Place<'_>) -> Result<&Object> {
        if at.name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        let dir = self.get(at.dir)?;
        match self.objects.entry(at.dir, at.name) {
            Err(Errno::NOENT) if dir.links() > 0 => Ok(dir),
            Ok(_) => Err(Errno::EXIST.into()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// A directory had a name entered or taken away.
    fn changed_dir(&self, id: u64, now: Timestamp) -> Result<Fact> {
        Ok(Fact::Object(id, Shown { mtime: now, ctime: now, ..self.get(id)?.shown }))
    }

    /// An object had something about it changed.
    fn moved(&self, id: u64, now: Timestamp) -> Result<Fact> {
        Ok(Fact::Object(id, Shown { ctime: now, ..self.get(id)?.shown }))
    }

    fn change(&mut self, facts: Vec<Fact>) -> Result<()> {
        self.log.append(&facts)?;
        for fact in facts {
            self.objects.learn(fact)?;
        }
        // The change is made; a disk that is full only keeps the log as long as it is.
        if let Err(error) = self.log.shorten(&self.dir, &self.objects) {
            tracing::warn!("the log of the store stays long: {error}");
        }
        Ok(())
    }

    /// Makes a change that needs hardly any room, or frees some, also where the disk is full.
    fn change_anyway(&mut self, facts: Vec<Fact>) -> Result<()> {
        match self.change(facts.clone()) {
            Err(error) if error.is(Errno::NOSPC) && self.reserve.spend()? => self.change(facts),
            result => result,
        }
    }

    fn discard_if_lost(&mut self, id: u64) -> Result<()> {
        if self.get(id)?.is_lost() { self.discard(id) } else { Ok(()) }
    }

    fn discard(&mut self, id: u64) -> Result<()> {
        self.change_anyway(vec![Fact::Gone(id)])?;
        self.contents.remove(id)?;
        self.reserve.fill()
    }
}

/// What a name that is removed has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Directory,
    Other,
}

fn open_or_make(upper: &OwnedFd) -> Result<OwnedFd> {
    let open = || sys::open_at(upper.as_fd(), STORE, OFlags::RDONLY | OFlags::DIRECTORY, 0);
    match open() {
        Err(Errno::NOENT) => {}
        dir => return dir.map_err(|errno| Error::new(errno).during("open in the upper the store", STORE)),
    }
    let mut other = None;
    sys::dirents::for_each_name(upper.as_fd(), |entry| {
        other = Some(entry.name.to_vec());
        Ok(false)
    })?;
    if let Some(name) = other {
        return Err(Error::new(Errno::NOTEMPTY).during("make a store in the upper beside", name).hint(
            "on this file system (exFAT, vfat) an upper is a store, which begins in an empty directory; \
             an upper that was copied there can be used as a lower layer",
        ));
    }
    rustix::fs::mkdirat(upper, STORE, Mode::RWXU)
        .map_err(|errno| Error::new(errno).during("make in the upper the store", STORE))?;
    Ok(open()?)
}

/// Waits until no other server has the store.
fn lock(dir: &OwnedFd) -> Result<()> {
    let begun = Instant::now();
    loop {
        match rustix::fs::flock(dir, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::AGAIN | Errno::INTR) if begun.elapsed() < PATIENCE => std::thread::sleep(ASK_AGAIN),
            Err(Errno::AGAIN) => {
                return Err(Error::new(Errno::BUSY)
                    .during("use in the upper the store", STORE)
                    .hint("another mount or command uses this upper"));
            }
            done => return Ok(done?),
        }
    }
}

/// Returns what is in a new store: the upper, which shows this, and a workdir of this user.
fn fresh(upper: &Stat) -> Result<Objects> {
    let mut objects = Objects::default();
    let now = now();
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let dir = |permissions| Shown {
        mode: libc::S_IFDIR | permissions,
        uid,
        gid,
        atime: now,
        mtime: now,
        ctime: now,
        ..Shown::default()
    };
    let upper = Shown {
        mode: upper.mode,
        uid: upper.uid,
        gid: upper.gid,
        atime: upper.atime,
        mtime: upper.mtime,
        ..dir(0)
    };
    for fact in [
        Fact::Epoch(new_epoch()?),
        Fact::Object(ROOT, dir(0o755)),
        Fact::Object(ROOT + 1, upper),
        Fact::Object(ROOT + 2, dir(0o700)),
        Fact::Enter(ROOT, UPPER.into(), ROOT + 1),
        Fact::Enter(ROOT, WORK.into(), ROOT + 2),
    ] {
        objects.learn(fact)?;
    }
    Ok(objects)
}

fn new_epoch() -> Result<[u8; 16]> {
    let mut epoch = [0; 16];
    rustix::rand::getrandom(&mut epoch, rustix::rand::GetRandomFlags::empty())?;
    Ok(epoch)
}

/// Returns the time.
pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp { sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nsec: since.subsec_nanos() }
}
