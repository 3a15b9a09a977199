//! How requests and answers travel, without a library: the first exchange, then a transport until the mount ends.
//!
//! [`Connection::open`] does the first exchange on the device. After it, `dev` reads and writes the device with
//! several threads.

mod buffers;
mod dev;
mod sys;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use self::buffers::Buffers;
use super::Counters;
use super::handler::{Handler, Negotiation};
use super::wire::{self, Header, InitIn, MAJOR, MINOR, MINOR_MIN, Request};
use crate::error::{Errno, Error, Result};
use crate::options::MountOptions;
use crate::union::Union;

/// A connection whose first exchange is done.
#[derive(Debug)]
pub(super) struct Connection {
    device: OwnedFd,
    handler: Handler,
}

impl Connection {
    /// Does the first exchange on `device`.
    ///
    /// # Errors
    ///
    /// The mount is gone, or the kernel is too old.
    pub(super) fn open(
        union: Arc<Union>,
        counters: Arc<Counters>,
        device: OwnedFd,
        options: &MountOptions,
    ) -> Result<Self> {
        let mut buffers = Buffers::new(options.max_write);
        let (header, offer) = receive_init(&device, &mut buffers)?;
        let Some(Negotiation { answer, config }) = Negotiation::choose(options, &offer, false) else {
            buffers.reply_error(&device, header.unique, Errno::PROTO)?;
            let hint = "this transport needs FUSE 7.23 (Linux 3.15); try transport=fuser";
            return Err(Error::new(Errno::PROTO).during("serve", "a kernel this old").hint(hint));
        };
        let len = answer.encode(buffers.answer()).ok_or(Errno::IO)?;
        buffers.reply(&device, header.unique, len)?;
        tracing::info!(
            "kernel speaks FUSE {}.{}, we speak {MINOR_MIN} to {MINOR}; in use: {:?}",
            offer.major,
            offer.minor,
            answer.flags
        );
        Ok(Self { device, handler: Handler::new(union, counters, config) })
    }

    /// Answers requests until the mount ends, then flushes the union.
    ///
    /// # Errors
    ///
    /// The connection broke otherwise than by its end.
    pub(super) fn run(self) -> Result<()> {
        let served = dev::serve(&self.device, &self.handler);
        self.handler.union().destroy();
        served
    }
}

/// Reads INIT; a kernel with a newer major version is told ours and sends it again.
fn receive_init(device: &OwnedFd, buffers: &mut Buffers) -> Result<(Header, InitIn)> {
    loop {
        let len = match rustix::io::read(device, buffers.message_space()) {
            Ok(len) => len,
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => continue,
            Err(errno) => return Err(Error::new(errno).during("connect to", "/dev/fuse")),
        };
        let (message, answer) = buffers.split(len);
        let broken = |_| Error::new(Errno::PROTO).during("read the first request of", "/dev/fuse");
        let (header, request) = wire::parse(message, false).map_err(broken)?;
        match request {
            Request::Init(offer) if offer.major == MAJOR => return Ok((header, offer)),
            Request::Init(offer) if offer.major > MAJOR => {
                let len = wire::encode_version(answer).ok_or(Errno::IO)?;
                buffers.reply(device, header.unique, len)?;
            }
            _ => {
                buffers.reply_error(device, header.unique, Errno::PROTO)?;
                return Err(Error::new(Errno::PROTO).during("read the first request of", "/dev/fuse"));
            }
        }
    }
}
