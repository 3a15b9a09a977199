//! The bounded cache of directory descriptors, for all layers of a mount.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

/// Which directory a cached descriptor is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DirKey {
    /// A directory of a lower layer, by the number of its description.
    Lower(u64),
    /// A directory of the upper, by its node's serial number: it keeps its descriptor when it is renamed.
    Upper(u64),
}

/// Directory descriptors, the least recently used closed first.
#[derive(Debug)]
pub(crate) struct DirFds(Mutex<LruCache<DirKey, Arc<OwnedFd>>>);

impl DirFds {
    /// Makes a cache of at most `capacity` descriptors.
    pub(crate) fn new(capacity: usize) -> Self {
        Self(Mutex::new(LruCache::new(NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN))))
    }

    /// Returns the descriptor if it is there.
    pub(crate) fn get(&self, key: DirKey) -> Option<Arc<OwnedFd>> {
        self.0.lock().get(&key).cloned()
    }

    /// Keeps a descriptor. What it displaces is closed after the lock is given up.
    pub(crate) fn put(&self, key: DirKey, fd: Arc<OwnedFd>) {
        let displaced = self.0.lock().push(key, fd);
        drop(displaced);
    }

    /// Returns how many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().len()
    }

    /// Keeps the descriptor that `old` has under `new` instead.
    pub(crate) fn move_key(&self, old: DirKey, new: DirKey) {
        let displaced = {
            let mut fds = self.0.lock();
            fds.pop(&old).and_then(|fd| fds.push(new, fd))
        };
        drop(displaced);
    }

    /// Forgets a descriptor.
    pub(crate) fn remove(&self, key: DirKey) {
        let removed = self.0.lock().pop(&key);
        drop(removed);
    }
}
