//! Requests read from and answers written to the device, by a leader and its followers.
//!
//! One thread at a time, the leader, waits on the device. It answers quick requests itself and goes on waiting, so a
//! lone client is served by one warm thread. Before a request that may take long, and while requests come faster than
//! one thread answers them, it gives the lead away first. A follower is a thread that waits for the lead.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Scope;
use std::time::{Duration, Instant};

use super::awake::Vigil;
use super::buffers::Buffers;
use super::placement::Placement;
use super::processors::Processors;
use crate::error::{Errno, Error, Result};
use crate::fuse::handler::{Handler, Outcome};
use crate::fuse::wire::{self, Header, Request, WireError};
use parking_lot::{Mutex, MutexGuard};

/// Requests in a row that were already waiting: more than one caller is busy.
const CROWD: u32 = 4;

/// A request that was read within this time was waiting; to be woken for one takes longer.
const WAITING: Duration = Duration::from_nanos(2500);

/// An answer that took longer may have waited for a disk.
const SLOW: Duration = Duration::from_micros(200);

/// For how many requests a slow answer makes the leader careful.
const CAREFUL: u32 = 64;

/// A read or write of this size or more takes long enough to look after other requests meanwhile.
const BULK: usize = 64 << 10;

/// Threads at most: so many requests can wait for disks at the same time.
const MAX_THREADS: usize = 32;

/// Answers requests until the connection ends. `buffers` are the first thread's.
///
/// # Errors
///
/// The connection broke otherwise than by its end.
pub(super) fn serve(device: &OwnedFd, handler: &Handler, vigil: &Arc<Vigil>, buffers: Buffers) -> Result<()> {
    let team = Team {
        device,
        processors: Processors::of_this_thread(),
        handler,
        vigil,
        lead: Mutex::new(Pace::default()),
        followers: AtomicUsize::new(0),
        threads: AtomicUsize::new(1),
        ended: AtomicBool::new(false),
        failure: Mutex::new(None),
    };
    std::thread::scope(|scope| team.work(scope, buffers));
    team.failure.into_inner().map_or(Ok(()), Err)
}

/// What the threads share.
struct Team<'env> {
    /// Reading it sleeps until there is a request.
    device: &'env OwnedFd,
    processors: Processors,
    handler: &'env Handler,
    /// Told of each request.
    vigil: &'env Arc<Vigil>,
    /// Held by the leader.
    lead: Mutex<Pace>,
    /// Threads that wait for the lead.
    followers: AtomicUsize,
    /// All threads.
    threads: AtomicUsize,
    /// The connection has ended.
    ended: AtomicBool,
    failure: Mutex<Option<Error>>,
}

/// How requests came lately. Protected by the lead.
#[derive(Debug, Default)]
struct Pace {
    /// Requests in a row that were already waiting.
    waiting: u32,
    /// Requests for which the lead is always given away.
    careful: u32,
}

impl Pace {
    /// Learns that a request was read in this time.
    fn came(&mut self, after: Duration) {
        self.waiting = if after < WAITING { self.waiting.saturating_add(1) } else { 0 };
        self.careful = self.careful.saturating_sub(1);
    }

    const fn is_crowded(&self) -> bool {
        self.waiting >= CROWD
    }
}

impl<'env> Team<'env> {
    /// The life of one thread: follow, lead, answer, until the connection ends.
    fn work<'scope>(&'env self, scope: &'scope Scope<'scope, 'env>, mut buffers: Buffers)
    where
        'env: 'scope,
    {
        let mut placement = Placement::new();
        let mut lead = None;
        loop {
            let mut pace = lead.take().unwrap_or_else(|| self.follow());
            if self.ended.load(Ordering::Acquire) {
                return;
            }
            let start = Instant::now();
            let len = match self.receive(&mut buffers) {
                Ok(Some(len)) => len,
                Ok(None) => return self.end(None),
                Err(errno) => {
                    return self.end(Some(Error::new(errno).during("read requests from", "/dev/fuse")));
                }
            };
            pace.came(start.elapsed());
            if pace.is_crowded() {
                placement.leave();
            }
            lead = self.handle(scope, pace, len, &mut buffers, &mut placement);
            self.vigil.served();
        }
    }

    fn follow(&self) -> MutexGuard<'_, Pace> {
        self.followers.fetch_add(1, Ordering::Relaxed);
        let lead = self.lead.lock();
        self.followers.fetch_sub(1, Ordering::Relaxed);
        lead
    }

    fn end(&self, failure: Option<Error>) {
        self.ended.store(true, Ordering::Release);
        if let Some(failure) = failure {
            self.failure.lock().get_or_insert(failure);
        }
    }

    /// Waits for the next request and returns its length; none if the connection has ended.
    fn receive(&self, buffers: &mut Buffers) -> std::result::Result<Option<usize>, Errno> {
        loop {
            match rustix::io::read(self.device, buffers.message_space()) {
                Ok(len) => return Ok(Some(len)),
                // ENOENT: the caller was killed while the request was on its way to us.
                Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
                Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(None),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Answers the request of `len` bytes in the buffer. Returns the lead if it was kept.
    fn handle<'scope>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        mut pace: MutexGuard<'env, Pace>,
        len: usize,
        buffers: &mut Buffers,
        placement: &mut Placement,
    ) -> Option<MutexGuard<'env, Pace>>
    where
        'env: 'scope,
    {
        let (message, answer) = buffers.split(len);
        let (header, request) = match wire::parse(message, self.handler.config().setxattr_ext) {
            Ok(parsed) => parsed,
            Err(error) => {
                // A name too long is an answer to its caller; all else is not of this protocol.
                if error != WireError::NameTooLong {
                    tracing::error!("{error}");
                }
                if let Ok(header) = Header::parse(message) {
                    self.send(buffers, header.unique, Outcome::Error(error.errno()));
                }
                return Some(pace);
            }
        };
        if pace.careful > 0 || self.takes_long(&header, &request) || (pace.is_crowded() && self.has_room()) {
            drop(pace);
            self.call_follower(scope);
            let outcome = self.handler.dispatch(&header, &request, answer);
            self.send(buffers, header.unique, outcome);
            return None;
        }
        let start = Instant::now();
        let outcome = self.handler.dispatch(&header, &request, answer);
        if start.elapsed() > SLOW && buffers.disk.was_read() {
            pace.careful = CAREFUL;
        }
        self.send(buffers, header.unique, outcome);
        // After the answer: it costs the client nothing.
        placement.served(header.pid);
        Some(pace)
    }

    fn send(&self, buffers: &mut Buffers, unique: u64, outcome: Outcome) {
        if let Err(error) = buffers.send(self.device, unique, outcome) {
            // The kernel refused the answer's form; the caller must still not wait for ever.
            tracing::error!("{error}");
            if let Err(error) = buffers.send(self.device, unique, Outcome::Error(Errno::IO)) {
                tracing::error!("{error}");
            }
        }
    }

    fn takes_long(&self, header: &Header, request: &Request<'_>) -> bool {
        let bulk = match request {
            Request::Read { size, .. } => usize::try_from(*size).is_ok_and(|size| size >= BULK),
            Request::Write { data, .. } => data.len() >= BULK,
            _ => false,
        };
        bulk || self.handler.may_take_long(header, request, false)
    }

    /// Returns whether one more thread at work would answer quick requests faster. Their callers need half of the
    /// processors.
    fn has_room(&self) -> bool {
        let waiting = self.followers.load(Ordering::Relaxed);
        self.threads.load(Ordering::Relaxed).saturating_sub(waiting) < self.processors.count() / 2
    }

    /// Makes sure that somebody takes the lead that was just given away.
    fn call_follower<'scope>(&'env self, scope: &'scope Scope<'scope, 'env>)
    where
        'env: 'scope,
    {
        if self.followers.load(Ordering::Relaxed) > 0 {
            return;
        }
        let room = |threads: usize| (threads < MAX_THREADS).then_some(threads + 1);
        if self.threads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
            return;
        }
        let life = || {
            // The thread that starts this one may be bound to the processor of its client.
            self.processors.use_all();
            self.work(scope, Buffers::new(self.handler.config().max_write));
        };
        let started = std::thread::Builder::new().name("fuse".to_owned()).spawn_scoped(scope, life);
        if let Err(error) = started {
            // Those that are there go on.
            self.threads.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!("cannot start another thread for requests: {error}");
        }
    }
}
