//! Layers written down in a test: a builder of directory trees with whiteouts and opaque directories.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{self, AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use unionfs::ondisk::acl::{self, Acl};
use unionfs::ondisk::capability;

/// The time of every object of a built tree: long ago, so that "not changed" is visible.
pub const OLD_SECONDS: i64 = 1_000_000_000;

/// What stands under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A directory that hides the same directory in the layers below.
    Opaque,
    /// A regular file and its bytes.
    File(Vec<u8>),
    /// A regular file of this size with bytes at an offset and holes elsewhere.
    Sparse(u64, Vec<(u64, Vec<u8>)>),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A second name of the file under this path, which sorts before.
    HardLink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// The mark that the name is deleted: a character device 0:0.
    Whiteout,
    /// The mark that the name is deleted, in the form of container images: an empty file `.wh.NAME`.
    OciWhiteout,
}

/// Name and value of an extended attribute.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// An object of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group, if not the caller's.
    pub owner: Option<(u32, u32)>,
    /// Extended attributes.
    pub xattrs: Vec<Xattr>,
}

/// A tree of objects by path; parents come into being by themselves with mode 0755.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerTree {
    pub(crate) items: BTreeMap<Vec<u8>, Item>,
}

impl LayerTree {
    /// Returns an empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an object.
    #[must_use]
    pub fn with(mut self, path: impl AsRef<[u8]>, kind: Kind, mode: u32) -> Self {
        let path = path.as_ref();
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            self.items.entry(path[..at].to_vec()).or_insert(Item::new(Kind::Directory, 0o755));
        }
        self.items.insert(path.to_vec(), Item::new(kind, mode));
        self
    }

    /// Adds a file of mode 0644.
    #[must_use]
    pub fn file(self, path: impl AsRef<[u8]>, bytes: impl AsRef<[u8]>) -> Self {
        self.with(path, Kind::File(bytes.as_ref().to_vec()), 0o644)
    }

    /// Adds a directory of mode 0755.
    #[must_use]
    pub fn dir(self, path: impl AsRef<[u8]>) -> Self {
        self.with(path, Kind::Directory, 0o755)
    }

    /// Adds an opaque directory.
    #[must_use]
    pub fn opaque(self, path: impl AsRef<[u8]>) -> Self {
        self.with(path, Kind::Opaque, 0o755)
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.with(path, Kind::Symlink(target.as_ref().to_vec()), 0o777)
    }

    /// Adds another name of a file.
    #[must_use]
    pub fn hardlink(self, path: impl AsRef<[u8]>, first: impl AsRef<[u8]>) -> Self {
        self.with(path, Kind::HardLink(first.as_ref().to_vec()), 0)
    }

    /// Adds a whiteout.
    #[must_use]
    pub fn whiteout(self, path: impl AsRef<[u8]>) -> Self {
        self.with(path, Kind::Whiteout, 0)
    }

    /// Sets the mode of the object added last under `path`.
    #[must_use]
    pub fn mode(mut self, path: impl AsRef<[u8]>, mode: u32) -> Self {
        self.items.get_mut(path.as_ref()).unwrap().mode = mode;
        self
    }

    /// Sets owner and group.
    #[must_use]
    pub fn owner(mut self, path: impl AsRef<[u8]>, uid: u32, gid: u32) -> Self {
        self.items.get_mut(path.as_ref()).unwrap().owner = Some((uid, gid));
        self
    }

    /// Adds an extended attribute.
    #[must_use]
    pub fn xattr(mut self, path: impl AsRef<[u8]>, name: &str, value: impl AsRef<[u8]>) -> Self {
        let item = self.items.get_mut(path.as_ref()).unwrap();
        item.xattrs.push((name.as_bytes().to_vec(), value.as_ref().to_vec()));
        self
    }

    /// Returns the tree as it is stored to be shown through a mapping of `offset` to 0.
    #[must_use]
    pub fn stored_from(mut self, offset: u32) -> Self {
        let up = |id: u32| id.checked_add(offset);
        for item in self.items.values_mut() {
            let (uid, gid) = item.owner.unwrap_or((0, 0));
            item.owner = Some((uid + offset, gid + offset));
            for (name, value) in &mut item.xattrs {
                match name.as_slice() {
                    acl::ACCESS | acl::DEFAULT => {
                        *value = Acl::parse(value).unwrap().map_ids(up, up).unwrap().encode();
                    }
                    capability::NAME => *value = capability::map_root(value, up).unwrap(),
                    _ => {}
                }
            }
        }
        self
    }

    /// Returns whether an object has several names.
    pub fn has_links(&self) -> bool {
        self.items.values().any(|item| matches!(item.kind, Kind::HardLink(_)))
    }

    /// Keeps the objects for which `keep` is true.
    pub fn retain(&mut self, keep: impl Fn(&[u8], &Kind) -> bool) {
        self.items.retain(|path, item| keep(path, &item.kind));
    }

    /// Returns path, kind, mode and extended attributes of each object, parents first.
    pub fn objects(&self) -> impl Iterator<Item = (&[u8], &Kind, u32, &[Xattr])> {
        self.items.iter().map(|(path, item)| (path.as_slice(), &item.kind, item.mode, item.xattrs.as_slice()))
    }

    /// Writes the tree into the directory `root`, which is made if missing; times are [`OLD_SECONDS`].
    pub fn build(&self, root: &Path) {
        std::fs::create_dir_all(root).unwrap();
        for (path, item) in &self.items {
            item.build(root, path).unwrap_or_else(|e| panic!("build {}: {e}", path.escape_ascii()));
        }
        for (path, item) in self.items.iter().rev() {
            item.finish(root, path).unwrap_or_else(|e| panic!("finish {}: {e}", path.escape_ascii()));
        }
        fs::utimensat(CWD, root, &old_times(), AtFlags::empty()).unwrap();
    }
}

fn old_times() -> Timestamps {
    let old = Timespec { tv_sec: OLD_SECONDS, tv_nsec: 123_456_789 };
    Timestamps { last_access: old, last_modification: old }
}

/// Joins a path of bytes to a root.
pub fn at(root: &Path, path: &[u8]) -> std::path::PathBuf {
    root.join(std::ffi::OsStr::from_bytes(path))
}

/// Returns the namespace in which this process can mark an opaque directory.
pub fn overlay_namespace() -> &'static str {
    if crate::user::is_real_root() { "trusted" } else { "user" }
}

impl Item {
    fn new(kind: Kind, mode: u32) -> Self {
        Self { kind, mode, owner: None, xattrs: Vec::new() }
    }

    fn build(&self, root: &Path, path: &[u8]) -> std::io::Result<()> {
        let target = at(root, path);
        match &self.kind {
            Kind::Directory => std::fs::create_dir(target)?,
            Kind::Opaque => {
                std::fs::create_dir(&target)?;
                let name = format!("{}.overlay.opaque", overlay_namespace());
                fs::lsetxattr(&target, name.as_str(), b"y", XattrFlags::empty())?;
            }
            Kind::File(bytes) => std::fs::write(target, bytes)?,
            Kind::Sparse(size, pieces) => {
                let file = std::fs::File::create(target)?;
                file.set_len(*size)?;
                for (offset, bytes) in pieces {
                    std::os::unix::fs::FileExt::write_all_at(&file, bytes, *offset)?;
                }
            }
            Kind::Symlink(to) => fs::symlinkat(to.as_slice(), CWD, target)?,
            Kind::HardLink(first) => std::fs::hard_link(at(root, first), target)?,
            Kind::Fifo => fs::mknodat(CWD, target, FileType::Fifo, Mode::from(self.mode), 0)?,
            Kind::Whiteout => fs::mknodat(CWD, target, FileType::CharacterDevice, Mode::empty(), 0)?,
            Kind::OciWhiteout => {
                let (parent, name) = split(path);
                std::fs::write(at(&at(root, parent), &[b".wh.", name].concat()), b"")?;
            }
        }
        Ok(())
    }

    fn finish(&self, root: &Path, path: &[u8]) -> std::io::Result<()> {
        let target = at(root, path);
        if matches!(self.kind, Kind::Whiteout | Kind::OciWhiteout | Kind::HardLink(_)) {
            return Ok(());
        }
        if let Some((uid, gid)) = self.owner {
            std::os::unix::fs::lchown(&target, Some(uid), Some(gid))?;
        }
        for (name, value) in &self.xattrs {
            fs::lsetxattr(&target, name.as_slice(), value, XattrFlags::empty())?;
        }
        if !matches!(self.kind, Kind::Symlink(_)) {
            fs::chmodat(CWD, &target, Mode::from(self.mode), AtFlags::empty())?;
        }
        Ok(fs::utimensat(CWD, &target, &old_times(), AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

/// Splits a path into parent and last name.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}
