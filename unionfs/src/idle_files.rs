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
use crate::request::NodeId;

/// Descriptors kept at most.
const FILES: NonZeroUsize = NonZeroUsize::new(448).unwrap();

/// The files.
#[derive(Debug)]
pub(crate) struct IdleFiles(Mutex<LruCache<NodeId, Arc<Inode>>>);

impl Default for IdleFiles {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(FILES)))
    }
}

impl IdleFiles {
    /// Notes that a file was used without a handle. Must be called with no node's `data` held: it may close the file
    /// of another node.
    pub(crate) fn used(&self, inode: &Arc<Inode>) {
        let displaced = {
            let mut files = self.0.lock();
            if files.get(&inode.id).is_some() {
                return;
            }
            files.push(inode.id, Arc::clone(inode))
        };
        if let Some((_, other)) = displaced.filter(|(id, _)| *id != inode.id) {
            let mut data = other.data.write();
            if other.opens.load(Ordering::Relaxed) == 0 {
                let closed = data.take();
                drop(data);
                drop(closed);
            }
        }
    }

    /// Lets go of a node that the kernel forgot.
    pub(crate) fn forget(&self, id: NodeId) {
        let forgotten = self.0.lock().pop(&id);
        drop(forgotten);
    }
}
