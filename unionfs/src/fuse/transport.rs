//! How requests and answers travel, without a library: the first exchange, then a transport until the mount ends.
//!
//! [`Connection::open`] does the first exchange on the device. After it, `dev` reads and writes the device with
//! several threads. Where io_uring was agreed on, `uring` takes nearly all requests, and `dev` what still comes on the
//! device: what needs no answer, and everything, should the kernel turn io_uring off after all.

mod awake;
mod backing;
mod buffers;
mod dev;
mod disk;
mod lead;
mod placement;
mod processors;
mod quota;
mod running;
mod sys;
mod uring;
mod workers;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use self::awake::Awake;
use self::backing::DeviceRegister;
use self::buffers::Buffers;
use self::uring::Queues;
use self::workers::Workers;
use super::Counters;
use super::handler::{Config, Handler, Negotiation, Primer};
use super::wire::flags::InitFlags;
use super::wire::{self, Header, InitIn, MAJOR, MINOR, Request};
use crate::error::{Errno, Error, Result};
use crate::options::{MountOptions, Spin};
use crate::union::Union;

/// A connection whose first exchange is done.
#[derive(Debug)]
pub(super) struct Connection {
    device: Arc<OwnedFd>,
    handler: Arc<Handler>,
    queues: Option<(Queues, Arc<Workers>)>,
    awake: Awake,
    /// What the first exchange needed. It is used on: memory of this size that is freed and asked for again is cleared.
    buffers: Buffers,
    /// How requests travel, and why so.
    reason: String,
}

/// Whether requests shall go over io_uring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ring {
    /// Not.
    Unwanted,
    /// If it can be had.
    Preferred,
    /// Without it there is no connection.
    Required,
}

impl Connection {
    /// Does the first exchange on `device`.
    ///
    /// # Errors
    ///
    /// The mount is gone, the kernel is too old, or io_uring is required and cannot be had.
    pub(super) fn open(
        union: Arc<Union>,
        counters: Arc<Counters>,
        device: OwnedFd,
        options: &MountOptions,
        ring: Ring,
    ) -> Result<Self> {
        let device = Arc::new(device);
        let mut buffers = Buffers::new(options.max_write);
        let (header, offer) = receive_init(&device, &mut buffers)?;
        let Some(chosen) = Negotiation::choose(options, &offer, ring != Ring::Unwanted) else {
            buffers.reply_error(&device, header.unique, Errno::PROTO)?;
            let hint = "this transport needs FUSE 7.23 (Linux 3.15); try transport=fuser";
            return Err(Error::new(Errno::PROTO).during("serve", "a kernel this old").hint(hint));
        };
        let (queues, reason) = match (ring, make_queues(&device, &chosen.config)) {
            (_, Ok(queues)) => (Some(queues), "uring, which the kernel offers".to_owned()),
            (Ring::Required, Err(error)) => {
                buffers.reply_error(&device, header.unique, error.errno())?;
                return Err(error);
            }
            (Ring::Preferred, Err(error)) => (None, format!("dev ({error})")),
            (Ring::Unwanted, Err(_)) => (None, "dev, as asked".to_owned()),
        };
        let Negotiation { mut answer, config } = chosen;
        answer.flags.set(InitFlags::OVER_IO_URING, queues.is_some());
        let handler = Arc::new(Handler::new(union, counters, config, DeviceRegister(Arc::clone(&device))));
        let len = answer.encode(buffers.answer()).ok_or(Errno::IO)?;
        buffers.reply(&device, header.unique, len)?;
        // From here on the kernel lets requests wait until all queues serve.
        let workers = Arc::<Workers>::default();
        let awake = Awake::new(options.spin == Spin::Auto);
        if let Some(queues) = &queues {
            queues.start(&handler, &workers, &awake.vigil());
        }
        tracing::info!(
            "transport: {reason}; the kernel speaks FUSE {}.{}, we speak up to {MAJOR}.{MINOR}; in use: {:?}",
            offer.major,
            offer.minor,
            answer.flags
        );
        let queues = queues.map(|queues| (queues, workers));
        Ok(Self { device, handler, queues, awake, buffers, reason })
    }

    /// Returns who answers the requests.
    pub(super) fn handler(&self) -> Arc<Handler> {
        Arc::clone(&self.handler)
    }

    /// Returns the connection to the kernel.
    pub(super) fn device(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.device)
    }

    /// Returns how requests and data travel, and why so, a line each.
    pub(super) fn modes(&self) -> String {
        format!(
            "transport: {}\ndata: {}\n",
            self.reason.replace('\n', ", "),
            self.handler.config().data_mode()
        )
    }

    /// Returns what makes the kernel ask for no opening any more; none where it is to ask.
    pub(super) fn primer(&self) -> Option<Arc<Primer>> {
        self.handler.primer()
    }

    /// Answers requests until the mount ends, then flushes the union.
    ///
    /// # Errors
    ///
    /// The connection broke otherwise than by its end.
    pub(super) fn run(self) -> Result<()> {
        let served = dev::serve(&self.device, &self.handler, &self.awake.vigil(), self.buffers);
        if let Some((queues, workers)) = self.queues {
            queues.join();
            workers.close();
        }
        self.handler.finish();
        served
    }
}

/// Makes everything that io_uring needs on our side.
fn make_queues(device: &Arc<OwnedFd>, config: &Config) -> Result<Queues> {
    if !config.uring {
        let hint =
            "an administrator can offer it: echo Y > /sys/module/fuse/parameters/enable_uring (Linux 6.14)";
        return Err(Error::new(Errno::OPNOTSUPP).during("use", "transport=uring").hint(hint));
    }
    Queues::prepare(device, config.max_write)
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
