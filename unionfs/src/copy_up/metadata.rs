//! Owner, attributes, mode and times of a copied-up object: the order, and every errno that is tolerated.
//!
//! From user space the order differs from the kernel's. write(2) and chown(2) drop `security.capability`, and
//! chown(2) the set-id bits too, so both come before them. Without privilege a `user.*` attribute cannot be set on a file
//! that its mode makes read-only, so those come before the mode. chmod(2) and setxattr(2) leave the times alone, so
//! these come last.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Gid, Mode, Uid};

use crate::copy_up::Need;
use crate::error::{Errno, Error, Result};
use crate::ondisk::record::Record;
use crate::ondisk::{acl, capability};
use crate::request::FileKind;
use crate::stack::lower::LowerFile;
use crate::stack::owners::record_of;
use crate::sys::{self, Stat};
use crate::tree::Tree;

/// Gives `to` everything that `source` has but its data.
pub(crate) fn copy_all(tree: &Tree, source: &LowerFile, stat: &Stat, to: BorrowedFd<'_>) -> Result<()> {
    let now = sys::stat_fd(to)?;
    copy(tree, (source, stat), (to, &now), Need::Data)
}

/// Gives `to`, an object with the owner of `now`, everything that `source` has but its data.
pub(super) fn copy(
    tree: &Tree,
    (source, stat): (&LowerFile, &Stat),
    (to, now): (BorrowedFd<'_>, &Stat),
    need: Need,
) -> Result<()> {
    let owners = tree.stack.upper_owners();
    let names = match source.xattr_names() {
        Ok(names) => names,
        Err(error) if error.is(Errno::OPNOTSUPP) || error.is(Errno::NOSYS) => Vec::new(),
        Err(error) => return Err(error),
    };
    let is_user = |name: &[u8]| name.starts_with(b"user.");
    for name in names.iter().filter(|name| is_user(name)) {
        copy_xattr(tree, source, to, name)?;
    }
    if owners.are_inodes() || stat.kind() == FileKind::Symlink {
        copy_owner(tree, stat, (to, now))?;
        // A change of the owner takes set-id bits away, and so does writing: with them it is set in any case.
        let kept = stat.mode == now.mode && stat.mode & (libc::S_ISUID | libc::S_ISGID) == 0;
        if stat.kind() != FileKind::Symlink && !kept {
            sys::set_mode(to, Mode::from_raw_mode(stat.mode & 0o7777))?;
        }
    } else {
        let (uid, gid) = (tree.uids.carried(stat.uid), tree.gids.carried(stat.gid));
        owners.record(to, &Record { uid, gid, ..record_of(stat) })?;
    }
    for name in names.iter().filter(|name| !is_user(name)) {
        // A truncated file loses its capability, as with truncate(2).
        if need != Need::Truncate || name != capability::NAME {
            copy_xattr(tree, source, to, name)?;
        }
    }
    if need != Need::Truncate {
        sys::set_both_times(to, stat.atime, stat.mtime)?;
    }
    Ok(())
}

fn copy_xattr(tree: &Tree, source: &LowerFile, to: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let owners = tree.stack.upper_owners();
    let Some(stored) = owners.stored_name(name) else { return Ok(()) };
    let value = match source.xattr(name) {
        // Listed, but not for this process to read, or gone: it cannot be kept.
        Err(error) if error.is(Errno::NODATA) || error.is(Errno::PERM) || error.is(Errno::ACCESS) => {
            return Ok(());
        }
        result => result?,
    };
    let done = if name == acl::ACCESS {
        owners.set_acl(to, &value, 0)
    } else {
        tree.stack.attributes().set(to, &stored, &value, 0)
    };
    match done.as_ref().map_err(Error::errno) {
        // The upper cannot hold what the lower shows: another file system, or no privilege for the namespace.
        Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) if name != acl::ACCESS => Ok(()),
        // Owners named in an ACL without a place in this user namespace.
        Err(Errno::OPNOTSUPP | Errno::OVERFLOW | Errno::INVAL) if name == acl::ACCESS => Ok(()),
        _ => done,
    }
}

fn copy_owner(tree: &Tree, stat: &Stat, (to, now): (BorrowedFd<'_>, &Stat)) -> Result<()> {
    let (uid, gid) = (tree.uids.carried(stat.uid), tree.gids.carried(stat.gid));
    let uid = (now.uid != uid).then(|| Uid::from_raw(uid));
    let gid = (now.gid != gid).then(|| Gid::from_raw(gid));
    if uid.is_none() && gid.is_none() {
        return Ok(());
    }
    tree.policy.owner_stored(rustix::fs::chownat(to, c"", uid, gid, AtFlags::EMPTY_PATH))
}
