//! How an object of a node is reached on disk: by its place, by a descriptor that is open, or opened for it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::Tree;
use crate::error::{Errno, Error, Result};
use crate::inode::{Inode, Lower};
use crate::stack::lower::{DirFd, LowerFile};
use crate::sys;

/// How often a place is read again when the disk and the memory disagree, before giving up.
const PLACE_TRIES: usize = 1000;

impl Tree {
    /// Calls `act` with where an upper object is, until what it reached has the object's inode number.
    pub(crate) fn reach<T>(
        &self,
        inode: &Inode,
        act: impl Fn(BorrowedFd<'_>, &[u8]) -> std::result::Result<(T, u64), Errno>,
    ) -> Result<T> {
        for _ in 0..PLACE_TRIES {
            let (place, wanted, index) = {
                let state = inode.state.read();
                (state.place.clone(), state.upper, state.index.clone())
            };
            if let (Some(indexed), Some(index)) = (index, &self.index) {
                let (reached, ino) = act(index.fd(), &indexed.entry)?;
                return if Some(ino) == wanted { Ok(reached) } else { Err(Error::new(Errno::IO)) };
            }
            let place = place.ok_or(inode.gone())?;
            let parent = self.upper_fd(&place.parent)?;
            match act(parent.as_fd(), place.name.as_bytes()) {
                Ok((reached, ino)) if Some(ino) == wanted => return Ok(reached),
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => std::thread::yield_now(),
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(Error::new(Errno::IO))
    }

    /// Calls `act` with directory and name of an upper object, if no descriptor of it is open and its directory is not just
    /// changing: to open it costs two calls more.
    pub(crate) fn by_name<T>(
        &self,
        inode: &Inode,
        act: impl FnOnce(BorrowedFd<'_>, &[u8]) -> T,
    ) -> Option<T> {
        if inode.is_dir() || inode.data.read_recursive().is_some() {
            return None;
        }
        let place = inode.place()?;
        let _names = place.parent.names.try_lock()?;
        let unchanged = {
            let state = inode.state.read();
            let here = state.place.as_ref().is_some_and(|now| now.is(&place.parent, place.name.as_bytes()));
            // A member of the index may have no object under its name.
            here && state.pinned.is_none() && state.index.is_none()
        };
        let parent = self.upper_fd(&place.parent).ok().filter(|_| unchanged)?;
        Some(act(parent.as_fd(), place.name.as_bytes()))
    }

    /// Opens a handle for attributes on an object's upper part.
    pub(crate) fn pin_upper(&self, inode: &Inode) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = inode.open_upper() {
            return Ok(fd);
        }
        if inode.is_dir() {
            return match self.upper_fd(inode)? {
                DirFd::Cached(fd) => Ok(fd),
                DirFd::Root(fd) => Ok(Arc::new(fd.try_clone_to_owned()?)),
            };
        }
        let pinned = self.reach(inode, |parent, name| {
            let fd = sys::pin_at(parent, name)?;
            let ino = sys::stat_fd(fd.as_fd())?.ino;
            Ok((fd, ino))
        })?;
        Ok(Arc::new(pinned))
    }

    /// As [`Self::pin_upper`], of an object whose directory `dir` has its names locked.
    pub(crate) fn pin_locked(&self, inode: &Inode, dir: BorrowedFd<'_>, name: &[u8]) -> Result<Arc<OwnedFd>> {
        if inode.is_dir() || inode.state.read().index.is_some() {
            return self.pin_upper(inode);
        }
        match inode.open_upper() {
            Some(fd) => Ok(fd),
            None => Ok(Arc::new(sys::pin_at(dir, name)?)),
        }
    }

    /// Returns an object's lower part, to be asked for its attributes: for a directory the topmost.
    pub(crate) fn lower_object(&self, inode: &Inode) -> Result<LowerFile> {
        let lower = inode.state.read().lower.clone();
        match lower {
            Lower::File(dir, name, _) => {
                self.stack.lower(&dir)?.object(&self.stack.fds, &dir, name.as_bytes())
            }
            Lower::Dirs(dirs) => {
                let dir = dirs.first().ok_or(Error::new(Errno::NOENT))?;
                self.stack.lower(dir)?.pin_dir(&self.stack.fds, dir)
            }
            Lower::Held(file) => file.again(),
            Lower::None => Err(inode.gone()),
        }
    }
}
