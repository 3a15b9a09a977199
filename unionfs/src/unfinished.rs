//! Copied-up files that are not safe on the disk yet: served at once, made safe together a moment later.
//!
//! A file is published with marks by which everybody else still sees the lower's data (see [`crate::stack::settle`]). A
//! thread brings the data of all such files to the disk and then takes their marks away; who asks for one to be safe has
//! it done at once. So a copy-up waits for no disk, and a power cut at any moment leaves the old file or the new one.

mod finisher;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::error::{Errno, Error, Result};
use crate::ondisk::Namespace;
use crate::ondisk::unfinished::{Extent, Writer};
use crate::parts::Parts;
use crate::stack::attributes::NATIVE;
use crate::stack::lease::Lease;
use crate::stack::owners::Owners;
use crate::stack::settle::{self, Durability, Marks};
use crate::stack::upper::UpperLayer;
use crate::sys::Stat;

/// Files at most that wait to be finished, each an open file: who copies up the next one first helps.
const FILES: usize = 2048;

/// The unfinished files of a mount.
#[derive(Debug)]
pub(crate) struct Unfinished {
    /// None: there is no upper, or it cannot hold marks.
    shared: Option<Arc<Shared>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the finishing thread shares with the mount.
#[derive(Debug)]
struct Shared {
    namespace: Namespace,
    durability: Durability,
    writer: Writer,
    lease: Arc<Lease>,
    /// Files at most.
    room: usize,
    files: Mutex<Files>,
    /// How many of them are in parts.
    in_parts: AtomicUsize,
    /// Signalled when there is something to do.
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Files {
    /// By inode number on the upper, which nothing else can get while the file is open here.
    by_ino: HashMap<u64, Arc<File>>,
    /// When the oldest of them was published.
    since: Option<Instant>,
    /// There is enough to begin at once.
    urgent: bool,
    /// The mount is gone: finish and end.
    ending: bool,
}

/// One unfinished file.
#[derive(Debug)]
pub(crate) struct File {
    ino: u64,
    fd: Arc<OwnedFd>,
    parts: Option<Arc<Parts>>,
    /// Those it may have.
    marks: Marks,
    /// Held while it is finished.
    stage: Mutex<Stage>,
    /// What it suffers from was said.
    complained: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It has its marks.
    Marked,
    /// It is safe.
    Finished,
    /// Its data did not reach the disk: it is served from memory, and is the old one after the mount.
    Lost(Errno),
}

impl Unfinished {
    /// Makes the list of a mount: empty. Unless it `syncs`, finished means copied.
    pub(crate) fn new(upper: Option<&UpperLayer>, syncs: bool) -> Self {
        let room = crate::stack::descriptor_budget();
        let shared = upper.and_then(|upper| {
            Some(Arc::new(Shared {
                namespace: upper.features.namespace?,
                durability: if syncs { upper.durability } else { Durability::Memory },
                writer: upper.writer,
                lease: Arc::clone(&upper.lease),
                room: FILES.min(room).max(1),
                files: Mutex::default(),
                in_parts: AtomicUsize::new(0),
                wake: Condvar::new(),
            }))
        });
        Self { shared, thread: Mutex::new(None) }
    }

    /// Adds a marked file, before others can see it.
    pub(crate) fn add(
        &self,
        ino: u64,
        fd: Arc<OwnedFd>,
        parts: Option<Arc<Parts>>,
        marks: Marks,
    ) -> Result<()> {
        let shared = self.shared.as_ref().ok_or(Error::new(Errno::IO))?;
        self.start(shared)?;
        if shared.files.lock().by_ino.len() >= shared.room {
            shared.make_room();
        }
        let file = Arc::new(File {
            ino,
            fd,
            parts,
            marks,
            stage: Mutex::new(Stage::Marked),
            complained: AtomicBool::new(false),
        });
        let wake = {
            let mut files = shared.files.lock();
            let first = files.since.is_none();
            let enough = file.parts.is_some() || files.by_ino.len() + 1 == finisher::MANY;
            files.since.get_or_insert_with(Instant::now);
            files.urgent |= enough;
            shared.in_parts.fetch_add(usize::from(file.parts.is_some()), Ordering::Release);
            files.by_ino.insert(ino, file);
            first || enough
        };
        if let Err(error) = shared.lease.take() {
            self.take_back(ino);
            return Err(error);
        }
        if wake {
            shared.wake.notify_all();
        }
        Ok(())
    }

    /// Takes a file back that was not published after all.
    pub(crate) fn take_back(&self, ino: u64) {
        if let Some(shared) = &self.shared {
            shared.remove(ino);
        }
    }

    /// Returns how a file is served that the upper has in parts.
    pub(crate) fn parts(&self, ino: u64) -> Option<Arc<Parts>> {
        self.in_parts(ino)?.parts.as_ref().map(Arc::clone)
    }

    /// Returns the attributes of a file that the upper has in parts.
    pub(crate) fn stat(&self, ino: u64, owners: Owners) -> Option<Result<Stat>> {
        let file = self.in_parts(ino)?;
        file.parts.as_ref().map(|parts| parts.stat(file.fd.as_fd(), owners))
    }

    fn in_parts(&self, ino: u64) -> Option<Arc<File>> {
        let shared = self.shared.as_ref()?;
        // Nearly always there is none: no lock that all files share.
        if shared.in_parts.load(Ordering::Acquire) == 0 {
            return None;
        }
        let file = shared.files.lock().by_ino.get(&ino).map(Arc::clone)?;
        let in_parts = file.parts.as_ref().is_some_and(|parts| !parts.is_complete());
        in_parts.then_some(file)
    }

    /// Returns whether a file is unfinished.
    pub(crate) fn contains(&self, ino: u64) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.files.lock().by_ino.contains_key(&ino))
    }

    /// Finishes a file now, if it is unfinished: its data is on the disk, its marks are gone, though maybe not yet on the
    /// disk.
    ///
    /// # Errors
    /// What the disk answered, now or when it was tried before.
    pub(crate) fn finish(&self, ino: u64) -> Result<()> {
        let Some(shared) = &self.shared else { return Ok(()) };
        let Some(file) = shared.files.lock().by_ino.get(&ino).map(Arc::clone) else { return Ok(()) };
        shared.finish(&file)
    }

    /// Finishes all files.
    pub(crate) fn finish_all(&self) {
        let Some(shared) = &self.shared else { return };
        shared.finish_batch(&shared.batch());
        shared.lease.give_back(|| !shared.files.lock().by_ino.is_empty());
    }

    /// Returns whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| shared.files.lock().by_ino.is_empty())
    }

    fn start(&self, shared: &Arc<Shared>) -> Result<()> {
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let shared = Arc::clone(shared);
            let work = move || shared.run();
            let started = std::thread::Builder::new().name("finisher".to_owned()).spawn(work);
            *thread = Some(started.map_err(|error| Error::from(error).during("start thread", "finisher"))?);
        }
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(shared) = &self.shared else { return };
        shared.files.lock().ending = true;
        shared.wake.notify_all();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the finisher of copied-up files ended by a panic");
        }
    }
}

impl File {
    /// Tells once that it cannot be finished.
    fn complain(&self, error: &Error) {
        if !self.complained.swap(true, Ordering::Relaxed) {
            tracing::error!("a copied-up file cannot be finished, trying again: {error}");
        }
    }
}

impl Shared {
    /// Finishes one file, whoever else is at it.
    fn finish(&self, file: &File) -> Result<()> {
        let mut stage = file.stage.lock();
        match *stage {
            Stage::Finished => return Ok(()),
            Stage::Lost(errno) => return Err(Error::new(errno)),
            Stage::Marked => {}
        }
        if let Some(parts) = &file.parts {
            parts.finish(file.fd.as_fd())?;
            // If this process is killed now, nothing is lost.
            settle::mark(file.fd.as_fd(), self.namespace, Extent::Whole, self.writer)?;
        }
        if let Err(error) = settle::write_back(file.fd.as_fd(), self.durability) {
            // What could not be written is clean to the kernel now: to ask again would answer that all is well.
            *stage = Stage::Lost(error.errno());
            file.complained.store(true, Ordering::Relaxed);
            tracing::error!(
                "a copied-up file cannot be written to the disk and will be the old one: {error}"
            );
            settle::mark(file.fd.as_fd(), self.namespace, Extent::Ranges, self.writer)?;
            return Err(error);
        }
        settle::unmark(&NATIVE, file.fd.as_fd(), self.namespace, file.marks)?;
        *stage = Stage::Finished;
        drop(stage);
        self.remove(file.ino);
        Ok(())
    }

    fn remove(&self, ino: u64) {
        let file = self.files.lock().by_ino.remove(&ino);
        if file.is_some_and(|file| file.parts.is_some()) {
            self.in_parts.fetch_sub(1, Ordering::Release);
        }
    }
}
