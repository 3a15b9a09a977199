//! Reading the names of one directory of one layer.

use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, OFlags, RawDir};

use crate::error::Errno;
use crate::request::FileKind;

/// Bytes that one getdents64(2) may fill: enough for about a thousand short names.
const BUFFER: usize = 32 * 1024;

/// One name as the file system lists it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawEntry<'a> {
    /// The name; `.` and `..` are left out.
    pub name: &'a [u8],
    /// `d_ino`.
    pub ino: u64,
    /// Type, or `None` where the file system does not tell.
    pub kind: Option<FileKind>,
}

/// Calls `each` for every name in `dir` (any descriptor of the directory, also one opened with `O_PATH`), until
/// it answers `false`.
pub(crate) fn for_each_name(
    dir: BorrowedFd<'_>,
    mut each: impl FnMut(RawEntry<'_>) -> Result<bool, Errno>,
) -> Result<(), Errno> {
    let readable = super::open_quietly(dir, b".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); BUFFER];
    let mut entries = RawDir::new(readable, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        if !each(RawEntry { name, ino: entry.ino(), kind: kind_of(entry.file_type()) })? {
            break;
        }
    }
    Ok(())
}

/// Returns all names in `dir`, for what changes the directory while it goes through them.
pub(crate) fn names(dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for_each_name(dir, |entry| {
        names.push(entry.name.to_vec());
        Ok(true)
    })?;
    Ok(names)
}

const fn kind_of(file_type: FileType) -> Option<FileKind> {
    match file_type {
        FileType::RegularFile => Some(FileKind::Regular),
        FileType::Directory => Some(FileKind::Directory),
        FileType::Symlink => Some(FileKind::Symlink),
        FileType::Fifo => Some(FileKind::Fifo),
        FileType::Socket => Some(FileKind::Socket),
        FileType::CharacterDevice => Some(FileKind::CharDevice),
        FileType::BlockDevice => Some(FileKind::BlockDevice),
        FileType::Unknown => None,
    }
}
