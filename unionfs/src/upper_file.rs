//! Opening the file that holds a node's data.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use crate::error::{Errno, Error, Result};
use crate::inode::{Inode, Lower, UpperFile};
use crate::stack::lower::LowerFile;
use crate::sys::{self, Stat};
use crate::tree::Tree;
use crate::verity;

/// What a request does with the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reads it.
    Read,
    /// Changes it.
    Write,
}

/// Opens the upper file of a node, for writing too if it must be, or else if it can be.
pub(crate) fn open(tree: &Tree, inode: &Inode, access: Access) -> Result<UpperFile> {
    let flags = OFlags::NONBLOCK;
    let open_as = |mode: OFlags| -> Result<OwnedFd> {
        if let Some(pinned) = &inode.state.read().pinned {
            let path = sys::proc_path(pinned.as_fd());
            let fd = sys::retry(|| rustix::fs::openat(CWD, &*path, mode | OFlags::CLOEXEC, Mode::empty()))?;
            return Ok(fd);
        }
        tree.reach(inode, |parent, name| {
            let fd = sys::open_at(parent, name, mode | flags, 0)?;
            let stat = sys::stat_fd(fd.as_fd())?;
            Ok((fd, stat.ino))
        })
    };
    let (writable, fd) = match (access, open_as(OFlags::RDWR)) {
        (_, Ok(opened)) => (true, opened),
        // This process may not write, or not read, what its owner's mode forbids.
        (Access::Read, Err(e)) if e.is(Errno::ACCESS) || e.is(Errno::TXTBSY) => {
            match open_as(OFlags::RDONLY) {
                Err(error) if error.is(Errno::ACCESS) => (true, open_own(tree, inode)?),
                opened => (false, opened?),
            }
        }
        (Access::Write, Err(e)) if e.is(Errno::ACCESS) => (true, open_own(tree, inode)?),
        (_, Err(error)) => return Err(error),
    };
    let owners = tree.stack.upper_owners();
    let stat = owners.stat_fd(fd.as_fd())?;
    let may_have_suid = owners.has_privileges(fd.as_fd(), &stat);
    let parts = tree.unfinished.parts(stat.ino);
    Ok(UpperFile { fd: Arc::new(fd), writable, may_have_suid, parts })
}

/// Opens a file of this process's user in spite of its mode: who asks has it open since before, or since its creation.
///
/// # Errors
/// EACCES if the file is another user's.
fn open_own(tree: &Tree, inode: &Inode) -> Result<OwnedFd> {
    let pinned = inode.state.read().pinned.clone();
    let pin = match pinned {
        Some(pinned) => pinned,
        None => Arc::new(tree.reach(inode, |parent, name| {
            let pin = sys::pin_at(parent, name)?;
            let ino = sys::stat_fd(pin.as_fd())?.ino;
            Ok((pin, ino))
        })?),
    };
    let path = sys::proc_path(pin.as_fd());
    let change = |mode| rustix::fs::chmodat(CWD, path.as_str(), Mode::from_raw_mode(mode), AtFlags::empty());
    let mode_now = || Ok::<_, Error>(sys::stat_fd(pin.as_fd())?.inode_mode & 0o7777);
    let mode = mode_now()?;
    let usable = mode | 0o600;
    change(usable).map_err(|errno| if errno == Errno::PERM { Errno::ACCESS } else { errno })?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = sys::retry(|| rustix::fs::openat(CWD, path.as_str(), flags, Mode::empty()));
    // Unless somebody has changed it meanwhile.
    if mode_now()? == usable {
        change(mode)?;
    }
    Ok(opened?)
}

/// Opens the lower file that holds a node's data: its own, or for a metacopy the one it was made from.
///
/// # Errors
/// EIO if the node is no file with data on a lower, or if that is not the file that was meant (`verity`); ESTALE if others have
/// put another file in its place.
pub(crate) fn open_lower_data(tree: &Tree, inode: &Inode) -> Result<LowerFile> {
    Ok(open_lower_data_and_look(tree, inode)?.0)
}

/// As [`open_lower_data`]; also returns its attributes, if they had to be looked at.
pub(crate) fn open_lower_data_and_look(tree: &Tree, inode: &Inode) -> Result<(LowerFile, Option<Stat>)> {
    let (dir, name, number) = {
        let state = inode.state.read();
        match (&state.lower_data, &state.lower) {
            (Some(data), _) => (Arc::clone(&data.file.dir), data.file.name.clone(), None),
            (None, Lower::File(dir, name, number)) => (Arc::clone(dir), name.clone(), Some(*number)),
            (None, Lower::Held(file)) => return Ok((file.again()?, None)),
            _ if state.lost => return Err(Error::new(Errno::STALE)),
            _ => return Err(Error::new(Errno::IO)),
        }
    };
    let file = tree.stack.lower(&dir)?.open_data(&tree.stack.fds, &dir, &name)?;
    let stat = number.map(|_| file.stat()).transpose()?;
    if stat.map(|stat| stat.ino) != number {
        return Err(Error::new(Errno::STALE));
    }
    verity::check(tree, inode, &file)?;
    Ok((file, stat))
}
