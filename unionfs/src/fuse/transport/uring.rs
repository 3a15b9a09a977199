//! Requests over io_uring: a queue for each processor, served by a thread on that processor.
//!
//! The kernel gives a request to the queue of the caller's processor, so answering it wakes nobody elsewhere: the
//! caller and the queue's thread take turns on one processor. What may take long is handed to workers, because no
//! other thread takes over a queue's requests.
//!
//! From the answer to INIT until every possible processor's queue has an entry, the kernel lets all requests wait. So
//! everything that may fail is done before: rings are made and threads started, and only if all could be is io_uring
//! agreed on. No thread is waited for: the rings are made by the one that mounts, and belong to who enables them.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::EventfdFlags;
use rustix::thread::CpuSet;

use super::awake::{Pause, Vigil};
use super::disk::DiskReads;
use super::readers::{Means, Readers};
use super::sys::ring::{Entry, Event, HEADER_LEN, Ring};
use super::workers::Workers;
use crate::error::{Errno, Error, Result};
use crate::fuse::handler::{Handler, Outcome, waits_for_disk};
use crate::fuse::wire::{self, Header, IN_HEADER_LEN, OUT_HEADER_LEN, Opcode, Request, reply};
use crate::request::NodeId;

/// Entries of a queue: so many requests of one processor can be under way.
const DEPTH: u32 = 8;

/// Where the parts of an entry's header buffer are.
const ARGUMENT_AT: usize = 128;
const ARGUMENT_LEN: usize = 128;
const COMMIT_ID_AT: usize = 264;
const PAYLOAD_LEN_AT: usize = 272;

/// The smallest payload buffer that the kernel accepts, and one that holds any answer but file data.
const PAYLOAD_MIN: usize = 128 << 10;

/// The longest answer to a request whose data is in the payload buffer.
const SHORT_ANSWER: usize = 128;

/// A read of this size or more, of those that the kernel makes ahead of the caller, takes longer than to hand it over: on
/// another processor it is read while the caller uses what was read before.
const LARGE_READ: u32 = 512 << 10;

/// An answer that took longer may have waited for a disk.
const SLOW: Duration = Duration::from_micros(200);

/// For how many requests a slow answer has reads handed to workers.
const CAREFUL: u32 = 64;

/// So many times a queue's thread may be woken elsewhere before it is moved to its processor.
const UNBOUND: u32 = 8;

/// The pause after a system call failed for want of something.
pub(super) const PAUSE: Duration = Duration::from_millis(1);

/// What a queue's thread needs to start: who answers, now or later, and who is told of it.
type Start = (Arc<Handler>, Arc<Workers>, Arc<Vigil>);

/// The threads of all queues, with their rings made.
#[derive(Debug)]
pub(super) struct Queues {
    threads: Vec<(Sender<Start>, JoinHandle<()>)>,
}

impl Queues {
    /// Makes a ring for each possible processor, and the thread that will serve it.
    ///
    /// # Errors
    ///
    /// One of them could not be made; then there is none.
    pub(super) fn prepare(device: &Arc<OwnedFd>, max_write: u32) -> Result<Self> {
        let payload_len = usize::try_from(max_write).unwrap_or(usize::MAX).clamp(PAYLOAD_MIN, 1 << 30);
        let mut queues = Self { threads: Vec::new() };
        for queue in 0..possible_processors()? {
            match prepare_queue(device, queue, payload_len) {
                Ok(thread) => queues.threads.push(thread),
                Err(error) => {
                    queues.cancel();
                    return Err(error.during("set up", "io_uring"));
                }
            }
        }
        Ok(queues)
    }

    /// Lets the queues serve: to be called at once when io_uring was agreed on.
    pub(super) fn start(&self, handler: &Arc<Handler>, workers: &Arc<Workers>, vigil: &Arc<Vigil>) {
        for (start, _) in &self.threads {
            if start.send((Arc::clone(handler), Arc::clone(workers), Arc::clone(vigil))).is_err() {
                tracing::error!("a queue's thread is gone");
            }
        }
    }

    /// Ends the threads of queues that were never started.
    pub(super) fn cancel(self) {
        let (starts, threads): (Vec<_>, Vec<_>) = self.threads.into_iter().unzip();
        drop(starts);
        join(threads);
    }

    /// Waits until the connection has ended for all queues.
    pub(super) fn join(self) {
        join(self.threads.into_iter().map(|(_, thread)| thread).collect());
    }
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a queue's thread broke");
        }
    }
}

/// Returns how many processors can ever be there: the kernel has a queue for each.
fn possible_processors() -> Result<u16> {
    const LIST: &str = "/sys/devices/system/cpu/possible";
    let text = crate::sys::read_setting(LIST).map_err(|error| Error::from(error).during("read", LIST))?;
    count_processors(&text).ok_or_else(|| Error::new(Errno::INVAL).during("understand", LIST))
}

/// Counts the processors of a list like `0-3,8`.
fn count_processors(list: &str) -> Option<u16> {
    let mut count = 0_u16;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    (count > 0).then_some(count)
}

/// Makes the ring of a queue, and its thread.
fn prepare_queue(
    device: &Arc<OwnedFd>,
    queue: u16,
    payload_len: usize,
) -> Result<(Sender<Start>, JoinHandle<()>)> {
    let waker = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let ring = Ring::new(device.as_fd(), Some(waker.as_fd()), DEPTH)?;
    let entries = Entry::all(queue, DEPTH, payload_len)?;
    let (start, started) = channel();
    let made = Made { device: Arc::clone(device), ring, entries, waker };
    let life = move || queue_thread(queue, made, &started);
    let thread = std::thread::Builder::new().name(format!("fuse-{queue}")).spawn(life)?;
    Ok((start, thread))
}

/// What is made for a queue before anybody has agreed on io_uring.
struct Made {
    device: Arc<OwnedFd>,
    ring: Ring,
    entries: Vec<Entry>,
    waker: OwnedFd,
}

/// The life of a queue's thread.
fn queue_thread(queue: u16, made: Made, started: &Receiver<Start>) {
    let Made { device, ring, entries, waker } = made;
    let Ok((handler, workers, vigil)) = started.recv() else { return };
    let places = workers.places();
    let outbox = Arc::new(Outbox { returned: Mutex::default(), waker });
    let mut queue = Queue {
        processor: usize::from(queue),
        place: Place::Any(UNBOUND),
        ring,
        workers,
        means: Means { device, handler, vigil, places, outbox },
        readers: Readers::default(),
        read: None,
        scratch: Vec::new(),
        pending: 0,
        careful: 0,
        disk: DiskReads::default(),
    };
    queue.serve(entries);
}

/// Keeps this thread on the queue's processor. A processor that is not there, or not allowed, has no callers that
/// would wait for the queue, so any other will do.
fn pin(processor: usize) {
    let mut set = CpuSet::new();
    if processor >= CpuSet::MAX_CPU {
        return;
    }
    set.set(processor);
    if let Err(errno) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::debug!("the thread of queue {processor} is not bound to its processor: {errno}");
    }
}

/// An answer that a worker has written.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) entry: Entry,
    pub(super) commit_id: u64,
    /// What holds until it is on its way.
    pub(super) pause: Option<Pause>,
}

/// What becomes of an entry that another thread had.
#[derive(Debug)]
pub(super) enum Returned {
    Finished(Finished),
    /// It has a request that the other thread does not answer.
    Unanswered(Entry),
    /// It is of no more use.
    Lost(Errno),
}

/// Where other threads put a queue's entries.
#[derive(Debug)]
pub(super) struct Outbox {
    returned: Mutex<Vec<Returned>>,
    waker: OwnedFd,
}

impl Outbox {
    pub(super) fn put(&self, returned: Returned) {
        self.returned.lock().push(returned);
        if let Err(errno) = rustix::io::write(&self.waker, &1_u64.to_ne_bytes()) {
            // EAGAIN: the counter is full, so the thread is woken anyway.
            tracing::debug!("cannot wake a queue's thread: {errno}");
        }
    }

    fn take(&self) -> Vec<Returned> {
        let mut count = [0; 8];
        // EAGAIN: already read.
        if let Err(errno) = rustix::io::read(&self.waker, &mut count) {
            tracing::trace!("nothing to read from a waker: {errno}");
        }
        std::mem::take(&mut *self.returned.lock())
    }
}

/// How long a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weight {
    Quick,
    /// A large read of a file of which there was one before: there will be more.
    Large,
    /// So long that the queue must not wait for it.
    Slow,
    /// As above, and all of it is waiting.
    WaitsForDisk,
}

/// Where a queue's thread runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Wherever it was started or woken, for so many events at most.
    Any(u32),
    /// On its processor.
    Bound,
}

/// One processor's queue.
struct Queue {
    processor: usize,
    place: Place,
    ring: Ring,
    workers: Arc<Workers>,
    means: Means,
    readers: Readers,
    /// The file of the last large read: the first of a file is answered at once, since its caller waits for it.
    read: Option<NodeId>,
    /// Names of the request that is being answered.
    scratch: Vec<u8>,
    /// Entries that workers and readers have.
    pending: u32,
    /// Requests for which reads are handed to workers.
    careful: u32,
    disk: DiskReads,
}

impl Queue {
    /// Serves until no entry is left: the connection has ended, or the kernel has refused io_uring.
    fn serve(&mut self, entries: Vec<Entry>) {
        let enabled = self.ring.enable();
        self.note(enabled);
        for entry in entries {
            let registered = self.ring.register(entry);
            self.note(registered);
        }
        let watched = self.ring.watch_waker();
        self.note(watched);
        while self.ring.is_armed() || self.pending > 0 {
            match self.ring.submit_and_wait() {
                Ok(()) | Err(Errno::INTR) => {}
                Err(errno) => {
                    self.note(Err(errno));
                    std::thread::sleep(PAUSE);
                }
            }
            self.find_place();
            while let Some(event) = self.ring.next() {
                self.take(event);
            }
        }
        self.readers.close();
    }

    /// Binds this thread to its processor as soon as it is there, since the caller that wakes it is. To move it takes longer than
    /// to answer a request, and whoever has just mounted waits for the first answers.
    fn find_place(&mut self) {
        let Place::Any(left) = self.place else { return };
        if left == 0 || rustix::thread::sched_getcpu() == self.processor {
            pin(self.processor);
            self.place = Place::Bound;
        } else {
            self.place = Place::Any(left - 1);
        }
    }

    /// Logs what must not happen: the rings are as large as all that is ever put into them.
    fn note(&self, result: std::result::Result<(), Errno>) {
        if let Err(errno) = result {
            tracing::error!("a queue of io_uring fails: {errno}");
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Request(entry) => self.request(entry),
            Event::Woken => {
                let watched = self.ring.watch_waker();
                self.note(watched);
                for returned in self.means.outbox.take() {
                    self.pending = self.pending.saturating_sub(1);
                    self.take_back(returned);
                }
            }
            Event::Lost(errno) => lost(errno),
        }
    }

    fn take_back(&mut self, returned: Returned) {
        match returned {
            Returned::Finished(finished) => {
                self.commit(finished.entry, finished.commit_id);
                drop(finished.pause);
            }
            Returned::Unanswered(entry) => self.request(entry),
            Returned::Lost(errno) => lost(errno),
        }
    }

    fn request(&mut self, mut entry: Entry) {
        let commit_id = commit_id_of(&mut entry);
        let careful = self.careful > 0;
        self.careful = self.careful.saturating_sub(1);
        // One entry stays with the kernel, or the callers on this processor would wait for the workers.
        let weight = if self.pending + 1 < DEPTH { self.weigh(&mut entry, careful) } else { Weight::Quick };
        match weight {
            Weight::Quick => self.answer_now(entry, commit_id),
            Weight::Large => {
                self.pending += 1;
                if let Err(entry) = self.readers.give(entry, commit_id, &self.means) {
                    self.hand_over(entry, commit_id, None);
                }
            }
            Weight::Slow | Weight::WaitsForDisk => {
                self.pending += 1;
                let pause = (weight == Weight::WaitsForDisk).then(|| self.means.vigil.pause());
                self.hand_over(entry, commit_id, pause);
            }
        }
    }

    fn answer_now(&mut self, mut entry: Entry, commit_id: u64) {
        let start = Instant::now();
        answer(&self.means.handler, &mut entry, &mut self.scratch);
        if start.elapsed() > SLOW && self.disk.was_read() {
            self.careful = CAREFUL;
        }
        self.commit(entry, commit_id);
    }

    /// Has a worker answer.
    fn hand_over(&self, mut entry: Entry, commit_id: u64, pause: Option<Pause>) {
        let (handler, outbox) = (Arc::clone(&self.means.handler), Arc::clone(&self.means.outbox));
        self.workers.submit(move || {
            answer(&handler, &mut entry, &mut Vec::new());
            outbox.put(Returned::Finished(Finished { entry, commit_id, pause }));
        });
    }

    fn weigh(&mut self, entry: &mut Entry, careful: bool) -> Weight {
        let handler = &self.means.handler;
        let room = self.workers.have_room();
        let last = &mut self.read;
        let weight = |arrived: &Arrived, request: Request<'_>| match request {
            Request::Read { size, .. }
                if size >= LARGE_READ
                    && room
                    && last.replace(arrived.header.node) == Some(arrived.header.node) =>
            {
                Weight::Large
            }
            request if waits_for_disk(&request) => Weight::WaitsForDisk,
            request if handler.may_take_long(&arrived.header, &request, careful) => Weight::Slow,
            _ => Weight::Quick,
        };
        look_at(handler, entry, weight).unwrap_or(Weight::Quick)
    }

    fn commit(&mut self, entry: Entry, commit_id: u64) {
        let committed = self.ring.commit(entry, commit_id);
        self.note(committed);
        self.means.vigil.served();
    }
}

/// Logs why an entry is of no more use, unless the connection has ended.
fn lost(errno: Errno) {
    if !matches!(errno, Errno::NOTCONN | Errno::NODEV | Errno::CANCELED) {
        tracing::warn!("the kernel gave an io_uring entry up: {errno}");
    }
}

/// Looks at the request in `entry`; none if it is broken.
fn look_at<T>(
    handler: &Handler,
    entry: &mut Entry,
    look: impl FnOnce(&Arrived, Request<'_>) -> T,
) -> Option<T> {
    let (head, payload) = entry.parts();
    let arrived = Arrived::read(head, payload.len()).ok()?;
    let data = payload.get(..arrived.data_len).unwrap_or_default();
    let request = wire::parse_parts(&arrived.header, handler.config().setxattr_ext, &arrived.argument, data);
    Some(look(&arrived, request.ok()?))
}

/// Returns whether the request in `entry` is a large read.
pub(super) fn is_large_read(handler: &Handler, entry: &mut Entry) -> bool {
    let large = |_: &Arrived, request: Request<'_>| matches!(request, Request::Read { size, .. } if size >= LARGE_READ);
    look_at(handler, entry, large).unwrap_or(false)
}

/// Returns the number by which the kernel knows the request in `entry`.
pub(super) fn commit_id_of(entry: &mut Entry) -> u64 {
    let (head, _) = entry.parts();
    number(head, COMMIT_ID_AT).map_or(0, u64::from_ne_bytes)
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// A request as an entry holds it, with what its answer will overwrite copied out.
struct Arrived {
    header: Header,
    argument: [u8; ARGUMENT_LEN],
    /// Names and data, without extensions.
    data_len: usize,
}

impl Arrived {
    fn read(head: &[u8], payload_len: usize) -> std::result::Result<Self, Errno> {
        let header = Header::parse(head.get(..IN_HEADER_LEN).unwrap_or_default()).map_err(|_| Errno::IO)?;
        let argument = number(head, ARGUMENT_AT).ok_or(Errno::IO)?;
        let sent = u32::from_ne_bytes(number(head, PAYLOAD_LEN_AT).ok_or(Errno::IO)?);
        let sent = usize::try_from(sent).map_err(|_| Errno::IO)?;
        let data_len = sent.checked_sub(header.extensions_len).ok_or(Errno::IO)?;
        if sent > payload_len {
            return Err(Errno::IO);
        }
        Ok(Self { header, argument, data_len })
    }

    /// Returns whether the payload holds data that is too large to be copied out first.
    fn has_data(&self) -> bool {
        matches!(
            Opcode::from_number(self.header.opcode),
            Some(Opcode::Write | Opcode::Setxattr | Opcode::Ioctl | Opcode::NotifyReply)
        )
    }
}

/// Answers the request in `entry`, in place.
pub(super) fn answer(handler: &Handler, entry: &mut Entry, scratch: &mut Vec<u8>) {
    let (head, payload) = entry.parts();
    let unique = number(head, 8).map_or(0, u64::from_ne_bytes);
    let outcome = match Arrived::read(head, payload.len()) {
        Ok(arrived) => dispatch(handler, &arrived, payload, scratch),
        Err(errno) => Outcome::Error(errno),
    };
    let (error, len) = match outcome {
        Outcome::Reply(len) => (0, len),
        Outcome::Error(errno) => (errno.raw_os_error(), 0),
        // The entry must be given back all the same.
        Outcome::Silence => (0, 0),
    };
    let written = reply::out_header(head, unique, error, len);
    debug_assert_eq!(written, Some(OUT_HEADER_LEN), "the buffer has {HEADER_LEN} bytes");
    let len = u32::try_from(len).unwrap_or(0).to_ne_bytes();
    if let Some(place) = head.get_mut(PAYLOAD_LEN_AT..PAYLOAD_LEN_AT + len.len()) {
        place.copy_from_slice(&len);
    }
}

fn dispatch(handler: &Handler, arrived: &Arrived, payload: &mut [u8], scratch: &mut Vec<u8>) -> Outcome {
    let ext = handler.config().setxattr_ext;
    let data = payload.get(..arrived.data_len).unwrap_or_default();
    if arrived.has_data() {
        let mut out = [0; SHORT_ANSWER];
        let outcome = match wire::parse_parts(&arrived.header, ext, &arrived.argument, data) {
            Ok(request) => handler.dispatch(&arrived.header, &request, &mut out),
            Err(error) => Outcome::Error(error.errno()),
        };
        if let Outcome::Reply(len) = outcome
            && let (Some(to), Some(from)) = (payload.get_mut(..len), out.get(..len))
        {
            to.copy_from_slice(from);
        }
        return outcome;
    }
    // Names are short; the answer goes where they are.
    scratch.clear();
    scratch.extend_from_slice(data);
    match wire::parse_parts(&arrived.header, ext, &arrived.argument, scratch) {
        Ok(request) => handler.dispatch(&arrived.header, &request, payload),
        Err(error) => Outcome::Error(error.errno()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_counted() {
        for (list, want) in [
            ("0\n", Some(1)),
            ("0-1\n", Some(2)),
            ("0-3,8-9,11", Some(7)),
            ("", None),
            ("3-1", None),
            ("a-b", None),
        ] {
            assert_eq!(count_processors(list), want, "{list:?}");
        }
    }
}
