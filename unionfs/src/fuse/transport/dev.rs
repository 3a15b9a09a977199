//! Requests read from and answers written to the device, by a leader and its followers.
//!
//! One thread at a time, the leader, waits on the device. It answers quick requests itself and goes on waiting, so a
//! lone client is served by one warm thread. Before a request that may take long, and while requests come faster than
//! one thread answers them, it gives the lead away first. A follower is a thread that waits for the lead.
//!
//! Waiting is cheap for the server but dear for the client: to wake a thread on an idle processor takes longer than
//! most requests. So the leader looks again for some microseconds before it sleeps, as long as that finds requests and
//! no other thread has use for the processor.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Scope, available_parallelism};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::OFlags;

use super::buffers::Buffers;
use super::placement::Placement;
use super::spare::Spare;
use super::sys;
use crate::error::{Errno, Error, Result};
use crate::fuse::handler::{Handler, Outcome};
use crate::fuse::wire::{self, Header, Request, WireError};

/// How long the leader looks for a request before it sleeps: as long as it takes to wake a client on a processor that
/// sleeps, in a virtual machine, until its next request.
const SPIN: Duration = Duration::from_micros(50);

/// For how many requests there is no looking after the first look in vain; twice as many after each further one.
const REST_MIN: u32 = 8;

/// The longest such rest. Looking in vain then costs less than 0.1 us for each request.
const REST_MAX: u32 = 512;

/// Requests in a row that found the next one waiting: more than one client is busy.
const CROWD: u32 = 4;

/// An answer that took longer may have waited for a disk.
const SLOW: Duration = Duration::from_micros(200);

/// For how many requests a slow answer makes the leader careful.
const CAREFUL: u32 = 64;

/// A read or write of this size or more takes long enough to look after other requests meanwhile.
const BULK: usize = 64 << 10;

/// Threads at most: so many requests can wait for disks at the same time.
const MAX_THREADS: usize = 32;

/// How a leader waits for requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// It may look for a while first.
    Adaptively,
    /// Few requests come this way.
    Asleep,
}

/// Answers requests until the connection ends.
///
/// # Errors
///
/// The connection broke otherwise than by its end.
pub(super) fn serve(device: &OwnedFd, handler: &Handler, waits: Waits) -> Result<()> {
    let processors = available_parallelism().map_or(1, std::num::NonZero::get);
    let glance = if processors > 1 && waits == Waits::Adaptively {
        sys::clone_device(device.as_fd(), OFlags::NONBLOCK).ok()
    } else {
        None
    };
    let team = Team {
        device,
        processors,
        glance,
        handler,
        lead: Mutex::new(Pace::default()),
        followers: AtomicUsize::new(0),
        threads: AtomicUsize::new(1),
        ended: AtomicBool::new(false),
        failure: Mutex::new(None),
    };
    std::thread::scope(|scope| team.work(scope));
    team.failure.into_inner().map_or(Ok(()), Err)
}

/// What the threads share.
struct Team<'env> {
    /// Reading it sleeps until there is a request.
    device: &'env OwnedFd,
    processors: usize,
    /// Another door to the same connection; reading it does not sleep. None: there is no looking before sleeping.
    glance: Option<OwnedFd>,
    handler: &'env Handler,
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
#[derive(Debug)]
struct Pace {
    /// Whether a processor is free for looking.
    spare: Spare,
    /// Requests for which there is no looking.
    rest: u32,
    /// The next rest.
    next_rest: u32,
    /// Requests in a row that were already waiting.
    waiting: u32,
    /// Requests for which the lead is always given away.
    careful: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { spare: Spare::default(), rest: 0, next_rest: REST_MIN, waiting: 0, careful: 0 }
    }
}

impl Pace {
    /// Learns how a request came.
    const fn came(&mut self, how: Arrival) {
        self.rest = self.rest.saturating_sub(1);
        self.careful = self.careful.saturating_sub(1);
        match how {
            Arrival::Waiting => self.waiting = self.waiting.saturating_add(1),
            Arrival::Seen => {
                self.waiting = 0;
                self.next_rest = REST_MIN;
            }
            Arrival::Slept => self.waiting = 0,
        }
    }

    /// Learns that looking was in vain: the client is slow, or waits for this very processor.
    const fn looked_in_vain(&mut self) {
        self.rest = self.next_rest;
        self.next_rest = if self.next_rest < REST_MAX { self.next_rest * 2 } else { REST_MAX };
    }

    const fn is_crowded(&self) -> bool {
        self.waiting >= CROWD
    }
}

/// How a request came after the last answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    /// It was there at the first look.
    Waiting,
    /// A further look found it.
    Seen,
    /// The leader slept, or had left off looking.
    Slept,
}

/// A request in the thread's buffer.
struct Received<'a> {
    len: usize,
    /// The door it came through, by which the answer must go.
    door: BorrowedFd<'a>,
}

impl<'env> Team<'env> {
    /// The life of one thread: follow, lead, answer, until the connection ends.
    fn work<'scope>(&'env self, scope: &'scope Scope<'scope, 'env>)
    where
        'env: 'scope,
    {
        let mut buffers = Buffers::new(self.handler.config().max_write);
        let mut placement = Placement::new();
        let mut lead = None;
        loop {
            let mut pace = lead.take().unwrap_or_else(|| self.follow());
            if self.ended.load(Ordering::Acquire) {
                return;
            }
            if pace.is_crowded() {
                placement.leave();
            }
            let received = match self.receive(&mut pace, &placement, &mut buffers) {
                Ok(Some(received)) => received,
                Ok(None) => return self.end(None),
                Err(errno) => {
                    return self.end(Some(Error::new(errno).during("read requests from", "/dev/fuse")));
                }
            };
            lead = self.handle(scope, pace, &received, &mut buffers, &mut placement);
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

    /// Waits for the next request; none if the connection has ended.
    fn receive(
        &self,
        pace: &mut Pace,
        placement: &Placement,
        buffers: &mut Buffers,
    ) -> std::result::Result<Option<Received<'_>>, Errno> {
        if let Some(glance) = &self.glance
            && pace.rest == 0
            && !placement.is_beside_client()
            && pace.spare.is_there(self.processors)
            && let Some(received) = look(glance, pace, buffers)?
        {
            return Ok(Some(received));
        }
        loop {
            match rustix::io::read(self.device, buffers.message_space()) {
                Ok(len) => {
                    pace.came(Arrival::Slept);
                    return Ok(Some(Received { len, door: self.device.as_fd() }));
                }
                // ENOENT: the caller was killed while the request was on its way to us.
                Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
                Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(None),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Answers a request. Returns the lead if it was kept.
    fn handle<'scope>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        mut pace: MutexGuard<'env, Pace>,
        received: &Received<'_>,
        buffers: &mut Buffers,
        placement: &mut Placement,
    ) -> Option<MutexGuard<'env, Pace>>
    where
        'env: 'scope,
    {
        let (message, answer) = buffers.split(received.len);
        let (header, request) = match wire::parse(message, self.handler.config().setxattr_ext) {
            Ok(parsed) => parsed,
            Err(error) => {
                // A name too long is an answer to its caller; all else is not of this protocol.
                if error != WireError::NameTooLong {
                    tracing::error!("{error}");
                }
                if let Ok(header) = Header::parse(message) {
                    self.send(buffers, received.door, header.unique, Outcome::Error(error.errno()));
                }
                return Some(pace);
            }
        };
        let mut lead = None;
        if pace.careful > 0 || self.takes_long(&header, &request) || (pace.is_crowded() && self.has_room()) {
            drop(pace);
            self.call_follower(scope);
            let outcome = self.handler.dispatch(&header, &request, answer);
            self.send(buffers, received.door, header.unique, outcome);
        } else {
            let start = Instant::now();
            let outcome = self.handler.dispatch(&header, &request, answer);
            if start.elapsed() > SLOW && buffers.disk.was_read() {
                pace.careful = CAREFUL;
            }
            self.send(buffers, received.door, header.unique, outcome);
            // After the answer: it costs the client nothing.
            placement.served(header.pid);
            lead = Some(pace);
        }
        lead
    }

    fn send(&self, buffers: &mut Buffers, door: BorrowedFd<'_>, unique: u64, outcome: Outcome) {
        if let Err(error) = buffers.send(door, unique, outcome) {
            // The kernel refused the answer's form; the caller must still not wait for ever.
            tracing::error!("{error}");
            if let Err(error) = buffers.send(door, unique, Outcome::Error(Errno::IO)) {
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

    /// Returns whether another thread could answer quick requests faster: more of them than processors would not.
    fn has_room(&self) -> bool {
        self.followers.load(Ordering::Relaxed) > 0 || self.threads.load(Ordering::Relaxed) < self.processors
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
        let started =
            std::thread::Builder::new().name("fuse".to_owned()).spawn_scoped(scope, || self.work(scope));
        if let Err(error) = started {
            // Those that are there go on.
            self.threads.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!("cannot start another thread for requests: {error}");
        }
    }
}

/// Looks for a request for a short time without sleeping; none if there is none, or the connection has ended.
fn look<'a>(
    glance: &'a OwnedFd,
    pace: &mut Pace,
    buffers: &mut Buffers,
) -> std::result::Result<Option<Received<'a>>, Errno> {
    let start = Instant::now();
    let mut arrival = Arrival::Waiting;
    loop {
        match rustix::io::read(glance, buffers.message_space()) {
            Ok(len) => {
                pace.came(arrival);
                return Ok(Some(Received { len, door: glance.as_fd() }));
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::NOENT) => {}
            // The sleeping read says so too.
            Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(None),
            Err(errno) => return Err(errno),
        }
        arrival = Arrival::Seen;
        if start.elapsed() > SPIN {
            pace.looked_in_vain();
            return Ok(None);
        }
        std::hint::spin_loop();
    }
}
