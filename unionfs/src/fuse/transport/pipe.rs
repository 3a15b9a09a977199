//! A pipe through which file data goes to the device without passing through this process.
//!
//! The pipe holds references to the pages of the file, so the kernel copies an answer once, from there to where the caller
//! finds it. Read into a buffer and written from there it is copied twice.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags};

use crate::error::{Errno, Error, Result};
use crate::fuse::wire::{OUT_HEADER_LEN, reply};
use crate::sys;

/// Most bytes of data that are sent through a pipe. With the header they need the largest pipe that an ordinary user may have.
const MAX_DATA: usize = 512 << 10;

/// Smallest page size of the platforms, in bytes.
const PAGE: usize = 4096;

/// The pipe of one thread, made when it is first needed.
#[derive(Debug, Default)]
pub(super) struct AnswerPipe {
    ends: Option<Ends>,
    /// The user has as many pipes as one may have: data is copied.
    is_refused: bool,
    /// Bytes of the answer that waits in it.
    filled: usize,
}

#[derive(Debug)]
struct Ends {
    out: OwnedFd,
    into: OwnedFd,
    /// Bytes for which it was made.
    room: usize,
}

impl AnswerPipe {
    /// Puts the answer to request `unique` into the pipe: `len` bytes at `offset` of `file`. False if it cannot be had so.
    pub(super) fn fill(&mut self, unique: u64, file: BorrowedFd<'_>, offset: u64, len: usize) -> bool {
        if len > MAX_DATA || !self.has_room(len) {
            return false;
        }
        let moved = match &self.ends {
            Some(ends) => ends.fill(unique, file, offset, len).unwrap_or(0),
            None => 0,
        };
        if moved == len {
            self.filled = OUT_HEADER_LEN + len;
        } else {
            // What is in it is of no use.
            self.ends = None;
        }
        moved == len
    }

    /// Returns whether an answer waits in it.
    pub(super) const fn is_filled(&self) -> bool {
        self.filled > 0
    }

    /// Drops the answer that waits in it.
    pub(super) fn empty(&mut self) {
        self.filled = 0;
        self.ends = None;
    }

    /// Sends the answer that waits in it.
    pub(super) fn send(&mut self, device: impl AsFd) -> Result<()> {
        let len = std::mem::take(&mut self.filled);
        let ends = self.ends.as_ref().ok_or(Error::new(Errno::IO))?;
        let sent =
            sys::retry(|| rustix::pipe::splice(&ends.out, None, &device, None, len, SpliceFlags::empty()));
        if sent.is_ok() {
            return Ok(());
        }
        // Something may be left in it.
        self.ends = None;
        match sent {
            // The caller was killed, or the mount has ended: nobody waits for the answer.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED | Errno::PERM) => Ok(()),
            Err(errno) => Err(Error::new(errno).during("splice an answer to", "/dev/fuse")),
        }
    }

    /// Makes the pipe, or a larger one, so that `len` bytes and a header go into it.
    fn has_room(&mut self, len: usize) -> bool {
        if self.ends.as_ref().is_some_and(|ends| ends.room >= len) {
            return true;
        }
        if self.is_refused {
            return false;
        }
        match Ends::new(len) {
            Ok(ends) => self.ends = Some(ends),
            Err(errno) => {
                tracing::debug!("no pipe for answers of {len} bytes: {errno}");
                self.is_refused = true;
            }
        }
        !self.is_refused
    }
}

impl Ends {
    fn new(room: usize) -> std::result::Result<Self, Errno> {
        let (out, into) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // Each page has a place of its own, the header too, and the first and the last page may be parts.
        let places = room.div_ceil(PAGE) + 2;
        rustix::pipe::fcntl_setpipe_size(&into, places.next_power_of_two() * PAGE)?;
        Ok(Self { out, into, room })
    }

    /// Returns how many bytes of data are in it now.
    fn fill(
        &self,
        unique: u64,
        file: BorrowedFd<'_>,
        mut offset: u64,
        len: usize,
    ) -> std::result::Result<usize, Errno> {
        let mut header = [0; OUT_HEADER_LEN];
        reply::out_header(&mut header, unique, 0, len).ok_or(Errno::IO)?;
        sys::retry(|| rustix::io::write(&self.into, &header))?;
        let mut moved = 0;
        while moved < len {
            let left = len - moved;
            // Never waits for room: there is nobody else to make some.
            let got = sys::retry(|| {
                rustix::pipe::splice(file, Some(&mut offset), &self.into, None, left, SpliceFlags::NONBLOCK)
            })?;
            if got == 0 {
                break;
            }
            moved += got;
        }
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A file of `len` bytes, each of which tells where it is.
    fn file(len: usize) -> (std::fs::File, Vec<u8>) {
        let content: Vec<u8> = (0..len).map(|at| u8::try_from(at / 7 % 251).unwrap()).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        (file, content)
    }

    #[test]
    fn an_answer_is_a_header_and_the_data_of_the_file() {
        let (file, content) = file(MAX_DATA + 9000);
        let mut pipe = AnswerPipe::default();
        // The second needs a larger pipe, the third begins and ends within a page.
        for (offset, len) in [(0, 70_000), (4096, MAX_DATA), (5000, MAX_DATA), (1, 65_536)] {
            assert!(pipe.fill(9, file.as_fd(), offset as u64, len), "{len} at {offset}");
            let mut got = vec![0; OUT_HEADER_LEN + len + 1];
            let mut have = 0;
            while have < OUT_HEADER_LEN + len {
                let ends = pipe.ends.as_ref().unwrap();
                have += rustix::io::read(&ends.out, &mut got[have..]).unwrap();
            }
            let mut want = vec![0; OUT_HEADER_LEN];
            reply::out_header(&mut want, 9, 0, len).unwrap();
            want.extend_from_slice(&content[offset..offset + len]);
            assert!(got[..have] == want, "{len} at {offset}");
            pipe.filled = 0;
        }
    }

    #[test]
    fn what_is_not_all_there_leaves_nothing_behind() {
        let (file, _) = file(100_000);
        let mut pipe = AnswerPipe::default();
        assert!(!pipe.fill(1, file.as_fd(), 0, 100_001), "beyond the end");
        assert!(!pipe.fill(1, file.as_fd(), 0, MAX_DATA + 1), "too large");
        assert!(!pipe.is_filled());
        assert!(pipe.fill(1, file.as_fd(), 0, 100_000));
        assert!(pipe.is_filled());
    }

    #[test]
    fn an_answer_goes_where_it_is_sent_at_once() {
        let (file, content) = file(80_000);
        let target = tempfile::tempfile().unwrap();
        let mut pipe = AnswerPipe::default();
        assert!(pipe.fill(1, file.as_fd(), 0, 80_000));
        pipe.send(&target).unwrap();
        assert!(!pipe.is_filled());
        let mut got = vec![0; 80_000];
        std::os::unix::fs::FileExt::read_exact_at(&target, &mut got, OUT_HEADER_LEN as u64).unwrap();
        assert!(got == content);
    }
}
