//! Backing files registered through the device.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use super::sys;
use crate::error::Errno;
use crate::fuse::handler::Register;

/// Registers with the kernel behind a device.
#[derive(Debug)]
pub(super) struct DeviceRegister(pub(super) Arc<OwnedFd>);

impl Register for DeviceRegister {
    fn open(&self, file: BorrowedFd<'_>) -> Result<u32, Errno> {
        // The kernel writes to the file with the rights of the thread that registers it. With CAP_FSETID a write by
        // anybody would leave the set-id bits. Without it a write by root takes them too, which is the safe side.
        let all = capabilities(None)?;
        let effective = all.effective.difference(CapabilitySet::FSETID);
        set_capabilities(None, CapabilitySets { effective, ..all })?;
        let opened = sys::backing_open(self.0.as_fd(), file);
        set_capabilities(None, all)?;
        opened
    }

    fn close(&self, id: u32) {
        if let Err(errno) = sys::backing_close(self.0.as_fd(), id) {
            tracing::warn!("cannot take backing file {id} back: {errno}");
        }
    }
}
