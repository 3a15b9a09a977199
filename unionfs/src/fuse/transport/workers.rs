//! Threads for operations that may take long, so that a queue's thread never waits for a disk.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::processors::Processors;

/// Threads at most: so many operations can wait for disks at the same time.
const MAX_THREADS: usize = 32;

type Job = Box<dyn FnOnce() + Send>;

/// A pool that starts threads when they are needed.
pub(super) struct Workers {
    /// Where they run: not only where the thread does that hands a job over.
    places: Processors,
    state: Mutex<State>,
    ready: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    closed: bool,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Workers").field("jobs", &state.jobs.len()).field("idle", &state.idle).finish()
    }
}

impl Default for Workers {
    fn default() -> Self {
        Self { places: Processors::of_this_thread(), state: Mutex::default(), ready: Condvar::new() }
    }
}

impl Workers {
    /// Returns where they run.
    pub(super) const fn places(&self) -> Processors {
        self.places
    }

    /// Returns whether they may run on another processor than the thread that hands a job over.
    pub(super) fn have_room(&self) -> bool {
        self.places.count() > 1
    }

    /// Has a thread do `job`; gives it back if none can be had.
    pub(super) fn submit<F: FnOnce() + Send + 'static>(self: &Arc<Self>, job: F) {
        let mut state = self.state.lock();
        state.jobs.push_back(Box::new(job));
        if state.idle >= state.jobs.len() || state.threads.len() >= MAX_THREADS {
            drop(state);
            self.ready.notify_one();
            return;
        }
        let pool = Arc::clone(self);
        match std::thread::Builder::new().name("fuse-worker".to_owned()).spawn(move || pool.work()) {
            Ok(thread) => state.threads.push(thread),
            Err(error) if state.threads.is_empty() => {
                tracing::warn!("cannot start a worker: {error}");
                let job = state.jobs.pop_back();
                drop(state);
                // Late is better than never.
                if let Some(job) = job {
                    job();
                }
            }
            // Those that are there do it.
            Err(error) => tracing::warn!("cannot start another worker: {error}"),
        }
    }

    fn work(&self) {
        self.places.use_all();
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.state.lock();
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                self.ready.wait(&mut state);
                state.idle -= 1;
            }
        }
    }

    /// Waits until all jobs are done and ends the threads.
    pub(super) fn close(&self) {
        let threads = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.threads)
        };
        self.ready.notify_all();
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a worker broke");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_job_is_done_before_close_returns() {
        let workers = Arc::new(Workers::default());
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..200 {
            let done = Arc::clone(&done);
            workers.submit(move || {
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        workers.close();
        assert_eq!(done.load(Ordering::Relaxed), 200);
    }

    #[test]
    fn jobs_that_wait_for_each_other_run_at_the_same_time() {
        let workers = Arc::new(Workers::default());
        let meeting = Arc::new(std::sync::Barrier::new(8));
        for _ in 0..8 {
            let meeting = Arc::clone(&meeting);
            workers.submit(move || {
                meeting.wait();
            });
        }
        workers.close();
    }
}
