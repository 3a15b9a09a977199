//! The thread that finishes files: when, how many at once, and what it does about errors.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{File, Shared, Stage};
use crate::sys;

/// How long a file may be unfinished before its turn comes: what a power cut can take back, beside what it always can.
const INTERVAL: Duration = Duration::from_millis(500);
/// How many files are enough to begin at once.
pub(super) const MANY: usize = 512;
/// How many files who has no room finishes before it goes on.
const HELP: usize = 64;
/// How long to wait after an error.
const PAUSE: Duration = Duration::from_secs(1);
/// Bytes copied of one file in parts before others have their turn.
const TURN: u64 = 64 << 20;

/// What became of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// Nothing is left that was there at its beginning.
    Done,
    /// Files in parts wait for their next turn.
    More,
    /// Something failed and is tried again.
    Failed,
}

impl Shared {
    /// The life of the thread: until the mount is gone and all is finished that can be.
    pub(super) fn run(&self) {
        loop {
            let ending = self.wait();
            let round = self.round(ending);
            {
                let mut files = self.files.lock();
                files.since = (!files.by_ino.is_empty()).then(Instant::now);
                files.urgent |= round == Round::More;
            }
            self.lease.give_back(|| !ending && !self.files.lock().by_ino.is_empty());
            if ending {
                return;
            }
            if round == Round::Failed {
                self.pause();
            }
        }
    }

    /// Waits until there is something to do; returns whether the mount is gone.
    fn wait(&self) -> bool {
        let mut files = self.files.lock();
        loop {
            if files.ending {
                return true;
            }
            match files.since.map(|since| since + INTERVAL) {
                _ if std::mem::take(&mut files.urgent) => return false,
                None => self.wake.wait(&mut files),
                Some(due) if Instant::now() >= due => return false,
                Some(due) => {
                    self.wake.wait_until(&mut files, due);
                }
            }
        }
    }

    /// Lets some time pass after an error.
    fn pause(&self) {
        let mut files = self.files.lock();
        if !files.ending {
            self.wake.wait_for(&mut files, PAUSE);
        }
    }

    /// Returns the files there are to finish.
    pub(super) fn batch(&self) -> Vec<Arc<File>> {
        self.files.lock().by_ino.values().filter(|file| file.is_marked()).map(Arc::clone).collect()
    }

    /// Finishes what there is, files in parts only as far as their turn goes, unless the mount is gone.
    fn round(&self, ending: bool) -> Round {
        let mut ready = Vec::new();
        let mut round = Round::Done;
        for file in self.batch() {
            match &file.parts {
                Some(parts) if !ending => match parts.advance(file.fd.as_fd(), TURN) {
                    Ok(true) => ready.push(file),
                    Ok(false) if round == Round::Done => round = Round::More,
                    Ok(false) => {}
                    Err(error) => {
                        file.complain(&error);
                        round = Round::Failed;
                    }
                },
                _ => ready.push(file),
            }
        }
        if self.finish_batch(&ready) { round } else { Round::Failed }
    }

    /// Finishes files together: the disk gets all of them to write before any is waited for. Returns whether nothing
    /// failed.
    pub(super) fn finish_batch(&self, batch: &[Arc<File>]) -> bool {
        for file in batch {
            // It only begins what is done below, and its errors come there.
            if let Err(errno) = sys::write_back::start(file.fd.as_fd()) {
                tracing::debug!(%errno, "cannot start write-back");
            }
        }
        let mut done = true;
        for file in batch {
            if let Err(error) = self.finish(file) {
                file.complain(&error);
                done = false;
            }
        }
        done
    }

    /// Finishes some files on behalf of one that has no room.
    pub(super) fn make_room(&self) {
        let mut some = self.batch();
        some.retain(|file| file.parts.is_none());
        some.truncate(HELP);
        self.finish_batch(&some);
    }
}

impl File {
    /// Returns whether it is still to be finished, as far as can be told without waiting.
    fn is_marked(&self) -> bool {
        self.stage.try_lock().is_none_or(|stage| *stage == Stage::Marked)
    }
}
