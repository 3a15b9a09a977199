//! The FUSE protocol, ABI 7.23 to 7.45, as a pure codec: bytes to requests, answers to bytes.
//!
//! It does no I/O, allocates nothing and cannot panic on any input. Requests borrow names and data from the message;
//! answers are written into the caller's buffer. The number of a node, by which the kernel names an object, and the
//! inode number that stat shows are different things here.

mod bytes;
pub mod flags;
mod init;
pub mod notify;
mod opcode;
pub mod reply;
mod request;
#[cfg(test)]
mod tests;

pub use init::{InitIn, InitOut, MAJOR, MINOR, MINOR_MIN, encode_version};
pub use opcode::Opcode;
pub use request::{
    CopyIn, ForgetList, Header, LockIn, Request, SetattrIn, UNIQUE_RESEND, parse, parse_parts,
};

use crate::error::Errno;

/// Size of the header before each request.
pub const IN_HEADER_LEN: usize = 40;
/// Size of the header before each answer.
pub const OUT_HEADER_LEN: usize = 16;
/// Longest name of a directory entry.
pub const NAME_MAX: usize = 255;

/// Why a message is not a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// It ends too early.
    #[error("the request ends too early")]
    Truncated,
    /// Its length is not what its header says.
    #[error("the request's length differs from its header")]
    Length,
    /// A name is empty or has a slash.
    #[error("the request has an impossible name")]
    Name,
    /// A name has more than 255 bytes.
    #[error("the request has a name of more than 255 bytes")]
    NameTooLong,
}

impl WireError {
    /// Returns the errno that answers such a request.
    pub const fn errno(self) -> Errno {
        match self {
            Self::NameTooLong => Errno::NAMETOOLONG,
            Self::Name => Errno::INVAL,
            Self::Truncated | Self::Length => Errno::IO,
        }
    }
}
