//! The first opening of a file: it teaches the kernel to ask for no more.
//!
//! The kernel sends OPEN until one is answered ENOSYS, and as long as it does, each file that is created sends a RELEASE
//! when it is closed; so for directories, and for FLUSH. A mount may have no file that could be opened. So there is one
//! that exists for this alone: under a name that no listing shows and nobody else knows, until it was opened.

use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags};

use crate::error::{Errno, Error, Result};
use crate::ondisk::WHITEOUT_PREFIX;
use crate::request::{Attr, Entry, FileKind, NodeId, Timestamp};

/// The file's number: none that the union gives.
const NODE: NodeId = NodeId(u64::MAX);

/// The file that is there to be opened.
#[derive(Debug)]
pub struct Primer {
    name: Vec<u8>,
    done: AtomicBool,
}

impl Default for Primer {
    fn default() -> Self {
        let secret = RandomState::new().hash_one(NODE.0);
        let name = [WHITEOUT_PREFIX, format!("{secret:016x}").as_bytes()].concat();
        Self { name, done: AtomicBool::new(false) }
    }
}

impl Primer {
    /// Returns the file, if `name` in `parent` is it and it was not opened yet.
    pub(super) fn find(&self, parent: NodeId, name: &[u8]) -> Option<Entry> {
        let here = parent == NodeId::ROOT && !self.done.load(Ordering::Relaxed) && name == self.name;
        here.then(entry)
    }

    /// Opens and closes the file, and the root, of the mount at `target`.
    ///
    /// Must not be called by a thread that answers requests of the mount.
    ///
    /// # Errors
    ///
    /// What open(2) answers.
    pub fn prime(&self, target: &Path) -> Result<()> {
        let opened = self.open(target);
        self.done.store(true, Ordering::Relaxed);
        opened.map_err(|errno| Error::new(errno).during("open for the first time", &self.name))
    }

    fn open(&self, target: &Path) -> std::result::Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(target, flags | OFlags::DIRECTORY, Mode::empty())?;
        rustix::fs::openat(&root, self.name.as_slice(), flags, Mode::empty()).map(drop)
    }
}

fn entry() -> Entry {
    let time = Timestamp { sec: 0, nsec: 0 };
    let attr = Attr {
        ino: NODE.0,
        kind: FileKind::Regular,
        perm: 0o444,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        blksize: 4096,
        atime: time,
        mtime: time,
        ctime: time,
        btime: None,
    };
    Entry { node: NODE, attr }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_found_by_its_name_until_it_was_opened() {
        let primer = Primer::default();
        assert_eq!(primer.find(NodeId::ROOT, &primer.name).map(|entry| entry.node), Some(NODE));
        assert!(primer.find(NodeId(5), &primer.name).is_none());
        assert!(primer.find(NodeId::ROOT, b".wh.").is_none());
        assert!(primer.prime(Path::new("/")).is_err(), "no such file in another file system");
        assert!(primer.find(NodeId::ROOT, &primer.name).is_none());
        assert_ne!(Primer::default().name, primer.name);
    }
}
