//! Files that the kernel reads and writes itself, without asking (`data=passthrough`).
//!
//! The kernel keeps one way of I/O for each node: while a file is open through its page cache, it cannot be opened on a
//! backing file, nor the other way round. So the way is chosen with the first open and stays until the last release.
//! Upper files are handed over, and in a mount without an upper all: these are never exchanged for another file, as a
//! lower one is by copy-up, whose new data those that have it open must see.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::error::{Errno, Error, Result};
use crate::request::{Fh, NodeId};
use crate::union::Union;

/// The bit of a handle, as the kernel knows it, that says that it was opened on a backing file.
const ON_BACKING: u64 = 1 << 63;

/// Files kept registered at most while nobody has them open: each is an open file of the kernel.
const IDLE: usize = 4096;

/// Registers backing files with the kernel.
pub trait Register: fmt::Debug + Send + Sync {
    /// Makes a file known and returns its number.
    ///
    /// # Errors
    /// EPERM without `CAP_SYS_ADMIN` in the initial user namespace, ELOOP where the file system is itself stacked.
    fn open(&self, file: BorrowedFd<'_>) -> std::result::Result<u32, Errno>;

    /// Takes a number back. Files that are open on it stay so.
    fn close(&self, id: u32);
}

/// How a file was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the page cache.
    Cached {
        /// What is cached from before is still right.
        keep: bool,
    },
    /// On the backing file with this number.
    Backing(u32),
}

/// The files that are open, or were.
#[derive(Debug)]
pub(super) struct Backings {
    register: Box<dyn Register>,
    nodes: Mutex<HashMap<NodeId, Node>>,
    refused: AtomicBool,
}

#[derive(Debug, Default)]
struct Node {
    /// The backing file's number.
    id: Option<u32>,
    /// Open files, by way. Releases come late, so these can only be too high.
    cached: u32,
    passing: u32,
    /// Data may have changed behind the page cache.
    passed: bool,
}

impl Backings {
    pub(super) fn new(register: Box<dyn Register>) -> Self {
        Self { register, nodes: Mutex::default(), refused: AtomicBool::new(false) }
    }

    /// Chooses the way for a file that the union has just opened.
    pub(super) fn opened(&self, union: &Union, id: NodeId) -> Way {
        let mut nodes = self.nodes.lock();
        let node = nodes.entry(id).or_default();
        if node.cached == 0
            && let Some(backing) = node.id.or_else(|| self.register(union, id))
        {
            node.id = Some(backing);
            node.passing += 1;
            node.passed = true;
            return Way::Backing(backing);
        }
        node.cached += 1;
        Way::Cached { keep: !std::mem::take(&mut node.passed) }
    }

    fn register(&self, union: &Union, id: NodeId) -> Option<u32> {
        if self.refused.load(Ordering::Relaxed) {
            return None;
        }
        let registered = union.with_lasting_file(id, |file| {
            let mode = rustix::fs::fstat(file).ok()?.st_mode;
            if mode & (libc::S_ISUID | libc::S_ISGID) != 0 {
                // Whether a write takes the bits away depends on who writes, which only requests tell.
                return None;
            }
            Some(self.register.open(file))
        });
        match registered?? {
            Ok(backing) => Some(backing),
            Err(errno) => {
                if !self.refused.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "data=passthrough is refused by the kernel ({errno}): files are read through us"
                    );
                }
                None
            }
        }
    }

    /// Has `act` exchange the upper, whose files are then no backing files any more.
    ///
    /// # Errors
    /// EBUSY while one of them is open, because the kernel would go on writing to it.
    pub(super) fn exchange(&self, act: impl FnOnce() -> Result<()>) -> Result<()> {
        // Held all the time: no file is handed over meanwhile. Whoever waits for it is in no request of the union.
        let mut nodes = self.nodes.lock();
        if nodes.values().any(|node| node.passing > 0) {
            return Err(Error::new(Errno::BUSY)
                .during("rotate", "a mount with files that the kernel reads and writes itself")
                .hint("close the files that are open on it, or mount without data=passthrough"));
        }
        act()?;
        for id in nodes.values_mut().filter_map(|node| node.id.take()) {
            self.register.close(id);
        }
        Ok(())
    }

    /// Notes that a file was closed.
    pub(super) fn released(&self, id: NodeId, fh: Fh) {
        let mut nodes = self.nodes.lock();
        let many = nodes.len() > IDLE;
        let Entry::Occupied(mut entry) = nodes.entry(id) else { return };
        let node = entry.get_mut();
        if fh.0 & ON_BACKING == 0 {
            node.cached = node.cached.saturating_sub(1);
        } else {
            node.passing = node.passing.saturating_sub(1);
        }
        if node.passing == 0
            && many
            && let Some(id) = node.id.take()
        {
            self.register.close(id);
        }
        if node.cached == 0 && node.passing == 0 && !node.passed {
            entry.remove();
        }
    }

    /// Chooses the way anew with the next open: the file got set-id bits. While it is open on its backing file, the way
    /// stays, and writes by root take the bits away too.
    pub(super) fn reconsider(&self, id: NodeId) {
        if let Some(node) = self.nodes.lock().get_mut(&id).filter(|node| node.passing == 0)
            && let Some(id) = node.id.take()
        {
            self.register.close(id);
        }
    }

    /// Takes back what is kept for a node that the kernel has dropped, with its cached pages.
    pub(super) fn forget(&self, id: NodeId) {
        let mut nodes = self.nodes.lock();
        let Entry::Occupied(mut entry) = nodes.entry(id) else { return };
        if entry.get().passing == 0 {
            if let Some(id) = entry.get_mut().id.take() {
                self.register.close(id);
            }
            if entry.get().cached == 0 {
                entry.remove();
            }
        }
    }
}

/// Returns the handle as the kernel is told it.
pub(super) const fn told(fh: Fh, way: Way) -> Fh {
    match way {
        Way::Cached { .. } => fh,
        Way::Backing(_) => Fh(fh.0 | ON_BACKING),
    }
}

/// Returns the union's handle.
pub(super) const fn meant(fh: Fh) -> Fh {
    Fh(fh.0 & !ON_BACKING)
}
