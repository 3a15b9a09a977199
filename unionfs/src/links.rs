//! The names of an object that stands in the index: which of them the upper has, and how many are shown.

use std::os::fd::BorrowedFd;

use crate::error::{Errno, Result};
use crate::inode::Inode;
use crate::sys;
use crate::tree::Tree;

/// Makes the upper have an object under a name that only leads to it through the index, so that the name can be moved.
///
/// Preconditions: `names` of the directory is held.
pub(crate) fn link_up(tree: &Tree, inode: &Inode, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let (Some(index), Some(mut indexed)) = (&tree.index, inode.state.read().index.clone()) else {
        return Ok(());
    };
    match sys::stat_at(dir, name) {
        Err(Errno::NOENT) => {}
        result => return Ok(result.map(drop)?),
    }
    index.link_to(&indexed.entry, dir, name)?;
    indexed.difference -= 1;
    index.set_nlink_difference(tree.stack.attributes(), &indexed.entry, indexed.difference)?;
    inode.state.write().index = Some(indexed);
    Ok(())
}

/// Counts that an object lost a name. `shown` is the number of links shown before, `named` whether the upper had an
/// object under the name. At the last one the entry goes.
pub(crate) fn lose_link(tree: &Tree, inode: &Inode, shown: u32, named: bool) -> Result<()> {
    let indexed = inode.state.read().index.clone();
    let (Some(index), Some(mut indexed)) = (&tree.index, indexed) else {
        if !inode.on_upper() {
            inode.state.write().lost_links += 1;
        }
        return Ok(());
    };
    if shown <= 1 {
        inode.state.write().index = None;
        return index.remove(&tree.stack.upper()?.workdir, &indexed.entry);
    }
    if !named {
        indexed.difference -= 1;
        index.set_nlink_difference(tree.stack.attributes(), &indexed.entry, indexed.difference)?;
        inode.state.write().index = Some(indexed);
    }
    Ok(())
}
