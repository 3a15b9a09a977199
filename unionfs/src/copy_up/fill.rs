//! Giving a metacopy its data: the second half of a copy-up, at the first change of the data.
//!
//! The data is written into the upper file in place, so that hard links of it stay together; until the mark is removed
//! everybody reads the lower. Writing drops `security.capability` and changes the time; both are put back before.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode};

use crate::copy_up::Need;
use crate::copy_up::data::{self, DataCopy, Whereabouts};
use crate::error::{Errno, Error, Result};
use crate::inode::{Data, Inode, UpperFile};
use crate::ondisk::capability;
use crate::stack::settle;
use crate::sys::{self, Stat};
use crate::tree::Tree;
use crate::upper_file::{self, Access};

/// Copies the data of a metacopy up, or with [`Need::Truncate`] makes it an empty whole file.
pub(super) fn fill(tree: &Tree, inode: &Arc<Inode>, need: Need) -> Result<()> {
    let _single_flight = inode.copy_up.lock();
    if !inode.is_metacopy() {
        return Ok(());
    }
    let upper = tree.stack.upper()?;
    let namespace = upper.features.namespace.ok_or(Error::new(Errno::IO))?;
    let pin = tree.pin_upper(inode)?;
    let before = sys::stat_fd(pin.as_fd())?;
    let mut file = open_for_writing(tree, inode, pin.as_fd(), before.mode)?;
    let at = if need == Need::Truncate {
        data::empty(file.fd.as_fd(), namespace, upper)?;
        Whereabouts::Upper
    } else {
        data::clear(file.fd.as_fd(), namespace, upper, before.size)?;
        copy(tree, inode, need, &file, &before)?
    };
    // Readers that began before read the lower to their end; who comes after reads the same bytes here.
    let mut data = inode.data.write();
    at.announce(tree, &file.fd, before.ino, settle::MARKS)?;
    if matches!(at, Whereabouts::Upper) {
        settle::unmark(&upper.workdir.attributes, file.fd.as_fd(), namespace, settle::MARKS)?;
    }
    // Without privilege the writing took set-id bits away, or the mode had to let this process write.
    if sys::stat_fd(file.fd.as_fd())?.mode != before.mode {
        rustix::fs::fchmod(&file.fd, Mode::from_raw_mode(before.mode & 0o7777))?;
    }
    inode.state.write().lower_data = None;
    file.parts = at.parts();
    if data.is_some() {
        *data = Some(Data::Upper(file));
    }
    Ok(())
}

/// Copies the data, and puts back what copying changes.
fn copy(tree: &Tree, inode: &Inode, need: Need, file: &UpperFile, before: &Stat) -> Result<Whereabouts> {
    let upper = tree.stack.upper()?;
    let linked = before.nlink > 1 || inode.state.read().index.is_some();
    // Not that of now, which may be one that only lets this process write.
    let mode =
        if upper.owners.are_inodes() { before.mode } else { upper.owners.stat_fd(file.fd.as_fd())?.mode };
    let job = DataCopy { tree, upper, inode, need, linked, mode };
    let capability = sys::xattr::get(file.fd.as_fd(), capability::NAME).ok();
    let at = job.run(None, file.fd.as_fd())?;
    if let Some(capability) = capability {
        sys::xattr::set(file.fd.as_fd(), capability::NAME, &capability, 0)?;
    }
    sys::set_both_times(file.fd.as_fd(), before.atime, before.mtime)?;
    Ok(at)
}

/// Opens the file. Where its own mode forbids that to an ordinary user who owns it, the mode is another until the end: marks
/// cannot be removed otherwise.
fn open_for_writing(tree: &Tree, inode: &Inode, pin: BorrowedFd<'_>, mode: u32) -> Result<UpperFile> {
    const USABLE: u32 = 0o600;
    if tree.policy.own_ids.0 != 0 && mode & USABLE != USABLE {
        let mode = Mode::from_raw_mode((mode & 0o7777) | USABLE);
        rustix::fs::chmodat(CWD, sys::proc_path(pin), mode, AtFlags::empty())?;
    }
    upper_file::open(tree, inode, Access::Write)
}
