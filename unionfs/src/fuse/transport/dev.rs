//! Requests read from and answers written to the device, by a leader and its followers.
//!
//! One thread at a time, the leader, waits on the device. It answers quick requests itself and goes on waiting, so a
//! lone client is served by one warm thread. Before a request that may take long, and while requests come faster than
//! one thread answers them, it gives the lead away first. A follower is a thread that waits for the lead. While a lone
//! client waits there is mostly nothing to lead: then the lead is only lent. Who has answered something large does not
//! follow but waits beside the leader for more of it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Scope;
use std::time::{Duration, Instant};

use super::awake::Vigil;
use super::buffers::Buffers;
use super::lead::{Held, Lead, Seat};
use super::pipe::AnswerPipe;
use super::placement::Placement;
use super::processors::Processors;
use crate::error::{Errno, Error, Result};
use crate::fuse::handler::{Handler, Outcome, waits_for_disk};
use crate::fuse::wire::{self, Header, Request, WireError};
use parking_lot::Mutex;

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

/// Requests in a row of one thread after which it is taken to be the only client.
const ALONE: u32 = 16;

/// How long others may have to wait at most because one was taken to be alone.
const GRACE: Duration = Duration::from_millis(2);

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
        lead: Lead::new(Pace::default()).map_err(|errno| Error::new(errno).during("make", "a timer"))?,
        watched: AtomicBool::new(false),
        followers: AtomicUsize::new(0),
        threads: AtomicUsize::new(1),
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
    lead: Lead<Pace>,
    /// There is a thread that watches over loans of the lead.
    watched: AtomicBool,
    /// Threads that wait for the lead.
    followers: AtomicUsize,
    /// All threads that answer requests.
    threads: AtomicUsize,
    failure: Mutex<Option<Error>>,
}

/// How requests came lately; who has the lead has it.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    /// Requests in a row that were already waiting.
    waiting: u32,
    /// Requests for which the lead is always given away.
    careful: u32,
    /// Who asked last, 0 for one whom this process cannot see, and how often in a row.
    client: u32,
    in_a_row: u32,
}

impl Pace {
    /// Learns that a request was read in this time.
    fn came(&mut self, after: Duration) {
        self.waiting = if after < WAITING { self.waiting.saturating_add(1) } else { 0 };
        self.careful = self.careful.saturating_sub(1);
    }

    /// Learns who asked.
    const fn asked_by(&mut self, client: u32) {
        self.in_a_row = if client == self.client { self.in_a_row.saturating_add(1) } else { 0 };
        self.client = client;
    }

    const fn is_crowded(&self) -> bool {
        self.waiting >= CROWD
    }

    const fn has_one_client(&self) -> bool {
        self.client != 0 && self.in_a_row >= ALONE
    }
}

/// What one thread has for itself.
struct Own {
    buffers: Buffers,
    placement: Placement,
    /// The last request was a large one.
    streams: bool,
}

impl<'env> Team<'env> {
    /// The life of one thread: follow, lead, answer, until the connection ends.
    fn work<'scope>(&'env self, scope: &'scope Scope<'scope, 'env>, buffers: Buffers)
    where
        'env: 'scope,
    {
        let mut own = Own { buffers, placement: Placement::new(), streams: false };
        let mut kept = None;
        loop {
            let seat = match kept.take() {
                Some(held) => Seat::Lead(held),
                None if own.streams => self.lead.sit(),
                None => Seat::None,
            };
            let lead = match seat {
                Seat::Lead(held) => Some(held),
                Seat::Beside => None,
                Seat::None => match self.follow() {
                    Some(held) => Some(held),
                    None => return,
                },
            };
            let start = Instant::now();
            let len = match self.receive(&mut own.buffers) {
                Ok(Some(len)) => len,
                Ok(None) => return self.end(None),
                Err(errno) => {
                    return self.end(Some(Error::new(errno).during("read requests from", "/dev/fuse")));
                }
            };
            let lead = match lead {
                Some(mut held) => {
                    held.known.came(start.elapsed());
                    if held.known.is_crowded() {
                        own.placement.leave();
                    }
                    Some(held)
                }
                None => self.lead.rise(),
            };
            kept = self.handle(scope, lead, len, &mut own);
            self.vigil.served();
        }
    }

    fn follow(&self) -> Option<Held<'_, Pace>> {
        self.followers.fetch_add(1, Ordering::Relaxed);
        let lead = self.lead.follow();
        self.followers.fetch_sub(1, Ordering::Relaxed);
        lead
    }

    fn end(&self, failure: Option<Error>) {
        self.lead.end();
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

    /// Answers the request of `len` bytes in the buffer. Returns the lead if it was kept; without it another has it.
    fn handle<'scope>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        lead: Option<Held<'env, Pace>>,
        len: usize,
        own: &mut Own,
    ) -> Option<Held<'env, Pace>>
    where
        'env: 'scope,
    {
        let (message, answer, pipe) = own.buffers.split_with_pipe(len);
        let (header, request) = match wire::parse(message, self.handler.config().setxattr_ext) {
            Ok(parsed) => parsed,
            Err(error) => {
                // A name too long is an answer to its caller; all else is not of this protocol.
                if error != WireError::NameTooLong {
                    tracing::error!("{error}");
                }
                if let Ok(header) = Header::parse(message) {
                    self.send(&mut own.buffers, header.unique, Outcome::Error(error.errno()));
                }
                return lead;
            }
        };
        let streamed = std::mem::replace(&mut own.streams, is_bulk(&request));
        if streamed && own.streams {
            // Its client uses what came before meanwhile, and needs the processor for that.
            own.placement.leave();
        }
        let keeps = lead.and_then(|held| self.keep_lead(scope, held, &header, &request));
        let Some(mut held) = keeps else {
            let pause = waits_for_disk(&request).then(|| self.vigil.pause());
            let outcome = self.dispatch(&header, &request, answer, pipe);
            self.send(&mut own.buffers, header.unique, outcome);
            drop(pause);
            return None;
        };
        let start = Instant::now();
        let outcome = self.handler.dispatch(&header, &request, answer);
        if start.elapsed() > SLOW && own.buffers.disk.was_read() {
            held.known.careful = CAREFUL;
        }
        self.send(&mut own.buffers, header.unique, outcome);
        // After the answer: it costs the client nothing.
        own.placement.served(header.pid);
        Some(held)
    }

    /// Gives the lead away or lends it before a request during which others shall not wait; else returns it.
    fn keep_lead<'scope>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        mut held: Held<'env, Pace>,
        header: &Header,
        request: &Request<'_>,
    ) -> Option<Held<'env, Pace>>
    where
        'env: 'scope,
    {
        let pace = &mut held.known;
        pace.asked_by(header.pid);
        let gives = pace.careful > 0
            || is_bulk(request)
            || self.handler.waits_for_others(request)
            || (pace.is_crowded() && self.has_room());
        if !gives && !self.handler.may_take_long(header, request, false) {
            return Some(held);
        }
        if !gives && pace.has_one_client() && self.watch_loans(scope) {
            held.lend(GRACE);
        } else {
            held.give();
        }
        self.call_follower(scope);
        None
    }

    /// Has the request answered, in `pipe` what is much data of one file.
    fn dispatch(
        &self,
        header: &Header,
        request: &Request<'_>,
        answer: &mut [u8],
        pipe: &mut AnswerPipe,
    ) -> Outcome {
        if !is_bulk(request) {
            return self.handler.dispatch(header, request, answer);
        }
        self.handler.dispatch_lending(header, request, answer, |file, offset, len| {
            len >= BULK && pipe.fill(header.unique, file, offset, len)
        })
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
        if self.followers.load(Ordering::Relaxed) > 0 || self.lead.has_seated() {
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

    /// Makes sure that somebody watches over loans of the lead; false if that cannot be had.
    fn watch_loans<'scope>(&'env self, scope: &'scope Scope<'scope, 'env>) -> bool
    where
        'env: 'scope,
    {
        if self.watched.swap(true, Ordering::Relaxed) {
            return true;
        }
        let life = || {
            self.processors.use_all();
            self.lead.watch();
        };
        let started = std::thread::Builder::new().name("fuse-loans".to_owned()).spawn_scoped(scope, life);
        if let Err(error) = &started {
            self.watched.store(false, Ordering::Relaxed);
            tracing::warn!("cannot start a thread that watches over loans: {error}");
        }
        started.is_ok()
    }
}

/// Returns whether a request moves so much data that others are looked after meanwhile.
fn is_bulk(request: &Request<'_>) -> bool {
    match request {
        Request::Read { size, .. } => usize::try_from(*size).is_ok_and(|size| size >= BULK),
        Request::Write { data, .. } => data.len() >= BULK,
        _ => false,
    }
}
