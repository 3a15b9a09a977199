//! The contents of the files of a store: a file each, named by the object's number, in directories of 256.
//!
//! There is no such file before the first byte is written, it may be shorter than its object, the rest of which is zeros,
//! and longer after a server was killed: how long the object is says the log.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};

use crate::error::{Errno, Result};
use crate::sys;

/// Name of the directory in the store.
const DATA: &[u8] = b"data";
/// Most files that are kept open.
const OPEN: usize = 256;
/// Objects in one directory, as a power of two: looking for a name there takes a walk over all of them.
const SHARD_BITS: u32 = 8;

/// The open contents of a store.
#[derive(Debug)]
pub(super) struct Contents {
    dir: OwnedFd,
    open: HashMap<u64, Arc<OwnedFd>>,
}

impl AsFd for Contents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Contents {
    /// Opens them, making their directory if there is none.
    pub(super) fn open(store: &OwnedFd) -> Result<Self> {
        match rustix::fs::mkdirat(store, DATA, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST | Errno::ROFS) => {}
            Err(errno) => return Err(errno.into()),
        }
        let dir = sys::open_at(store.as_fd(), DATA, OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
        Ok(Self { dir, open: HashMap::new() })
    }

    /// Reads into `buffer`; `size` is that of the object. Returns how much there was.
    pub(super) fn read(&mut self, id: u64, size: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = left.min(buffer.len());
        let wanted = buffer.get_mut(..len).unwrap_or_default();
        let got = match self.existing(id, size)? {
            Some(file) => sys::copy::read_full(file.as_fd(), wanted, offset)?,
            None => 0,
        };
        wanted.get_mut(got..).unwrap_or_default().fill(0);
        Ok(len)
    }

    /// Writes all of `data`; `size` is that of the object before.
    pub(super) fn write(&mut self, id: u64, size: u64, offset: u64, data: &[u8]) -> Result<()> {
        let file = match self.existing(id, size)? {
            Some(file) => file,
            None => self.make(id)?,
        };
        Ok(sys::copy::write_all(file.as_fd(), data, offset)?)
    }

    /// Returns how many bytes there are, of an object of this size; the rest of it is a hole.
    pub(super) fn end(&mut self, id: u64, size: u64) -> Result<u64> {
        match self.existing(id, size)? {
            Some(file) => Ok(sys::stat_fd(file.as_fd())?.size.min(size)),
            None => Ok(0),
        }
    }

    /// Throws away what is behind `size`, which is the object's by now.
    pub(super) fn cut(&mut self, id: u64, size: u64) -> Result<()> {
        match self.existing(id, size)? {
            Some(file) => {
                // Until that was done, it is done again when the file is opened the next time.
                self.open.remove(&id);
                trim(&file, size)?;
                self.open.insert(id, file);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Brings the contents of an object to the disk.
    pub(super) fn sync(&mut self, id: u64, size: u64) -> Result<()> {
        match self.existing(id, size)? {
            Some(file) => Ok(sys::retry(|| rustix::fs::fdatasync(&file))?),
            None => Ok(()),
        }
    }

    /// Removes what an object had.
    pub(super) fn remove(&mut self, id: u64) -> Result<()> {
        self.open.remove(&id);
        let (shard, name) = place(id);
        match rustix::fs::unlinkat(&self.dir, [&*shard, b"/", &*name].concat(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes what belongs to no object of which `is_there` knows.
    pub(super) fn sweep(&mut self, is_there: impl Fn(u64) -> bool) -> Result<()> {
        let mut shards = Vec::new();
        let number =
            |name: &[u8]| std::str::from_utf8(name).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
        sys::dirents::for_each_name(self.dir.as_fd(), |entry| {
            shards.extend(number(entry.name).map(|_| entry.name.to_vec()));
            Ok(true)
        })?;
        for shard in shards {
            let shard = sys::open_at(self.dir.as_fd(), &shard, OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
            let mut stray = Vec::new();
            sys::dirents::for_each_name(shard.as_fd(), |entry| {
                stray.extend(number(entry.name).filter(|&id| !is_there(id)));
                Ok(true)
            })?;
            stray.into_iter().try_for_each(|id| self.remove(id))?;
        }
        Ok(())
    }

    /// Returns the open file of an object of this size, if it has one.
    fn existing(&mut self, id: u64, size: u64) -> Result<Option<Arc<OwnedFd>>> {
        if let Some(file) = self.open.get(&id) {
            return Ok(Some(Arc::clone(file)));
        }
        let (shard, name) = place(id);
        let path = [&*shard, b"/", &*name].concat();
        let file = match sys::open_at(self.dir.as_fd(), &path, OFlags::RDWR, 0) {
            Ok(file) => {
                // Left by a server that was killed between this and the log; it must not show when the object grows.
                trim(&file, size)?;
                file
            }
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::ROFS | Errno::ACCESS) => sys::open_at(self.dir.as_fd(), &path, OFlags::RDONLY, 0)?,
            Err(errno) => return Err(errno.into()),
        };
        Ok(Some(self.keep(id, file)))
    }

    fn make(&mut self, id: u64) -> Result<Arc<OwnedFd>> {
        let (shard, name) = place(id);
        match rustix::fs::mkdirat(&self.dir, &*shard, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::RDWR | OFlags::CREATE;
        let file = sys::open_at(self.dir.as_fd(), &[&*shard, b"/", &*name].concat(), flags, 0o600)?;
        Ok(self.keep(id, file))
    }

    fn keep(&mut self, id: u64, file: OwnedFd) -> Arc<OwnedFd> {
        if self.open.len() >= OPEN
            && let Some(&any) = self.open.keys().next()
        {
            self.open.remove(&any);
        }
        let file = Arc::new(file);
        self.open.insert(id, Arc::clone(&file));
        file
    }
}

fn trim(file: &OwnedFd, size: u64) -> Result<()> {
    if sys::stat_fd(file.as_fd())?.size > size {
        sys::retry(|| rustix::fs::ftruncate(file, size))?;
    }
    Ok(())
}

/// Returns the names of the directory and of the file with the contents of an object.
fn place(id: u64) -> (Vec<u8>, Vec<u8>) {
    (format!("{:x}", id >> SHARD_BITS).into_bytes(), format!("{id:x}").into_bytes())
}
