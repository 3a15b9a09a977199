//! Making objects on an upper that keeps owners, modes and types in records.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Gid, Uid};

use super::{New, Target, make_at};
use crate::error::Result;
use crate::ondisk::acl::{self, Acl};
use crate::ondisk::record::Record;
use crate::request::FileKind;
use crate::stack::owners::usable_mode;
use crate::sys::{self, Stat};

impl New<'_> {
    /// Returns the type of the object and its device number.
    const fn kind(&self) -> (FileKind, u64) {
        match self {
            Self::File { .. } => (FileKind::Regular, 0),
            Self::Directory { .. } => (FileKind::Directory, 0),
            Self::Symlink { .. } => (FileKind::Symlink, 0),
            Self::Node { mode, rdev } => (FileKind::from_mode(*mode), *rdev),
        }
    }
}

impl Target<'_> {
    /// Makes an object and its record, under a name in a directory. A device, pipe or socket is a regular file: on others
    /// an ordinary user can set no attribute.
    pub(super) fn make_recorded(
        &self,
        (dir, name): (BorrowedFd<'_>, &[u8]),
        new: New<'_>,
        mode: u32,
        inherits: bool,
    ) -> Result<(Stat, Option<OwnedFd>)> {
        let owners = self.tree.stack.upper_owners();
        let stand_in = match new {
            New::Node { .. } => New::Node { mode: libc::S_IFREG, rdev: 0 },
            other => other,
        };
        let fd = make_at(dir, name, stand_in, usable_mode(mode))?;
        if new.is_symlink() {
            self.own_link(dir, name)?;
        } else {
            let pin = sys::pin_at(dir, name)?;
            owners.record(pin.as_fd(), &self.new_record(new, mode, inherits)?)?;
        }
        Ok((owners.stat_at(dir, name)?, fd))
    }

    /// Gives a symbolic link, which has no record, its owner where this process may.
    fn own_link(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let record = self.new_record(New::Symlink { target: b"" }, 0o777, false)?;
        if (record.uid, record.gid) == self.tree.policy.own_ids {
            return Ok(());
        }
        let pin = sys::pin_at(dir, name)?;
        let (uid, gid) = (Uid::from_raw(record.uid), Gid::from_raw(record.gid));
        Ok(self.tree.stack.upper_owners().set_owner(pin.as_fd(), Some(uid), Some(gid))?)
    }

    /// Returns what a new object in this directory shows: what file systems do by themselves, by the records.
    pub(super) fn new_record(&self, new: New<'_>, mode: u32, inherits: bool) -> Result<Record> {
        let parent = self.tree.stack.upper_owners().stat_fd(self.fd.as_fd())?;
        let (uid, gid) = self.wanted_owner();
        let own = self.tree.policy.own_ids;
        let mut record = Record {
            uid: uid.unwrap_or(own.0),
            gid: gid.unwrap_or(own.1),
            mode: mode & 0o7777,
            kind: Some(new.kind()),
        };
        if parent.mode & libc::S_ISGID != 0 {
            record.gid = parent.gid;
            if matches!(new, New::Directory { .. }) {
                record.mode |= libc::S_ISGID;
            }
        }
        if inherits && let Some(list) = Acl::parse(&sys::xattr::get(self.fd.as_fd(), acl::DEFAULT)?) {
            record.mode &= list.mode() | !0o777;
        }
        Ok(record)
    }
}
