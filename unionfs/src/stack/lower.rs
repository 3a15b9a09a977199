//! A lower layer: reads below its root descriptor, and nothing else.
//!
//! "A lower layer is never written" holds by type: no method here changes anything, the root descriptor is
//! private, and what is opened comes back as a [`LowerFile`], not as a bare descriptor (fchmod, fchown, fsetxattr and
//! futimens succeed on descriptors opened read-only).

mod again;
mod file;
pub(crate) mod index;
mod known;
pub(crate) mod open;
mod sunk;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::OFlags;

use crate::error::{Errno, Error, Result};
use crate::name::FileName;
use crate::ondisk::catalog::{BlockAt, Object};
use crate::ondisk::record::Record;
use crate::ondisk::unfinished::Writer;
use crate::ondisk::{self, Namespace};
use crate::request::FileKind;
use crate::stack::attributes::Attributes;
use crate::stack::catalog::Catalog;
use crate::stack::dir_fds::{DirFds, DirKey};
use crate::stack::marks::{self, DirAttrs, DirMarks, Follow};
use crate::stack::mount_ids::MountIds;
use crate::stack::owners::{Owners, record_of};
use crate::stack::settle;
use crate::stack::sidecar::Sidecar;
use crate::sys::dirents::RawEntry;
use crate::sys::{self, Stat};
use file::At;
pub(crate) use file::LowerFile;
use index::LayerIndex;

/// One read-only layer. Clones share the descriptor.
#[derive(Clone, Debug)]
pub(crate) struct LowerLayer {
    /// As it was given.
    pub path: PathBuf,
    /// Absolute and without symbolic links.
    pub real: PathBuf,
    root: Arc<OwnedFd>,
    /// The clone of its mount, where it has that in common with others: given up with the last of them.
    #[expect(dead_code, reason = "the mount lives as long as it is open")]
    shared_clone: Option<Arc<OwnedFd>>,
    root_stat: Stat,
    /// The root has no extended attributes.
    bare_root: bool,
    /// The number of the mount that the layer lies on, 0 where mounts have none.
    mount: u64,
    /// Since when a store that it lies on has lost nothing.
    pub epoch: Option<[u8; 16]>,
    /// Identifier of the file system, all zero where it has none or it is not to be stored.
    uuid: [u8; 16],
    /// The mapping of ids that the layer's mount has applied, to be taken back.
    mount_ids: Option<Arc<MountIds>>,
    /// Where owners and modes are.
    owners: Owners,
    /// Directory entries that are not shown: the directory's device and inode, and the name in it.
    hidden: Vec<(u64, u64, Vec<u8>)>,
    /// It was the upper, on NFS, and the server may still hold open what was removed from it.
    keeps_removed: bool,
    /// What was written down of the layer.
    catalog: Option<Arc<Catalog>>,
    /// Where its attributes are: beside it if it is an upper that a sidecar belongs to.
    attributes: Arc<Attributes>,
    /// File handles name the same object after a remount.
    pub(crate) handles_last: bool,
    /// They hold inode numbers where `ondisk::origin` looks for them.
    pub(crate) handles_have_numbers: bool,
    /// The file system can protect files by fs-verity, and that is asked for.
    pub(crate) has_verity: bool,
    /// Of an upper that is only read.
    index: Option<LayerIndex>,
    /// It is an upper that is only read, or was one until a rotation: its objects may say which inode number they are shown with.
    pub was_upper: bool,
}

/// A directory of a lower layer. Its place never changes, so it is a name and a parent; a descriptor exists only
/// while the bounded cache holds one.
#[derive(Debug)]
pub(crate) struct LowerDir {
    /// Number of this object, unique in the process.
    pub id: u64,
    /// Number of the layer: it stays the same when layers come on top, and is greater the lower the layer.
    pub layer: usize,
    /// Parent, `None` for the layer's root.
    pub parent: Option<Arc<LowerDir>>,
    /// Name in the parent; empty for the root.
    pub name: Vec<u8>,
    /// Device and inode number.
    pub identity: (u64, u64),
    /// Another file system is mounted here: what is below it does not belong to the layer.
    pub sealed: bool,
    /// Empty regular files in it may be whiteouts by attribute.
    pub xattr_whiteouts: bool,
    pub(crate) marks: OnceLock<DirMarks>,
    /// Some of its objects show another inode number than their own.
    impure: OnceLock<bool>,
    /// Where the layer's catalog has it; set when it is found there.
    block: OnceLock<BlockAt>,
    /// It is not what the catalog says.
    changed: AtomicBool,
}

/// What a layer has under a name.
#[derive(Debug)]
pub(crate) struct Looked {
    /// Attributes.
    pub stat: Stat,
    /// The catalog knows that the object has no attribute that is a mark.
    pub plain: bool,
    block: Option<BlockAt>,
}

static NEXT_DIR_ID: AtomicU64 = AtomicU64::new(1);

impl LowerDir {
    /// Describes the directory that `stat` was read from.
    pub(crate) fn new(
        layer: usize,
        parent: Option<Arc<Self>>,
        name: &[u8],
        stat: &Stat,
        xattr_whiteouts: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: NEXT_DIR_ID.fetch_add(1, Ordering::Relaxed),
            layer,
            sealed: parent.is_some() && stat.mount_root,
            parent,
            name: name.to_vec(),
            identity: (stat.dev, stat.ino),
            xattr_whiteouts,
            marks: OnceLock::new(),
            impure: OnceLock::new(),
            block: OnceLock::new(),
            changed: AtomicBool::new(false),
        })
    }

    /// Describes the directory that was found under `name`.
    pub(crate) fn found(
        parent: &Arc<Self>,
        name: &[u8],
        looked: &Looked,
        xattr_whiteouts: bool,
    ) -> Arc<Self> {
        let dir = Self::new(parent.layer, Some(Arc::clone(parent)), name, &looked.stat, xattr_whiteouts);
        if let Some(block) = looked.block {
            dir.block.get_or_init(|| block);
        }
        dir
    }

    /// Keeps the `.wh.` names of the directory, all of whose names were just read.
    pub(crate) fn note_whiteouts(&self, targets: Vec<Box<[u8]>>) {
        self.marks.get_or_init(|| DirMarks { whiteouts: targets.into_iter().collect() });
    }

    /// Returns the path from the layer's root, components joined by `/`, empty for the root.
    pub(crate) fn path(&self) -> Vec<u8> {
        let mut components = Vec::new();
        let mut at = Some(self);
        while let Some(dir) = at {
            if !dir.name.is_empty() {
                components.push(dir.name.as_slice());
            }
            at = dir.parent.as_deref();
        }
        components.reverse();
        components.join(&b'/')
    }
}

/// A name in a directory of a lower layer.
#[derive(Clone, Debug)]
pub(crate) struct LowerName {
    /// The directory.
    pub dir: Arc<LowerDir>,
    /// The name in it.
    pub name: FileName,
}

impl LowerLayer {
    /// Describes the root directory of a layer that gives contents only: no mark of it counts.
    pub(crate) fn data_root(&self, number: usize) -> Arc<LowerDir> {
        LowerDir::new(number, None, b"", &self.root_stat, false)
    }

    /// Describes the root directory; also tells whether it hides the layers below.
    pub(crate) fn root_dir(&self, number: usize, namespace: Namespace) -> Result<(Arc<LowerDir>, bool)> {
        // It was compared with the layer a moment ago.
        let block = self.catalog.as_ref().and_then(|catalog| catalog.take_root());
        let attrs = match &block {
            Some(block) if self.bare_root => {
                let opaque = block.find(ondisk::OPAQUE_FILE, 0).is_some();
                DirAttrs { opaque, ..DirAttrs::default() }
            }
            None if self.bare_root => marks::without_attributes(self.root.as_fd()),
            _ => marks::read_attrs(&self.attributes, self.root.as_fd(), namespace, Follow::Yes)?,
        };
        let root = LowerDir::new(number, None, b"", &self.root_stat, attrs.xattr_whiteouts);
        if let Some(catalog) = &self.catalog {
            root.block.get_or_init(|| catalog.root());
            if let Some(block) = block {
                catalog.keep(root.id, &block);
            }
        }
        Ok((root, attrs.opaque))
    }

    /// Returns where owners and modes are.
    pub(crate) fn owners(&self) -> Owners {
        self.owners
    }

    /// Returns the record of the root, if the layer has records.
    pub(crate) fn root_record(&self) -> Option<Record> {
        let shown = self.owners.stat_fd(self.root.as_fd()).ok()?;
        (!self.owners.are_inodes()).then(|| record_of(&shown))
    }

    /// Returns who this process is to the layer's marks of unfinished files.
    pub(crate) fn reader(&self) -> Writer {
        let reader = settle::writer_on_mount(self.mount);
        self.epoch.map_or(reader, |epoch| reader.since(epoch))
    }

    /// Waits until no server finishes files of this layer, which was its upper, any more.
    pub(crate) fn wait_for_finisher(&self) {
        settle::wait_for_finisher(self.root.as_fd());
    }

    /// Returns where the attributes of its objects are.
    pub(crate) fn attributes(&self) -> &Attributes {
        &self.attributes
    }

    /// Reads the attributes of its objects beside it.
    pub(crate) fn read_beside(&mut self, sidecar: Sidecar) -> Result<()> {
        sidecar.check(self.root.as_fd())?;
        self.bare_root = false;
        self.attributes = Arc::new(Attributes::beside(sidecar));
        Ok(())
    }

    /// Returns the identifier of the file system, all zero where it has none.
    pub(crate) fn uuid(&self) -> &[u8; 16] {
        &self.uuid
    }

    /// Stops showing `name` in the directory with this identity.
    pub(crate) fn hide(&mut self, dir: (u64, u64), name: &[u8]) {
        self.hidden.push((dir.0, dir.1, name.to_vec()));
    }

    /// Returns whether `name` in `dir` is not shown.
    pub(crate) fn hides(&self, dir: &LowerDir, name: &[u8]) -> bool {
        (self.keeps_removed && ondisk::is_silly_name(name))
            || self.hidden.iter().any(|(dev, ino, hidden)| (*dev, *ino) == dir.identity && hidden == name)
    }

    /// Returns the device and inode number of the root.
    pub(crate) fn identity(&self) -> (u64, u64) {
        (self.root_stat.dev, self.root_stat.ino)
    }

    /// Returns the attributes that the root had when it was opened.
    pub(crate) fn root_stat(&self) -> &Stat {
        &self.root_stat
    }

    /// Returns file system totals.
    pub(crate) fn statvfs(&self) -> Result<rustix::fs::StatVfs> {
        Ok(rustix::fs::fstatvfs(&self.root)?)
    }

    /// Returns a descriptor of `dir` for lookups, from the cache if it is there.
    pub(crate) fn dir_fd(&self, fds: &DirFds, dir: &LowerDir) -> Result<DirFd<'_>> {
        if dir.parent.is_none() {
            return Ok(DirFd::Root(self.top(dir).as_fd()));
        }
        if let Some(fd) = fds.get(DirKey::Lower(dir.id)) {
            return Ok(DirFd::Cached(fd));
        }
        let fd = Arc::new(self.open_dir(fds, dir)?);
        fds.put(DirKey::Lower(dir.id), Arc::clone(&fd));
        Ok(DirFd::Cached(fd))
    }

    /// Opens `dir` from its nearest ancestor that has a descriptor.
    fn open_dir(&self, fds: &DirFds, dir: &LowerDir) -> Result<OwnedFd> {
        if dir.sealed {
            let parent = dir.parent.as_ref().ok_or(Errno::IO)?;
            let base = self.dir_fd(fds, parent)?;
            return Ok(sys::open_at(base.as_fd(), &dir.name, OFlags::PATH | OFlags::DIRECTORY, 0)?);
        }
        let mut path = vec![dir.name.as_slice()];
        let mut at = dir.parent.as_ref();
        let base = loop {
            match at {
                None => break DirFd::Root(self.root.as_fd()),
                Some(ancestor) => {
                    if let Some(fd) = fds.get(DirKey::Lower(ancestor.id)) {
                        break DirFd::Cached(fd);
                    }
                    if ancestor.parent.is_some() {
                        path.push(&ancestor.name);
                    }
                    at = ancestor.parent.as_ref();
                }
            }
        };
        path.reverse();
        Ok(sys::open_dir_beneath(base.as_fd(), &path.join(&b'/'))?)
    }

    /// Returns the attributes of `name` in `dir`; ENOENT for what is not shown.
    pub(crate) fn stat(&self, fds: &DirFds, dir: &LowerDir, name: &[u8]) -> Result<Stat> {
        Ok(self.look(fds, dir, name)?.stat)
    }

    /// Returns what `name` in `dir` is; ENOENT for what is not shown. No system call where the catalog has it.
    pub(crate) fn look(&self, fds: &DirFds, dir: &LowerDir, name: &[u8]) -> Result<Looked> {
        if dir.sealed || self.hides(dir, name) {
            return Err(Error::new(Errno::NOENT));
        }
        if let Some(block) = self.known(fds, dir) {
            let found = block.find(name, self.root_stat.dev).ok_or(Error::new(Errno::NOENT))?;
            let Object { stat, plain, block, bare: _ } = found;
            // Where a file with marks has its data, and how much, is for the layer to say.
            let settled = plain || stat.kind() != FileKind::Regular;
            if settled && (!stat.is_dir() || block.is_some()) {
                return Ok(Looked { stat, plain, block });
            }
        }
        self.look_on_disk(fds, dir, name)
    }

    /// As [`Self::look`], not asking the catalog.
    pub(crate) fn look_on_disk(&self, fds: &DirFds, dir: &LowerDir, name: &[u8]) -> Result<Looked> {
        let fd = self.dir_fd(fds, dir)?;
        let stat = sys::stat_at(fd.as_fd(), name)?;
        let stat = self.mount_ids.as_ref().map_or(stat, |ids| ids.on_disk(stat));
        let stat = self.owners.show(stat, |attribute| sys::xattr::get_at(fd.as_fd(), name, attribute))?;
        Ok(Looked { stat, plain: false, block: None })
    }

    /// Calls `each` for every name in `dir`, until it answers `false`.
    pub(crate) fn for_each_name(
        &self,
        fds: &DirFds,
        dir: &LowerDir,
        mut each: impl FnMut(RawEntry<'_>) -> Result<bool>,
    ) -> Result<()> {
        if let Some(block) = self.known(fds, dir) {
            for index in 0..block.len() {
                let found = block.name_at(index).zip(block.record_at(index, self.root_stat.dev));
                let (name, record) = found.ok_or(Error::new(Errno::IO))?;
                let entry = RawEntry { name, ino: record.stat.ino, kind: Some(record.stat.kind()) };
                if !each(entry)? {
                    break;
                }
            }
            return Ok(());
        }
        let mut failed = None;
        sys::dirents::for_each_name(self.dir_fd(fds, dir)?.as_fd(), |entry| match each(entry) {
            Ok(more) => Ok(more),
            Err(error) => {
                failed = Some(error);
                Ok(false)
            }
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// Takes what was opened beside the layer, such as its root while it was an upper, to be read and not changed.
    pub(crate) fn beside(&self, fd: OwnedFd) -> LowerFile {
        LowerFile { mount_ids: None, ..self.file(At::Open(fd)) }
    }

    fn file(&self, at: At) -> LowerFile {
        let attributes = Arc::clone(&self.attributes);
        LowerFile { at, mount_ids: self.mount_ids.clone(), owners: self.owners, attributes }
    }

    /// Opens `name` in `dir` for reading its data.
    ///
    /// # Errors
    /// ESTALE if the file is not what the catalog, and so what the kernel was told, says.
    pub(crate) fn open_data(&self, fds: &DirFds, dir: &LowerDir, name: &FileName) -> Result<LowerFile> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = sys::open_quietly(self.dir_fd(fds, dir)?.as_fd(), name.as_bytes(), flags)?;
        self.check_file(fds, dir, name, file.as_fd())?;
        Ok(self.file(At::Open(file)))
    }

    /// Returns `name` in `dir`, to be asked for its attributes.
    pub(crate) fn object(&self, fds: &DirFds, dir: &LowerDir, name: &[u8]) -> Result<LowerFile> {
        let dir = match self.dir_fd(fds, dir)? {
            DirFd::Root(_) => Arc::clone(self.top(dir)),
            DirFd::Cached(fd) => fd,
        };
        Ok(self.file(At::Name(dir, name.into())))
    }

    /// Opens `dir` itself for its attributes.
    pub(crate) fn pin_dir(&self, fds: &DirFds, dir: &LowerDir) -> Result<LowerFile> {
        Ok(self.file(At::Open(self.dir_fd(fds, dir)?.as_fd().try_clone_to_owned()?)))
    }

    /// Returns what the directory's own names and attributes say about the layers below, read once.
    pub(crate) fn marks<'a>(&self, fds: &DirFds, dir: &'a LowerDir) -> Result<&'a DirMarks> {
        if let Some(marks) = dir.marks.get() {
            return Ok(marks);
        }
        let marks = if dir.sealed || self.known(fds, dir).is_some_and(|block| !block.has_dot_wh) {
            DirMarks::default()
        } else {
            marks::scan_names(self.dir_fd(fds, dir)?.as_fd())?
        };
        Ok(dir.marks.get_or_init(|| marks))
    }
}

/// A descriptor to look names up in: a layer's root, or one from the cache.
#[derive(Debug)]
pub(crate) enum DirFd<'a> {
    /// The root of a layer.
    Root(BorrowedFd<'a>),
    /// Shared with the cache.
    Cached(Arc<OwnedFd>),
}

impl AsFd for DirFd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(fd) => *fd,
            Self::Cached(fd) => fd.as_fd(),
        }
    }
}
