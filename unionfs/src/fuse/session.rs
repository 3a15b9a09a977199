//! Serving a mount: the connection is made, threads answer requests until the mount ends.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::available_parallelism;

use super::control::{Live, MountId};
use super::tell::Device;
use super::transport::{Connection, Greeting, Ring};
use super::{Counters, FuseAdapter};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{Errno, Error, Result};
use crate::options::{MountOptions, Transport};
use crate::union::Union;

/// Threads that answer requests. Measured: two are best on two processors, and more than four gain nothing, because
/// all of them take requests from one queue.
const THREADS: std::ops::RangeInclusive<usize> = 2..=4;

/// A connection to the kernel whose first exchange is done: requests wait to be answered.
#[derive(Debug)]
pub struct Server {
    carrier: Carrier,
    counters: Arc<Counters>,
}

/// Who carries requests and answers.
#[derive(Debug)]
enum Carrier {
    Fuser(Box<fuser::Session<FuseAdapter>>),
    Own(Box<Connection>),
}

/// A connection to the kernel whose first exchange has begun: the kernel's request was read and understood. Nothing that belongs
/// to one process only was made, so that another may go on with it.
#[derive(Debug)]
pub struct Greeted(Exchange);

/// How far the first exchange is.
#[derive(Debug)]
enum Exchange {
    /// Where it was; fuser does it at once.
    Fuser(OwnedFd),
    Own(Box<Greeting>),
}

impl Greeted {
    /// Begins the first exchange on `device`, which may have been mounted by another process.
    ///
    /// # Errors
    ///
    /// The mount is gone, or the kernel is too old.
    pub fn by_kernel(device: OwnedFd, options: &MountOptions) -> Result<Self> {
        let ring = match options.transport {
            Transport::Fuser => return Ok(Self(Exchange::Fuser(device))),
            Transport::Uring => Ring::Required,
            Transport::Auto => Ring::Preferred,
            Transport::Dev => Ring::Unwanted,
        };
        Ok(Self(Exchange::Own(Box::new(Greeting::read(device, options, ring)?))))
    }

    /// Returns whether [`Self::serve`] may fail in a way that whoever has mounted is to be told of.
    pub fn may_be_refused(&self) -> bool {
        match &self.0 {
            Exchange::Fuser(_) => true,
            Exchange::Own(greeting) => greeting.may_be_refused(),
        }
    }

    /// Ends the first exchange.
    ///
    /// The serving process should have a umask of 0, and must not have its current directory inside the mount.
    ///
    /// # Errors
    ///
    /// The options ask for a transport that cannot be had.
    pub fn serve(self, union: Arc<Union>, options: &MountOptions) -> Result<Server> {
        let greeting = match self.0 {
            Exchange::Fuser(device) => return Server::connect_fuser(union, device, options),
            Exchange::Own(greeting) => greeting,
        };
        let counters = Arc::<Counters>::default();
        let connection = greeting.answer(union, Arc::clone(&counters))?;
        Ok(Server { carrier: Carrier::Own(Box::new(connection)), counters })
    }
}

impl Server {
    fn connect_fuser(union: Arc<Union>, device: OwnedFd, options: &MountOptions) -> Result<Self> {
        let adapter = FuseAdapter::new(union, options);
        let counters = adapter.counters();
        let processors = available_parallelism().map_or(1, std::num::NonZero::get);
        let mut config = fuser::Config::default();
        config.n_threads = Some(processors.clamp(*THREADS.start(), *THREADS.end()));
        // Who may enter is the kernel's decision, by allow_other. fuser would compare ids that a user namespace
        // shows differently.
        config.acl = fuser::SessionACL::All;
        let session = fuser::Session::from_fd(adapter, device, config.acl, config)
            .map_err(|error| Error::from(error).during("connect to", "/dev/fuse"))?;
        Ok(Self { carrier: Carrier::Fuser(Box::new(session)), counters })
    }

    /// Returns what commands to the mount work on while this serves.
    pub fn live(&self, union: Arc<Union>) -> Live {
        let counters = Arc::clone(&self.counters);
        match &self.carrier {
            Carrier::Own(connection) => {
                let kernel = Arc::new(Device(connection.device()));
                Live::new(union, counters, Some(connection.handler()), kernel, connection.modes())
            }
            Carrier::Fuser(session) => {
                let modes = "transport: fuser; data: handles, because the options say so\n".to_owned();
                Live::new(union, counters, None, Arc::new(session.notifier()), modes)
            }
        }
    }

    /// Learns where the mount is.
    pub fn mounted_on(&self, target: &Path, mount: MountId) {
        if let Carrier::Own(connection) = &self.carrier {
            connection.handler().mounted_on(target, mount);
        }
    }

    /// Answers requests until the mount ends, then flushes the union.
    ///
    /// # Errors
    ///
    /// The connection broke otherwise than by its end.
    pub fn run(self) -> Result<()> {
        let session = match self.carrier {
            Carrier::Own(connection) => return connection.run(),
            Carrier::Fuser(session) => session,
        };
        match session.run() {
            Ok(()) => Ok(()),
            // Aborted through /sys/fs/fuse/connections, or by a forced unmount: an end like another.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::ENODEV)) => Ok(()),
            Err(error) => Err(Error::from(error).during("serve", "/dev/fuse")),
        }
    }
}

/// Lets this process open as many files as it may: caches and unlinked objects that are still held take descriptors.
///
/// # Errors
///
/// What setrlimit(2) says; the limit is then as it was.
pub(crate) fn raise_open_files_limit() -> std::result::Result<(), Errno> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
}

/// Serves the mount behind `device` until it is unmounted or aborted, with several threads.
///
/// # Errors
///
/// What [`Greeted`] and [`Server::run`] give.
pub fn serve(union: Arc<Union>, device: OwnedFd, options: &MountOptions) -> Result<()> {
    if let Err(errno) = raise_open_files_limit() {
        tracing::warn!(%errno, "cannot raise the limit of open files");
    }
    Greeted::by_kernel(device, options)?.serve(union, options)?.run()
}
