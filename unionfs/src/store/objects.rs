//! The objects of a store in memory: what the facts of its log say, taken together. Pure.
//!
//! A change and the reading of the log go through the same [`Objects::learn`]: what was shown before a server ended is what
//! the next one shows.

use std::collections::{BTreeMap, HashMap};

use crate::error::Errno;
use crate::ondisk::store::{Fact, Shown};
use crate::request::FileKind;

/// The number of the root directory.
pub(super) const ROOT: u64 = 1;

/// The objects of a store, by number. Numbers are never given again.
#[derive(Debug)]
pub(super) struct Objects {
    by_id: HashMap<u64, Object>,
    next: u64,
    /// Since when nothing can have been lost.
    pub epoch: [u8; 16],
}

/// One object.
#[derive(Debug, Default)]
pub(super) struct Object {
    /// What it shows.
    pub shown: Shown,
    /// How many directories have it, under how many names.
    names: u32,
    /// Names and objects, if it is a directory.
    pub entries: BTreeMap<Vec<u8>, u64>,
    /// Directories among them.
    subdirs: u32,
    /// The directory that has it, if it is a directory.
    pub parent: u64,
    /// Where it points, if it is a symbolic link.
    pub target: Vec<u8>,
    /// Its attributes.
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// How often the kernel was told of it.
    pub lookups: u64,
}

impl Object {
    /// Returns its type.
    pub(super) const fn kind(&self) -> FileKind {
        FileKind::from_mode(self.shown.mode)
    }

    /// Returns whether it is a directory.
    pub(super) fn is_dir(&self) -> bool {
        self.kind() == FileKind::Directory
    }

    /// Returns the number of links that it shows.
    pub(super) fn links(&self) -> u32 {
        if self.is_dir() && self.names > 0 { self.subdirs.saturating_add(2) } else { self.names }
    }

    /// Returns whether nobody can reach it any more.
    pub(super) const fn is_lost(&self) -> bool {
        self.names == 0 && self.lookups == 0
    }
}

impl Default for Objects {
    /// Knows a root without attributes, which has a name in nothing.
    fn default() -> Self {
        let root = Object { names: 1, parent: ROOT, ..Object::default() };
        Self { by_id: HashMap::from([(ROOT, root)]), next: ROOT + 1, epoch: [0; 16] }
    }
}

impl Objects {
    /// Returns an object.
    ///
    /// # Errors
    /// ESTALE if there is none.
    pub(super) fn get(&self, id: u64) -> Result<&Object, Errno> {
        self.by_id.get(&id).ok_or(Errno::STALE)
    }

    /// Returns the object that a directory has under a name.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR.
    pub(super) fn entry(&self, dir: u64, name: &[u8]) -> Result<u64, Errno> {
        let dir = self.get(dir)?;
        if !dir.is_dir() {
            return Err(Errno::NOTDIR);
        }
        dir.entries.get(name).copied().ok_or(Errno::NOENT)
    }

    /// Returns a number that no object had.
    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    /// Returns how many there are.
    pub(super) fn count(&self) -> usize {
        self.by_id.len()
    }

    /// Counts that the kernel was told of an object once more.
    pub(super) fn count_lookup(&mut self, id: u64) {
        if let Some(object) = self.by_id.get_mut(&id) {
            object.lookups += 1;
        }
    }

    /// Counts that the kernel has forgotten an object as often. Returns whether it is lost.
    pub(super) fn forget(&mut self, id: u64, times: u64) -> bool {
        let Some(object) = self.by_id.get_mut(&id) else { return false };
        object.lookups = object.lookups.saturating_sub(times);
        object.is_lost()
    }

    /// Returns the numbers of objects that nobody can reach.
    pub(super) fn lost(&self) -> Vec<u64> {
        self.by_id.iter().filter(|(_, object)| object.is_lost()).map(|(&id, _)| id).collect()
    }

    /// Takes in what became true.
    ///
    /// # Errors
    /// EUCLEAN if it cannot be true; that one fact then is not taken in.
    pub(super) fn learn(&mut self, fact: Fact) -> Result<(), Errno> {
        match fact {
            Fact::Next(next) => self.next = self.next.max(next),
            Fact::Object(id, shown) => {
                self.next = self.next.max(id.saturating_add(1));
                self.by_id.entry(id).or_default().shown = shown;
            }
            Fact::Target(id, target) => self.known(id)?.target = target,
            Fact::Enter(dir, name, id) => self.enter(dir, name, id)?,
            Fact::Leave(dir, name) => self.leave(dir, &name)?,
            Fact::Set(id, name, value) => {
                self.known(id)?.attributes.insert(name, value);
            }
            Fact::Unset(id, name) => {
                self.known(id)?.attributes.remove(&name);
            }
            Fact::Gone(id) => {
                self.by_id.remove(&id);
            }
            Fact::Epoch(epoch) => self.epoch = epoch,
            Fact::Whole | Fact::Closed => {}
        }
        Ok(())
    }

    fn known(&mut self, id: u64) -> Result<&mut Object, Errno> {
        self.by_id.get_mut(&id).ok_or(Errno::UCLEAN)
    }

    fn enter(&mut self, dir: u64, name: Vec<u8>, id: u64) -> Result<(), Errno> {
        if self.get(dir).map_err(|_| Errno::UCLEAN)?.entries.contains_key(&name) {
            return Err(Errno::UCLEAN);
        }
        let object = self.known(id)?;
        object.names += 1;
        let is_dir = object.is_dir();
        if is_dir {
            object.parent = dir;
        }
        let dir = self.known(dir)?;
        dir.entries.insert(name, id);
        dir.subdirs += u32::from(is_dir);
        Ok(())
    }

    fn leave(&mut self, dir: u64, name: &[u8]) -> Result<(), Errno> {
        let id = self.known(dir)?.entries.remove(name).ok_or(Errno::UCLEAN)?;
        let object = self.known(id)?;
        object.names = object.names.saturating_sub(1);
        if object.is_dir() {
            let dir = self.known(dir)?;
            dir.subdirs = dir.subdirs.saturating_sub(1);
        }
        Ok(())
    }

    /// Calls `tell` with facts from which all this can be learnt again: first of the objects, then of their names.
    ///
    /// # Errors
    /// What `tell` answers.
    pub(super) fn tell<E>(&self, mut tell: impl FnMut(Fact) -> Result<(), E>) -> Result<(), E> {
        tell(Fact::Next(self.next))?;
        tell(Fact::Epoch(self.epoch))?;
        for (&id, object) in &self.by_id {
            tell(Fact::Object(id, object.shown))?;
            if !object.target.is_empty() {
                tell(Fact::Target(id, object.target.clone()))?;
            }
            for (name, value) in &object.attributes {
                tell(Fact::Set(id, name.clone(), value.clone()))?;
            }
        }
        for (&id, object) in &self.by_id {
            for (name, &entry) in &object.entries {
                tell(Fact::Enter(id, name.clone(), entry))?;
            }
        }
        Ok(())
    }
}
