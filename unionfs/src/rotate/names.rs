//! Giving every name on the upper its object there, so that the upper needs no index to be read.
//!
//! A name of an indexed file that was not changed itself has no object on the upper: it leads to the file through the
//! index, by the lower inode that it still has below. Read without that index, it would show the lower's old content.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::Arc;

use crate::copy_up::{self, Need};
use crate::error::{Errno, Error, Result};
use crate::identity;
use crate::inode::Inode;
use crate::links;
use crate::merge::{ListedName, Listing};
use crate::request::{FileKind, NodeId};
use crate::sys;
use crate::tree::{Peeked, Tree};

/// Which names have to be looked at.
struct Wanted {
    /// Numbers that lower files are listed with whose names may be missing on the upper.
    numbers: HashSet<u64>,
    /// Numbers on the upper of objects that are held by who opened them and that have a name nobody looked up.
    unnamed: HashSet<u64>,
    /// Every lower file with several names is looked at.
    thorough: bool,
}

/// Gives each name of an indexed file its object, and each object that is held and has a name a place.
pub(super) fn complete(tree: &Tree) -> Result<()> {
    let nodes = tree.table.whole();
    for inode in &nodes {
        complete_known(tree, inode)?;
    }
    let mut wanted = Wanted { numbers: HashSet::new(), unnamed: unnamed(&nodes)?, thorough: false };
    drop(nodes);
    let missing = missing(tree)?;
    for entry in &missing {
        let number = tree.index.as_ref().and_then(|index| index.shown_ino(&tree.stack, entry));
        wanted.thorough |= number.is_none();
        wanted.numbers.extend(number);
    }
    if missing.is_empty() && wanted.unnamed.is_empty() {
        return Ok(());
    }
    walk(tree, &wanted)?;
    if !wanted.thorough && !self::missing(tree)?.is_empty() {
        // A listing may show other numbers than stat. Or there are names outside of the layer, which nobody can see.
        walk(tree, &Wanted { thorough: true, ..wanted })?;
    }
    Ok(())
}

/// Takes all files out of the index: their names are on the upper.
pub(super) fn leave_index(tree: &Tree, nodes: &[Arc<Inode>]) -> Result<()> {
    let Some(index) = &tree.index else { return Ok(()) };
    let workdir = &tree.stack.upper()?.workdir;
    for inode in nodes {
        let indexed = inode.state.read().index.is_some();
        if !indexed {
            continue;
        }
        inode.state.write().index = None;
        if workdir.is_nfs() {
            // It was opened by its entry, which would stay, and count, as long as it is.
            let closed = inode.data.write().take();
            drop(closed);
        }
    }
    for entry in index.entries()? {
        index.leave(workdir, &entry)?;
    }
    Ok(())
}

/// Returns the entries of the index that have fewer names on the upper than are shown.
fn missing(tree: &Tree) -> Result<Vec<Vec<u8>>> {
    let Some(index) = &tree.index else { return Ok(Vec::new()) };
    let mut entries = Vec::new();
    for entry in index.entries()? {
        if index.may_miss_names(tree.stack.attributes(), &entry)? {
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// Returns the numbers of upper objects that have no known name, and yet one on disk.
fn unnamed(nodes: &[Arc<Inode>]) -> Result<HashSet<u64>> {
    let mut numbers = HashSet::new();
    for inode in nodes.iter().filter(|inode| inode.id != NodeId::ROOT && !inode.is_dir()) {
        let state = inode.state.read();
        let (None, Some(number), Some(pinned)) = (&state.place, state.upper, &state.pinned) else { continue };
        let pinned = Arc::clone(pinned);
        drop(state);
        if sys::stat_fd(pinned.as_fd())?.nlink > 0 {
            numbers.insert(number);
        }
    }
    Ok(numbers)
}

fn complete_known(tree: &Tree, inode: &Arc<Inode>) -> Result<()> {
    let places = {
        let state = inode.state.read();
        if state.index.is_none() {
            return Ok(());
        }
        let others = state.other_places.as_deref().map(Vec::as_slice).unwrap_or_default();
        state.place.iter().chain(others).cloned().collect::<Vec<_>>()
    };
    for place in places {
        link_here(tree, inode, &place.parent, place.name.as_bytes())?;
    }
    Ok(())
}

/// Makes the upper have an indexed object under one of its names. That is no change to the directory.
fn link_here(tree: &Tree, inode: &Inode, parent: &Arc<Inode>, name: &[u8]) -> Result<()> {
    copy_up::ensure_upper(tree, parent, Need::Data)?;
    let _names = parent.names.lock();
    let dir = tree.upper_fd(parent)?;
    let before = sys::stat_fd(dir.as_fd())?;
    links::link_up(tree, inode, dir.as_fd(), name)?;
    tree.mark_impure(parent, dir.as_fd())?;
    // Listings say which layer serves a name.
    tree.table.touch(parent);
    Ok(sys::set_both_times(dir.as_fd(), before.atime, before.mtime)?)
}

/// A directory on the way through the tree.
struct Visit<'a> {
    dir: Arc<Inode>,
    listing: Arc<Listing>,
    next: usize,
    /// Keeps the node known while what is below it is visited.
    _held: Option<Peeked<'a>>,
}

/// Visits all directories and looks at the names that are wanted. No recursion: trees may be deep.
fn walk(tree: &Tree, wanted: &Wanted) -> Result<()> {
    let root = tree.table.get(NodeId::ROOT)?;
    let mut way = vec![Visit { listing: tree.listing(&root)?, dir: root, next: 0, _held: None }];
    while let Some(visit) = way.last_mut() {
        let Some(entry) = visit.listing.get(visit.next) else {
            way.pop();
            continue;
        };
        visit.next += 1;
        if entry.kind != FileKind::Directory {
            if is_wanted(tree, &visit.dir, &entry, wanted)? {
                look_at(tree, &visit.dir, entry.name)?;
            }
            continue;
        }
        let held = match tree.peek(&visit.dir, entry.name) {
            Ok(held) => held,
            // Listed, and not shown: a redirect that may not be followed, or the like.
            Err(error) => {
                tracing::debug!("not visited: {error}");
                continue;
            }
        };
        let dir = Arc::clone(&held.inode);
        way.push(Visit { listing: tree.listing(&dir)?, dir, next: 0, _held: Some(held) });
    }
    Ok(())
}

fn is_wanted(tree: &Tree, dir: &Inode, entry: &ListedName<'_>, wanted: &Wanted) -> Result<bool> {
    let number = usize::from(entry.layer);
    if number == tree.stack.upper_number() {
        return Ok(wanted.unnamed.contains(&entry.ino));
    }
    let lower = dir.lower_dirs().iter().find(|lower| lower.layer == number).map(Arc::clone);
    let lower = lower.ok_or(Error::new(Errno::IO))?;
    if wanted.thorough {
        return Ok(tree.stack.lower(&lower)?.stat(&tree.stack.fds, &lower, entry.name)?.nlink > 1);
    }
    Ok(wanted.numbers.contains(&identity::listed_ino(tree, dir, lower.identity.0, entry)))
}

/// Looks a name up, which gives its object a place, and makes the upper have it.
fn look_at(tree: &Tree, parent: &Arc<Inode>, name: &[u8]) -> Result<()> {
    let found = tree.peek(parent, name)?;
    let indexed = found.inode.state.read().index.is_some();
    if indexed { link_here(tree, &found.inode, parent, name) } else { Ok(()) }
}
