//! An object of a lower layer: what can be read of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, Mode, OFlags};

use crate::error::{Errno, Error, Result};
use crate::ondisk::metacopy::Digest;
use crate::stack::attributes::Attributes;
use crate::stack::mount_ids::MountIds;
use crate::stack::owners::Owners;
use crate::sys::{self, Stat};

/// An object of a lower layer. It can be read; nothing about it can be changed.
#[derive(Debug)]
pub(crate) struct LowerFile {
    pub(super) at: At,
    pub(super) mount_ids: Option<Arc<MountIds>>,
    pub(super) owners: Owners,
    pub(super) attributes: Arc<Attributes>,
}

/// How an object of a lower layer is reached.
#[derive(Debug)]
pub(super) enum At {
    /// It is open.
    Open(OwnedFd),
    /// By its name: a layer does not change meanwhile, and to open an object costs two calls.
    Name(Arc<OwnedFd>, Box<[u8]>),
}

impl LowerFile {
    /// Returns the descriptor of an object that was opened.
    fn fd(&self) -> std::result::Result<BorrowedFd<'_>, Errno> {
        match &self.at {
            At::Open(fd) => Ok(fd.as_fd()),
            At::Name(..) => {
                debug_assert!(false, "an object of a layer is read that was not opened");
                Err(Errno::IO)
            }
        }
    }

    /// Returns whether it was opened, for reading its data.
    pub(crate) const fn is_open(&self) -> bool {
        matches!(self.at, At::Open(_))
    }

    fn own_stat(&self) -> std::result::Result<Stat, Errno> {
        match &self.at {
            At::Open(fd) => sys::stat_fd(fd.as_fd()),
            At::Name(dir, name) => sys::stat_at(dir.as_fd(), name),
        }
    }

    /// Returns the attributes.
    pub(crate) fn stat(&self) -> Result<Stat> {
        let stat = self.own_stat()?;
        let stat = self.mount_ids.as_ref().map_or(stat, |ids| ids.on_disk(stat));
        Ok(self.owners.show(stat, |name| match &self.at {
            At::Open(fd) => sys::xattr::get(fd.as_fd(), name),
            At::Name(dir, file) => sys::xattr::get_at(dir.as_fd(), file, name),
        })?)
    }

    /// Reads at `offset`.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        Ok(sys::retry(|| rustix::io::pread(self.fd()?, &mut *buffer, offset))?)
    }

    /// Calls `act` with the descriptor, which is for reading, so that the kernel can read the file for others.
    pub(crate) fn lend<T>(&self, act: impl FnOnce(BorrowedFd<'_>) -> T) -> Result<T> {
        Ok(act(self.fd()?))
    }

    /// Returns whether it has no data.
    pub(crate) fn is_empty(&self) -> Result<bool> {
        Ok(self.own_stat()?.size == 0)
    }

    /// Returns the value of a mark of the layer.
    pub(crate) fn mark(&self, name: &[u8]) -> Result<Vec<u8>> {
        match &self.at {
            At::Open(fd) => self.attributes.get(fd.as_fd(), name),
            At::Name(dir, file) => self.attributes.get_at(dir.as_fd(), file, name),
        }
    }

    /// Returns the value of an extended attribute that programs name.
    ///
    /// # Errors
    /// ENODATA if there is none, also for the layer's own marks.
    pub(crate) fn xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        let stored = self.owners.stored_name(name).ok_or(Error::new(Errno::NODATA))?;
        let value = self.mark(&stored)?;
        let value = match &self.mount_ids {
            Some(ids) => ids.value_on_disk(name, value),
            None => value,
        };
        self.owners.shown_value(name, value, || self.stat())
    }

    /// Returns the names of the extended attributes that programs see.
    pub(crate) fn xattr_names(&self) -> Result<Vec<Vec<u8>>> {
        let stored = match &self.at {
            At::Open(fd) => self.attributes.list(fd.as_fd())?,
            At::Name(dir, file) => self.attributes.list_at(dir.as_fd(), file)?,
        };
        Ok(sys::xattr::names(&stored).filter_map(|name| self.owners.shown_name(name)).collect())
    }

    /// Calls `question` with a descriptor for reading, for what only ioctl(2) tells.
    pub(crate) fn ask<T>(
        &self,
        question: impl FnOnce(BorrowedFd<'_>) -> std::result::Result<T, Errno>,
    ) -> std::result::Result<T, Errno> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let readable = match &self.at {
            At::Open(fd) => {
                let path = sys::proc_path(fd.as_fd());
                sys::retry(|| rustix::fs::openat(CWD, &*path, flags | OFlags::CLOEXEC, Mode::empty()))?
            }
            At::Name(dir, name) => sys::open_at(dir.as_fd(), name, flags, 0)?,
        };
        question(readable.as_fd())
    }

    /// Returns the digest by which fs-verity protects it.
    pub(crate) fn verity_digest(&self) -> std::result::Result<Digest, Errno> {
        let (algorithm, bytes) = sys::verity::measure(self.fd()?)?;
        Ok(Digest { algorithm: u8::try_from(algorithm).map_err(|_| Errno::NODATA)?, bytes })
    }

    /// Returns where data or a hole begins, as lseek(2) does.
    pub(crate) fn seek(&self, from: rustix::fs::SeekFrom) -> Result<u64> {
        Ok(rustix::fs::seek(self.fd()?, from)?)
    }

    /// Makes the empty file `to` share all data, unless the file systems cannot. Returns whether that was done.
    pub(crate) fn share_data_with(&self, to: BorrowedFd<'_>, no_reflink: &AtomicBool) -> Result<bool> {
        if no_reflink.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match sys::copy::reflink(self.fd()?, to) {
            Ok(()) => Ok(true),
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => {
                no_reflink.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(Errno::INVAL | Errno::PERM | Errno::TXTBSY | Errno::BADF) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Copies all data into the empty file `to`; `stat` are the attributes.
    pub(crate) fn copy_data_to(&self, to: BorrowedFd<'_>, stat: &Stat) -> Result<()> {
        let sparse = stat.blocks.saturating_mul(512) < stat.size;
        Ok(sys::copy::copy_sparse(self.fd()?, to, stat.size, sparse)?)
    }

    /// Copies a range into `to`, in the kernel.
    pub(crate) fn copy_range_to(
        &self,
        offset: u64,
        to: BorrowedFd<'_>,
        to_offset: u64,
        len: usize,
    ) -> Result<usize> {
        let (mut from_at, mut to_at) = (offset, to_offset);
        Ok(sys::retry(|| {
            rustix::fs::copy_file_range(self.fd()?, Some(&mut from_at), to, Some(&mut to_at), len)
        })?)
    }

    /// Returns the target of a symbolic link.
    pub(crate) fn link_target(&self) -> Result<Vec<u8>> {
        match &self.at {
            At::Open(fd) => Ok(sys::link_target(fd.as_fd())?),
            At::Name(dir, name) => Ok(sys::link_target(sys::pin_at(dir.as_fd(), name)?.as_fd())?),
        }
    }
}
