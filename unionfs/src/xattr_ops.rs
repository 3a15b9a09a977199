//! Extended attributes. The marks of the union itself are neither shown nor settable; those of an overlay mounted
//! inside this one are stored escaped. Ids inside of values are mapped as owners are.

use std::os::fd::AsFd;
use std::sync::Arc;

use crate::copy_up::{self, Need};
use crate::error::{Errno, Error, Result};
use crate::idmap::IdView;
use crate::inode::{Data, Inode, Lower};
use crate::ondisk::acl::{self, Acl};
use crate::ondisk::capability;
use crate::ondisk::record::FORMS;
use crate::request::NodeId;
use crate::stack::lower::LowerDir;
use crate::sys;
use crate::tree::Tree;

/// The label of an object under SELinux.
const SELINUX: &[u8] = b"security.selinux";

/// What every object may have, whatever its layer can store.
const COMMON: [&[u8]; 5] =
    [b"user.", b"trusted.", b"security.", b"system.posix_acl_access", b"system.posix_acl_default"];

/// Returns the value of an attribute.
///
/// # Errors
/// ENODATA if there is none, EOPNOTSUPP where attributes are switched off.
pub(crate) fn get(tree: &Tree, inode: &Inode, name: &[u8]) -> Result<Vec<u8>> {
    offered(tree)?;
    let value = if inode.on_upper() {
        let stored = stored_name(tree, name, Errno::NODATA)?;
        let attributes = tree.stack.attributes();
        let value = match tree.by_name(inode, |dir, file| attributes.get_at(dir, file, &stored)) {
            Some(value) => value,
            None => attributes.get(tree.pin_upper(inode)?.as_fd(), &stored),
        };
        let owners = tree.stack.upper_owners();
        value.and_then(|value| owners.shown_value(name, value, || tree.stat(inode)))
    } else if !may_be_made_up(name) && is_bare(tree, inode) {
        Err(Error::new(Errno::NODATA))
    } else {
        tree.lower_object(inode)?.xattr(name)
    };
    match value {
        // "No labels here" stops programs that list a directory from asking for each file; "no label" does not.
        Err(error) if name == SELINUX && error.is(Errno::NODATA) => Err(Error::new(Errno::OPNOTSUPP)),
        // A layer without attributes (squashfs, exFAT) is no reason to refuse: the kernel would not even open a file
        // whose ACL it is not told.
        Err(error) if name != SELINUX && error.is(Errno::OPNOTSUPP) && is_common(name) => {
            Err(Error::new(Errno::NODATA))
        }
        value => shown_value((&tree.uids, &tree.gids), name, value?),
    }
}

/// Returns a value with the ids that are shown.
///
/// # Errors
/// ENODATA for capabilities that count for a user namespace whose root is not shown: they have no effect here.
pub(crate) fn shown_value((uids, gids): (&IdView, &IdView), name: &[u8], value: Vec<u8>) -> Result<Vec<u8>> {
    match name {
        acl::ACCESS | acl::DEFAULT => {
            let shown = Acl::parse(&value)
                .and_then(|list| list.map_ids(|uid| Some(uids.named(uid)), |gid| Some(gids.named(gid))));
            Ok(shown.map_or(value, |list| list.encode()))
        }
        capability::NAME => {
            let shown = capability::map_root(&value, |uid| uids.map.to_shown(uid));
            shown.ok_or(Error::new(Errno::NODATA))
        }
        _ => Ok(value),
    }
}

/// Returns a value with the ids that are stored.
///
/// # Errors
/// EINVAL for an id that the mapping cannot store, as setxattr(2) answers for one without a place in the user namespace.
fn stored_value(tree: &Tree, name: &[u8], value: &[u8]) -> Result<Vec<u8>> {
    let stored = match name {
        acl::ACCESS | acl::DEFAULT => match Acl::parse(value) {
            Some(list) => {
                list.map_ids(|uid| tree.uids.disk(uid), |gid| tree.gids.disk(gid)).map(|list| list.encode())
            }
            None => Some(value.to_vec()),
        },
        capability::NAME => capability::map_root(value, |uid| tree.uids.disk(uid)),
        _ => Some(value.to_vec()),
    };
    stored.ok_or(Error::new(Errno::INVAL))
}

/// Returns whether the kernel may answer for an attribute that is not stored: labels of security modules.
fn may_be_made_up(name: &[u8]) -> bool {
    name.starts_with(b"security.") && name != capability::NAME
}

/// Returns whether a node on a lower is known to have no attributes.
fn is_bare(tree: &Tree, inode: &Inode) -> bool {
    let lower = inode.state.read().lower.clone();
    let (layer, fds) = (|dir: &LowerDir| tree.stack.lower(dir).ok(), &tree.stack.fds);
    match &lower {
        Lower::File(dir, name, _) => layer(dir).is_some_and(|layer| layer.is_bare(fds, dir, name.as_bytes())),
        Lower::Dirs(dirs) => {
            let top = dirs.first().and_then(|dir| Some((layer(dir)?, dir)));
            top.is_some_and(|(layer, dir)| layer.is_bare_dir(fds, dir))
        }
        Lower::None | Lower::Held(_) => false,
    }
}

fn is_common(name: &[u8]) -> bool {
    COMMON.iter().any(|common| name.starts_with(common))
}

/// Returns the names, each ended by NUL.
pub(crate) fn list(tree: &Tree, inode: &Inode) -> Result<Vec<u8>> {
    offered(tree)?;
    let names = if inode.on_upper() {
        let owners = tree.stack.upper_owners();
        let attributes = tree.stack.attributes();
        let listed = match tree.by_name(inode, |dir, file| attributes.list_at(dir, file)) {
            Some(names) => names,
            None => attributes.list(tree.pin_upper(inode)?.as_fd()),
        };
        listed.map(|names| sys::xattr::names(&names).filter_map(|name| owners.shown_name(name)).collect())
    } else if is_bare(tree, inode) {
        Ok(Vec::new())
    } else {
        tree.lower_object(inode)?.xattr_names()
    };
    let names = match names {
        Err(error) if error.is(Errno::OPNOTSUPP) => Vec::new(),
        names => names?,
    };
    let mut shown = Vec::new();
    for name in &names {
        shown.extend_from_slice(name);
        shown.push(0);
    }
    Ok(shown)
}

/// Sets an attribute. `flags` are `XATTR_CREATE` and `XATTR_REPLACE`.
pub(crate) fn set(tree: &Tree, inode: &Arc<Inode>, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
    let stored = stored_name(tree, name, Errno::PERM)?;
    if inode.id == NodeId::ROOT && FORMS.iter().any(|form| stored == form.name()) {
        // It would say how the whole layer is read.
        return Err(Error::new(Errno::PERM));
    }
    let value = stored_value(tree, name, value)?;
    copy_up::ensure_upper(tree, inode, Need::Metadata)?;
    let pin = tree.pin_upper(inode)?;
    if name == acl::ACCESS {
        tree.stack.upper_owners().set_acl(pin.as_fd(), &value, flags)?;
    } else {
        tree.stack.attributes().set(pin.as_fd(), &stored, &value, flags)?;
    }
    if name == capability::NAME
        && let Some(Data::Upper(file)) = &mut *inode.data.write()
    {
        file.may_have_suid = true;
    }
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
    tree.stack.attributes().remove(tree.pin_upper(inode)?.as_fd(), &stored)?;
    inode.state.write().default_acl = 0;
    Ok(())
}

/// Returns the name on the upper.
///
/// # Errors
/// `refused` for names that belong to fuse-overlayfs, EOPNOTSUPP where attributes are switched off.
fn stored_name(tree: &Tree, name: &[u8], refused: Errno) -> Result<Vec<u8>> {
    offered(tree)?;
    tree.stack.upper_owners().stored_name(name).ok_or(Error::new(refused))
}

/// Checks that there are attributes.
///
/// # Errors
/// EOPNOTSUPP where they are switched off.
fn offered(tree: &Tree) -> Result<()> {
    if tree.policy.no_xattrs { Err(Error::new(Errno::OPNOTSUPP)) } else { Ok(()) }
}
