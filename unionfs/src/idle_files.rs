//! Files that no handle holds open but that were read or written a moment ago.
//!
//! Where the kernel is told not to send OPEN, no request says when a file is opened or closed. Its descriptor is then
//! kept here, bounded, and closed when it is the least recently used or when the node goes.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lru::LruCache;
use parking_lot::Mutex;

use crate::inode::Inode;

/// Descriptors kept at most.
const FILES: usize = 448;

/// The files, by the serial number of their node.
#[derive(Debug)]
pub(crate) struct IdleFiles(Mutex<LruCache<u64, Arc<Inode>>>);

impl IdleFiles {
    /// Makes room for as many files as the process's `budget` of descriptors allows.
    pub(crate) fn new(budget: usize) -> Self {
        let files = NonZeroUsize::new(FILES.min(budget)).unwrap_or(NonZeroUsize::MIN);
        Self(Mutex::new(LruCache::new(files)))
    }

    /// Notes that a file was used without a handle. Must be called with no node's `data` held: it may close the file
    /// of another node.
    pub(crate) fn used(&self, inode: &Arc<Inode>) {
        let displaced = {
            let mut files = self.0.lock();
            if files.get(&inode.serial).is_some() {
                return;
            }
            files.push(inode.serial, Arc::clone(inode))
        };
        if let Some((_, other)) = displaced.filter(|(serial, _)| *serial != inode.serial) {
            let mut data = other.data.write();
            if other.opens.load(Ordering::Relaxed) == 0 {
                let closed = data.take();
                drop(data);
                drop(closed);
            }
        }
    }

    /// Returns how many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().len()
    }

    /// Lets go of a node that the kernel forgot.
    pub(crate) fn forget(&self, serial: u64) {
        let forgotten = self.0.lock().pop(&serial);
        drop(forgotten);
    }
}
