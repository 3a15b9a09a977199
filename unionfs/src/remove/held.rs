//! What is held of an object while it loses a name: who uses it goes on without.
//!
//! An NFS client removes no name by which something is open, but gives it the form `.nfs...` until that is closed, and it counts
//! among the links. So a file that has other names is held by none that goes, or that name is not shown as one.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::RwLockWriteGuard;

use crate::error::Result;
use crate::inode::{Data, Inode};
use crate::stack::upper::UpperLayer;
use crate::sys;
use crate::tree::{Peeked, Tree};

/// An object that is about to lose a name.
#[derive(Debug, Default)]
pub(crate) struct Held<'a> {
    /// Leads to the object when no name of it is known.
    pin: Option<Arc<OwnedFd>>,
    /// The pin keeps a name on NFS, which is none of the union.
    counts: bool,
    /// Nobody opens the file by the name, or takes another one for left that goes at the same time.
    closed: Option<RwLockWriteGuard<'a, Option<Data>>>,
}

impl<'a> Held<'a> {
    /// Holds an object that has a descriptor.
    pub(crate) fn by(pin: Option<Arc<OwnedFd>>) -> Self {
        Self { pin, ..Self::default() }
    }

    /// Holds an object of the upper that is about to lose `name` in `dir`, whose names are locked.
    ///
    /// Until what is returned is dropped no attributes of the object can be asked for.
    pub(crate) fn without(
        tree: &Tree,
        upper: &UpperLayer,
        victim: &'a Peeked<'_>,
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<Self> {
        let inode = &*victim.inode;
        let pinned = || Ok(Self::by(Some(tree.pin_locked(inode, dir, name)?)));
        // A member of the index is open by its name there.
        if !upper.workdir.is_nfs() || inode.is_dir() || inode.state.read().index.is_some() {
            return pinned();
        }
        let mut data = inode.data.write();
        let other_is_known = has_other_place(inode);
        if victim.stat.nlink <= 1 && !other_is_known {
            drop(data);
            return pinned();
        }
        // Who has it open goes on by another name, or by the pin.
        *data = None;
        let pin = if other_is_known { None } else { Some(Arc::new(sys::pin_at(dir, name)?)) };
        Ok(Self { counts: pin.is_some(), pin, closed: Some(data) })
    }

    /// Lets go of an object that still has a name, and keeps another one reachable until the kernel forgets it.
    pub(super) fn settle(self, inode: &Inode, has_name: bool) {
        if !has_name {
            let mut state = inode.state.write();
            state.unlinked = true;
            // With the pin that was goes the name that it kept.
            state.pinned = self.pin;
            if self.counts {
                state.lost_links = 1;
            }
        }
        drop(self.closed);
    }
}

/// Returns whether a file has more than one name that is known.
fn has_other_place(inode: &Inode) -> bool {
    inode.state.read().other_places.as_ref().is_some_and(|others| !others.is_empty())
}
