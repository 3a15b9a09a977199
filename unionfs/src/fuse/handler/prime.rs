//! The first opening of a file: it teaches the kernel to ask for no more.
//!
//! The kernel sends OPEN until one is answered ENOSYS, and as long as it does, each file that is created sends a RELEASE
//! when it is closed; so for directories, and for FLUSH. A mount may have no file that could be opened. So there is one
//! that exists for this alone: under a name that no listing shows and nobody else knows, and once.

use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags};

use crate::error::Errno;
use crate::ondisk::WHITEOUT_PREFIX;
use crate::request::{Attr, Entry, FileKind, NodeId, Timestamp};

/// The file's number: none that the union gives.
const NODE: NodeId = NodeId(u64::MAX);

/// How many random bits the name has, in digits.
const DIGITS: usize = 16;

/// How long the name is.
pub const PRIMER_NAME_LEN: usize = WHITEOUT_PREFIX.len() + DIGITS;

/// The file that is there to be opened.
#[derive(Debug)]
pub struct Primer {
    name: Vec<u8>,
    found: AtomicBool,
}

impl Default for Primer {
    fn default() -> Self {
        let secret = RandomState::new().hash_one(NODE.0);
        let name = [WHITEOUT_PREFIX, format!("{secret:0DIGITS$x}").as_bytes()].concat();
        Self { name, found: AtomicBool::new(false) }
    }
}

impl Primer {
    /// Returns under which name the file is.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Returns the file, if `name` in `parent` is it and it was not found yet.
    pub(super) fn find(&self, parent: NodeId, name: &[u8]) -> Option<Entry> {
        let here = parent == NodeId::ROOT && name == self.name && !self.found.swap(true, Ordering::Relaxed);
        here.then(entry)
    }

    /// Opens and closes the root, and the file `name`, of the mount at `target`.
    ///
    /// Must not be called by a thread that answers requests of the mount.
    ///
    /// # Errors
    ///
    /// What open(2) answers.
    pub fn open(target: &Path, name: &[u8]) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root =
            rustix::fs::open(target, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::fs::openat(&root, name, flags, Mode::empty()).map(drop)
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
    fn the_file_is_found_by_its_name_and_once() {
        let primer = Primer::default();
        assert_eq!(primer.name.len(), PRIMER_NAME_LEN);
        assert!(primer.find(NodeId(5), &primer.name).is_none());
        assert!(primer.find(NodeId::ROOT, b".wh.").is_none());
        assert_eq!(primer.find(NodeId::ROOT, &primer.name).map(|entry| entry.node), Some(NODE));
        assert!(primer.find(NodeId::ROOT, &primer.name).is_none());
        assert_eq!(Primer::open(Path::new("/"), &primer.name), Err(Errno::NOENT), "another file system");
        assert_ne!(Primer::default().name, primer.name);
    }
}
