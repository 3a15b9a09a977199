//! Threads beside a queue's own that answer a stream of large reads over io_uring.
//!
//! The kernel reads ahead of the caller, so another processor can copy from the layer while the caller's copies to it. A thread
//! that hands its answers back to the queue gains half of that: the queue's thread has to be woken for each, on the caller's
//! processor, and the kernel copies the answer where it is sent. So a reader sends its answers itself, by a ring of its own. With
//! that it keeps the entry: the next read of the stream wakes it and nobody else.
//!
//! What is no large read the reader gives back to the queue, and with it the entry. It has one at a time, or requests would wait
//! behind it while another thread has nothing to do.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::awake::Vigil;
use super::processors::Processors;
use super::sys::ring::{Entry, Event, Ring};
use super::uring::{Finished, Outbox, PAUSE, Returned, answer, commit_id_of, is_large_read};
use crate::error::Errno;
use crate::fuse::handler::Handler;

/// Readers of a queue: as many reads of one stream the kernel has under way.
const READERS: usize = 2;

/// What a reader needs to answer.
#[derive(Clone)]
pub(super) struct Means {
    pub(super) device: Arc<OwnedFd>,
    pub(super) handler: Arc<Handler>,
    pub(super) vigil: Arc<Vigil>,
    /// Where they run: not only where the queue's thread does.
    pub(super) places: Processors,
    /// To whom entries go back.
    pub(super) outbox: Arc<Outbox>,
}

/// The readers of one queue, started when they are first needed.
#[derive(Default)]
pub(super) struct Readers {
    threads: Vec<Reader>,
}

/// One of them, as the queue knows it.
struct Reader {
    /// It has an entry, or is about to get one.
    taken: Arc<AtomicBool>,
    entries: Sender<(Entry, u64)>,
    thread: JoinHandle<()>,
}

impl Readers {
    /// Gives the request in `entry` to a reader; gives it back if none is free.
    pub(super) fn give(&mut self, entry: Entry, commit_id: u64, means: &Means) -> Result<(), Entry> {
        let Some(reader) = self.free(means) else { return Err(entry) };
        reader.taken.store(true, Ordering::Release);
        reader.entries.send((entry, commit_id)).map_err(|unsent| unsent.0.0)
    }

    /// Returns a reader that has no entry, a new one if there may be another.
    fn free(&mut self, means: &Means) -> Option<&Reader> {
        let free = self.threads.iter().position(|reader| !reader.taken.load(Ordering::Acquire));
        if free.is_some() || self.threads.len() >= READERS {
            return self.threads.get(free?);
        }
        match start(means.clone()) {
            Ok(reader) => self.threads.push(reader),
            Err(errno) => {
                tracing::debug!("cannot start a thread for large reads: {errno}");
                return None;
            }
        }
        self.threads.last()
    }

    /// Ends the threads. To be called when the connection has ended.
    pub(super) fn close(&mut self) {
        for Reader { entries, thread, .. } in self.threads.drain(..) {
            drop(entries);
            if thread.join().is_err() {
                tracing::error!("a thread for large reads broke");
            }
        }
    }
}

fn start(means: Means) -> Result<Reader, Errno> {
    let failed = |error: std::io::Error| error.raw_os_error().map_or(Errno::AGAIN, Errno::from_raw_os_error);
    let ring = Ring::new(means.device.as_fd(), None, 1)?;
    let taken = Arc::<AtomicBool>::default();
    let (entries, given) = channel();
    let life = Life { ring, taken: Arc::clone(&taken), means };
    let thread = std::thread::Builder::new().name("fuse-reader".to_owned()).spawn(move || life.live(&given));
    Ok(Reader { taken, entries, thread: thread.map_err(failed)? })
}

/// The life of a reader.
struct Life {
    ring: Ring,
    taken: Arc<AtomicBool>,
    means: Means,
}

impl Life {
    fn live(mut self, given: &Receiver<(Entry, u64)>) {
        self.means.places.use_all();
        let enabled = self.ring.enable();
        if let Err(errno) = &enabled {
            tracing::error!("a ring for large reads fails: {errno}");
        }
        while let Ok((mut entry, commit_id)) = given.recv() {
            answer(&self.means.handler, &mut entry, &mut Vec::new());
            let back = if enabled.is_ok() {
                self.stream(entry, commit_id)
            } else {
                Returned::Finished(Finished { entry, commit_id, pause: None })
            };
            // Before it goes back: the queue may give it at once.
            self.taken.store(false, Ordering::Release);
            self.means.outbox.put(back);
        }
    }

    /// Sends the answer in `entry` and answers large reads in it, until something else comes.
    fn stream(&mut self, mut entry: Entry, mut commit_id: u64) -> Returned {
        loop {
            if let Err(errno) = self.ring.commit(entry, commit_id) {
                return Returned::Lost(errno);
            }
            self.means.vigil.served();
            entry = match self.next() {
                Ok(entry) => entry,
                Err(errno) => return Returned::Lost(errno),
            };
            if !is_large_read(&self.means.handler, &mut entry) {
                return Returned::Unanswered(entry);
            }
            commit_id = commit_id_of(&mut entry);
            answer(&self.means.handler, &mut entry, &mut Vec::new());
        }
    }

    /// Waits for the next request.
    fn next(&mut self) -> Result<Entry, Errno> {
        loop {
            match self.ring.submit_and_wait() {
                Ok(()) | Err(Errno::INTR) => {}
                Err(errno) => {
                    tracing::error!("a ring for large reads fails: {errno}");
                    std::thread::sleep(PAUSE);
                }
            }
            match self.ring.next() {
                Some(Event::Request(entry)) => return Ok(entry),
                Some(Event::Lost(errno)) => return Err(errno),
                Some(Event::Woken) | None => {}
            }
        }
    }
}
