//! What says that a server is not done with the files of an upper: a lock that others wait for, and a note in the workdir
//! that is left if the server is killed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FlockOperation, OFlags};

use crate::error::{Errno, Result};
use crate::ondisk::unfinished::{Extent, UNFINISHED, Unfinished, Writer};
use crate::sys;

/// How often the lock is tried: who looks whether it is free holds it for a moment.
const TRIES: u32 = 50;

/// Held while any file of the upper is unfinished.
#[derive(Debug)]
pub(crate) struct Lease {
    root: OwnedFd,
    workdir: OwnedFd,
    writer: Writer,
    held: AtomicBool,
    /// Held while the lease is taken or given back.
    change: Mutex<()>,
}

impl Lease {
    /// Makes the lease of an upper, not held.
    pub(crate) fn new(root: BorrowedFd<'_>, workdir: BorrowedFd<'_>, writer: Writer) -> Result<Self> {
        let (root, workdir) = (root.try_clone_to_owned()?, workdir.try_clone_to_owned()?);
        Ok(Self { root, workdir, writer, held: AtomicBool::new(false), change: Mutex::new(()) })
    }

    /// Returns whether this server holds it.
    pub(crate) fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    /// Takes it, before the first unfinished file can be seen by others.
    pub(crate) fn take(&self) -> Result<()> {
        if self.is_held() {
            return Ok(());
        }
        let _change = self.change.lock();
        if self.is_held() {
            return Ok(());
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let note = sys::open_at(self.workdir.as_fd(), UNFINISHED.as_bytes(), flags, 0o600)?;
        let value = Unfinished { extent: Extent::Whole, writer: self.writer }.encode();
        sys::copy::write_all(note.as_fd(), &value, 0)?;
        for _ in 0..TRIES {
            match rustix::fs::flock(&self.root, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(Duration::from_millis(1)),
                // A file system without locks: nobody can be told.
                Ok(()) | Err(_) => break,
            }
        }
        self.held.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Gives it back, unless `needed` says that it is in use again.
    pub(crate) fn give_back(&self, needed: impl Fn() -> bool) {
        let _change = self.change.lock();
        if !self.held.swap(false, Ordering::SeqCst) {
            return;
        }
        // Who comes after this sees that it is not held, and waits for `change`.
        if needed() {
            self.held.store(true, Ordering::SeqCst);
            return;
        }
        remove_note(self.workdir.as_fd());
        if let Err(errno) = rustix::fs::flock(&self.root, FlockOperation::Unlock) {
            tracing::debug!(%errno, "cannot unlock the upper");
        }
    }
}

/// Returns who left unfinished files behind, if a server did.
pub(crate) fn left_behind(workdir: BorrowedFd<'_>) -> Option<Writer> {
    let note = sys::open_at(workdir, UNFINISHED.as_bytes(), OFlags::RDONLY, 0).ok()?;
    let mut value = [0; 64];
    let len = rustix::io::pread(&note, &mut value, 0).ok()?;
    Some(Unfinished::parse(value.get(..len)?)?.writer)
}

/// Removes the note in the workdir.
pub(crate) fn remove_note(workdir: BorrowedFd<'_>) {
    match rustix::fs::unlinkat(workdir, UNFINISHED.as_bytes(), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        // It costs the next mount a search in vain.
        Err(errno) => tracing::debug!(%errno, "cannot remove the note of unfinished files"),
    }
}
