//! A union looked at without a mount and without changing anything: which objects are there, and what are they?
//!
//! All layers are opened read-only, an upper as the topmost of them. Hard links that the upper's index keeps together are
//! found if the workdir is named; it is only read, also while a mount uses it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags};

use crate::error::{Errno, Error, Result};
use crate::idmap::IdView;
use crate::index;
use crate::lookup::{self, DirView, LowerPart};
use crate::merge;
use crate::name::FileName;
use crate::ondisk::origin;
use crate::options::MountOptions;
use crate::request::FileKind;
use crate::stack::LayerStack;
use crate::stack::lower::{LowerDir, LowerFile, LowerLayer, LowerName};
use crate::stack::marks;
use crate::sys::{self, Stat};
use crate::xattr_ops;

/// The parts of a directory, topmost first.
pub(crate) type Parts = Vec<Arc<LowerDir>>;

/// A union to be looked at.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) stack: LayerStack,
    index: Option<OwnedFd>,
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
    /// The entry of the index that stands for it.
    entry: Option<Vec<u8>>,
    /// Where its data is, if the object itself holds only attributes.
    data: Option<LowerName>,
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
        let (stack, _) = LayerStack::open(&options)?;
        let index = match (&options.upperdir, &options.workdir) {
            (Some(_), Some(work)) if options.index != Some(false) => open_index(&work.join("index"))?,
            _ => None,
        };
        let overflow = crate::idmap::DEFAULT_OVERFLOW_ID;
        let (uids, gids) = (options.uid_view(overflow), options.gid_view(overflow));
        Ok(Self { stack, index, uids, gids })
    }

    /// Returns the root.
    pub(crate) fn root(&self) -> Result<Object> {
        let parts = self.stack.roots.clone();
        let first = parts.first().ok_or(Error::new(Errno::IO))?;
        let stat = self.stack.lower(first)?.pin_dir(&self.stack.fds, first)?.stat()?;
        Ok(Object { stat: self.shown(stat), parts, place: None, entry: None, data: None })
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
        let mut object =
            Object { stat: found.stat, parts: Vec::new(), place: None, entry: None, data: found.data };
        match found.lower {
            LowerPart::Dirs(parts) => object.parts = parts,
            LowerPart::File(dir) => {
                object.place = Some(LowerName { dir: Arc::clone(&dir), name: FileName::new(name)? });
                self.follow_index(&mut object, &dir, name)?;
            }
            LowerPart::None => return Err(Error::new(Errno::IO)),
        }
        object.stat = self.shown(object.stat);
        Ok(Some(object))
    }

    /// A lower file with several names, one of which was changed, is the object in the index; an upper one shows the
    /// number of links that its index entry tells.
    fn follow_index(&self, object: &mut Object, dir: &Arc<LowerDir>, name: &[u8]) -> Result<()> {
        let Some(index) = &self.index else { return Ok(()) };
        if object.stat.nlink < 2 || object.stat.is_dir() {
            return Ok(());
        }
        let Some(record) = self.record(dir, name)? else { return Ok(()) };
        let entry = origin::index_name(&record);
        let mut stat = match self.upper()?.owners().stat_at(index.as_fd(), &entry) {
            Ok(stat) if !stat.is_whiteout() && !stat.is_dir() => stat,
            Ok(_) | Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let own = dir.layer == self.stack.top;
        if own && (stat.dev, stat.ino) != object.identity() {
            return Ok(());
        }
        let (attributes, follow) = (self.upper()?.attributes(), self.stack.follow);
        let found = marks::read_file_marks(attributes, index.as_fd(), &entry, self.stack.namespace, follow)?;
        let shown = i64::from(stat.nlink) + found.nlink.unwrap_or(-1);
        stat.nlink = u32::try_from(shown).unwrap_or(0);
        object.stat = stat;
        if !own {
            object.entry = Some(entry);
            object.data =
                found.metacopy.then(|| object.data.take().or_else(|| object.place.clone())).flatten();
        }
        Ok(())
    }

    /// Returns the upper, the topmost of the layers.
    fn upper(&self) -> Result<&LowerLayer> {
        self.stack.lowers.first().ok_or(Error::new(Errno::IO))
    }

    /// Returns the record by which the index knows a file: on the upper the one it was copied up with, below its own.
    fn record(&self, dir: &LowerDir, name: &[u8]) -> Result<Option<Vec<u8>>> {
        if dir.layer > self.stack.top {
            return index::lower_record(&self.stack, dir, name);
        }
        let layer = self.stack.lower(dir)?;
        let fd = layer.dir_fd(&self.stack.fds, dir)?;
        let (namespace, follow) = (self.stack.namespace, self.stack.follow);
        Ok(marks::read_file_marks(layer.attributes(), fd.as_fd(), name, namespace, follow)?.origin)
    }

    /// Returns an object, to be asked for its attributes.
    pub(crate) fn pin(&self, object: &Object) -> Result<LowerFile> {
        if let Some(dir) = object.parts.first() {
            return self.stack.lower(dir)?.pin_dir(&self.stack.fds, dir);
        }
        if let (Some(entry), Some(index)) = (&object.entry, &self.index) {
            return Ok(self.upper()?.beside(sys::pin_at(index.as_fd(), entry)?));
        }
        let place = object.place.as_ref().ok_or(Error::new(Errno::IO))?;
        self.stack.lower(&place.dir)?.object(&self.stack.fds, &place.dir, place.name.as_bytes())
    }

    /// Opens the data of a regular file.
    pub(crate) fn open_data(&self, object: &Object) -> Result<LowerFile> {
        if let (Some(entry), Some(index), None) = (&object.entry, &self.index, &object.data) {
            let fd = sys::open_at(index.as_fd(), entry, OFlags::RDONLY | OFlags::NONBLOCK, 0)?;
            return Ok(self.upper()?.beside(fd));
        }
        let place = object.data.as_ref().or(object.place.as_ref()).ok_or(Error::new(Errno::IO))?;
        self.stack.lower(&place.dir)?.open_data(&self.stack.fds, &place.dir, &place.name)
    }

    /// Returns device and inode number of the file that holds the data.
    pub(crate) fn data_identity(&self, object: &Object) -> Result<(u64, u64)> {
        let Some(place) = &object.data else { return Ok(object.identity()) };
        let stat = self.stack.lower(&place.dir)?.stat(&self.stack.fds, &place.dir, place.name.as_bytes())?;
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

fn open_index(path: &std::path::Path) -> Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => {
            Err(Error::new(errno)
                .during("open the index of the workdir", path.as_os_str().as_encoded_bytes()))
        }
    }
}
