//! Giving a metacopy its data: the second half of a copy-up, at the first change of the data.
//!
//! The data is written into the upper file in place, so that hard links of it stay together; until the mark is removed
//! everybody reads the lower. Writing drops `security.capability` and changes the time; both are put back before.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode};

use crate::copy_up::{Need, set_times};
use crate::error::{Errno, Error, Result};
use crate::inode::{Data, Inode, UpperFile};
use crate::ondisk::capability;
use crate::sys;
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
    let file = open_for_writing(tree, inode, pin.as_fd(), before.mode)?;
    if need == Need::Truncate {
        sys::retry(|| rustix::fs::ftruncate(&file.fd, 0))?;
    } else {
        let capability = sys::xattr::get(file.fd.as_fd(), capability::NAME).ok();
        let source = upper_file::open_lower_data(tree, inode)?;
        source.copy_data_to(file.fd.as_fd(), &upper.no_reflink)?;
        if let Some(capability) = capability {
            sys::xattr::set(file.fd.as_fd(), capability::NAME, &capability, 0)?;
        }
        set_times(file.fd.as_fd(), &before)?;
        if tree.policy.sync_copy_up {
            sys::retry(|| rustix::fs::fdatasync(&file.fd))?;
        }
    }
    // Readers that began before read the lower to their end; who comes after reads the same bytes here.
    let mut data = inode.data.write();
    sys::xattr::remove(file.fd.as_fd(), &namespace.name("metacopy"))?;
    match sys::xattr::remove(file.fd.as_fd(), &namespace.name("redirect")) {
        Ok(()) | Err(Errno::NODATA) => {}
        Err(errno) => return Err(errno.into()),
    }
    // Without privilege the writing took set-id bits away, or the mode had to let this process write.
    if need == Need::Data && sys::stat_fd(file.fd.as_fd())?.mode != before.mode {
        rustix::fs::fchmod(&file.fd, Mode::from_raw_mode(before.mode & 0o7777))?;
    }
    inode.state.write().lower_data = None;
    if data.is_some() {
        *data = Some(Data::Upper(file));
    }
    Ok(())
}

/// Opens the file, also where its own mode forbids that to an ordinary user who owns it.
fn open_for_writing(tree: &Tree, inode: &Inode, pin: BorrowedFd<'_>, mode: u32) -> Result<UpperFile> {
    match upper_file::open(tree, inode, Access::Write) {
        Err(error) if error.is(Errno::ACCESS) => {}
        result => return result,
    }
    let mode = Mode::from_raw_mode((mode & 0o7777) | 0o600);
    rustix::fs::chmodat(CWD, sys::proc_path(pin), mode, AtFlags::empty())?;
    upper_file::open(tree, inode, Access::Write)
}
