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
use crate::ondisk::{Namespace, capability};
use crate::stack::settle;
use crate::stack::upper::UpperLayer;
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
    let capability = sys::xattr::get(file.fd.as_fd(), capability::NAME).ok();
    let job = Fill { tree, upper, namespace, file: &file, before: &before, capability };
    let at = job.give_data(inode, need).map_err(|error| job.undo(error))?;
    // Readers that began before read the lower to their end; who comes after reads the same bytes here.
    let mut data = inode.data.write();
    at.announce(tree, &file.fd, before.ino, settle::MARKS).map_err(|error| job.undo(error))?;
    if matches!(at, Whereabouts::Upper) {
        settle::unmark(&upper.workdir.attributes, file.fd.as_fd(), namespace, settle::MARKS)
            .map_err(|error| job.undo(error))?;
    }
    job.restore_mode()?;
    inode.state.write().lower_data = None;
    file.parts = at.parts();
    if data.is_some() {
        *data = Some(Data::Upper(file));
    }
    Ok(())
}

/// One metacopy that is given its data.
struct Fill<'a> {
    tree: &'a Tree,
    upper: &'a UpperLayer,
    namespace: Namespace,
    file: &'a UpperFile,
    /// What it showed before.
    before: &'a Stat,
    /// The capability that it had.
    capability: Option<Vec<u8>>,
}

impl Fill<'_> {
    fn give_data(&self, inode: &Inode, need: Need) -> Result<Whereabouts> {
        let (to, upper) = (self.file.fd.as_fd(), self.upper);
        if need == Need::Truncate {
            data::empty(to, self.namespace, upper)?;
            return Ok(Whereabouts::Upper);
        }
        data::clear(to, self.namespace, upper, self.before.size)?;
        let linked = self.before.nlink > 1 || inode.state.read().index.is_some();
        // Not that of now, which may be one that only lets this process write.
        let mode = if upper.owners.are_inodes() { self.before.mode } else { upper.owners.stat_fd(to)?.mode };
        let at = DataCopy { tree: self.tree, upper, inode, need, linked, mode }.run(None, to)?;
        self.restore_capability()?;
        sys::set_both_times(to, self.before.atime, self.before.mtime)?;
        Ok(at)
    }

    /// Puts back the capability, which writing takes away.
    fn restore_capability(&self) -> Result<()> {
        let Some(capability) = &self.capability else { return Ok(()) };
        Ok(sys::xattr::set(self.file.fd.as_fd(), capability::NAME, capability, 0)?)
    }

    /// Puts back the mode: without privilege writing takes set-id bits away, or the mode had to let this process write.
    fn restore_mode(&self) -> Result<()> {
        let mode = self.before.mode;
        if sys::stat_fd(self.file.fd.as_fd())?.mode != mode {
            rustix::fs::fchmod(&self.file.fd, Mode::from_raw_mode(mode & 0o7777))?;
        }
        Ok(())
    }

    /// Makes it the metacopy again that it was before it could not be given its data because of `error`, which is returned.
    fn undo(&self, error: Error) -> Error {
        let (to, attributes) = (self.file.fd.as_fd(), &self.upper.workdir.attributes);
        let undone = settle::revert(attributes, to, self.namespace, self.before)
            .and_then(|()| self.restore_capability())
            .and_then(|()| self.restore_mode());
        if let Err(failed) = undone {
            tracing::error!("a file that could not be copied up is not as it was before: {failed}");
        }
        error
    }
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
