//! Number <-> inode, how often the kernel has looked each up, and which object on disk is which inode.
//!
//! A node stays while the kernel remembers it or a node below it does: a child names its parent, so a parent that
//! came back as a second node would diverge from the one its children hold.
//!
//! Most nodes are files that were looked up and never used. They are kept as a [`Leaf`], a fifth of the memory, and
//! become an [`Inode`] when one is asked for, but not for the attributes of a lower file, which need no more than its
//! place; those that nobody has used for a while become leaves again.

mod leaf;
mod renewal;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::hash::Hasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashTable;
use parking_lot::RwLock;

use crate::error::{Errno, Error, Result};
use crate::inode::{Indexed, Inode, KeyCell, Lower, LowerData, Place, State};
use crate::name::FileName;
use crate::request::{FileKind, NodeId};
use crate::stack::FS_SHIFT;
pub(crate) use leaf::Leaf;
pub(crate) use renewal::{Unsettled, lose};

/// Which object on disk a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ObjectKey {
    /// Layer and index of the device, or for a name of a lower file with several links
    /// the number of its directory.
    space: u64,
    /// Inode number, or for such a name its hash.
    number: u64,
}

/// Marks keys that are made from a name.
const BY_NAME: u64 = 1 << 63;
/// Bits of a key's space that hold the layer.
const LAYER_BITS: u32 = 24;
/// Files kept as whole nodes that are not in use. More than are likely to be open or read at once.
const WHOLE_LEAVES: usize = 4096;
/// Numbers from here on are given to nodes whose shown inode number is taken by another node.
const SERIAL_BASE: u64 = 1 << 63;

impl ObjectKey {
    /// The object `ino` of device `device` (its index) on the layer of number `layer`.
    pub(crate) fn new(layer: usize, device: u64, ino: u64) -> Self {
        Self { space: (device << LAYER_BITS) | (layer as u64 + 1), number: ino }
    }

    /// One name of a lower file with several links: without an index each is an object of its own.
    pub(crate) fn lower_name(dir: u64, name: &[u8]) -> Self {
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(name);
        Self { space: BY_NAME | dir, number: hasher.finish() }
    }

    /// Returns the number of the layer, if the key tells it.
    fn layer(self) -> Option<u16> {
        if self.is_by_name() {
            return None;
        }
        u16::try_from((self.space & ((1 << LAYER_BITS) - 1)).checked_sub(1)?).ok()
    }

    pub(crate) const fn is_by_name(self) -> bool {
        self.space & BY_NAME != 0
    }

    /// Returns the number that a node of this object has, if it is free: the one that the object shows, made as
    /// [`crate::stack::LayerStack::shown_ino`] does. A key that tells its node's number is in no table.
    fn usual_id(self) -> Option<NodeId> {
        let device = self.space >> LAYER_BITS;
        let fits =
            !self.is_by_name() && self.number >> FS_SHIFT == 0 && device >> (u64::BITS - FS_SHIFT) == 0;
        let id = device << FS_SHIFT | self.number;
        (fits && is_usable(id)).then_some(NodeId(id))
    }

    const fn hash(self) -> u64 {
        mix(mix(self.space) ^ self.number)
    }
}

/// Returns whether an inode number can be a node's number.
const fn is_usable(ino: u64) -> bool {
    ino > NodeId::ROOT.0 && ino < SERIAL_BASE
}

/// Spreads consecutive numbers over the buckets: an odd constant without structure, 2^64 divided by the golden ratio.
const fn mix(number: u64) -> u64 {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

impl KeyCell {
    fn get(&self) -> Option<ObjectKey> {
        let key = ObjectKey {
            space: self.space.load(Ordering::Relaxed),
            number: self.number.load(Ordering::Relaxed),
        };
        (key.space != 0).then_some(key)
    }

    fn set(&self, key: Option<ObjectKey>) {
        let key = key.unwrap_or(ObjectKey { space: 0, number: 0 });
        self.space.store(key.space, Ordering::Relaxed);
        self.number.store(key.number, Ordering::Relaxed);
    }
}

/// The nodes that are known.
#[derive(Debug)]
pub(crate) struct InodeTable {
    /// Most requests only ask for a node that is there, and do not wait for each other.
    maps: RwLock<Maps>,
    next_serial: AtomicU64,
}

/// Tables of pointers only: the keys are in the nodes, which saves a third of the memory of a million nodes.
#[derive(Debug, Default)]
struct Maps {
    whole: HashTable<Arc<Inode>>,
    leaves: HashTable<Box<Leaf>>,
    /// Nodes whose key does not tell their number.
    by_key: HashTable<Arc<Inode>>,
    /// Whole nodes of files, in the order in which they became whole: candidates for becoming leaves.
    grown: VecDeque<NodeId>,
}

impl Maps {
    /// Returns the node if it is whole.
    fn known(&self, id: NodeId) -> Option<Arc<Inode>> {
        self.whole.find(mix(id.0), |inode| inode.id == id).map(Arc::clone)
    }

    /// Returns the whole node, made now from its leaf.
    fn get(&mut self, id: NodeId) -> Option<Arc<Inode>> {
        if let Some(inode) = self.known(id) {
            return Some(inode);
        }
        let leaf = self.leaves.find_entry(mix(id.0), |leaf| leaf.id() == id).ok()?.remove().0;
        let key = leaf.key();
        let inode = Arc::new(leaf.grow());
        inode.key.set(Some(key));
        self.add(&inode);
        Some(inode)
    }

    fn leaf(&mut self, id: NodeId) -> Option<&mut Box<Leaf>> {
        self.leaves.find_mut(mix(id.0), |leaf| leaf.id() == id)
    }

    fn knows(&self, id: NodeId) -> bool {
        self.whole.find(mix(id.0), |inode| inode.id == id).is_some()
            || self.leaves.find(mix(id.0), |leaf| leaf.id() == id).is_some()
    }

    /// Returns the number of an object's node.
    fn find(&self, key: ObjectKey) -> Option<NodeId> {
        if let Some(id) = key.usual_id() {
            let leaf = self.leaves.find(mix(id.0), |leaf| leaf.id() == id);
            let whole = self.whole.find(mix(id.0), |inode| inode.id == id);
            if leaf.is_some_and(|leaf| leaf.key() == key)
                || whole.is_some_and(|inode| inode.key.get() == Some(key))
            {
                return Some(id);
            }
        }
        self.by_key.find(key.hash(), |inode| inode.key.get() == Some(key)).map(|inode| inode.id)
    }

    fn add(&mut self, inode: &Arc<Inode>) {
        self.whole.insert_unique(mix(inode.id.0), Arc::clone(inode), |inode| mix(inode.id.0));
        if !inode.is_dir() {
            self.grown.push_back(inode.id);
            self.shrink();
        }
    }

    /// Makes leaves of the oldest whole nodes, if nobody holds them. Two for each that is added, so that they cannot
    /// pile up.
    fn shrink(&mut self) {
        for _ in 0..2 {
            if self.grown.len() <= WHOLE_LEAVES {
                return;
            }
            let Some(id) = self.grown.pop_front() else { return };
            let Ok(mut entry) = self.whole.find_entry(mix(id.0), |inode| inode.id == id) else { continue };
            match Leaf::can_be(entry.get_mut()) {
                leaf::Now::Never => {}
                leaf::Now::Later => self.grown.push_back(id),
                leaf::Now::Yes(leaf) => {
                    let shrunk = entry.remove().0;
                    self.plant(leaf);
                    drop(shrunk);
                }
            }
        }
    }

    fn plant(&mut self, leaf: Box<Leaf>) {
        self.leaves.insert_unique(mix(leaf.id().0), leaf, |leaf| mix(leaf.id().0));
    }

    fn set_key(&mut self, inode: &Arc<Inode>, key: ObjectKey) {
        self.clear_key(inode);
        if let Some(other) = self.find(key).and_then(|other| self.get(other)) {
            // The disk gave the number to a new object before we heard that the old one went.
            self.clear_key(&other);
        }
        inode.key.set(Some(key));
        if key.usual_id() != Some(inode.id) {
            let rehash = |inode: &Arc<Inode>| inode.key.get().map_or(0, ObjectKey::hash);
            self.by_key.insert_unique(key.hash(), Arc::clone(inode), rehash);
        }
    }

    fn clear_key(&mut self, inode: &Inode) {
        if let Some(key) = inode.key.get() {
            if let Ok(entry) = self.by_key.find_entry(key.hash(), |other| other.id == inode.id) {
                entry.remove();
            }
            inode.key.set(None);
        }
    }

    /// Takes back references; returns the nodes that nobody needs any more, to be dropped without the lock.
    fn release(&mut self, id: NodeId, count: u64) -> Vec<Arc<Inode>> {
        let mut gone = Vec::new();
        let mut pending = vec![(id, count)];
        while let Some((id, count)) = pending.pop() {
            if let Ok(mut entry) = self.leaves.find_entry(mix(id.0), |leaf| leaf.id() == id) {
                if entry.get_mut().release(count) {
                    pending.push((entry.remove().0.parent().id, 1));
                }
                continue;
            }
            let Ok(entry) = self.whole.find_entry(mix(id.0), |inode| inode.id == id) else { continue };
            let refs = entry.get().refs.load(Ordering::Relaxed).saturating_sub(count);
            entry.get().refs.store(refs, Ordering::Relaxed);
            if refs > 0 || id == NodeId::ROOT {
                continue;
            }
            let inode = entry.remove().0;
            self.clear_key(&inode);
            let mut state = inode.state.write();
            let others = state.other_places.take().map(|places| *places).unwrap_or_default();
            pending.extend(state.place.iter().chain(&others).map(|place| (place.parent.id, 1)));
            drop(state);
            gone.push(inode);
        }
        gone
    }
}

fn count_reference(inode: &Inode) {
    inode.refs.fetch_add(1, Ordering::Relaxed);
}

/// What to insert if the object has no node yet.
#[derive(Debug)]
pub(crate) struct Candidate {
    /// Which object.
    pub key: ObjectKey,
    /// The number to show.
    pub ino: u64,
    /// Type.
    pub kind: FileKind,
    /// Inode number on the upper.
    pub upper: Option<u64>,
    /// Part on the lowers.
    pub lower: Lower,
    /// Where its data is, if it holds only attributes.
    pub lower_data: Option<LowerData>,
    /// Its place in the index.
    pub index: Option<Box<Indexed>>,
    /// Where it was found.
    pub parent: Arc<Inode>,
    /// The name there.
    pub name: FileName,
}

/// A node that a lookup was counted for.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    /// Ready to be used.
    Whole(Arc<Inode>),
    /// A file that only its number stands for so far; the number is also the inode number to show.
    Leaf(NodeId, FileKind),
}

/// A node as far as its attributes need it.
#[derive(Debug)]
pub(crate) enum Seen {
    /// Ready to be used.
    Whole(Arc<Inode>),
    /// A file of a lower that nobody has changed or holds: all there is to know of it.
    Leaf(FileKind, Lower),
}

impl Node {
    /// Returns the number the kernel knows it by.
    pub(crate) fn id(&self) -> NodeId {
        match self {
            Self::Whole(inode) => inode.id,
            Self::Leaf(id, _) => *id,
        }
    }
}

impl InodeTable {
    /// Makes a table that knows only the root.
    pub(crate) fn new(root: &Arc<Inode>, key: ObjectKey) -> Self {
        let mut maps = Maps::default();
        maps.add(root);
        maps.set_key(root, key);
        Self { maps: RwLock::new(maps), next_serial: AtomicU64::new(SERIAL_BASE) }
    }

    /// Returns a node.
    ///
    /// # Errors
    /// ESTALE for a number that nobody was told.
    pub(crate) fn get(&self, id: NodeId) -> Result<Arc<Inode>> {
        let known = self.maps.read().known(id);
        known.or_else(|| self.maps.write().get(id)).ok_or(Error::new(Errno::STALE))
    }

    /// Returns what a node is, without making a leaf of a lower whole.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn see(&self, id: NodeId) -> Result<Seen> {
        {
            let maps = self.maps.read();
            if let Some(inode) = maps.known(id) {
                return Ok(Seen::Whole(inode));
            }
            let leaf = maps.leaves.find(mix(id.0), |leaf| leaf.id() == id);
            if let Some((kind, place)) = leaf.and_then(|leaf| Some((leaf.kind(), leaf.on_lower()?))) {
                return Ok(Seen::Leaf(kind, place));
            }
        }
        self.get(id).map(Seen::Whole)
    }

    /// Returns the inode number that an object shows, if it has a node.
    pub(crate) fn shown_ino(&self, key: ObjectKey) -> Option<u64> {
        let maps = self.maps.read();
        let id = maps.find(key)?;
        // A leaf's number is the one it shows.
        Some(maps.whole.find(mix(id.0), |inode| inode.id == id).map_or(id.0, |inode| inode.ino()))
    }

    /// Returns all nodes but leaves, which follow from their place.
    pub(crate) fn whole(&self) -> Vec<Arc<Inode>> {
        self.maps.read().whole.iter().map(Arc::clone).collect()
    }

    /// Gives a node another key, if it has one.
    pub(crate) fn change_key(&self, inode: &Arc<Inode>, key: ObjectKey) {
        let mut maps = self.maps.write();
        if inode.key.get().is_some() {
            maps.set_key(inode, key);
        }
    }

    /// Returns how many nodes there are.
    pub(crate) fn count(&self) -> usize {
        let maps = self.maps.read();
        maps.whole.len() + maps.leaves.len()
    }

    /// Counts a lookup of the object and returns its node, made now if it had none.
    ///
    /// `None` if the directory changed since `version` was read from it: what was found may be outdated.
    pub(crate) fn insert(&self, candidate: Candidate, version: u64) -> Option<Node> {
        let mut maps = self.maps.write();
        if candidate.parent.version.load(Ordering::Acquire) != version {
            return None;
        }
        let Some(id) = maps.find(candidate.key) else { return Some(self.insert_new(&mut maps, candidate)) };
        if let Some(leaf) =
            maps.leaf(id).filter(|leaf| leaf.is_at(&candidate.parent, candidate.name.as_bytes()))
            && leaf.count()
        {
            return Some(leaf.known());
        }
        let inode = maps.get(id)?;
        if inode.state.read().lost {
            if inode.kind != candidate.kind {
                maps.clear_key(&inode);
                return Some(self.insert_new(&mut maps, candidate));
            }
            candidate.renew(&inode);
        }
        count_reference(&inode);
        let gone = add_place(&mut maps, &inode, candidate.parent, candidate.name);
        drop(maps);
        drop(gone);
        Some(Node::Whole(inode))
    }

    fn insert_new(&self, maps: &mut Maps, candidate: Candidate) -> Node {
        let id = self.choose_id(maps, &candidate);
        count_reference(&candidate.parent);
        if candidate.key.usual_id() == Some(id)
            && let Some(leaf) = Leaf::of(&candidate)
        {
            let known = leaf.known();
            maps.plant(Box::new(leaf));
            return known;
        }
        let mut state = candidate.state();
        state.place = Some(Place { parent: candidate.parent, name: candidate.name });
        let inode = Arc::new(Inode::new(id, candidate.ino, candidate.kind, state));
        maps.add(&inode);
        maps.set_key(&inode, candidate.key);
        Node::Whole(inode)
    }

    /// Chooses the shown number where it is free: protocols without a node number of their own then show it.
    fn choose_id(&self, maps: &Maps, candidate: &Candidate) -> NodeId {
        let preferred = NodeId(candidate.ino);
        if is_usable(candidate.ino) && !candidate.key.is_by_name() && !maps.knows(preferred) {
            return preferred;
        }
        NodeId(self.next_serial.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes a node for an object that has no name: an O_TMPFILE.
    pub(crate) fn insert_unnamed(
        &self,
        key: ObjectKey,
        ino: u64,
        kind: FileKind,
        state: State,
    ) -> Arc<Inode> {
        let mut maps = self.maps.write();
        let id = NodeId(self.next_serial.fetch_add(1, Ordering::Relaxed));
        let inode = Arc::new(Inode::new(id, ino, kind, state));
        maps.add(&inode);
        maps.set_key(&inode, key);
        inode
    }

    /// Takes back `count` lookups; at none left the node goes, and parents that only it kept. Returns those that went:
    /// what they hold open is closed without the lock.
    pub(crate) fn forget(&self, id: NodeId, count: u64) -> Vec<Arc<Inode>> {
        self.maps.write().release(id, count)
    }

    /// Makes `key` the object of the node: it was copied up. The names of `parent` count as changed.
    pub(crate) fn rekey(&self, inode: &Arc<Inode>, key: ObjectKey, parent: Option<&Inode>) {
        let mut maps = self.maps.write();
        maps.set_key(inode, key);
        if let Some(parent) = parent {
            parent.version.fetch_add(1, Ordering::Release);
        }
    }

    /// Takes the node's object away: it was removed from disk, and its inode number may come back as another object.
    pub(crate) fn unkey(&self, inode: &Inode) {
        self.maps.write().clear_key(inode);
    }

    /// Notes that the names of `parent` changed.
    pub(crate) fn touch(&self, parent: &Inode) {
        let _maps = self.maps.write();
        parent.version.fetch_add(1, Ordering::Release);
    }

    /// Counts one more lookup of a node.
    pub(crate) fn remember(&self, inode: &Inode) {
        let _maps = self.maps.write();
        count_reference(inode);
    }

    /// Adds a name to a node.
    pub(crate) fn link(&self, inode: &Arc<Inode>, parent: &Arc<Inode>, name: FileName) {
        let mut maps = self.maps.write();
        parent.version.fetch_add(1, Ordering::Release);
        inode.state.write().unlinked = false;
        let gone = add_place(&mut maps, inode, Arc::clone(parent), name);
        drop(maps);
        drop(gone);
    }

    /// Takes a name away from a node. Returns whether it was the last one known.
    pub(crate) fn unlink(&self, inode: &Inode, parent: &Inode, name: &[u8]) -> bool {
        let mut maps = self.maps.write();
        parent.version.fetch_add(1, Ordering::Release);
        let mut state = inode.state.write();
        let removed = take_place(&mut state, parent, name);
        let last = state.place.is_none();
        drop(state);
        let gone = removed.map(|place| maps.release(place.parent.id, 1));
        drop(maps);
        drop(gone);
        last
    }

    /// Moves a node's name.
    pub(crate) fn rename(&self, inode: &Arc<Inode>, from: (&Inode, &[u8]), to: (&Arc<Inode>, FileName)) {
        let mut maps = self.maps.write();
        from.0.version.fetch_add(1, Ordering::Release);
        to.0.version.fetch_add(1, Ordering::Release);
        let removed = take_place(&mut inode.state.write(), from.0, from.1);
        let mut gone = add_place(&mut maps, inode, Arc::clone(to.0), to.1);
        if let Some(place) = removed {
            gone.extend(maps.release(place.parent.id, 1));
        }
        drop(maps);
        drop(gone);
    }
}

/// Takes `name` in `parent` out of the names of a node.
fn take_place(state: &mut State, parent: &Inode, name: &[u8]) -> Option<Place> {
    let others = state.other_places.as_deref_mut();
    if state.place.as_ref().is_some_and(|place| place.is(parent, name)) {
        let next = others.and_then(Vec::pop);
        return std::mem::replace(&mut state.place, next);
    }
    let others = others?;
    let position = others.iter().position(|place| place.is(parent, name))?;
    Some(others.swap_remove(position))
}

/// Adds a name to a node, unless it is known, and counts it for the parent. Returns nodes to drop without the lock.
fn add_place(maps: &mut Maps, inode: &Arc<Inode>, parent: Arc<Inode>, name: FileName) -> Vec<Arc<Inode>> {
    let mut state = inode.state.write();
    let known = |place: &Place| place.is(&parent, name.as_bytes());
    let others = state.other_places.as_deref().map(Vec::as_slice).unwrap_or_default();
    if inode.id == NodeId::ROOT || state.place.iter().chain(others).any(known) {
        return Vec::new();
    }
    count_reference(&parent);
    state.unlinked = false;
    let place = Place { parent, name };
    if state.place.is_some() && !inode.is_dir() {
        state.other_places.get_or_insert_default().push(place);
        return Vec::new();
    }
    // A directory has one name: what was there is outdated.
    let old = state.place.replace(place);
    drop(state);
    old.map(|old| maps.release(old.parent.id, 1)).unwrap_or_default()
}
