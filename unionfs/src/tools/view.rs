//! A union looked at without a mount and without changing anything: which objects are there, and what are they?
//!
//! All layers are opened read-only, an upper as the topmost of them. Hard links that the upper's index keeps together are
//! found if the workdir is named; it is only read, also while a mount uses it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Errno, Error, Result};
use crate::idmap::IdView;
use crate::index::read_only::{Linked, Standing};
use crate::lookup::{self, DirView, LowerPart};
use crate::merge;
use crate::name::FileName;
use crate::options::MountOptions;
use crate::request::FileKind;
use crate::stack::LayerStack;
use crate::stack::lower::{LowerDir, LowerFile, LowerName};
use crate::sys::Stat;
use crate::xattr_ops;

/// The parts of a directory, topmost first.
pub(crate) type Parts = Vec<Arc<LowerDir>>;

/// A union to be looked at.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) stack: LayerStack,
    uids: IdView,
    gids: IdView,
}

/// An object of the union.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    /// Attributes, owners as shown.
    pub stat: Stat,
    /// Of a directory: its parts on the layers.
    pub parts: Parts,
    /// Of anything else: where it is.
    place: Option<LowerName>,
    /// Where its data is, if the object itself holds only attributes.
    pub data: Option<LowerName>,
}

impl Object {
    /// Returns device and inode number of what holds the attributes.
    pub(crate) fn identity(&self) -> (u64, u64) {
        (self.stat.dev, self.stat.ino)
    }
}

impl View {
    /// Opens the layers that `options` name.
    ///
    /// # Errors
    /// What is wrong with which directory.
    pub(crate) fn open(options: &MountOptions) -> Result<Self> {
        let mut options = options.clone();
        options.flags.read_only = true;
        let (mut stack, _) = LayerStack::open(&options)?;
        stack.read_index(&options)?;
        let overflow = crate::idmap::DEFAULT_OVERFLOW_ID;
        let (uids, gids) = (options.uid_view(overflow), options.gid_view(overflow));
        Ok(Self { stack, uids, gids })
    }

    /// Returns the root.
    pub(crate) fn root(&self) -> Result<Object> {
        let parts = self.stack.roots.clone();
        let first = parts.first().ok_or(Error::new(Errno::IO))?;
        let stat = self.stack.lower(first)?.pin_dir(&self.stack.fds, first)?.stat()?;
        Ok(Object { stat: self.shown(stat), parts, place: None, data: None })
    }

    /// Returns the names in a directory, sorted.
    pub(crate) fn names(&self, parts: &[Arc<LowerDir>]) -> Result<Vec<Vec<u8>>> {
        let listing = merge::list_lowers(&self.stack, parts, usize::MAX)?.unwrap_or_default();
        let mut names: Vec<Vec<u8>> =
            (0..listing.len()).filter_map(|at| listing.get(at)).map(|entry| entry.name.to_vec()).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Finds a name in a directory.
    pub(crate) fn find(&self, parts: &[Arc<LowerDir>], name: &[u8]) -> Result<Option<Object>> {
        if parts.is_empty() {
            return Ok(None);
        }
        let Some(found) = lookup::find(&self.stack, &dir_view(parts), name)? else { return Ok(None) };
        let mut object = Object { stat: found.stat, parts: Vec::new(), place: None, data: found.data };
        match found.lower {
            LowerPart::Dirs(parts) => object.parts = parts,
            LowerPart::File(dir) => {
                let name = FileName::new(name)?;
                object.place = Some(LowerName { dir: Arc::clone(&dir), name: name.clone() });
                self.follow_index(&mut object, &dir, &name)?;
            }
            LowerPart::None => return Err(Error::new(Errno::IO)),
        }
        object.stat = self.shown(object.stat);
        Ok(Some(object))
    }

    /// A lower file with several names, one of which was changed, is the object in the index; an upper one shows the
    /// number of links that its index entry tells.
    fn follow_index(&self, object: &mut Object, dir: &Arc<LowerDir>, name: &FileName) -> Result<()> {
        let Some(index) = self.stack.index_dir().filter(|_| object.stat.nlink > 1) else { return Ok(()) };
        let linked = Linked { dir, name, stat: &object.stat, data: object.data.as_ref() };
        if let Some(Standing { place, stat, data, .. }) = linked.standing(&self.stack, index)? {
            *object = Object { stat, parts: Vec::new(), place: Some(place), data };
        }
        Ok(())
    }

    /// Returns an object, to be asked for its attributes.
    pub(crate) fn pin(&self, object: &Object) -> Result<LowerFile> {
        if let Some(dir) = object.parts.first() {
            return self.stack.lower(dir)?.pin_dir(&self.stack.fds, dir);
        }
        let place = object.place.as_ref().ok_or(Error::new(Errno::IO))?;
        self.stack.lower(&place.dir)?.object(&self.stack.fds, &place.dir, place.name.as_bytes())
    }

    /// Opens the data of a regular file.
    pub(crate) fn open_data(&self, object: &Object) -> Result<LowerFile> {
        let place = object.data.as_ref().or(object.place.as_ref()).ok_or(Error::new(Errno::IO))?;
        self.stack.lower(&place.dir)?.open_data(&self.stack.fds, &place.dir, &place.name)
    }

    /// Returns device and inode number of the file that holds the data.
    pub(crate) fn data_identity(&self, object: &Object) -> Result<(u64, u64)> {
        let Some(place) = &object.data else { return Ok(object.identity()) };
        let stat = self.stack.stat_of(place)?;
        Ok((stat.dev, stat.ino))
    }

    /// Returns the extended attributes that the union shows.
    pub(crate) fn xattrs(&self, object: &Object) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let file = self.pin(object)?;
        let names = match file.xattr_names() {
            Ok(names) => names,
            Err(error) if error.is(Errno::OPNOTSUPP) || error.is(Errno::NOSYS) => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut found = BTreeMap::new();
        for shown in names {
            let value = file.xattr(&shown);
            match value.and_then(|value| xattr_ops::shown_value((&self.uids, &self.gids), &shown, value)) {
                Ok(value) => drop(found.insert(shown, value)),
                // Listed, but gone or not for this process to read: the mount does not show it either.
                Err(error) if [Errno::NODATA, Errno::PERM, Errno::ACCESS].contains(&error.errno()) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Returns the target of a symbolic link.
    pub(crate) fn link_target(&self, object: &Object) -> Result<Vec<u8>> {
        self.pin(object)?.link_target()
    }

    fn shown(&self, mut stat: Stat) -> Stat {
        stat.uid = self.uids.shown(stat.uid);
        stat.gid = self.gids.shown(stat.gid);
        stat
    }
}

/// Returns whether two objects, each of its view, look the same: type, mode, owners, times, attributes and data.
pub(crate) fn look_the_same(left: (&View, &Object), right: (&View, &Object)) -> Result<bool> {
    let ((left_view, a), (right_view, b)) = (left, right);
    let regular = a.stat.kind() == FileKind::Regular;
    let plain = |stat: &Stat| (stat.mode, stat.uid, stat.gid, stat.mtime);
    if plain(&a.stat) != plain(&b.stat) || a.stat.rdev != b.stat.rdev {
        return Ok(false);
    }
    if regular && a.stat.size != b.stat.size {
        return Ok(false);
    }
    if a.identity() == b.identity() {
        return Ok(true);
    }
    if a.stat.kind() == FileKind::Symlink && left_view.link_target(a)? != right_view.link_target(b)? {
        return Ok(false);
    }
    if left_view.xattrs(a)? != right_view.xattrs(b)? {
        return Ok(false);
    }
    if !regular || left_view.data_identity(a)? == right_view.data_identity(b)? {
        return Ok(true);
    }
    same_data(&left_view.open_data(a)?, &right_view.open_data(b)?)
}

/// Bytes compared at a time.
const CHUNK: usize = 128 * 1024;

fn same_data(left: &LowerFile, right: &LowerFile) -> Result<bool> {
    let (mut a, mut b) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut at = 0;
    loop {
        let (read, other) = (read_full(left, &mut a, at)?, read_full(right, &mut b, at)?);
        if read != other || a.get(..read) != b.get(..other) {
            return Ok(false);
        }
        if read < CHUNK {
            return Ok(true);
        }
        at += read as u64;
    }
}

/// Reads until the buffer is full or the file ends.
fn read_full(file: &LowerFile, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64)? {
            0 => break,
            got => done += got,
        }
    }
    Ok(done)
}

/// Returns a directory to look names up in.
pub(crate) fn dir_view(parts: &[Arc<LowerDir>]) -> DirView<'_> {
    DirView::of_lowers(parts)
}
