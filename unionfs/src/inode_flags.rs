//! Flags of inodes (chattr, lsattr, project numbers) and their generation: those of the object that serves the node.
//!
//! What a program wants changed is applied to the upper object as a difference to what it was shown, because the file
//! system of a lower may use flags that the upper's has not.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{CWD, IFlags, Mode, OFlags};

use crate::copy_up::{self, Need};
use crate::error::{Errno, Error, Result};
use crate::inode::Inode;
use crate::request::FileKind;
use crate::sys;
use crate::sys::inode_flags::Extended;
use crate::tree::Tree;

const GETFLAGS: u32 = 0x8008_6601;
const SETFLAGS: u32 = 0x4008_6602;
const GETVERSION: u32 = 0x8008_7601;
const FSGETXATTR: u32 = 0x801c_581f;
const FSSETXATTR: u32 = 0x401c_5820;

/// Flags that keep a file from being changed. On a lower they have no effect here, and the upper is not given them:
/// they would bind the server too, which could then neither append nor copy up what is below.
const BINDING: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);

/// The same among the extended flags: `FS_XFLAG_IMMUTABLE` and `FS_XFLAG_APPEND`.
const BINDING_EXTENDED: u32 = 0x8 | 0x10;

/// Answers an ioctl(2) on a file or directory. `command` is its number, `input` what the caller's argument holds.
///
/// # Errors
/// ENOTTY for other commands and kinds of objects, and where the layer has no flags; EOPNOTSUPP for the flags `i` and
/// `a`; what the upper answers.
pub(crate) fn ioctl(tree: &Tree, inode: &Arc<Inode>, command: u32, input: &[u8]) -> Result<Vec<u8>> {
    if !matches!(inode.kind, FileKind::Regular | FileKind::Directory) {
        return Err(Error::new(Errno::NOTTY));
    }
    match command {
        GETFLAGS => Ok(flags(tree, inode)?.bits().to_ne_bytes().to_vec()),
        SETFLAGS => {
            let bits = input.first_chunk().ok_or(Error::new(Errno::INVAL))?;
            set_flags(tree, inode, IFlags::from_bits_retain(u32::from_ne_bytes(*bits)))?;
            Ok(Vec::new())
        }
        FSGETXATTR => Ok(extended(tree, inode)?.to_bytes()),
        FSSETXATTR => {
            let bytes = input.first_chunk().ok_or(Error::new(Errno::INVAL))?;
            set_extended(tree, inode, &Extended::from_bytes(bytes))?;
            Ok(Vec::new())
        }
        GETVERSION => Ok(ask(tree, inode, sys::inode_flags::generation)?.to_ne_bytes().to_vec()),
        _ => Err(Error::new(Errno::NOTTY)),
    }
}

/// Calls `question` with a descriptor of the object that serves the node.
fn ask<T>(
    tree: &Tree,
    inode: &Inode,
    question: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> std::result::Result<T, Errno>,
) -> Result<T> {
    let answer = if inode.on_upper() {
        question(open_upper(tree, inode)?.as_fd())
    } else {
        tree.lower_object(inode)?.ask(question)
    };
    Ok(answer?)
}

fn open_upper(tree: &Tree, inode: &Inode) -> Result<OwnedFd> {
    let pinned = tree.pin_upper(inode)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let path = sys::proc_path(pinned.as_fd());
    Ok(sys::retry(|| rustix::fs::openat(CWD, &*path, flags, Mode::empty()))?)
}

fn flags(tree: &Tree, inode: &Inode) -> Result<IFlags> {
    let own = ask(tree, inode, |fd| rustix::fs::ioctl_getflags(fd))?;
    Ok(if inode.on_upper() { own } else { own - BINDING })
}

fn set_flags(tree: &Tree, inode: &Arc<Inode>, wanted: IFlags) -> Result<()> {
    let change = flags(tree, inode)? ^ wanted;
    if (change & wanted).intersects(BINDING) {
        return Err(Error::new(Errno::OPNOTSUPP));
    }
    copy_up::ensure_upper(tree, inode, Need::Metadata)?;
    let upper = open_upper(tree, inode)?;
    let now = rustix::fs::ioctl_getflags(&upper)?;
    Ok(rustix::fs::ioctl_setflags(&upper, now ^ change)?)
}

fn extended(tree: &Tree, inode: &Inode) -> Result<Extended> {
    let mut own = ask(tree, inode, sys::inode_flags::extended)?;
    if !inode.on_upper() {
        own.flags &= !BINDING_EXTENDED;
    }
    Ok(own)
}

fn set_extended(tree: &Tree, inode: &Arc<Inode>, wanted: &Extended) -> Result<()> {
    let change = extended(tree, inode)?.flags ^ wanted.flags;
    if change & wanted.flags & BINDING_EXTENDED != 0 {
        return Err(Error::new(Errno::OPNOTSUPP));
    }
    copy_up::ensure_upper(tree, inode, Need::Metadata)?;
    let upper = open_upper(tree, inode)?;
    let now = sys::inode_flags::extended(upper.as_fd())?;
    let mut to = *wanted;
    to.flags = now.flags ^ change;
    Ok(sys::inode_flags::set_extended(upper.as_fd(), &to)?)
}
