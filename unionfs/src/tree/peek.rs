//! A name looked up for the union's own sake: the kernel is not told of it.

use std::sync::Arc;

use super::Tree;
use crate::error::Result;
use crate::inode::Inode;
use crate::sys::Stat;

impl Tree {
    /// Returns the node of `name` without leaving a lookup counted.
    pub(crate) fn peek(&self, parent: &Arc<Inode>, name: &[u8]) -> Result<Peeked<'_>> {
        let (node, stat) = self.lookup(parent, name)?;
        Ok(Peeked { tree: self, inode: self.whole(node)?, stat })
    }
}

/// A node whose lookup is taken back when this is dropped.
#[derive(Debug)]
pub(crate) struct Peeked<'a> {
    tree: &'a Tree,
    /// The node.
    pub inode: Arc<Inode>,
    /// Its attributes.
    pub stat: Stat,
}

impl Drop for Peeked<'_> {
    fn drop(&mut self) {
        self.tree.forget(self.inode.id, 1);
    }
}
