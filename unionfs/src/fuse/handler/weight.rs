//! Which requests may take so long that others must not wait behind them.

use super::Handler;
use crate::fuse::wire::flags::SetattrValid;
use crate::fuse::wire::{Header, Request};
use crate::request::NodeId;

/// A copy-up of up to this many bytes takes no longer than handing the request over.
const SMALL_COPY: u64 = 128 << 10;

/// Returns whether all that this request does is to wait until a disk has what it shall have.
pub const fn waits_for_disk(request: &Request<'_>) -> bool {
    matches!(request, Request::Fsync { .. } | Request::Fsyncdir { .. })
}

impl Handler {
    /// Returns whether this request may wait for a disk or move much data. `careful`: others lately did, so those that
    /// read from layers count too.
    pub fn may_take_long(&self, header: &Header, request: &Request<'_>, careful: bool) -> bool {
        match request {
            _ if waits_for_disk(request) => true,
            Request::Syncfs | Request::Fallocate { .. } => true,
            // `cp -r` makes one for each file.
            Request::CopyFileRange(copy) | Request::CopyFileRange64(copy) => {
                careful || !self.is_small(header.node) || !self.is_small(copy.node_out)
            }
            // What changes a lower file copies it up first, all of it.
            Request::Open { flags, .. } => {
                careful
                    || (flags & libc::O_ACCMODE.cast_unsigned() != 0
                        && flags & libc::O_TRUNC.cast_unsigned() == 0
                        && self.copies_much(header.node))
            }
            Request::Setattr(change) => {
                let copies = match change.valid.contains(SetattrValid::SIZE).then_some(change.size) {
                    Some(0) => false,
                    Some(_) => self.copies_much(header.node),
                    None => self.copies_much_for_attributes(header.node),
                };
                careful || copies
            }
            Request::Link { node, .. } => {
                careful || self.copies_much(*node) || self.union.waits_to_move(*node)
            }
            // Most ioctls only ask whether a file is a terminal.
            Request::Setxattr { .. } | Request::Removexattr { .. } | Request::Ioctl { .. } => {
                careful || self.copies_much_for_attributes(header.node)
            }
            Request::Write { .. } => careful || self.copies_much(header.node),
            Request::Rename { name, new_parent, new_name, flags } => {
                careful
                    || self.copies_much_named(header.node, name)
                    || (*flags == libc::RENAME_EXCHANGE && self.copies_much_named(*new_parent, new_name))
            }
            Request::Lookup { .. }
            | Request::Getattr { .. }
            | Request::Statx { .. }
            | Request::Readlink
            | Request::Read { .. }
            | Request::Readdir { .. }
            | Request::Readdirplus { .. }
            | Request::Opendir { .. }
            | Request::Getxattr { .. }
            | Request::Listxattr { .. } => careful,
            _ => self.waits_for_others(request),
        }
    }

    fn copies_much_named(&self, parent: NodeId, name: &[u8]) -> bool {
        let Ok(entry) = self.union.lookup(parent, name) else { return false };
        let much = (entry.attr.size > SMALL_COPY && self.copies_much(entry.node))
            || self.union.waits_to_move(entry.node);
        self.union.forget(entry.node, 1);
        much
    }

    /// Returns whether all of a file, more than any copy of a part moves, is little.
    fn is_small(&self, node: NodeId) -> bool {
        self.union.getattr(node, None).is_ok_and(|attr| attr.size <= SMALL_COPY)
    }

    fn copies_much_for_attributes(&self, node: NodeId) -> bool {
        self.union.attributes_need_data() && self.copies_much(node)
    }

    fn copies_much(&self, node: NodeId) -> bool {
        self.union.bytes_to_copy_up(node) > SMALL_COPY
    }
}
