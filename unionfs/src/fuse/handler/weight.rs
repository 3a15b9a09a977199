//! Which requests may take so long that others must not wait behind them.

use super::Handler;
use crate::fuse::wire::{Header, Request};

impl Handler {
    /// Returns whether this request may wait for a disk or move much data. `careful`: others lately did, so those that
    /// read from layers count too.
    pub fn may_take_long(&self, _header: &Header, request: &Request<'_>, careful: bool) -> bool {
        match request {
            Request::Fsync { .. }
            | Request::Fsyncdir { .. }
            | Request::Syncfs
            | Request::Fallocate { .. }
            | Request::CopyFileRange(_)
            | Request::CopyFileRange64(_) => true,
            // May copy a whole file up.
            Request::Open { flags, .. } => careful || flags & libc::O_ACCMODE.cast_unsigned() != 0,
            Request::Setattr(_)
            | Request::Setxattr { .. }
            | Request::Removexattr { .. }
            | Request::Link { .. }
            | Request::Rename { .. } => true,
            Request::Lookup { .. }
            | Request::Getattr { .. }
            | Request::Statx { .. }
            | Request::Readlink
            | Request::Read { .. }
            | Request::Readdir { .. }
            | Request::Readdirplus { .. }
            | Request::Opendir { .. }
            | Request::Getxattr { .. }
            | Request::Listxattr { .. }
            | Request::Write { .. } => careful,
            _ => false,
        }
    }
}
