//! The tar format as layers of images use it: POSIX pax, with the GNU forms that are met. Pure: bytes in, values out.
//!
//! An own codec, because a layer is hostile input and has to keep what general ones lose: names that are no UTF-8,
//! nanoseconds, attributes, sizes and ids of any size; and because an error has to name its entry.

mod pax;
pub(crate) mod read;
pub(crate) mod write;

use std::collections::BTreeMap;

use crate::request::{FileKind, Timestamp};

/// Bytes of a block, to which headers and data are padded.
const BLOCK: usize = 512;
/// Longest name in the header itself.
const NAME_FIELD: usize = 100;
/// Prefix of the pax records that hold extended attributes.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An object of this type; never a socket.
    Object(FileKind),
    /// Another name of the member that `link` names.
    HardLink,
}

/// One member of an archive, without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Its name as it stands in the archive.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Target of a symbolic or hard link.
    pub link: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of the file, holes included.
    pub size: u64,
    /// Last change.
    pub mtime: Timestamp,
    /// Last access, if told.
    pub atime: Option<Timestamp>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of a file with holes: where its data is, offset and length, in order.
    pub extents: Option<Vec<(u64, u64)>>,
}

/// Offsets and lengths of the fields of a header.
mod field {
    use std::ops::Range;

    pub(super) const NAME: Range<usize> = 0..100;
    pub(super) const MODE: Range<usize> = 100..108;
    pub(super) const UID: Range<usize> = 108..116;
    pub(super) const GID: Range<usize> = 116..124;
    pub(super) const SIZE: Range<usize> = 124..136;
    pub(super) const MTIME: Range<usize> = 136..148;
    pub(super) const CHECKSUM: Range<usize> = 148..156;
    pub(super) const TYPE: usize = 156;
    pub(super) const LINK: Range<usize> = 157..257;
    pub(super) const MAGIC: Range<usize> = 257..265;
    pub(super) const MAJOR: Range<usize> = 329..337;
    pub(super) const MINOR: Range<usize> = 337..345;
    pub(super) const PREFIX: Range<usize> = 345..500;
}

/// Returns the checksum of a header, its own field counted as spaces.
fn checksum(header: &[u8; BLOCK]) -> u32 {
    let counted =
        |(at, byte): (usize, &u8)| u32::from(if field::CHECKSUM.contains(&at) { b' ' } else { *byte });
    header.iter().enumerate().map(counted).sum()
}

/// Returns how many bytes pad `size` to whole blocks.
const fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

#[cfg(test)]
mod tests;
