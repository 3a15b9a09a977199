//! Open handles by number. A handle refers to a node, never to one fixed descriptor.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::error::{Errno, Error, Result};
use crate::inode::Inode;
use crate::merge::Listing;
use crate::request::Fh;
use crate::shards::Shards;

/// The handles of one kind.
#[derive(Debug)]
pub(crate) struct Handles<T> {
    next: AtomicU64,
    /// By number, which follow each other: threads that open files at the same time seldom meet.
    shards: Shards<Mutex<HashMap<u64, Arc<T>>>>,
}

/// An open file.
#[derive(Debug)]
pub(crate) struct FileHandle {
    /// What is open.
    pub inode: Arc<Inode>,
}

/// An open directory.
#[derive(Debug)]
pub(crate) struct DirHandle {
    /// What is open.
    pub inode: Arc<Inode>,
    /// The names as they were when the listing was last begun: positions stay valid while the directory changes.
    pub listing: Mutex<Option<Snapshot>>,
}

/// The names of one directory at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// The names.
    pub listing: Arc<Listing>,
    /// The directory's version then: what the names are on holds while it is the same.
    pub version: u64,
    /// The directory's serial number.
    pub serial: u64,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        // 0 is what protocols send for "no handle".
        Self { next: AtomicU64::new(1), shards: Shards::default() }
    }
}

impl<T> Handles<T> {
    /// Adds a handle.
    pub(crate) fn insert(&self, handle: T) -> Fh {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.shards.of(number).lock().insert(number, Arc::new(handle));
        Fh(number)
    }

    /// Returns a handle.
    ///
    /// # Errors
    /// EBADF if it is not open.
    pub(crate) fn get(&self, fh: Fh) -> Result<Arc<T>> {
        self.shards.of(fh.0).lock().get(&fh.0).map(Arc::clone).ok_or(Error::new(Errno::BADF))
    }

    /// Returns how many are open.
    pub(crate) fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Takes a handle out.
    pub(crate) fn remove(&self, fh: Fh) -> Option<Arc<T>> {
        self.shards.of(fh.0).lock().remove(&fh.0)
    }
}
