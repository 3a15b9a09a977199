//! Nodes whose objects are looked for again, because the layers were changed by others.
//!
//! All are taken out, so that what is found is compared with nothing that is outdated, and come back one by one: as what
//! was found, or lost. A lost node waits under its key for its object to be met elsewhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Candidate, InodeTable, Leaf, ObjectKey, take_place};
use crate::inode::{Data, Inode, Lower, State};

/// The nodes that a table knew, each with its key.
#[derive(Debug)]
pub(crate) struct Unsettled {
    /// Those in use, and all directories.
    pub whole: Vec<(Arc<Inode>, Option<ObjectKey>)>,
    /// The others.
    pub leaves: Vec<Leaf>,
}

impl Candidate {
    /// Returns whether its place is all that is to be remembered.
    pub(crate) const fn is_plain(&self) -> bool {
        self.lower_data.is_none() && self.index.is_none()
    }

    /// Returns what is to be remembered of the object, without a place.
    pub(super) fn state(&self) -> State {
        State {
            upper: self.upper,
            lower: self.lower.clone(),
            lower_data: self.lower_data.clone().map(Box::new),
            index: self.index.clone(),
            ..State::default()
        }
    }

    /// Makes a node know of its object what was found now, and nothing else but its places.
    pub(crate) fn renew(&self, inode: &Inode) {
        let mut state = inode.state.write();
        let (place, other_places) = (state.place.take(), state.other_places.take());
        let old = std::mem::replace(&mut *state, State { place, other_places, ..self.state() });
        drop(state);
        drop(old);
        inode.shown.store(self.ino, Ordering::Relaxed);
        inode.version.fetch_add(1, Ordering::Release);
    }

    /// Returns whether this is the object of a node that was known by `key`.
    pub(crate) fn is_object_of(&self, inode: &Inode, key: Option<ObjectKey>) -> bool {
        let same_key = match key {
            // Directories have new descriptions, and such keys are made from them.
            Some(key) if key.is_by_name() && self.key.is_by_name() => {
                match (&inode.state.read().lower, &self.lower) {
                    (Lower::File(old, _, number), Lower::File(new, _, now)) => {
                        (old.layer, old.identity.0, number) == (new.layer, new.identity.0, now)
                    }
                    _ => false,
                }
            }
            key => key == Some(self.key),
        };
        same_key && self.kind == inode.kind && !holds_removed(inode)
    }
}

/// Returns whether a node holds an object open that was removed: its number may have come back as another one's.
fn holds_removed(inode: &Inode) -> bool {
    let links = match &*inode.data.read() {
        None => return false,
        Some(Data::Lower(file)) => file.stat().map(|stat| stat.nlink),
        Some(Data::Upper(file)) => rustix::fs::fstat(&file.fd)
            .map(|stat| u32::try_from(stat.st_nlink).unwrap_or(1))
            .map_err(Into::into),
    };
    links.is_ok_and(|links| links == 0)
}

impl InodeTable {
    /// Takes all nodes out.
    pub(crate) fn unsettle(&self) -> Unsettled {
        let maps = std::mem::take(&mut *self.maps.write());
        let whole = maps.whole.into_iter().map(|inode| {
            let key = inode.key.get();
            inode.key.set(None);
            (inode, key)
        });
        Unsettled { whole: whole.collect(), leaves: maps.leaves.into_iter().map(|leaf| *leaf).collect() }
    }

    /// Puts a node back, under a key unless that is another's by now.
    pub(crate) fn settle(&self, inode: &Arc<Inode>, key: Option<ObjectKey>) {
        let mut maps = self.maps.write();
        maps.add(inode);
        if let Some(key) = key.filter(|key| maps.find(*key).is_none()) {
            maps.set_key(inode, key);
        }
    }

    /// Puts a file back that nobody has used, where it was.
    pub(crate) fn settle_leaf(&self, leaf: Leaf) {
        self.maps.write().plant(Box::new(leaf));
    }

    /// Takes a name away from a node that is not in the table. The reference to the directory is for the caller to take back.
    pub(crate) fn leave_place(inode: &Inode, parent: &Inode, name: &[u8]) {
        let place = take_place(&mut inode.state.write(), parent, name);
        drop(place);
    }
}

/// Notes that a node's object is gone. Who holds it open goes on with it.
pub(crate) fn lose(inode: &Inode) {
    let data = inode.data.read();
    let mut state = inode.state.write();
    let held = match &*data {
        Some(Data::Upper(file)) => {
            State { upper: state.upper, pinned: Some(Arc::clone(&file.fd)), ..State::default() }
        }
        Some(Data::Lower(file)) if state.upper.is_none() => {
            let held = file.again().map(Arc::new);
            State { lower: held.map_or(Lower::None, Lower::Held), ..State::default() }
        }
        _ => State::default(),
    };
    let old = std::mem::replace(&mut *state, State { unlinked: true, lost: true, ..held });
    drop(state);
    drop(old);
    inode.version.fetch_add(1, Ordering::Release);
}
