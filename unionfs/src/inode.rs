//! One object of the union: where it is, what serves it, and its locks.
//!
//! A node is the object that serves data and attributes. Copy-up moves it from a lower to the upper under the same
//! number; rename changes its place; unlink takes its places away, and it lives on while anybody holds it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::error::{Errno, Error, Result};
use crate::name::FileName;
use crate::parts::Parts;
use crate::request::{FileKind, NodeId};
use crate::stack::lower::{LowerDir, LowerFile, LowerName};
use crate::stack::marks::DirMarks;

/// An object of the union.
#[derive(Debug)]
pub(crate) struct Inode {
    /// The number the kernel knows it by. Immutable.
    pub id: NodeId,
    /// A number that no other node of this process ever has: caches are keyed by it, since the kernel's number comes
    /// back as another object's. Immutable.
    pub serial: u64,
    /// The inode number to show. Copy-up does not change it; only who looks at the layers again may find another one.
    pub(crate) shown: AtomicU64,
    /// Type. Immutable.
    pub kind: FileKind,
    /// Lookups by the kernel plus nodes that name this one as parent. Protected by the inode table.
    pub(crate) refs: AtomicU64,
    /// Which object on disk this is. Protected by the inode table.
    pub(crate) key: KeyCell,
    /// Open handles. Changed under `data`.
    pub opens: AtomicU32,
    /// Stands for the directory's names: changed whenever one of them changes or is served by another layer.
    pub version: AtomicU64,
    /// Held while this object is copied up: single flight.
    pub copy_up: Mutex<()>,
    /// Of a directory: held while names in it change on disk and in memory.
    pub names: Mutex<()>,
    /// Where the object is. Never held across a system call.
    pub state: RwLock<State>,
    /// What reads and writes go to. Held for reading across I/O, for writing while copy-up switches it, or while a name goes
    /// by which an NFS client must not have it open.
    pub data: RwLock<Option<Data>>,
}

/// The object key of a node; a space of 0 is none. Written and read under the inode table's lock.
#[derive(Debug, Default)]
pub(crate) struct KeyCell {
    pub(crate) space: AtomicU64,
    pub(crate) number: AtomicU64,
}

/// Where an object is in the union and on the layers.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Its name in the union: the last one that is known to exist. None for the root and for unlinked objects.
    pub place: Option<Place>,
    /// Its further names, if it is on the upper and has hard links.
    #[expect(clippy::box_collection, reason = "one word in each of a million nodes that have none")]
    pub other_places: Option<Box<Vec<Place>>>,
    /// Its inode number on the upper, once it is there.
    pub upper: Option<u64>,
    /// Keeps an unlinked upper object reachable until the kernel forgets it.
    pub pinned: Option<Arc<OwnedFd>>,
    /// Its part on the lowers.
    pub lower: Lower,
    /// The lower file that holds the data, while the object itself holds only attributes (metacopy).
    pub lower_data: Option<Box<LowerData>>,
    /// Its place in the index, if it stands for a lower inode with several names.
    pub index: Option<Box<Indexed>>,
    /// Names `.wh.*` on the upper part of a directory that has lowers, once read.
    pub upper_whiteouts: Option<Box<DirMarks>>,
    /// Whether the directory has a default ACL: 0 not known, 1 no, 2 yes.
    pub default_acl: u8,
    /// Whether empty files in the upper part of a directory may be whiteouts: 0 not known, 1 no, 2 yes.
    pub xattr_whiteouts: u8,
    /// The upper part is marked as holding objects with an origin.
    pub impure: bool,
    /// This process made the directory.
    pub made_here: bool,
    /// An object with a past was put into the upper part, or is about to be. Never taken back.
    pub may_hold_marks: bool,
    /// Links that are no names of the union: of a lower object with several, those whose names were removed while it was not
    /// yet copied up; of an upper one, that which an NFS client keeps because it is pinned.
    pub lost_links: u32,
    /// All its names were removed.
    pub unlinked: bool,
    /// It was not where it was when the layers were looked at again. What is found under its key is it.
    pub lost: bool,
}

/// A lower file that holds the data of a metacopy.
#[derive(Clone, Debug)]
pub(crate) struct LowerData {
    /// Where it is.
    pub file: LowerName,
    /// Its blocks of 512 bytes, which the metacopy shows.
    pub blocks: u64,
    /// The size that the metacopy shows, in bytes: on a lower its own says nothing if a server was killed.
    pub size: u64,
}

/// A member of the index.
#[derive(Clone, Debug)]
pub(crate) struct Indexed {
    /// The entry's name.
    pub entry: Vec<u8>,
    /// The shown number of links less those of the upper inode.
    pub difference: i64,
}

/// A name in a directory of the union.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The directory.
    pub parent: Arc<Inode>,
    /// The name in it.
    pub name: FileName,
}

impl Place {
    /// Returns whether this is `name` in `parent`.
    pub(crate) fn is(&self, parent: &Inode, name: &[u8]) -> bool {
        self.parent.id == parent.id && self.name.as_bytes() == name
    }
}

/// The part of an object on the lowers.
#[derive(Clone, Debug, Default)]
pub(crate) enum Lower {
    /// None.
    #[default]
    None,
    /// A directory's parts, topmost first.
    Dirs(Arc<[Arc<LowerDir>]>),
    /// A file's directory and name on its layer, and its inode number.
    File(Arc<LowerDir>, FileName, u64),
    /// A file that its layer has no longer: who held it open goes on with it.
    Held(Arc<LowerFile>),
}

impl Lower {
    /// Returns the parts of a directory.
    pub(crate) fn dirs(&self) -> &[Arc<LowerDir>] {
        match self {
            Self::Dirs(dirs) => dirs,
            Self::None | Self::File(..) | Self::Held(_) => &[],
        }
    }
}

/// The file that serves an object's data now.
#[derive(Debug)]
pub(crate) enum Data {
    /// A lower file, read-only.
    Lower(LowerFile),
    /// The upper file.
    Upper(UpperFile),
}

/// An upper file held open.
#[derive(Debug)]
pub(crate) struct UpperFile {
    /// The descriptor.
    pub fd: Arc<OwnedFd>,
    /// It was opened for reading and writing.
    pub writable: bool,
    /// It may have set-id bits, or capabilities that its file system does not know: a write has to look.
    pub may_have_suid: bool,
    /// How it is served until it has all its data.
    pub parts: Option<Arc<Parts>>,
}

impl UpperFile {
    /// Describes an open file that has all its data.
    pub(crate) fn new(fd: Arc<OwnedFd>, writable: bool, mode: u32) -> Self {
        let may_have_suid = mode & (libc::S_ISUID | libc::S_ISGID) != 0;
        Self { fd, writable, may_have_suid, parts: None }
    }

    /// Returns how the file is served, while that is in parts.
    pub(crate) fn parts(&self) -> Option<&Parts> {
        self.parts.as_deref().filter(|parts| !parts.is_complete())
    }

    /// Copies all that is missing, for calls that are too seldom to be done on two files at once.
    pub(crate) fn complete(&self) -> Result<()> {
        self.parts().map_or(Ok(()), |parts| parts.finish(self.fd.as_fd()))
    }
}

static NEXT_SERIAL: AtomicU64 = AtomicU64::new(1);

impl Inode {
    /// Makes a node.
    pub(crate) fn new(id: NodeId, ino: u64, kind: FileKind, state: State) -> Self {
        Self {
            id,
            serial: NEXT_SERIAL.fetch_add(1, Ordering::Relaxed),
            shown: AtomicU64::new(ino),
            kind,
            refs: AtomicU64::new(1),
            key: KeyCell::default(),
            opens: AtomicU32::new(0),
            version: AtomicU64::new(0),
            copy_up: Mutex::new(()),
            names: Mutex::new(()),
            state: RwLock::new(state),
            data: RwLock::new(None),
        }
    }

    /// Returns the inode number to show.
    pub(crate) fn ino(&self) -> u64 {
        self.shown.load(Ordering::Relaxed)
    }

    /// Returns whether this is a directory.
    pub(crate) fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }

    /// Returns whether the object is on the upper.
    pub(crate) fn on_upper(&self) -> bool {
        self.state.read().upper.is_some()
    }

    /// Returns a directory's parts on the lowers.
    pub(crate) fn lower_dirs(&self) -> Arc<[Arc<LowerDir>]> {
        let state = self.state.read();
        match &state.lower {
            Lower::Dirs(dirs) if !state.unlinked => Arc::clone(dirs),
            _ => Arc::from([]),
        }
    }

    /// Returns whether the object holds attributes only.
    pub(crate) fn is_metacopy(&self) -> bool {
        self.state.read().lower_data.is_some()
    }

    /// Returns whether nothing in the upper part of a directory has marks, so that none need be read.
    pub(crate) fn is_unmarked(&self) -> bool {
        let state = self.state.read();
        state.made_here && !state.may_hold_marks && state.lower.dirs().is_empty()
    }

    /// Notes, before it is done, that an object with a past is put into a directory.
    pub(crate) fn may_hold_marks(&self) {
        self.state.write().may_hold_marks = true;
    }

    /// Returns a descriptor of the upper object, if one is open.
    pub(crate) fn open_upper(&self) -> Option<Arc<OwnedFd>> {
        match &*self.data.read_recursive() {
            Some(Data::Upper(file)) => Some(Arc::clone(&file.fd)),
            Some(Data::Lower(_)) | None => self.state.read().pinned.clone(),
        }
    }

    /// Returns why an object cannot be reached: it was removed, or is lost and the kernel may find another one by its name.
    pub(crate) fn gone(&self) -> Error {
        Error::new(if self.state.read().lost { Errno::STALE } else { Errno::NOENT })
    }

    /// Returns the present name.
    pub(crate) fn place(&self) -> Option<Place> {
        self.state.read().place.clone()
    }
}
