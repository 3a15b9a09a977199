//! The memory that one thread reads requests into and writes answers from.

use std::os::fd::AsFd;

use crate::error::{Errno, Error, Result};
use crate::fuse::handler::Outcome;
use crate::fuse::wire::{OUT_HEADER_LEN, reply};

use super::disk::DiskReads;
use super::pipe::AnswerPipe;

/// What a request needs beside its data: headers, names, extensions.
const REQUEST_MARGIN: usize = 8192;

/// Largest answer that is not data read from a file: a whole listing, an extended attribute of 64 KiB.
const ANSWER_MIN: usize = 128 << 10;

/// Request and answer buffer of one thread. Large, but memory is only taken for what was used.
#[derive(Debug)]
pub(super) struct Buffers {
    request: Vec<u8>,
    /// Room for the header, then the answer.
    reply: Vec<u8>,
    /// Whether this thread lately waited for a disk.
    pub(super) disk: DiskReads,
    /// For answers that are much data of one file.
    pipe: AnswerPipe,
}

impl Buffers {
    /// Makes buffers for requests and answers with up to `max_write` bytes of data.
    pub(super) fn new(max_write: u32) -> Self {
        let data = usize::try_from(max_write).unwrap_or(usize::MAX).clamp(ANSWER_MIN, 1 << 30);
        Self {
            request: vec![0; data + REQUEST_MARGIN],
            reply: vec![0; data + OUT_HEADER_LEN],
            disk: DiskReads::default(),
            pipe: AnswerPipe::default(),
        }
    }

    /// Where to read a request into.
    pub(super) fn message_space(&mut self) -> &mut [u8] {
        &mut self.request
    }

    /// The request of `len` bytes, and where its answer goes.
    pub(super) fn split(&mut self, len: usize) -> (&[u8], &mut [u8]) {
        (
            self.request.get(..len).unwrap_or_default(),
            self.reply.get_mut(OUT_HEADER_LEN..).unwrap_or_default(),
        )
    }

    /// The request of `len` bytes, and where its answer goes: the buffer, or the pipe if that is filled.
    pub(super) fn split_with_pipe(&mut self, len: usize) -> (&[u8], &mut [u8], &mut AnswerPipe) {
        (
            self.request.get(..len).unwrap_or_default(),
            self.reply.get_mut(OUT_HEADER_LEN..).unwrap_or_default(),
            &mut self.pipe,
        )
    }

    /// Where the answer goes.
    pub(super) fn answer(&mut self) -> &mut [u8] {
        self.reply.get_mut(OUT_HEADER_LEN..).unwrap_or_default()
    }

    /// Sends what became of request `unique`.
    pub(super) fn send(&mut self, device: impl AsFd, unique: u64, outcome: Outcome) -> Result<()> {
        if self.pipe.is_filled() {
            if matches!(outcome, Outcome::Reply(_)) {
                return self.pipe.send(device);
            }
            self.pipe.empty();
        }
        match outcome {
            Outcome::Reply(len) => self.reply(device, unique, len),
            Outcome::Error(errno) => self.reply_error(device, unique, errno),
            Outcome::Silence => Ok(()),
        }
    }

    /// Sends the first `len` bytes of the answer.
    pub(super) fn reply(&mut self, device: impl AsFd, unique: u64, len: usize) -> Result<()> {
        self.write(device, unique, 0, len)
    }

    /// Sends an error instead of an answer.
    pub(super) fn reply_error(&mut self, device: impl AsFd, unique: u64, errno: Errno) -> Result<()> {
        self.write(device, unique, errno.raw_os_error(), 0)
    }

    fn write(&mut self, device: impl AsFd, unique: u64, error: i32, len: usize) -> Result<()> {
        reply::out_header(&mut self.reply, unique, error, len).ok_or(Errno::IO)?;
        let message = self.reply.get(..OUT_HEADER_LEN + len).ok_or(Errno::IO)?;
        loop {
            return match rustix::io::write(&device, message) {
                Ok(_) => Ok(()),
                Err(Errno::INTR | Errno::AGAIN) => continue,
                // The caller was killed, or the mount has ended: nobody waits for the answer.
                Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED | Errno::PERM) => Ok(()),
                Err(errno) => Err(Error::new(errno).during("answer on", "/dev/fuse")),
            };
        }
    }
}
