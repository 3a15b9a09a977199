//! Copying the data of one file to another, keeping its holes.

use std::os::fd::BorrowedFd;

use rustix::fs::SeekFrom;
use rustix::io::{pread, pwrite};

use crate::error::Errno;

/// Bytes moved by one read and one write. Larger buffers gain nothing, smaller ones cost calls.
const CHUNK: usize = 1 << 20;

/// Makes `to` share the blocks of `from`: a copy of any size for the price of metadata.
///
/// # Errors
/// EXDEV, EOPNOTSUPP, EINVAL or ENOTTY where the pair of file systems cannot.
pub(crate) fn reflink(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::ioctl_ficlone(to, from)
}

/// Copies the first `size` bytes of `from` to the empty file `to`, leaves holes where `from` has them, and gives
/// `to` exactly that size. `sparse` tells whether there can be holes.
pub(crate) fn copy_sparse(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    size: u64,
    sparse: bool,
) -> Result<(), Errno> {
    if !sparse && copy_range(from, to, 0, size)? == size {
        return Ok(());
    }
    let mut at = 0;
    while at < size && sparse {
        let Some((data, hole)) = next_data(from, at, size)? else { break };
        copy_range(from, to, data, hole)?;
        at = hole;
    }
    super::retry(|| rustix::fs::ftruncate(to, size))
}

/// Returns the next extent of data at or after `at`, cut at `size`; `None` if only a hole follows.
fn next_data(from: BorrowedFd<'_>, at: u64, size: u64) -> Result<Option<(u64, u64)>, Errno> {
    let data = match rustix::fs::seek(from, SeekFrom::Data(at)) {
        Ok(data) => data,
        Err(Errno::NXIO) => return Ok(None),
        // The file system knows no holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, size))),
        Err(errno) => return Err(errno),
    };
    if data >= size {
        return Ok(None);
    }
    let hole = rustix::fs::seek(from, SeekFrom::Hole(data))?;
    Ok(Some((data, hole.min(size))))
}

/// Copies from `start` to `end` and returns where the data really ended.
fn copy_range(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> Result<u64, Errno> {
    let len = usize::try_from(end - start).unwrap_or(CHUNK).min(CHUNK);
    let mut buffer = vec![0; len];
    let mut at = start;
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(CHUNK).min(buffer.len());
        let Some(part) = buffer.get_mut(..want) else { return Err(Errno::IO) };
        let got = super::retry(|| pread(from, &mut *part, at))?;
        if got == 0 {
            // Shorter than stat said: the lower changed under us. What is missing stays a hole.
            break;
        }
        write_all(to, part.get(..got).ok_or(Errno::IO)?, at)?;
        at += got as u64;
    }
    Ok(at)
}

/// Reads at `offset` until `buffer` is full or the file ends. Returns how much was read.
pub(crate) fn read_full(from: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match super::retry(|| pread(from, &mut *rest, offset + done as u64))? {
            0 => break,
            got => done += got,
        }
    }
    Ok(done)
}

/// Writes all of `data` at `offset`.
pub(crate) fn write_all(to: BorrowedFd<'_>, mut data: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !data.is_empty() {
        let put = super::retry(|| pwrite(to, data, offset))?;
        if put == 0 {
            return Err(Errno::NOSPC);
        }
        data = data.get(put..).unwrap_or_default();
        offset += put as u64;
    }
    Ok(())
}
