//! What an upper changed: the union with it, compared with the union of the layers below.
//!
//! Both are walked side by side. A directory that both take from the same places is not entered, so that the cost is that
//! of what the upper holds. What only marks say (a redirect, an opaque directory, a file without data) needs no rule of
//! its own: it shows in what the two unions hold.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;

use crate::error::{Error, Result};
use crate::options::MountOptions;
use crate::stack::lower::LowerDir;
use crate::tools::layer;
use crate::tools::view::{self, Object, Parts, View};
use std::path::PathBuf;
use std::sync::Arc;

/// How a path differs from the layers below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It did not exist.
    Added,
    /// It existed, and something about it or below it is different.
    Changed,
    /// It no longer exists.
    Deleted,
}

impl Kind {
    /// Returns the letter that container engines print.
    pub const fn letter(self) -> u8 {
        match self {
            Self::Added => b'A',
            Self::Changed => b'C',
            Self::Deleted => b'D',
        }
    }
}

/// One changed path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// How it differs.
    pub kind: Kind,
    /// Its path from the root of the union, with a slash in front.
    pub path: Vec<u8>,
}

/// Returns what the upper of `options` changed, sorted by path.
///
/// # Errors
/// What is wrong with a layer, or with which object in it.
pub fn changes(options: &MountOptions) -> Result<Vec<Change>> {
    let comparison = Comparison::of(options)?;
    let listed = comparison.entries.into_values().filter_map(|entry| Some((entry.path, entry.change?)));
    let mut changes: Vec<Change> =
        listed.map(|(path, kind)| Change { kind, path: [b"/", path.as_slice()].concat() }).collect();
    changes.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(changes)
}

/// Writes what the upper of `options` changed as an OCI layer, a tar archive. Returns what it cannot hold, a line each.
///
/// # Errors
/// As [`changes`]; and of writing.
pub fn write_layer(options: &MountOptions, out: &mut dyn Write) -> Result<Vec<String>> {
    let comparison = Comparison::of(options)?;
    layer::write(&comparison.new, comparison.entries.values(), out)
}

/// Something that was found to be different, or that belongs into a layer for the sake of what is.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Path from the root, components joined by `/`; empty for the root.
    pub path: Vec<u8>,
    /// How it differs; none if it is only needed in a layer.
    pub change: Option<Kind>,
    /// The object; none if the name is gone.
    pub object: Option<Object>,
    /// It belongs into a layer.
    pub in_layer: bool,
    /// A directory that has nothing in common with the one below it.
    pub opaque: bool,
}

/// The order of a layer: a directory before its content, and in it what is gone before what is there.
fn key(path: &[u8], gone: bool) -> Vec<u8> {
    const GONE: u8 = 1;
    const THERE: u8 = 2;
    let mut key = Vec::with_capacity(path.len() + 8);
    if path.is_empty() {
        return key;
    }
    let mut components = path.split(|&byte| byte == b'/').peekable();
    while let Some(component) = components.next() {
        key.push(if gone && components.peek().is_none() { GONE } else { THERE });
        key.extend_from_slice(component);
        key.push(0);
    }
    key
}

/// A pair of unions, and how they differ.
#[derive(Debug)]
pub(crate) struct Comparison {
    /// The union with what is compared.
    pub new: View,
    /// What differs, in the order of a layer.
    pub entries: BTreeMap<Vec<u8>, Entry>,
}

impl Comparison {
    /// Compares the union of `options` with that of its lowers.
    fn of(options: &MountOptions) -> Result<Self> {
        let old = MountOptions { upperdir: None, workdir: None, ..options.clone() };
        Self::between(View::open(options)?, &View::open(&old)?)
    }

    /// Compares the union of `options` above `below` with that of `below`; without those everything is new.
    pub(crate) fn onto(options: &MountOptions, below: &[PathBuf]) -> Result<Self> {
        let mut all = options.clone();
        all.lowerdir.extend(below.iter().cloned());
        let new = View::open(&all)?;
        if !below.is_empty() {
            let old =
                MountOptions { upperdir: None, workdir: None, lowerdir: below.to_vec(), ..options.clone() };
            return Self::between(new, &View::open(&old)?);
        }
        let mut walk = Walk::new(&new, &new, Extent::All);
        let parts = new.root()?.parts;
        walk.enter(Pair { path: Vec::new(), new: parts, old: Vec::new(), whole: true })?;
        let entries = walk.finish()?;
        Ok(Self { new, entries })
    }

    fn between(new: View, old: &View) -> Result<Self> {
        let mut walk = Walk::new(&new, old, Extent::Changed);
        walk.run()?;
        if walk.misses_names() {
            walk = Walk::new(&new, old, Extent::All);
            walk.run()?;
        }
        let entries = walk.finish()?;
        Ok(Self { new, entries })
    }
}

/// Which directories are entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// Those that differ.
    Changed,
    /// All, for the other names of files that have several.
    All,
}

/// A directory as both unions have it.
struct Pair {
    path: Vec<u8>,
    new: Parts,
    /// Empty if there was none.
    old: Parts,
    /// All of it belongs into a layer.
    whole: bool,
}

/// A name of a file with several names.
struct Linked {
    path: Vec<u8>,
    object: Object,
    before: Option<(u64, u64)>,
}

struct Walk<'a> {
    new: &'a View,
    old: &'a View,
    extent: Extent,
    pending: Vec<Pair>,
    entries: BTreeMap<Vec<u8>, Entry>,
    /// Directories that were entered, for the way to what differs.
    entered: HashMap<Vec<u8>, Object>,
    /// Files with several names, by identity.
    linked: HashMap<(u64, u64), Vec<Linked>>,
}

impl<'a> Walk<'a> {
    fn new(new: &'a View, old: &'a View, extent: Extent) -> Self {
        Self {
            new,
            old,
            extent,
            pending: Vec::new(),
            entries: BTreeMap::new(),
            entered: HashMap::new(),
            linked: HashMap::new(),
        }
    }

    fn run(&mut self) -> Result<()> {
        let (new, old) = (self.new.root()?, self.old.root()?);
        if !view::look_the_same((self.new, &new), (self.old, &old))? {
            // A root that differs in its time alone is not worth a line: any change below makes it so.
            let mut timeless = old.clone();
            timeless.stat.mtime = new.stat.mtime;
            let told = !view::look_the_same((self.new, &new), (self.old, &timeless))?;
            self.note(b"", told.then_some(Kind::Changed), Some(new.clone()));
        }
        let parts = |object: &Object| -> Vec<_> { object.parts.iter().map(|dir| dir.identity).collect() };
        let replaced = !parts(&new).iter().any(|place| parts(&old).contains(place));
        if replaced {
            self.note(b"", Some(Kind::Changed), Some(new.clone()));
            if let Some(entry) = self.entries.get_mut(&key(b"", false)) {
                entry.opaque = true;
            }
        }
        self.enter(Pair { path: Vec::new(), new: new.parts, old: old.parts, whole: replaced })
    }

    /// Compares a directory and all that is below it.
    fn enter(&mut self, pair: Pair) -> Result<()> {
        self.pending.push(pair);
        while let Some(pair) = self.pending.pop() {
            self.compare(&pair).map_err(|error| error.during("compare the layers at", &pair.path))?;
        }
        Ok(())
    }

    fn compare(&mut self, pair: &Pair) -> Result<()> {
        let mut gone = if pair.old.is_empty() { Vec::new() } else { self.old.names(&pair.old)? };
        for name in self.new.names(&pair.new)? {
            let Some(object) = self.new.find(&pair.new, &name)? else { continue };
            let before = self.old.find(&pair.old, &name)?;
            let path = joined(&pair.path, &name);
            self.compare_object(pair, path, object, before)?;
            if let Ok(at) = gone.binary_search(&name) {
                gone.remove(at);
            }
        }
        for name in gone {
            if self.old.find(&pair.old, &name)?.is_some() {
                self.note_gone(&joined(&pair.path, &name), !pair.whole);
            }
        }
        Ok(())
    }

    fn compare_object(
        &mut self,
        pair: &Pair,
        path: Vec<u8>,
        object: Object,
        before: Option<Object>,
    ) -> Result<()> {
        let change = match &before {
            None => Some(Kind::Added),
            Some(before) => {
                let same = view::look_the_same((self.new, &object), (self.old, before))?;
                (!same).then_some(Kind::Changed)
            }
        };
        if change.is_some() || pair.whole {
            self.note(&path, change, Some(object.clone()));
        }
        if !object.stat.is_dir() {
            if let Some(before) = before.as_ref().filter(|before| before.stat.is_dir()) {
                for name in self.old.names(&before.parts)? {
                    self.note_gone(&joined(&path, &name), false);
                }
            }
            if object.stat.nlink > 1 {
                let before = before.map(|before| before.identity());
                let linked = self.linked.entry(object.identity()).or_default();
                linked.push(Linked { path, object, before });
            }
            return Ok(());
        }
        let old = before.map(|before| before.parts).unwrap_or_default();
        let places = |parts: &[Arc<LowerDir>]| parts.iter().map(|dir| dir.identity).collect::<Vec<_>>();
        let (here, there) = (places(&object.parts), places(&old));
        if here == there && !pair.whole && self.extent == Extent::Changed {
            return Ok(());
        }
        let replaced = !there.is_empty() && !here.iter().any(|place| there.contains(place));
        let opaque = replaced && !pair.whole;
        if opaque {
            self.note(&path, change, Some(object.clone()));
            if let Some(entry) = self.entries.get_mut(&key(&path, false)) {
                entry.opaque = true;
            }
        }
        let whole = pair.whole || opaque || there.is_empty();
        self.entered.insert(path.clone(), object.clone());
        self.pending.push(Pair { path, new: object.parts, old, whole });
        Ok(())
    }

    fn note(&mut self, path: &[u8], change: Option<Kind>, object: Option<Object>) {
        let entry = Entry { path: path.to_vec(), change, object, in_layer: true, opaque: false };
        self.entries.insert(key(path, false), entry);
    }

    fn note_gone(&mut self, path: &[u8], in_layer: bool) {
        let change = Some(Kind::Deleted);
        let entry = Entry { path: path.to_vec(), change, object: None, in_layer, opaque: false };
        self.entries.insert(key(path, true), entry);
    }

    fn is_noted(&self, path: &[u8]) -> bool {
        self.entries.contains_key(&key(path, false))
    }

    /// Returns whether a file that differs has more names than were met: they stand where nothing else differs.
    fn misses_names(&self) -> bool {
        self.extent == Extent::Changed
            && self.linked.values().any(|names| {
                let shown = names.first().map_or(0, |linked| linked.object.stat.nlink as usize);
                names.len() < shown && names.iter().any(|linked| self.is_noted(&linked.path))
            })
    }

    /// Adds all names of each file of which one is noted, and the way to everything that is.
    fn finish(mut self) -> Result<BTreeMap<Vec<u8>, Entry>> {
        for names in std::mem::take(&mut self.linked).into_values() {
            let was_one =
                names.iter().filter_map(|linked| linked.before).collect::<std::collections::HashSet<_>>();
            let newly_linked = was_one.len() > 1;
            if newly_linked || names.iter().any(|linked| self.is_noted(&linked.path)) {
                for linked in names {
                    if !self.is_noted(&linked.path) {
                        let change = newly_linked.then_some(Kind::Changed);
                        self.note(&linked.path, change, Some(linked.object));
                    }
                }
            }
        }
        let noted: Vec<(Vec<u8>, bool, bool)> = self
            .entries
            .values()
            .map(|entry| (entry.path.clone(), entry.change.is_some(), entry.in_layer))
            .collect();
        for (path, told, in_layer) in noted {
            self.note_way(&path, told, in_layer)?;
        }
        Ok(self.entries)
    }

    /// Adds the directories that lead to `path`.
    fn note_way(&mut self, path: &[u8], told: bool, in_layer: bool) -> Result<()> {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for above in slashes.filter_map(|at| path.get(..at)) {
            // What stands in the place of a directory that is gone has its entry already.
            if !self.is_noted(above) {
                let object = self.entered.get(above).cloned().ok_or(Error::new(crate::Errno::IO))?;
                self.note(above, None, Some(object));
            }
            if let Some(entry) = self.entries.get_mut(&key(above, false)) {
                entry.in_layer |= in_layer;
                if told && entry.change.is_none() {
                    entry.change = Some(Kind::Changed);
                }
            }
        }
        Ok(())
    }
}

fn joined(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}
