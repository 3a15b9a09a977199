//! The data of a copied-up file: shared with the lower, copied, or left to be copied in parts; and when it is safe.
//!
//! A power cut must leave the old file or the new one. Where marks can be had, the file is published with them and made
//! safe later (see [`crate::unfinished`]); else its data is synced before anybody sees it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, SeekFrom};

use crate::copy_up::Need;
use crate::counts::add;
use crate::error::{Errno, Result};
use crate::inode::Inode;
use crate::ondisk::unfinished::Extent;
use crate::ondisk::{Namespace, capability};
use crate::options::Verity;
use crate::parts::Parts;
use crate::stack::lower::LowerFile;
use crate::stack::settle::{self, Durability, Marks};
use crate::stack::upper::UpperLayer;
use crate::sys::{self, Stat};
use crate::tree::Tree;
use crate::upper_file;

/// Bytes of a block as stat(2) counts them.
const BLOCK: u64 = 512;

/// Where the data of an object on the upper is.
#[derive(Clone, Debug)]
pub(super) enum Whereabouts {
    /// On the upper, and safe as far as this mount promises; or there is none.
    Upper,
    /// On the lower: a metacopy.
    Lower,
    /// On the upper, and not safe yet: it has the marks.
    Unfinished,
    /// On the upper in parts, with the marks.
    InParts(Arc<Parts>),
}

/// One object whose data is brought to the upper.
pub(super) struct DataCopy<'a> {
    pub tree: &'a Tree,
    pub upper: &'a UpperLayer,
    pub inode: &'a Inode,
    pub need: Need,
    /// It has, or will have, several names on the upper.
    pub linked: bool,
    /// Its mode, in the end.
    pub mode: u32,
}

impl DataCopy<'_> {
    /// Gives `to` the data; it has none, and shows nothing of what is written: nobody sees it, or it is marked as a metacopy.
    /// `from` is the lower file with the data, if it is open.
    pub(super) fn run(&self, from: Option<(&LowerFile, &Stat)>, to: BorrowedFd<'_>) -> Result<Whereabouts> {
        if let Some((from, stat)) = from {
            return self.copy(from, stat, to);
        }
        let from = upper_file::open_lower_data(self.tree, self.inode)?;
        self.copy(&from, &from.stat()?, to)
    }

    fn copy(&self, from: &LowerFile, stat: &Stat, to: BorrowedFd<'_>) -> Result<Whereabouts> {
        let shared = from.share_data_with(to, &self.upper.no_reflink)?;
        let namespace = self.marks();
        let in_parts = self.tree.policy.parts_from.filter(|&size| stat.size >= size && !shared);
        if let (Some(namespace), Some(smallest)) = (namespace, in_parts)
            && self.may_go_in_parts(from, stat)
            && reserve(to, stat.size)?
        {
            settle::mark(to, namespace, Extent::Ranges, self.upper.writer)?;
            let from = upper_file::open_lower_data(self.tree, self.inode)?;
            let counts = Arc::clone(&self.tree.counts);
            return Ok(Whereabouts::InParts(Arc::new(Parts::new(from, stat, smallest, counts))));
        }
        // Sharing blocks is a change like that of an attribute: where those are written in order, it is safe before the
        // name is.
        let safe = match self.upper.durability {
            _ if !self.tree.policy.sync_copy_up => true,
            Durability::Memory => true,
            Durability::Ordered => shared,
            Durability::Each => false,
        };
        if !shared {
            // With its size from the beginning: after a power cut the size is then that of the lower whose data shows.
            if !safe && namespace.is_some() {
                sys::retry(|| rustix::fs::ftruncate(to, stat.size))?;
            }
            from.copy_data_to(to, stat)?;
            let data = stat.size.min(stat.blocks.saturating_mul(BLOCK));
            add(&self.tree.counts.copied_bytes, data);
        }
        match namespace {
            _ if safe => Ok(Whereabouts::Upper),
            Some(namespace) => {
                settle::mark(to, namespace, Extent::Whole, self.upper.writer)?;
                Ok(Whereabouts::Unfinished)
            }
            None => {
                sys::retry(|| rustix::fs::fdatasync(to))?;
                Ok(Whereabouts::Upper)
            }
        }
    }

    /// Returns where to put marks, if the file may have them: under one name, because below another one the data would not
    /// be found; and only if this process may read them and take them away again. In a sidecar they would cost as much as
    /// the data, and a digest would be missing beside them.
    fn marks(&self) -> Option<Namespace> {
        let privileged = self.upper.features.chown || !self.upper.owners.are_inodes();
        let removable = privileged || self.mode & 0o600 == 0o600;
        let wanted = self.need == Need::Data
            && self.tree.policy.metacopy
            && !self.tree.policy.strict
            && !self.upper.features.sidecar
            && self.tree.policy.verity == Verity::Off
            && !self.linked
            && removable;
        self.upper.features.namespace.filter(|_| wanted)
    }

    /// Returns whether to copy only what is written to, at first. Writing takes set-id bits and capabilities away, which the
    /// copying in the background must not; a file with holes would lose them to the room that is reserved; and in memory
    /// reserving takes as long as copying.
    fn may_go_in_parts(&self, from: &LowerFile, stat: &Stat) -> bool {
        self.mode & (libc::S_ISUID | libc::S_ISGID) == 0
            && stat.blocks.saturating_mul(BLOCK) >= stat.size
            && self.upper.durability != Durability::Memory
            && from.xattr(capability::NAME).is_err()
    }
}

/// Gives `to` its size and all the room that it will need: a write that was acknowledged must not be lost because the rest
/// of the file did not fit. Returns false where the file system cannot reserve room.
///
/// # Errors
/// ENOSPC and EDQUOT, as the copying of the whole file would give them.
fn reserve(to: BorrowedFd<'_>, size: u64) -> Result<bool> {
    match sys::retry(|| rustix::fs::fallocate(to, FallocateFlags::empty(), 0, size)) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Takes away what a server that was killed has left in a metacopy: it would show in holes of what is copied now.
pub(super) fn clear(to: BorrowedFd<'_>, namespace: Namespace, upper: &UpperLayer, size: u64) -> Result<()> {
    // Any other answer: data, or a file system that does not tell.
    if rustix::fs::seek(to, SeekFrom::Data(0)) == Err(Errno::NXIO) {
        return Ok(());
    }
    settle::remark(&upper.workdir.attributes, to, namespace, Extent::Ranges, upper.writer)?;
    // Who looks at its size meanwhile sees the right one.
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match sys::retry(|| rustix::fs::fallocate(to, flags, 0, size)) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        punched => return Ok(punched?),
    }
    sys::retry(|| rustix::fs::ftruncate(to, 0))?;
    Ok(sys::retry(|| rustix::fs::ftruncate(to, size))?)
}

/// Makes a metacopy an empty whole file.
pub(super) fn empty(to: BorrowedFd<'_>, namespace: Namespace, upper: &UpperLayer) -> Result<()> {
    // Killed in between, it is the old file: its size, 0 then, says nothing while it has this mark.
    settle::remark(&upper.workdir.attributes, to, namespace, Extent::Ranges, upper.writer)?;
    sys::retry(|| rustix::fs::ftruncate(to, 0))?;
    settle::unmark(&upper.workdir.attributes, to, namespace, settle::MARKS)
}

impl Whereabouts {
    /// Makes the list of unfinished files know the file with these marks, before others can see it.
    pub(super) fn announce(&self, tree: &Tree, fd: &Arc<OwnedFd>, ino: u64, marks: Marks) -> Result<()> {
        match self {
            Self::Upper | Self::Lower => Ok(()),
            Self::Unfinished | Self::InParts(_) => {
                tree.unfinished.add(ino, Arc::clone(fd), self.parts(), marks)
            }
        }
    }

    /// Returns how the file is served that has its data in parts.
    pub(super) fn parts(&self) -> Option<Arc<Parts>> {
        match self {
            Self::InParts(parts) => Some(Arc::clone(parts)),
            Self::Upper | Self::Lower | Self::Unfinished => None,
        }
    }
}
