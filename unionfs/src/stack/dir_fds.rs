//! The bounded cache of directory descriptors, for all layers of a mount.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use crate::shards::{SHARDS, Shards};

/// Which directory a cached descriptor is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DirKey {
    /// A directory of a lower layer, by the number of its description.
    Lower(u64),
    /// A directory of the upper, by its node's serial number: it keeps its descriptor when it is renamed.
    Upper(u64),
}

impl DirKey {
    const fn number(self) -> u64 {
        let (Self::Lower(number) | Self::Upper(number)) = self;
        number
    }
}

type Shard = Mutex<LruCache<DirKey, Arc<OwnedFd>>>;

/// Directory descriptors, of each part the least recently used closed first. No two locks are held at once.
#[derive(Debug)]
pub(crate) struct DirFds(Shards<Shard>);

impl DirFds {
    /// Makes a cache of at most `capacity` descriptors, but of a few at least.
    pub(crate) fn new(capacity: usize) -> Self {
        let each = NonZeroUsize::new(capacity / SHARDS).unwrap_or(NonZeroUsize::MIN);
        Self(Shards::new(|| Mutex::new(LruCache::new(each))))
    }

    fn shard(&self, key: DirKey) -> &Shard {
        self.0.of(key.number())
    }

    /// Returns the descriptor if it is there.
    pub(crate) fn get(&self, key: DirKey) -> Option<Arc<OwnedFd>> {
        self.shard(key).lock().get(&key).cloned()
    }

    /// Keeps a descriptor. What it displaces is closed after the lock is given up.
    pub(crate) fn put(&self, key: DirKey, fd: Arc<OwnedFd>) {
        let displaced = self.shard(key).lock().push(key, fd);
        drop(displaced);
    }

    /// Returns how many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Keeps the descriptor that `old` has under `new` instead.
    pub(crate) fn move_key(&self, old: DirKey, new: DirKey) {
        let moved = self.shard(old).lock().pop(&old);
        if let Some(fd) = moved {
            self.put(new, fd);
        }
    }

    /// Forgets a descriptor.
    pub(crate) fn remove(&self, key: DirKey) {
        let removed = self.shard(key).lock().pop(&key);
        drop(removed);
    }
}
