//! Whether a thread read from a disk: what tells an answer that waited for one from a thread that was only not running.

use nix::sys::resource::{UsageWho, getrusage};

/// The reads of one thread. To be used by that thread only.
#[derive(Debug, Default)]
pub(super) struct DiskReads {
    seen: i64,
}

impl DiskReads {
    /// Returns whether this thread has read from a disk since the last call.
    pub(super) fn was_read(&mut self) -> bool {
        let Ok(usage) = getrusage(UsageWho::RUSAGE_THREAD) else { return false };
        let reads = usage.block_reads();
        let changed = reads != self.seen;
        self.seen = reads;
        changed
    }
}
