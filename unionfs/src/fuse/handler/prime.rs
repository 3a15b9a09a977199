//! The first opening of a file: it teaches the kernel to ask for no more.
//!
//! The kernel sends OPEN until one is answered ENOSYS, and as long as it does, each file that is created sends a RELEASE
//! when it is closed. Most programs open a file soon. One that only creates files does not, so it is done for it, when the
//! first file that was created is closed: until then creations ask for a FLUSH, and the first is answered after the opening.
//! Whoever closes still keeps the mount from being unmounted, so that this need not, and holds no lock of a directory that the
//! opening takes.
//!
//! A mount may have no file that could be opened. So there is one that exists for this alone: under a name that no listing
//! shows and nobody else knows, and once.

use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use crate::error::Errno;
use crate::fuse::control::{MountId, mount_at};
use crate::fuse::sys::let_go_of_descriptors;
use crate::ondisk::WHITEOUT_PREFIX;
use crate::request::{Attr, Entry, FileKind, NodeId, Timestamp};

/// The file's number: none that the union gives.
const NODE: NodeId = NodeId(u64::MAX);

/// How many random bits the name has, in digits.
const DIGITS: usize = 16;

/// How long the opening is waited for: where no thread can be started to answer its requests, it would be for ever.
const PATIENCE: Duration = Duration::from_secs(1);

/// The file that is there to be opened.
#[derive(Debug)]
pub(super) struct Primer {
    name: Vec<u8>,
    /// Where the mount is.
    place: OnceLock<(PathBuf, MountId)>,
    /// The kernel asks for no opening any more, or soon will not.
    done: AtomicBool,
    found: AtomicBool,
}

impl Default for Primer {
    fn default() -> Self {
        let secret = RandomState::new().hash_one(NODE.0);
        let name = [WHITEOUT_PREFIX, format!("{secret:0DIGITS$x}").as_bytes()].concat();
        Self { name, place: OnceLock::new(), done: AtomicBool::new(false), found: AtomicBool::new(false) }
    }
}

impl Primer {
    /// Learns where the mount is. Before, nothing is opened.
    pub(super) fn mounted_on(&self, target: &Path, mount: MountId) {
        self.place.get_or_init(|| (target.to_path_buf(), mount));
    }

    /// Returns the file, if `name` in `parent` is it and it was not found yet.
    pub(super) fn find(&self, parent: NodeId, name: &[u8]) -> Option<Entry> {
        let here = parent == NodeId::ROOT && name == self.name && !self.found.swap(true, Ordering::Relaxed);
        here.then(entry)
    }

    /// Learns that the kernel has asked for an opening.
    pub(super) fn asked(&self) {
        if !self.done.load(Ordering::Relaxed) {
            self.done.store(true, Ordering::Relaxed);
        }
    }

    /// Returns whether the opening is still to be made.
    pub(super) fn is_pending(&self) -> bool {
        !self.done.load(Ordering::Relaxed) && self.place.get().is_some()
    }

    /// Has the file opened, once, and waits for that.
    ///
    /// Others must answer the requests. In a thread of its own, without the device: a thread that waits for an answer cannot be
    /// killed, so that a killed server would never close it.
    pub(super) fn open(&self) {
        let Some((target, mount)) = self.place.get() else { return };
        if self.done.swap(true, Ordering::Relaxed) {
            return;
        }
        let (target, mount, name) = (target.clone(), *mount, self.name.clone());
        let (opened, waited) = channel::<()>();
        let work = move || {
            let_go_of_descriptors();
            if let Err(errno) = open(&target, mount, &name) {
                tracing::debug!("the first opening is left to others: {errno}");
            }
            drop(opened);
        };
        match std::thread::Builder::new().name("asker".to_owned()).spawn(work) {
            // Nothing is sent: it ends the wait that it ends.
            Ok(_) => drop(waited.recv_timeout(PATIENCE)),
            Err(error) => tracing::debug!("the first opening is left to others: {error}"),
        }
    }
}

/// Opens and closes the file `name` of the mount that is at `target`, unless that is another one.
fn open(target: &Path, mount: MountId, name: &[u8]) -> Result<(), Errno> {
    if mount_at(target).map_err(|error| error.errno())? != mount {
        return Err(Errno::NOENT);
    }
    let root = rustix::fs::open(target, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&root, name, flags, Mode::empty()).map(drop)
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
        assert!(primer.find(NodeId(5), &primer.name).is_none());
        assert!(primer.find(NodeId::ROOT, b".wh.").is_none());
        assert_eq!(primer.find(NodeId::ROOT, &primer.name).map(|entry| entry.node), Some(NODE));
        assert!(primer.find(NodeId::ROOT, &primer.name).is_none());
        assert_ne!(Primer::default().name, primer.name);
    }

    #[test]
    fn nothing_is_opened_where_another_mount_is_or_the_kernel_asks_for_nothing_any_more() {
        let primer = Primer::default();
        assert!(!primer.is_pending(), "nobody knows where");
        let proc = mount_at(Path::new("/proc")).unwrap();
        primer.mounted_on(Path::new("/sys"), proc);
        assert!(primer.is_pending());
        assert_eq!(open(Path::new("/sys"), proc, b"kernel"), Err(Errno::NOENT));
        assert_eq!(open(Path::new("/proc"), proc, b"version"), Ok(()));
        primer.asked();
        assert!(!primer.is_pending());
    }
}
