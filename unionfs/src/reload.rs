//! Looking at the layers again, because they were changed by others while the mount lives.
//!
//! Nobody else uses the tree meanwhile. All nodes are taken out of the table and looked for where they were, from the root
//! down. Who is found comes back under the same number and with what is on the layers now; who is not is lost: it has no
//! name any more, and lives on for who holds it open. What changed for the kernel, which remembers names and data for
//! ever, is told as a list.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Errno, Error, Result};
use crate::inode::{Inode, Lower, LowerData, Place, State};
use crate::inode_table::{Candidate, InodeTable, Leaf, ObjectKey, Unsettled, lose};
use crate::merge::Listing;
use crate::name::FileName;
use crate::request::NodeId;
use crate::stack::LayerStack;
use crate::stack::dir_fds::DirKey;
use crate::stack::lower::{LowerDir, LowerName};
use crate::tree::{Tree, root_lowers};

/// What the kernel must not remember any more.
#[derive(Debug, Default)]
pub(crate) struct Outdated {
    /// Objects whose attributes and data may have changed.
    pub nodes: Vec<NodeId>,
    /// Names that lead to another object, or to none, or did not exist when they were last asked for.
    pub names: Vec<(NodeId, Box<[u8]>)>,
}

/// Looks for all nodes in `stack`, the layers looked at again.
///
/// Preconditions: no request is under way.
///
/// # Errors
/// What the roots of the layers answer; the tree is then as it was.
pub(crate) fn reload(tree: &Tree, stack: LayerStack) -> Result<(Tree, Outdated)> {
    let tree = tree.looked_at_again(stack);
    let lowers = root_lowers(&tree.stack)?;
    let thorough = match &tree.index {
        Some(index) => !index.entries()?.is_empty(),
        None => tree.stack.index_dir().is_some(),
    };
    let mut search = Search::begin(&tree, thorough, lowers);
    while let Some(dir) = search.directories.pop() {
        search.look_in(&dir);
    }
    let outdated = search.end();
    Ok((tree, outdated))
}

/// A node that is looked for.
struct Wanted {
    inode: Arc<Inode>,
    key: Option<ObjectKey>,
    /// It has names to look for it by.
    named: bool,
    found: bool,
}

/// The names that nodes have in one directory.
struct Children {
    dir: Arc<Inode>,
    /// Names of nodes by their index.
    whole: Vec<(usize, FileName)>,
    leaves: Vec<Leaf>,
}

struct Search<'a> {
    tree: &'a Tree,
    /// Lower files may have come to lead through the index: each is looked up.
    thorough: bool,
    wanted: Vec<Wanted>,
    /// By the serial number of the directory.
    children: HashMap<u64, Children>,
    /// Found, and to be looked in.
    directories: Vec<Arc<Inode>>,
    outdated: Outdated,
    /// Directories that a name was taken from.
    left: Vec<NodeId>,
}

impl<'a> Search<'a> {
    fn begin(tree: &'a Tree, thorough: bool, lowers: Lower) -> Self {
        let Unsettled { whole, leaves } = tree.table.unsettle();
        let mut search = Self {
            tree,
            thorough,
            wanted: Vec::with_capacity(whole.len()),
            children: HashMap::new(),
            directories: Vec::new(),
            outdated: Outdated::default(),
            left: Vec::new(),
        };
        for (inode, key) in whole {
            search.outdated.nodes.push(inode.id);
            let is_root = inode.id == NodeId::ROOT;
            if is_root {
                renew_root(&inode, lowers.clone());
                tree.table.settle(&inode, key);
                search.directories.push(Arc::clone(&inode));
            }
            let index = search.wanted.len();
            let places = places(&inode);
            let named = !places.is_empty();
            for place in places {
                search.children_of(&place.parent).whole.push((index, place.name));
            }
            search.wanted.push(Wanted { inode, key, named, found: is_root });
        }
        for leaf in leaves {
            search.outdated.nodes.push(leaf.id());
            search.children_of(&Arc::clone(leaf.parent())).leaves.push(leaf);
        }
        search
    }

    fn children_of(&mut self, dir: &Arc<Inode>) -> &mut Children {
        let none = || Children { dir: Arc::clone(dir), whole: Vec::new(), leaves: Vec::new() };
        self.children.entry(dir.serial).or_insert_with(none)
    }

    /// Looks for the nodes of a directory that was found.
    fn look_in(&mut self, dir: &Arc<Inode>) {
        let known = self.children.remove(&dir.serial);
        let (whole, leaves) = known.map(|known| (known.whole, known.leaves)).unwrap_or_default();
        // A directory that may not be read has its names looked up one by one.
        let listing = self.tree.listing(dir).unwrap_or_else(|error| {
            tracing::debug!("a directory is not read again: {error}");
            Arc::default()
        });
        let mut names = HashSet::new();
        for leaf in leaves {
            names.insert(Box::from(leaf.name()));
            self.look_for_leaf(dir, &listing, leaf);
        }
        for (index, name) in whole {
            self.look_for(dir, index, &name);
            names.insert(Box::from(name.as_bytes()));
        }
        // The kernel may remember that the others do not exist.
        for entry in (0..listing.len()).filter_map(|index| listing.get(index)) {
            if !names.contains(entry.name) {
                self.outdated.names.push((dir.id, entry.name.into()));
            }
        }
    }

    /// Returns who has a name now, with a descriptor of a directory on the upper. Errors are for who asks for the name.
    fn find(&self, dir: &Arc<Inode>, name: &[u8]) -> Option<(Candidate, Option<OwnedFd>)> {
        let look = || {
            let Some(found) = self.tree.hold(dir)?.find(name)? else { return Ok(None) };
            self.tree.candidate(dir, FileName::new(name)?, found).map(Some)
        };
        let found = look().unwrap_or_else(|error: Error| {
            tracing::debug!("a name is not found again: {error}");
            None
        });
        found.map(|(candidate, _, fd)| (candidate, fd))
    }

    fn look_for(&mut self, dir: &Arc<Inode>, index: usize, name: &FileName) {
        let found = self.find(dir, name.as_bytes());
        let Some(wanted) = self.wanted.get_mut(index) else { return };
        let inode = &wanted.inode;
        match found.filter(|(candidate, _)| candidate.is_object_of(inode, wanted.key)) {
            Some(_) if wanted.found => {}
            Some((candidate, fd)) => {
                wanted.found = true;
                candidate.renew(inode);
                close_unused(inode);
                if let Some(fd) = fd {
                    self.tree.stack.fds.put(DirKey::Upper(inode.serial), Arc::new(fd));
                }
                self.tree.table.settle(inode, Some(candidate.key));
                if inode.is_dir() {
                    self.directories.push(Arc::clone(inode));
                }
            }
            None => {
                InodeTable::leave_place(inode, dir, name.as_bytes());
                self.forget_name(dir.id, name.as_bytes());
            }
        }
    }

    fn look_for_leaf(&mut self, dir: &Arc<Inode>, listing: &Listing, leaf: Leaf) {
        if !self.thorough && self.is_as_listed(dir, listing, &leaf) {
            return self.tree.table.settle_leaf(leaf);
        }
        let found = self
            .find(dir, leaf.name())
            .filter(|(candidate, _)| candidate.key == leaf.key() && candidate.kind == leaf.kind());
        match found {
            Some((candidate, _)) if candidate.is_plain() && candidate.ino == leaf.id().0 => {
                self.tree.table.settle_leaf(leaf);
            }
            Some((candidate, _)) => {
                let inode = Arc::new(leaf.grow());
                candidate.renew(&inode);
                self.tree.table.settle(&inode, Some(candidate.key));
            }
            None => self.lose_leaf(leaf),
        }
    }

    /// Returns whether a listing shows a file of a lower to be where it was. Objects on the upper may have got marks.
    fn is_as_listed(&self, dir: &Inode, listing: &Listing, leaf: &Leaf) -> bool {
        let Some(entry) = listing.find(leaf.name()).and_then(|at| listing.get(at)) else { return false };
        let (layer, lowers) = (usize::from(entry.layer), dir.lower_dirs());
        let device = lowers.iter().find(|dir| dir.layer == layer).map(|dir| dir.identity.0);
        let key = device.map(|dev| ObjectKey::new(layer, self.tree.stack.device_index(dev), entry.ino));
        key == Some(leaf.key()) && entry.kind == leaf.kind()
    }

    fn lose_leaf(&mut self, leaf: Leaf) {
        let (key, parent, name) = (leaf.key(), leaf.parent().id, Box::<[u8]>::from(leaf.name()));
        let inode = Arc::new(leaf.grow());
        lose(&inode);
        self.tree.table.settle(&inode, Some(key));
        self.forget_name(parent, &name);
    }

    fn forget_name(&mut self, dir: NodeId, name: &[u8]) {
        self.outdated.names.push((dir, name.into()));
        self.left.push(dir);
    }

    /// Gives up those that were not found.
    fn end(mut self) -> Outdated {
        for (_, Children { dir, whole, leaves }) in std::mem::take(&mut self.children) {
            leaves.into_iter().for_each(|leaf| self.lose_leaf(leaf));
            for (index, name) in whole {
                if let Some(wanted) = self.wanted.get(index) {
                    InodeTable::leave_place(&wanted.inode, &dir, name.as_bytes());
                }
                self.forget_name(dir.id, name.as_bytes());
            }
        }
        for Wanted { inode, key, named, .. } in self.wanted.iter().filter(|wanted| !wanted.found) {
            if *named || !describe_unlinked(self.tree, inode) {
                lose(inode);
            }
            self.tree.table.settle(inode, *key);
        }
        for dir in self.left {
            drop(self.tree.table.forget(dir, 1));
        }
        self.outdated
    }
}

fn places(inode: &Inode) -> Vec<Place> {
    let state = inode.state.read();
    let others = state.other_places.as_deref().map(Vec::as_slice).unwrap_or_default();
    state.place.iter().chain(others).cloned().collect()
}

fn renew_root(root: &Inode, lower: Lower) {
    let mut state = root.state.write();
    let upper = state.upper;
    *state = State { upper, lower, ..State::default() };
    drop(state);
    root.version.fetch_add(1, Ordering::Release);
}

/// Closes a file that no handle holds: it is opened again where it is now.
fn close_unused(inode: &Inode) {
    let mut data = inode.data.write();
    if inode.opens.load(Ordering::Relaxed) == 0 {
        let closed = data.take();
        drop(data);
        drop(closed);
    }
}

/// Describes again where an object is on the lowers that has no name in the union. `false` if it is there no longer.
fn describe_unlinked(tree: &Tree, inode: &Inode) -> bool {
    let (lower, data) = {
        let state = inode.state.read();
        (state.lower.clone(), state.lower_data.clone())
    };
    let again = |dir: &Arc<LowerDir>| tree.stack.describe_again(dir);
    let now = match lower {
        Lower::File(dir, name, number) => again(&dir).and_then(|dir| {
            let stat = tree.stack.lower(&dir)?.stat(&tree.stack.fds, &dir, name.as_bytes())?;
            if stat.ino == number { Ok(Lower::File(dir, name, number)) } else { Err(Errno::STALE.into()) }
        }),
        Lower::Dirs(dirs) => {
            dirs.iter().map(again).collect::<Result<Vec<_>>>().map(|dirs| Lower::Dirs(dirs.into()))
        }
        other => Ok(other),
    };
    let Ok(now) = now else { return false };
    let data = data.and_then(|data| {
        let LowerData { file, .. } = *data;
        Some(Box::new(LowerData { file: LowerName { dir: again(&file.dir).ok()?, ..file }, ..*data }))
    });
    let mut state = inode.state.write();
    state.lower = now;
    if data.is_some() {
        state.lower_data = data;
    }
    true
}
