//! Names of a listing looked up for the kernel, each on the layer that the listing says.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::Result;
use crate::inode::Inode;
use crate::inode_table::Node;
use crate::lookup::{self, DirView, Found};
use crate::merge::{self, ListedName};
use crate::name::FileName;
use crate::request::FileKind;
use crate::sys::Stat;
use crate::tree::Tree;

/// Looks a listed name up, on the one layer that serves it if the listing is still right.
pub(super) fn look_up_listed(
    tree: &Tree,
    parent: &Arc<Inode>,
    listed: &ListedName<'_>,
    version: u64,
) -> Result<(Node, Stat)> {
    if parent.version.load(Ordering::Acquire) == version
        && let Ok(Some(found)) = find_listed(tree, parent, listed)
        && let Ok(name) = FileName::new(listed.name)
        && let Ok(Some(entered)) = tree.enter(parent, name, found, version)
    {
        return Ok(entered);
    }
    tree.lookup(parent, listed.name)
}

fn find_listed(tree: &Tree, parent: &Inode, listed: &ListedName<'_>) -> Result<Option<Found>> {
    let hold = tree.hold(parent)?;
    if listed.layer == merge::listed(tree.stack.upper_number()) {
        return hold.find(listed.name);
    }
    let lowers = lookup::from_layer(&hold.lowers, usize::from(listed.layer));
    if listed.kind != FileKind::Directory {
        return lookup::find(&tree.stack, &DirView::of_lowers(lowers), listed.name);
    }
    let below = |name: &[u8]| tree.known_below(parent, &hold.lowers, name);
    lookup::find(&tree.stack, &DirView { below: &below, ..DirView::of_lowers(lowers) }, listed.name)
}
