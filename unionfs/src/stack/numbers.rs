//! Inode numbers of upper objects that cannot hold a mark: with marks in `user.overlay.*` the kernel lets symbolic links,
//! pipes, sockets and devices have none. They are in a file of the workdir, `numbers`.
//!
//! A record is appended in one call, before its object is published, and tells the object by inode number and time of
//! birth: one whose number was used again, or an upper that was copied, has none and shows its own. So nothing has to be
//! written when an object goes, and nothing synced: what is lost is a number. A lower object is copied up once, so there
//! are no more records than such objects on the lowers.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use parking_lot::RwLock;
use rustix::fs::{AtFlags, OFlags};

use super::LayerStack;
use super::attributes::Attributes;
use super::lower::LowerDir;
use super::sidecar::is_empty;
use super::upper::UpperLayer;
use crate::error::{Errno, Result};
use crate::ondisk::Namespace;
use crate::ondisk::numbers::{self, MAX, Number, Object, Record, Records};
use crate::request::Timestamp;
use crate::sys::{self, Stat};

/// Name of the file in the workdir.
const NUMBERS: &[u8] = b"numbers";
/// What it is written anew under.
const NEW: &[u8] = b"numbers.new";
/// More records than twice those that count and these are too many.
const SLACK: usize = 64;

/// The numbers of one upper, and of those that were rotated from above it.
#[derive(Debug)]
pub(crate) struct Numbers {
    work: OwnedFd,
    /// Of the upper, and of all layers whose objects have records.
    device: u64,
    upper: Object,
    /// By inode number: the time of birth, and the number to show.
    known: RwLock<HashMap<u64, (Timestamp, u64)>>,
    /// For appending, once it was needed.
    file: OnceLock<OwnedFd>,
}

/// Returns who an object is; `None` where the file system does not tell times of birth.
fn object(stat: &Stat) -> Option<Object> {
    Some(Object { ino: stat.ino, birth: stat.btime? })
}

impl Numbers {
    fn new(work: BorrowedFd<'_>, root: &Stat) -> Result<Option<Self>> {
        let Some(upper) = object(root) else { return Ok(None) };
        let work = work.try_clone_to_owned()?;
        let (known, file) = (RwLock::default(), OnceLock::new());
        Ok(Some(Self { work, device: root.dev, upper, known, file }))
    }

    /// Returns the number that an object of the upper shows.
    fn find(&self, stat: &Stat) -> Option<u64> {
        let (birth, number) = *self.known.read().get(&stat.ino)?;
        (stat.dev == self.device && stat.btime == Some(birth)).then_some(number)
    }

    /// Returns the number that `name` in a directory shows, which is listed with inode number `ino`.
    fn find_at(&self, dir: BorrowedFd<'_>, name: &[u8], ino: u64) -> Option<u64> {
        if !self.known.read().contains_key(&ino) {
            return None;
        }
        self.find(&sys::stat_at(dir, name).ok()?)
    }

    /// Notes that an object was made: what is known of its inode number is of another one, which it may be too young to be
    /// told from.
    pub(crate) fn born(&self, stat: &Stat) {
        if self.find(stat).is_none() {
            return;
        }
        self.known.write().remove(&stat.ino);
        self.append(stat, Number::Own);
    }

    fn note(&self, stat: &Stat, number: Number, shown: u64) {
        let Some(birth) = stat.btime else { return };
        let mut known = self.known.write();
        if known.len() < MAX {
            known.insert(stat.ino, (birth, shown));
            drop(known);
            self.append(stat, number);
        }
    }

    /// Appends a record. A call that needs no room for anything else must not fail for a number: without its record an
    /// object shows its own once it is forgotten.
    fn append(&self, stat: &Stat, number: Number) {
        let Some(object) = object(stat) else { return };
        let record = Record { object, number: Some(number) }.encode();
        let written = match self.file.get() {
            Some(file) => sys::retry(|| rustix::io::write(file, &record)),
            None => self.begin(&record),
        };
        // Of a part of one, a reader finds the end by itself.
        if !matches!(written, Ok(length) if length >= record.len()) {
            tracing::debug!("no record of an inode number: {written:?}");
        }
    }

    /// Writes the first record of this mount.
    fn begin(&self, record: &[u8]) -> std::result::Result<usize, Errno> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NONBLOCK;
        let file = sys::open_at(self.work.as_fd(), NUMBERS, flags, 0o600)?;
        let file = self.file.get_or_init(|| file);
        let owner = Record { object: self.upper, number: None }.encode();
        let begun = sys::stat_fd(file.as_fd())?.size > 0;
        let bytes = if begun { record.to_vec() } else { [&owner, record].concat() };
        sys::retry(|| rustix::io::write(file, &bytes))
    }

    /// Reads the file; none: it says nothing of this upper.
    fn read(&self) -> Result<Option<Records>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = match sys::open_at(self.work.as_fd(), NUMBERS, flags, 0) {
            Err(Errno::NOENT) => return Ok(Some(Records::default())),
            file => std::fs::File::from(file?),
        };
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut &file, &mut bytes)?;
        Ok(numbers::read(&bytes, self.upper))
    }

    /// Puts the records that count in the place of the file.
    fn write(&self, records: &Records) -> Result<()> {
        let owner = Record { object: self.upper, number: None };
        let bytes: Vec<u8> =
            [&owner].into_iter().chain(records.live.values()).flat_map(Record::encode).collect();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let file = sys::open_at(self.work.as_fd(), NEW, flags, 0o600)?;
        let done = sys::copy::write_all(file.as_fd(), &bytes, 0)
            .and_then(|()| rustix::fs::renameat(&self.work, NEW, &self.work, NUMBERS));
        if let Err(errno) = done {
            self.remove(NEW)?;
            return Err(errno.into());
        }
        Ok(())
    }

    fn remove(&self, name: &[u8]) -> Result<()> {
        match rustix::fs::unlinkat(&self.work, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Drops what does not count, at the start of a mount that has the workdir for itself.
    fn tidy(&self, records: Option<Records>, none_is_here: bool) -> Result<Records> {
        let Some(records) = records.filter(|_| !none_is_here) else {
            self.remove(NUMBERS)?;
            return Ok(Records::default());
        };
        if records.count > 2 * records.live.len() + SLACK {
            self.write(&records)?;
        }
        Ok(records)
    }
}

impl LayerStack {
    /// Has the numbers in the workdir counted. An upper that is only read has them too.
    pub(super) fn use_numbers(&mut self, work: Option<&Path>, notices: &mut Vec<String>) {
        let done = match (&self.upper, work, self.lowers.first()) {
            (Some(upper), ..) => self.numbers_of(&upper.clone()),
            (None, Some(work), Some(top)) if top.was_upper && self.namespace == Namespace::User => {
                self.numbers_only_read(work, top.root_stat())
            }
            _ => Ok(None),
        };
        match done {
            Ok(numbers) => self.numbers = numbers.map(std::sync::Arc::new),
            Err(error) => notices.push(format!("inode numbers in the workdir do not count: {error}")),
        }
    }

    fn numbers_of(&self, upper: &UpperLayer) -> Result<Option<Numbers>> {
        if upper.features.namespace != Some(Namespace::User) || upper.features.sidecar {
            return Ok(None);
        }
        let work = &upper.workdir;
        let Some(numbers) = Numbers::new(work.base_fd(), upper.root_stat())? else { return Ok(None) };
        let mut records = numbers.read()?;
        if !work.is_shared() && records.as_ref().is_none_or(|records| records.count > 0) {
            let emptied = !self.lowers.iter().any(|layer| layer.was_upper) && is_empty(upper.root_fd())?;
            records = Some(numbers.tidy(records, emptied)?);
        }
        self.know(&numbers, records);
        Ok(Some(numbers))
    }

    fn numbers_only_read(&self, work: &Path, root: &Stat) -> Result<Option<Numbers>> {
        let work = super::open_workdir(work)?;
        let Some(numbers) = Numbers::new(work.as_fd(), root)? else { return Ok(None) };
        let records = numbers.read()?;
        self.know(&numbers, records);
        Ok(Some(numbers))
    }

    fn know(&self, numbers: &Numbers, records: Option<Records>) {
        let shown = |Record { object, number }: Record| {
            let number = match number? {
                Number::Own => return None,
                Number::Shown(number) => number,
                Number::On(uuid, number) => self.number_on(&uuid, number)?,
            };
            Some((object.ino, (object.birth, number)))
        };
        *numbers.known.write() = records.unwrap_or_default().live.into_values().filter_map(shown).collect();
    }

    fn number_on(&self, uuid: &[u8; 16], ino: u64) -> Option<u64> {
        self.origins.device_of(uuid).map(|device| self.shown_ino(device, ino))
    }

    /// Returns the numbers of the workdir if an upper object can hold no mark and has its number there.
    pub(crate) fn numbers_for(&self, stat: &Stat) -> Option<&Numbers> {
        self.numbers.as_deref().filter(|_| !stat.may_have_user_attributes())
    }

    /// Returns the number that an object of the upper shows which can hold no mark. The outer `None`: it can.
    pub(crate) fn recorded_ino(&self, stat: &Stat) -> Option<Option<u64>> {
        self.numbers_for(stat).map(|numbers| numbers.find(stat))
    }

    /// Returns the inode number that `name` in a directory, which is listed with `ino`, is shown with: that of its record, or
    /// by its marks in `attributes`.
    pub(crate) fn recorded_or_marked_ino(
        &self,
        attributes: &Attributes,
        dir: BorrowedFd<'_>,
        name: &[u8],
        ino: u64,
    ) -> Option<u64> {
        let recorded = || self.numbers.as_ref()?.find_at(dir, name, ino);
        let mark = |mark: &str| attributes.get_at(dir, name, &self.namespace.name(mark)).ok();
        recorded().or_else(|| self.marked_ino(mark))
    }

    /// Notes that the new upper object `stat`, which can hold no mark and has its number in `numbers`, shows `shown`; it is a
    /// copy of `source` in the lower directory `dir`.
    ///
    /// # Errors
    /// EIO for a directory of no layer.
    pub(crate) fn note_number(
        &self,
        numbers: &Numbers,
        stat: &Stat,
        (dir, source): (&LowerDir, &Stat),
        shown: u64,
    ) -> Result<()> {
        let uuid = *self.lower(dir)?.uuid();
        let says = self.number_on(&uuid, source.ino) == Some(shown);
        numbers.note(stat, if says { Number::On(uuid, source.ino) } else { Number::Shown(shown) }, shown);
        Ok(())
    }

    /// Returns the numbers that a rotated mount goes on with, whose upper is `next`.
    pub(super) fn next_numbers(&self, next: &UpperLayer) -> Result<Option<std::sync::Arc<Numbers>>> {
        let Some(now) = &self.numbers else { return Ok(None) };
        let numbers = Numbers::new(next.workdir.base_fd(), next.root_stat())?;
        Ok(numbers.map(|numbers| {
            numbers.known.write().clone_from(&now.known.read());
            std::sync::Arc::new(numbers)
        }))
    }

    /// Moves the records of the stack before a rotation to the workdir of now.
    pub(crate) fn take_numbers_over(&self, before: &Self) {
        let (Some(now), Some(before)) = (&self.numbers, &before.numbers) else { return };
        let moved = before.read().and_then(|records| {
            if let Some(records) = records.filter(|records| !records.live.is_empty()) {
                now.write(&records)?;
            }
            before.remove(NUMBERS)
        });
        if let Err(error) = moved {
            let what =
                "inode numbers of symbolic links, pipes, sockets and devices do not outlive this mount";
            tracing::warn!("{what}: {error}");
        }
    }
}
