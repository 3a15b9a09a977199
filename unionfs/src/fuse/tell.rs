//! Telling the kernel what it must not remember any more.
//!
//! Name by name, and not by one message for all of them (`INC_EPOCH`): the kernel would then drop each name at its next use,
//! and with it what is mounted there, such as the /proc of a container.

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use super::wire::notify::{Invalidate, Notification};
use crate::error::{Errno, Error, Result};
use crate::reload::Outdated;
use crate::request::NodeId;

/// Longest message: a name and what stands before it.
const MESSAGE: usize = 512;

/// A way to the kernel. It may wait for requests of the mount to be answered, so no thread that answers them may use it.
pub(crate) trait Tell: fmt::Debug + Send + Sync {
    /// The attributes and the data of an object may be others.
    ///
    /// # Errors
    /// ENOENT if the kernel does not know it.
    fn node(&self, node: NodeId) -> std::result::Result<(), Errno>;

    /// A name leads to something else.
    ///
    /// # Errors
    /// ENOENT if the kernel does not know it.
    fn name(&self, parent: NodeId, name: &[u8]) -> std::result::Result<(), Errno>;
}

/// Tells all that is outdated.
///
/// # Errors
/// What the kernel answers, beside that it does not know something.
pub(crate) fn tell(kernel: &dyn Tell, outdated: &Outdated) -> Result<()> {
    let told = |result| match result {
        // As for requests: the mount has ended.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::NODEV | Errno::NOTCONN) | Ok(()) => Ok(()),
        Err(errno) => Err(Error::new(errno).during("tell the kernel", "what is outdated")),
    };
    for (parent, name) in &outdated.names {
        told(kernel.name(*parent, name))?;
    }
    outdated.nodes.iter().try_for_each(|node| told(kernel.node(*node)))
}

/// The device.
#[derive(Debug)]
pub(super) struct Device(pub(super) Arc<OwnedFd>);

impl Device {
    fn send(&self, message: &Notification<'_>) -> std::result::Result<(), Errno> {
        let mut buffer = [0; MESSAGE];
        let bytes =
            message.encode(&mut buffer).and_then(|len| buffer.get(..len)).ok_or(Errno::NAMETOOLONG)?;
        rustix::io::write(&*self.0, bytes).map(drop)
    }
}

impl Tell for Device {
    fn node(&self, node: NodeId) -> std::result::Result<(), Errno> {
        self.send(&Notification::InvalInode { node, offset: 0, len: 0 })
    }

    fn name(&self, parent: NodeId, name: &[u8]) -> std::result::Result<(), Errno> {
        self.send(&Notification::InvalEntry { parent, name, how: Invalidate::Drop })
    }
}

impl Tell for fuser::Notifier {
    fn node(&self, node: NodeId) -> std::result::Result<(), Errno> {
        self.inval_inode(fuser::INodeNo(node.0), 0, 0).map_err(errno)
    }

    fn name(&self, parent: NodeId, name: &[u8]) -> std::result::Result<(), Errno> {
        self.inval_entry(fuser::INodeNo(parent.0), OsStr::from_bytes(name)).map_err(errno)
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
