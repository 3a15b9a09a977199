//! Which node an object that was found is, and which inode number it shows.
//!
//! A node is the object that serves data and attributes; the number shown is that of the lower object it came from, so
//! that neither copy-up nor a remount changes it.

use crate::error::Result;
use crate::index;
use crate::index::read_only::{Linked, Standing};
use crate::inode::{Indexed, Inode};
use crate::inode_table::ObjectKey;
use crate::lookup::{self, Found, LowerPart, OnUpper};
use crate::merge::ListedName;
use crate::name::FileName;
use crate::ondisk::origin;
use crate::request::FileKind;
use crate::stack::lower::{LowerDir, LowerName};
use crate::sys::Stat;
use crate::tree::Tree;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Who an object is.
#[derive(Debug)]
pub(crate) struct Identity {
    /// The key of its node.
    pub key: ObjectKey,
    /// The inode number to show.
    pub ino: u64,
    /// Attributes of the object that serves it.
    pub stat: Stat,
    /// Its place in the index.
    pub index: Option<Box<Indexed>>,
    /// Where its data is, if the index holds attributes only.
    pub data: Option<LowerName>,
    /// Where it is, if an index that is only read stands for it.
    pub place: Option<LowerName>,
}

/// Tells who the object is that was found under `name`.
pub(crate) fn identify(tree: &Tree, name: &FileName, found: &Found) -> Result<Identity> {
    let stat = found.stat;
    let device = tree.stack.device_index(stat.dev);
    let own = tree.stack.shown_ino(stat.dev, stat.ino);
    let upper = tree.stack.upper_number();
    let plain = |key, ino| Identity { key, ino, stat, index: None, data: None, place: None };
    match (&found.upper, &found.lower) {
        (Some(_), LowerPart::Dirs(dirs)) => {
            Ok(plain(ObjectKey::new(upper, device, stat.ino), dirs_ino(tree, dirs).unwrap_or(own)))
        }
        (Some(_), _) => Ok(upper_file(tree, found, plain(ObjectKey::new(upper, device, stat.ino), own))),
        (None, LowerPart::File(dir)) => {
            let ino = found.marks.ino.unwrap_or(own);
            if stat.nlink > 1 {
                let linked = Linked { dir, name, stat: &stat, data: found.data.as_ref() };
                return linked_lower_file(tree, &linked, |key| plain(key, ino));
            }
            Ok(plain(ObjectKey::new(dir.layer, device, stat.ino), ino))
        }
        (None, LowerPart::Dirs(dirs)) => {
            let layer = dirs.first().map_or(tree.stack.top, |dir| dir.layer);
            let ino = dirs_ino(tree, dirs).unwrap_or(own);
            Ok(plain(ObjectKey::new(layer, device, stat.ino), ino))
        }
        (None, LowerPart::None) => Ok(plain(ObjectKey::new(upper, device, stat.ino), own)),
    }
}

/// Returns the number that a directory with these lower parts shows: that of the topmost, so that copy-up does not change
/// it; of those that were uppers once, so that a rotation does not, it is the lowest.
fn dirs_ino(tree: &Tree, dirs: &[Arc<LowerDir>]) -> Option<u64> {
    let was_upper = |dir: &Arc<LowerDir>| tree.stack.lower(dir).is_ok_and(|layer| layer.was_upper);
    let dir = dirs.iter().find(|dir| !was_upper(dir)).or_else(|| dirs.last())?;
    Some(tree.stack.shown_ino(dir.identity.0, dir.identity.1))
}

fn upper_file(tree: &Tree, found: &Found, mut identity: Identity) -> Identity {
    let by_origin = || tree.stack.origin_ino(found.marks.origin.as_ref()?);
    identity.ino = found.marks.ino.or_else(by_origin).unwrap_or(identity.ino);
    let (Some(index), Some(record), Some(difference)) = (&tree.index, &found.marks.origin, found.marks.nlink)
    else {
        return identity;
    };
    // An index that was lost or belongs to another upper does not speak of this file.
    let entry = tree.stack.upper().and_then(|upper| index.find(upper, record));
    if entry.is_ok_and(|entry| entry.is_some_and(|entry| entry.ino == found.stat.ino)) {
        identity.stat.nlink = u32::try_from(i64::from(found.stat.nlink) + difference).unwrap_or(0);
        identity.index = Some(Box::new(Indexed { entry: origin::index_name(record), difference }));
    }
    identity
}

/// A lower file with several names: all of them are one object if there is an index to keep them together, else each
/// is one of its own.
fn linked_lower_file(
    tree: &Tree,
    linked: &Linked<'_>,
    plain: impl Fn(ObjectKey) -> Identity,
) -> Result<Identity> {
    let &Linked { dir, name, .. } = linked;
    if let Some(index) = tree.stack.index_dir() {
        return linked_read_only(tree, linked, index, plain);
    }
    let by_name = ObjectKey::lower_name(dir.id, name.as_bytes());
    let Identity { stat: lower, ino, .. } = plain(by_name);
    let index = tree.index.as_ref().filter(|_| tree.stack.may_be_marked(&lower));
    let Some(index) = index else { return Ok(plain(by_name)) };
    let key = ObjectKey::new(dir.layer, tree.stack.device_index(lower.dev), lower.ino);
    if tree.table.shown_ino(key).is_some() {
        return Ok(plain(key));
    }
    let Some(record) = index::lower_record(&tree.stack, dir, name.as_bytes())? else {
        return Ok(plain(by_name));
    };
    let Some(stat) = index.find(tree.stack.upper()?, &record)? else { return Ok(plain(key)) };
    let entry = origin::index_name(&record);
    let own_data = |_| Ok(LowerName { dir: Arc::clone(dir), name: name.clone() });
    let OnUpper { mut stat, data, .. } = lookup::on_upper(&tree.stack, (index.fd(), &entry), stat, own_data)?;
    let difference = index.nlink_difference(tree.stack.attributes(), &entry);
    stat.nlink = u32::try_from(i64::from(stat.nlink) + difference).unwrap_or(0);
    let key = ObjectKey::new(tree.stack.upper_number(), tree.stack.device_index(stat.dev), stat.ino);
    Ok(Identity { key, ino, stat, index: Some(Box::new(Indexed { entry, difference })), data, place: None })
}

/// As [`linked_lower_file`], with an index that is only read.
fn linked_read_only(
    tree: &Tree,
    linked: &Linked<'_>,
    index: &Arc<LowerDir>,
    plain: impl Fn(ObjectKey) -> Identity,
) -> Result<Identity> {
    let Some(Standing { place, stat, difference, data }) = linked.standing(&tree.stack, index)? else {
        return Ok(plain(ObjectKey::lower_name(linked.dir.id, linked.name.as_bytes())));
    };
    let key = ObjectKey::new(index.layer, tree.stack.device_index(stat.dev), stat.ino);
    let indexed = Box::new(Indexed { entry: place.name.as_bytes().to_vec(), difference });
    let (index, place) = (Some(indexed), Some(place));
    Ok(Identity { stat, index, data, place, ..plain(key) })
}

/// Returns the inode number that stat shows for a listed name.
pub(crate) fn listed_ino(tree: &Tree, parent: &Inode, device: u64, entry: &ListedName<'_>) -> u64 {
    let own = tree.stack.shown_ino(device, entry.ino);
    let number = usize::from(entry.layer);
    if number != tree.stack.upper_number() && !tree.stack.was_upper(number) {
        return own;
    }
    let key = ObjectKey::new(number, tree.stack.device_index(device), entry.ino);
    if let Some(ino) = tree.table.shown_ino(key) {
        return ino;
    }
    stored_ino(tree, parent, entry).unwrap_or(own)
}

/// Reads the number of an object that is not known yet and is, or was, on an upper, where its directory says that it may
/// have another.
fn stored_ino(tree: &Tree, parent: &Inode, entry: &ListedName<'_>) -> Option<u64> {
    let number = usize::from(entry.layer);
    let on_upper = number == tree.stack.upper_number();
    if on_upper && !tree.is_impure(parent) {
        return None;
    }
    if entry.kind == FileKind::Directory {
        let found = tree.hold(parent).ok()?.find(entry.name).ok()??;
        let name = FileName::new(entry.name).ok()?;
        return identify(tree, &name, &found).ok().map(|identity| identity.ino);
    }
    if !on_upper {
        let dir = parent.lower_dirs().iter().find(|dir| dir.layer == number).map(Arc::clone)?;
        let (stack, layer) = (&tree.stack, tree.stack.lower(&dir).ok()?);
        return layer.kept_ino(stack, &dir, entry.name, entry.ino);
    }
    let (stack, dir) = (&tree.stack, tree.upper_fd(parent).ok()?);
    stack.recorded_or_marked_ino(stack.attributes(), dir.as_fd(), entry.name, entry.ino)
}
