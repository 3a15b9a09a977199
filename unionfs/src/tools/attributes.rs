//! Owner, mode, times and extended attributes given to an object that a tool has made: the order, and what cannot be had.
//!
//! The order is that of copy-up: chown(2) drops set-id bits and `security.capability`; a `user.*` attribute cannot be
//! set without privilege on a file that its mode makes read-only.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, CWD, Gid, Mode, Uid};

use crate::error::{Errno, Result};
use crate::request::Timestamp;
use crate::sys;

/// What is to be set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes {
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Access and modification time; none leaves them.
    pub times: Option<(Timestamp, Timestamp)>,
    /// Extended attributes, by the names under which they are stored.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Whose the objects are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// As they are told.
    Keep,
    /// This process's; set-id bits, which would act for it, are left out.
    Own,
}

impl Attributes {
    /// Sets everything on `fd`, which may be open for attributes only. Returns the names of extended attributes that the
    /// file system or the rights of this process do not allow.
    ///
    /// # Errors
    /// Of anything else.
    pub(crate) fn set(&self, fd: BorrowedFd<'_>, symlink: bool, owners: Owners) -> Result<Vec<Vec<u8>>> {
        let mut refused = Vec::new();
        let is_user = |name: &[u8]| name.starts_with(b"user.");
        let (user, other): (Vec<_>, Vec<_>) = self.xattrs.iter().partition(|(name, _)| is_user(name));
        for (name, value) in user {
            set_xattr(fd, name, value, &mut refused)?;
        }
        if owners == Owners::Keep {
            let now = sys::stat_fd(fd)?;
            let uid = (now.uid != self.uid).then(|| Uid::from_raw(self.uid));
            let gid = (now.gid != self.gid).then(|| Gid::from_raw(self.gid));
            if uid.is_some() || gid.is_some() {
                rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)?;
            }
        }
        if !symlink {
            let kept = if owners == Owners::Keep { 0o7777 } else { 0o1777 };
            let mode = Mode::from_raw_mode(self.mode & kept);
            rustix::fs::chmodat(CWD, sys::proc_path(fd), mode, AtFlags::empty())?;
        }
        for (name, value) in other {
            set_xattr(fd, name, value, &mut refused)?;
        }
        if let Some((atime, mtime)) = self.times {
            sys::set_both_times(fd, atime, mtime)?;
        }
        Ok(refused)
    }
}

fn set_xattr(fd: BorrowedFd<'_>, name: &[u8], value: &[u8], refused: &mut Vec<Vec<u8>>) -> Result<()> {
    match sys::xattr::set(fd, name, value, 0) {
        Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::OVERFLOW) => {
            refused.push(name.to_vec());
            Ok(())
        }
        result => Ok(result?),
    }
}
