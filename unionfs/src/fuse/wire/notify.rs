//! What the server tells the kernel without being asked. Each encoder writes a whole message for the device.
//!
//! A notification may wait for locks that a request holds, so no thread that answers requests may send one.

use super::OUT_HEADER_LEN;
use super::bytes::Writer;
use crate::request::NodeId;

const POLL: i32 = 1;
const INVAL_INODE: i32 = 2;
const INVAL_ENTRY: i32 = 3;
const STORE: i32 = 4;
const RETRIEVE: i32 = 5;
const DELETE: i32 = 6;
const RESEND: i32 = 7;
const INC_EPOCH: i32 = 8;
const PRUNE: i32 = 9;

/// INVAL_ENTRY: look the name up again instead of dropping it with all below.
const EXPIRE_ONLY: u32 = 1;

/// How INVAL_ENTRY treats the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalidate {
    /// The kernel forgets the name and, if it can, all below it.
    Drop,
    /// The kernel asks again at the next use. Needs `HAS_EXPIRE_ONLY`.
    Expire,
}

/// A message to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notification<'a> {
    /// A file that is polled became ready.
    Poll {
        /// The kernel's number of the poll, from the POLL request.
        kh: u64,
    },
    /// The attributes changed, and the data from `offset` on for `len` bytes: 0 for all, negative offset for none.
    InvalInode {
        /// The object.
        node: NodeId,
        /// First byte, or negative: attributes only.
        offset: i64,
        /// Bytes, 0 for all.
        len: i64,
    },
    /// A name changed.
    InvalEntry {
        /// Its directory.
        parent: NodeId,
        /// The name.
        name: &'a [u8],
        /// How.
        how: Invalidate,
    },
    /// A name was removed.
    Delete {
        /// Its directory.
        parent: NodeId,
        /// What it named.
        child: NodeId,
        /// The name.
        name: &'a [u8],
    },
    /// Data for the page cache.
    Store {
        /// The object.
        node: NodeId,
        /// First byte.
        offset: u64,
        /// The bytes.
        data: &'a [u8],
    },
    /// Cached data shall be sent back in a NOTIFY_REPLY.
    Retrieve {
        /// Number to be repeated in the reply's header.
        unique: u64,
        /// The object.
        node: NodeId,
        /// First byte.
        offset: u64,
        /// Bytes.
        size: u32,
    },
    /// All requests that were read and not answered shall come again. Needs `HAS_RESEND`.
    Resend,
    /// All names shall be looked up again. Linux 6.16.
    IncEpoch,
    /// These nodes shall be forgotten if nobody uses them. Linux 6.18.
    Prune {
        /// The nodes.
        nodes: &'a [NodeId],
    },
}

impl Notification<'_> {
    /// Returns the length of the message.
    pub fn len(&self) -> usize {
        OUT_HEADER_LEN
            + match self {
                Self::Poll { .. } => 8,
                Self::InvalInode { .. } => 24,
                Self::InvalEntry { name, .. } => 16 + name.len() + 1,
                Self::Delete { name, .. } => 24 + name.len() + 1,
                Self::Store { data, .. } => 24 + data.len(),
                Self::Retrieve { .. } => 32,
                Self::Resend | Self::IncEpoch => 0,
                Self::Prune { nodes } => 16 + 8 * nodes.len(),
            }
    }

    /// Never true; it is here because there is a `len`.
    pub const fn is_empty(&self) -> bool {
        false
    }

    const fn code(&self) -> i32 {
        match self {
            Self::Poll { .. } => POLL,
            Self::InvalInode { .. } => INVAL_INODE,
            Self::InvalEntry { .. } => INVAL_ENTRY,
            Self::Delete { .. } => DELETE,
            Self::Store { .. } => STORE,
            Self::Retrieve { .. } => RETRIEVE,
            Self::Resend => RESEND,
            Self::IncEpoch => INC_EPOCH,
            Self::Prune { .. } => PRUNE,
        }
    }

    /// Writes the message and returns its length; none if `out` is too small or a part too long for its field.
    pub fn encode(&self, out: &mut [u8]) -> Option<usize> {
        let size = |len: usize| u32::try_from(len).ok();
        let mut w = Writer::new(out);
        // unique 0 makes it a notification; the error field holds its code.
        w.u32(size(self.len())?).i32(self.code()).u64(0);
        match *self {
            Self::Poll { kh } => {
                w.u64(kh);
            }
            Self::InvalInode { node, offset, len } => {
                w.u64(node.0).u64(offset.cast_unsigned()).u64(len.cast_unsigned());
            }
            Self::InvalEntry { parent, name, how } => {
                let flags = if how == Invalidate::Expire { EXPIRE_ONLY } else { 0 };
                w.u64(parent.0).u32(size(name.len())?).u32(flags).bytes(name).bytes(&[0]);
            }
            Self::Delete { parent, child, name } => {
                w.u64(parent.0).u64(child.0).u32(size(name.len())?).u32(0).bytes(name).bytes(&[0]);
            }
            Self::Store { node, offset, data } => {
                w.u64(node.0).u64(offset).u32(size(data.len())?).u32(0).bytes(data);
            }
            Self::Retrieve { unique, node, offset, size } => {
                w.u64(unique).u64(node.0).u64(offset).u32(size).u32(0);
            }
            Self::Resend | Self::IncEpoch => {}
            Self::Prune { nodes } => {
                w.u32(size(nodes.len())?).u32(0).u64(0);
                for node in nodes {
                    w.u64(node.0);
                }
            }
        }
        w.finish()
    }
}
