//! Extended attributes. The marks of the union itself are neither shown nor settable; those of an overlay mounted
//! inside this one are stored escaped.

use std::os::fd::AsFd;
use std::sync::Arc;

use crate::copy_up::{self, Need};
use crate::error::{Errno, Error, Result};
use crate::inode::Inode;
use crate::ondisk;
use crate::sys;
use crate::tree::Tree;

/// The label of an object under SELinux.
const SELINUX: &[u8] = b"security.selinux";

/// Returns the value of an attribute.
///
/// # Errors
/// ENODATA if there is none, EOPNOTSUPP where attributes are switched off.
pub(crate) fn get(tree: &Tree, inode: &Inode, name: &[u8]) -> Result<Vec<u8>> {
    let stored = stored_name(tree, name, Errno::NODATA)?;
    let value = if inode.on_upper() {
        sys::xattr::get(tree.pin_upper(inode)?.as_fd(), &stored).map_err(Error::from)
    } else {
        tree.pin_lower(inode)?.xattr(&stored)
    };
    match value {
        // "No labels here" stops programs that list a directory from asking for each file; "no label" does not.
        Err(error) if name == SELINUX && error.is(Errno::NODATA) => Err(Error::new(Errno::OPNOTSUPP)),
        value => value,
    }
}

/// Returns the names, each ended by NUL.
pub(crate) fn list(tree: &Tree, inode: &Inode) -> Result<Vec<u8>> {
    if tree.policy.no_xattrs {
        return Err(Error::new(Errno::OPNOTSUPP));
    }
    let stored = if inode.on_upper() {
        sys::xattr::list(tree.pin_upper(inode)?.as_fd())?
    } else {
        tree.pin_lower(inode)?.xattr_names()?
    };
    let mut shown = Vec::with_capacity(stored.len());
    for name in sys::xattr::names(&stored).filter_map(ondisk::unescape_xattr) {
        shown.extend_from_slice(&name);
        shown.push(0);
    }
    Ok(shown)
}

/// Sets an attribute. `flags` are `XATTR_CREATE` and `XATTR_REPLACE`.
pub(crate) fn set(tree: &Tree, inode: &Arc<Inode>, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
    let stored = stored_name(tree, name, Errno::PERM)?;
    copy_up::ensure_upper(tree, inode, Need::Metadata)?;
    let pin = tree.pin_upper(inode)?;
    sys::xattr::set(pin.as_fd(), &stored, value, flags)?;
    inode.state.write().default_acl = 0;
    Ok(())
}

/// Removes an attribute.
///
/// # Errors
/// ENODATA if there is none: then nothing is copied up.
pub(crate) fn remove(tree: &Tree, inode: &Arc<Inode>, name: &[u8]) -> Result<()> {
    let stored = stored_name(tree, name, Errno::NODATA)?;
    if !inode.on_upper() {
        get(tree, inode, name)?;
    }
    copy_up::ensure_upper(tree, inode, Need::Metadata)?;
    sys::xattr::remove(tree.pin_upper(inode)?.as_fd(), &stored)?;
    inode.state.write().default_acl = 0;
    Ok(())
}

/// Returns the name on disk.
///
/// # Errors
/// `refused` for names that belong to fuse-overlayfs, EOPNOTSUPP where attributes are switched off.
fn stored_name(tree: &Tree, name: &[u8], refused: Errno) -> Result<Vec<u8>> {
    if tree.policy.no_xattrs {
        return Err(Error::new(Errno::OPNOTSUPP));
    }
    let stored = ondisk::escape_xattr(name);
    if ondisk::is_private_xattr(&stored) {
        return Err(Error::new(refused));
    }
    Ok(stored)
}
