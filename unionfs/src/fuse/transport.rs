//! How requests and answers travel, without a library: the first exchange, then a transport until the mount ends.
//!
//! [`Greeting`] does the first exchange on the device. After it, `dev` reads and writes the device with
//! several threads. Where io_uring was agreed on, `uring` takes nearly all requests, and `dev` what still comes on the
//! device: what needs no answer, and everything, should the kernel turn io_uring off after all.

mod awake;
mod backing;
mod buffers;
mod dev;
mod disk;
mod lead;
mod pipe;
mod placement;
mod processors;
mod quota;
mod readers;
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
use super::handler::{Config, Handler, Negotiation};
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

/// A connection of which the kernel's first request was read and understood. It is answered already where nothing is to be made
/// before that.
#[derive(Debug)]
pub(super) struct Greeting {
    device: Arc<OwnedFd>,
    buffers: Buffers,
    header: Header,
    offer: InitIn,
    chosen: Negotiation,
    ring: Ring,
    spin: Spin,
}

impl Greeting {
    /// Reads the first request from `device`. Nothing is made that belongs to this process only: it may still fork.
    ///
    /// # Errors
    ///
    /// The mount is gone, or the kernel is too old.
    pub(super) fn read(device: OwnedFd, options: &MountOptions, ring: Ring) -> Result<Self> {
        let mut buffers = Buffers::new(options.max_write);
        let (header, offer) = receive_init(&device, &mut buffers)?;
        let Some(chosen) = Negotiation::choose(options, &offer, ring != Ring::Unwanted) else {
            buffers.reply_error(&device, header.unique, Errno::PROTO)?;
            let hint = "this transport needs FUSE 7.23 (Linux 3.15); try transport=fuser";
            return Err(Error::new(Errno::PROTO).during("serve", "a kernel this old").hint(hint));
        };
        let (device, spin) = (Arc::new(device), options.spin);
        let mut greeting = Self { device, buffers, header, offer, chosen, ring, spin };
        if !greeting.needs_queues() {
            // Requests that arrive before somebody serves need not wait for that first.
            greeting.agree(None)?;
        }
        Ok(greeting)
    }

    /// Returns whether the answer depends on what can be made for io_uring.
    fn needs_queues(&self) -> bool {
        self.ring == Ring::Required || self.chosen.config.uring
    }

    /// Answers the first request.
    fn agree(&mut self, queues: Option<&Queues>) -> Result<()> {
        let answer = &mut self.chosen.answer;
        answer.flags.set(InitFlags::OVER_IO_URING, queues.is_some());
        let len = answer.encode(self.buffers.answer()).ok_or(Errno::IO)?;
        self.buffers.reply(&self.device, self.header.unique, len)
    }

    /// Returns whether what remains to be done may fail in a way that only the user can do something about.
    pub(super) fn may_be_refused(&self) -> bool {
        self.ring == Ring::Required
    }

    /// Answers it, if it is not answered yet, and has the queues serve.
    ///
    /// # Errors
    ///
    /// io_uring is required and cannot be had.
    pub(super) fn answer(mut self, union: Arc<Union>, counters: Arc<Counters>) -> Result<Connection> {
        let (queues, reason) = match (self.ring, make_queues(&self.device, &self.chosen.config)) {
            (_, Ok(queues)) => (Some(queues), "uring, which the kernel offers".to_owned()),
            (Ring::Required, Err(error)) => {
                self.buffers.reply_error(&self.device, self.header.unique, error.errno())?;
                return Err(error);
            }
            (Ring::Preferred, Err(error)) => (None, format!("dev ({error})")),
            (Ring::Unwanted, Err(_)) => (None, "dev, as asked".to_owned()),
        };
        let register = DeviceRegister(Arc::clone(&self.device));
        let handler = Arc::new(Handler::new(union, counters, self.chosen.config, register));
        if self.needs_queues() {
            self.agree(queues.as_ref())?;
        }
        let Self { device, buffers, offer, chosen: Negotiation { answer, .. }, spin, .. } = self;
        // From here on the kernel lets requests wait until all queues serve.
        let workers = Arc::<Workers>::default();
        let awake = Awake::new(spin == Spin::Auto);
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
        Ok(Connection { device, handler, queues, awake, buffers, reason })
    }
}

impl Connection {
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
