//! The log of a store on disk: `log.N` in its directory. The one with the greatest number that is whole counts.
//!
//! Facts are appended before they are true in memory and before anybody is answered. When the log has become much longer
//! than what it says, that is written into the next one, which counts from its fact `Whole` on.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, OFlags};

use super::objects::Objects;
use crate::error::{Errno, Error, Result};
use crate::ondisk::store::{Fact, Frames, HEAD, frame, head};
use crate::sys;

/// What the names of logs begin with.
const PREFIX: &[u8] = b"log.";
/// Number of the first one.
const FIRST: u64 = 1;
/// Bytes of facts that are written at once when a log is begun.
const PORTION: usize = 1 << 16;
/// Bytes by which a log may outgrow twice what it says.
const SLACK: u64 = 16 << 20;

/// An open log.
#[derive(Debug)]
pub(super) struct Log {
    file: OwnedFd,
    number: u64,
    salt: u64,
    /// Where the next frame goes.
    end: u64,
    /// Where it ended when it was begun or opened.
    began: u64,
    /// It may be written.
    writable: bool,
    /// A frame that was written in part could not be taken back: nothing may follow.
    broken: bool,
}

/// What was read.
#[derive(Debug)]
pub(super) struct Opened {
    pub log: Log,
    pub objects: Objects,
    /// The last server closed the store in order.
    pub closed: bool,
}

impl AsFd for Log {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Log {
    /// Opens the log of the store in `dir`; `None` if it has none yet.
    ///
    /// # Errors
    /// EUCLEAN if it is damaged.
    pub(super) fn open(dir: &OwnedFd) -> Result<Option<Opened>> {
        let mut numbers = Vec::new();
        sys::dirents::for_each_name(dir.as_fd(), |entry| {
            let number = entry.name.strip_prefix(PREFIX).and_then(|text| std::str::from_utf8(text).ok());
            numbers.extend(number.and_then(|text| text.parse::<u64>().ok()));
            Ok(true)
        })?;
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        for &number in &numbers {
            let Some(opened) = Self::read(dir, number)? else { continue };
            // Those after it were being begun when a server was killed, those before it are no longer needed.
            numbers.iter().filter(|&&other| other != number).try_for_each(|&other| remove(dir, other))?;
            return Ok(Some(opened));
        }
        match *numbers {
            [] => Ok(None),
            // The first server was killed before there was anything.
            [FIRST] if is_torn(&read_all(&sys::open_at(dir.as_fd(), &name(FIRST), OFlags::RDONLY, 0)?)?) => {
                Ok(None)
            }
            [newest, ..] => Err(damaged(Errno::UCLEAN, &name(newest))),
        }
    }

    /// Begins the first log of a store.
    pub(super) fn first(dir: &OwnedFd, objects: &Objects) -> Result<Self> {
        Self::begin(dir, FIRST, objects)
    }

    fn read(dir: &OwnedFd, number: u64) -> Result<Option<Opened>> {
        let name = name(number);
        let (file, writable) = match sys::open_at(dir.as_fd(), &name, OFlags::RDWR, 0) {
            Err(Errno::ROFS | Errno::ACCESS) => (sys::open_at(dir.as_fd(), &name, OFlags::RDONLY, 0)?, false),
            file => (file?, true),
        };
        let bytes = read_all(&file)?;
        let Some(mut frames) = Frames::of(&bytes) else { return Ok(None) };
        let mut objects = Objects::default();
        let (mut whole, mut closed) = (false, false);
        for fact in frames.by_ref().flatten() {
            whole |= fact == Fact::Whole;
            closed = fact == Fact::Closed;
            objects.learn(fact).map_err(|errno| damaged(errno, &name))?;
        }
        if !whole {
            return Ok(None);
        }
        if frames.goes_on() {
            return Err(damaged(Errno::UCLEAN, &name));
        }
        let end = frames.place() as u64;
        if writable && end < bytes.len() as u64 {
            sys::retry(|| rustix::fs::ftruncate(&file, end))?;
        }
        let log = Self { file, number, salt: frames.salt(), end, began: end, writable, broken: false };
        Ok(Some(Opened { log, objects, closed }))
    }

    /// Writes a log that says what is known.
    fn begin(dir: &OwnedFd, number: u64, objects: &Objects) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC;
        let file = sys::open_at(dir.as_fd(), &name(number), flags, 0o600)?;
        let mut salt = [0; 8];
        rustix::rand::getrandom(&mut salt, rustix::rand::GetRandomFlags::empty())?;
        let salt = u64::from_le_bytes(salt);
        sys::copy::write_all(file.as_fd(), &head(salt), 0)?;
        let end = HEAD as u64;
        let mut log = Self { file, number, salt, end, began: end, writable: true, broken: false };
        let (mut facts, mut size) = (Vec::new(), 0);
        objects.tell(|fact| {
            size += fact.weight();
            facts.push(fact);
            if size < PORTION {
                return Ok(());
            }
            size = 0;
            log.append(&std::mem::take(&mut facts))
        })?;
        log.append(&facts)?;
        // What it says is on the disk before it says that this is all.
        log.sync()?;
        log.append(&[Fact::Whole])?;
        log.sync()?;
        log.began = log.end;
        Ok(log)
    }

    /// Adds what becomes true, all of it or nothing.
    ///
    /// # Errors
    /// ENOSPC and the like; EROFS if the store cannot be written.
    pub(super) fn append(&mut self, facts: &[Fact]) -> Result<()> {
        if facts.is_empty() {
            return Ok(());
        }
        if !self.writable {
            return Err(Errno::ROFS.into());
        }
        if self.broken {
            return Err(Errno::IO.into());
        }
        let frame = frame(self.salt, self.end, facts);
        if let Err(errno) = sys::copy::write_all(self.file.as_fd(), &frame, self.end) {
            self.broken = sys::retry(|| rustix::fs::ftruncate(&self.file, self.end)).is_err();
            return Err(errno.into());
        }
        self.end += frame.len() as u64;
        Ok(())
    }

    /// Returns whether it may be written.
    pub(super) const fn is_writable(&self) -> bool {
        self.writable
    }

    /// Brings it to the disk.
    pub(super) fn sync(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        Ok(sys::retry(|| rustix::fs::fdatasync(&self.file))?)
    }

    /// Goes over to a new log if this one has become too long.
    pub(super) fn shorten(&mut self, dir: &OwnedFd, objects: &Objects) -> Result<()> {
        if !self.writable || self.end < self.began.saturating_mul(2).saturating_add(SLACK) {
            return Ok(());
        }
        let old = self.number;
        match Self::begin(dir, old + 1, objects) {
            Ok(next) => *self = next,
            Err(error) => {
                // The old one goes on; asked again when it has grown as much once more.
                self.began = self.end;
                remove(dir, old + 1)?;
                return Err(error);
            }
        }
        remove(dir, old)
    }
}

fn name(number: u64) -> Vec<u8> {
    [PREFIX, number.to_string().as_bytes()].concat()
}

fn remove(dir: &OwnedFd, number: u64) -> Result<()> {
    match rustix::fs::unlinkat(dir, name(number), AtFlags::empty()) {
        // On a file system that cannot be written it does no harm.
        Ok(()) | Err(Errno::NOENT | Errno::ROFS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Returns whether this is the beginning of a log and nothing else.
fn is_torn(log: &[u8]) -> bool {
    log.len() < HEAD
        || Frames::of(log).is_some_and(|mut frames| frames.by_ref().count() <= 1 && !frames.goes_on())
}

fn damaged(errno: Errno, name: &[u8]) -> Error {
    Error::new(errno).during("read in the store of the upper the file", name).hint(
        "it is damaged, by the medium or by another program; what follows would be another tree, so it is not used",
    )
}

fn read_all(file: &OwnedFd) -> Result<Vec<u8>> {
    let size = sys::stat_fd(file.as_fd())?.size;
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| Errno::FBIG)?];
    let len = sys::copy::read_full(file.as_fd(), &mut bytes, 0)?;
    bytes.truncate(len);
    Ok(bytes)
}
