//! The index: which upper inode stands for a lower one that has several names.
//!
//! A directory `index` in the workdir, in kernel overlayfs' format: an entry is named by the record of the lower inode
//! and is a hard link of the upper inode. Every name of the lower inode leads to that one object, also after a remount.

pub(crate) mod read_only;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use crate::error::{Errno, Error, Result};
use crate::ondisk::{Namespace, origin};
use crate::stack::LayerStack;
use crate::stack::attributes::Attributes;
use crate::stack::lower::LowerDir;
use crate::stack::lower::index::INDEX;
use crate::stack::upper::UpperLayer;
use crate::stack::workdir::Workdir;
use crate::sys::{self, Stat};

/// The open index.
#[derive(Debug)]
pub(crate) struct Index {
    dir: OwnedFd,
    namespace: Namespace,
}

impl Index {
    /// Opens the index of a mount; `None` where it cannot be kept: no upper, no attributes, no file handles.
    pub(crate) fn open(stack: &LayerStack) -> Result<Option<Self>> {
        let Some(upper) = &stack.upper else { return Ok(None) };
        let Some(namespace) = upper.features.namespace else { return Ok(None) };
        // Kernel overlayfs refuses an index on an upper without handles; it does not read one with a sidecar either.
        if !upper.features.sidecar && sys::handle::handle_at(upper.root_fd(), b".").is_err() {
            return Ok(None);
        }
        let base = upper.workdir.base_fd();
        match rustix::fs::mkdirat(base, INDEX, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::new(errno).during("make in the workdir the directory", INDEX)),
        }
        let dir = sys::open_at(base, INDEX, OFlags::PATH | OFlags::DIRECTORY, 0)
            .map_err(|e| Error::new(e).during("open in the workdir the directory", INDEX))?;
        Ok(Some(Self { dir, namespace }))
    }

    /// Returns the directory of entries.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Returns the upper inode that stands for the lower inode of `record`.
    pub(crate) fn find(&self, upper: &UpperLayer, record: &[u8]) -> Result<Option<Stat>> {
        match upper.stat_at(self.fd(), &origin::index_name(record)) {
            Ok(stat) if !stat.is_whiteout() && !stat.is_dir() => Ok(Some(stat)),
            Ok(_) | Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Returns by how much the shown number of links of an entry differs from that of its inode.
    pub(crate) fn nlink_difference(&self, attributes: &Attributes, entry: &[u8]) -> i64 {
        let value = attributes.get_at(self.fd(), entry, &self.namespace.name("nlink")).unwrap_or_default();
        // The link in the index itself is not shown.
        origin::parse_nlink(&value).unwrap_or(-1)
    }

    /// Returns whether names of an entry may be missing on the upper: more links are shown than its inode has there.
    ///
    /// # Errors
    /// EACCES if that cannot be read.
    pub(crate) fn may_miss_names(&self, attributes: &Attributes, entry: &[u8]) -> Result<bool> {
        match attributes.get_at(self.fd(), entry, &self.namespace.name("nlink")) {
            // Only the link in the index itself is not shown.
            Ok(value) => Ok(origin::parse_nlink(&value).is_none_or(|difference| difference > -1)),
            Err(error) if error.is(Errno::NODATA) => Ok(false),
            Err(error) => Err(error.during("read the number of links of the index entry", entry)),
        }
    }

    /// Stores that difference.
    pub(crate) fn set_nlink_difference(
        &self,
        attributes: &Attributes,
        entry: &[u8],
        difference: i64,
    ) -> Result<()> {
        let (name, value) = (self.namespace.name("nlink"), origin::nlink_value(difference));
        self.change_mark(entry, &|pin| attributes.set(pin, &name, &value, 0))
    }

    fn change_mark(&self, entry: &[u8], change: &dyn Fn(BorrowedFd<'_>) -> Result<()>) -> Result<()> {
        let pin = sys::pin_at(self.fd(), entry)?;
        match change(pin.as_fd()) {
            Err(error) if error.is(Errno::ACCESS) => {}
            result => return result,
        }
        // An ordinary user may set user.* attributes only on files that it may write.
        let mode = sys::stat_fd(pin.as_fd())?.mode & 0o7777;
        let path = sys::proc_path(pin.as_fd());
        let chmod =
            |mode| rustix::fs::chmodat(CWD, path.as_str(), Mode::from_raw_mode(mode), AtFlags::empty());
        chmod(mode | 0o200)?;
        let changed = change(pin.as_fd());
        chmod(mode)?;
        changed
    }

    /// Returns the names of all entries that stand for files.
    pub(crate) fn entries(&self) -> Result<Vec<Vec<u8>>> {
        let mut names = sys::dirents::names(self.fd())?;
        names.retain(|name| {
            sys::stat_at(self.fd(), name).is_ok_and(|stat| !stat.is_whiteout() && !stat.is_dir())
        });
        Ok(names)
    }

    /// Returns the inode number that an entry is shown with, if it says so.
    pub(crate) fn shown_ino(&self, stack: &LayerStack, entry: &[u8]) -> Option<u64> {
        stack.marked_ino(|mark| sys::xattr::get_at(self.fd(), entry, &self.namespace.name(mark)).ok())
    }

    /// Takes an inode that has all its names on the upper out of the index. The links that are shown are then those that
    /// it has.
    pub(crate) fn leave(&self, workdir: &Workdir, entry: &[u8]) -> Result<()> {
        // Counted as a difference of -1 as long as the entry is there.
        self.change_mark(entry, &|pin| match sys::xattr::remove(pin, &self.namespace.name("nlink")) {
            Err(Errno::NODATA) => Ok(()),
            result => Ok(result?),
        })?;
        self.remove(workdir, entry)
    }

    /// Links an entry's inode to `name` in `dir`.
    pub(crate) fn link_to(&self, entry: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        Ok(rustix::fs::linkat(self.fd(), entry, dir, name, AtFlags::empty())?)
    }

    /// Removes an entry whose last name is gone.
    pub(crate) fn remove(&self, workdir: &Workdir, entry: &[u8]) -> Result<()> {
        match workdir.unlink(self.fd(), entry) {
            Err(error) if error.is(Errno::NOENT) => Ok(()),
            removed => removed,
        }
    }
}

/// Returns the record of `name` in a lower directory; `None` where its file system has no handles.
pub(crate) fn lower_record(stack: &LayerStack, dir: &LowerDir, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let layer = stack.lower(dir)?;
    if !layer.handles_last {
        return Ok(None);
    }
    let fd = layer.dir_fd(&stack.fds, dir)?;
    match sys::handle::handle_at(fd.as_fd(), name) {
        Ok((kind, handle)) => Ok(origin::record(kind, &handle, layer.uuid())),
        Err(Errno::OPNOTSUPP | Errno::OVERFLOW | Errno::NOSYS | Errno::PERM) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
