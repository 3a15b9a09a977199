//! How lower layers are opened: what is found out about each root, and about each file system once.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::LowerLayer;
use crate::error::{Errno, Error, Result};
use crate::ondisk::origin;
use crate::options::{MountOptions, UuidPolicy, Verity};
use crate::stack::mount_ids::{MountIds, MountTable};
use crate::stack::owners::Owners;
use crate::sys::{self, Stat};

/// Opens the layers of one mount.
#[derive(Debug)]
pub(crate) struct Opener<'a> {
    options: &'a MountOptions,
    mounts: MountTable,
    /// By their device.
    file_systems: Vec<(u64, FileSystem)>,
    /// Clones of mounts that layers have in common.
    clones: Vec<Cloned>,
    /// This process may clone no mount.
    may_not_clone: bool,
    /// In which directory the last layer was, as it was given and really.
    last: Option<(PathBuf, PathBuf)>,
}

/// A directory in a private clone of its mount.
#[derive(Debug)]
struct Cloned {
    /// Absolute and without symbolic links.
    real: PathBuf,
    /// The number of the mount that was cloned.
    mount: u64,
    dir: Arc<OwnedFd>,
}

/// The directory of a layer.
#[derive(Debug)]
struct Root {
    fd: OwnedFd,
    /// The clone that it has in common with others.
    shared: Option<Arc<OwnedFd>>,
}

/// Where a layer is.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    real: PathBuf,
    /// The number of its mount.
    mount: u64,
}

/// What all layers on a file system share.
#[derive(Clone, Copy, Debug, Default)]
struct FileSystem {
    /// All zero where it has none or it is not to be stored.
    uuid: [u8; 16],
    handles_last: bool,
    handles_have_numbers: bool,
    has_verity: bool,
}

impl<'a> Opener<'a> {
    /// Makes one that knows no file system yet.
    pub(crate) fn new(options: &'a MountOptions) -> Self {
        let (mounts, file_systems, clones) = (MountTable::default(), Vec::new(), Vec::new());
        Self { options, mounts, file_systems, clones, may_not_clone: false, last: None }
    }

    /// Opens the directory at `path` as a layer, without the file systems mounted below it.
    ///
    /// # Errors
    /// What open(2) says of the path; ENOTDIR if it is no directory.
    pub(crate) fn open(&mut self, path: &Path) -> Result<LowerLayer> {
        if let Some((place, root, stat)) = self.open_beside(path) {
            return Ok(self.layer(place, root, stat, None));
        }
        let name = path.as_os_str().as_encoded_bytes();
        let plain = open_dir(path).map_err(|e| Error::new(e).during("open lower layer", name))?;
        let mount_ids = self.mount_ids(plain.as_fd()).map(Arc::new);
        self.layer_of(path.to_path_buf(), plain, mount_ids)
    }

    /// Opens a layer that is in one directory with the last one, if that is so.
    fn open_beside(&self, path: &Path) -> Option<(Place, Root, Stat)> {
        let (given, really) = self.last.as_ref().filter(|_| !self.maps_ids())?;
        let name = path.file_name().filter(|_| path.parent() == Some(given))?;
        let real = really.join(name);
        let (stat, mount) = sys::stat::stat_path_with_mount(path).ok()?;
        let root = self.open_in_clone(&real, mount, &stat)?;
        Some((Place { path: path.to_path_buf(), real, mount }, root, stat))
    }

    /// Opens the directory at `real`, which is `expected`, through a clone that it has in common with others: to clone and to
    /// give up a mount takes several times as long as to open a directory.
    fn open_in_clone(&self, real: &Path, mount: u64, expected: &Stat) -> Option<Root> {
        let is_around = |cloned: &&Cloned| cloned.mount == mount && real.starts_with(&cloned.real);
        let cloned = self.clones.iter().find(is_around)?;
        let within = real.strip_prefix(&cloned.real).ok()?.as_os_str().as_encoded_bytes();
        let fd = sys::open_dir_beneath(cloned.dir.as_fd(), within).ok()?;
        let found = sys::stat_fd(fd.as_fd()).ok()?;
        // A directory has one place on a mount.
        let same = (found.dev, found.ino) == (expected.dev, expected.ino);
        same.then(|| Root { fd, shared: Some(Arc::clone(&cloned.dir)) })
    }

    /// Returns the same directory in a private clone of its mount, which shows what lies under other mounts, as kernel overlayfs
    /// does. It needs privilege over the mount namespace; without it, mount points are seen as empty directories.
    fn clone_of(&mut self, plain: OwnedFd, place: &Place, stat: &Stat) -> Root {
        if self.may_not_clone {
            return Root { fd: plain, shared: None };
        }
        // The first layer may stay the only one.
        if self.last.is_some() && place.mount != 0 {
            self.share_clone(place);
            if let Some(root) = self.open_in_clone(&place.real, place.mount, stat) {
                return root;
            }
        }
        let fd = private_clone(plain.as_fd()).unwrap_or_else(|errno| {
            self.may_not_clone = errno == Errno::PERM;
            plain
        });
        Root { fd, shared: None }
    }

    /// Clones the mount of a layer for it and those around it, unless that is done. Layers of containers are each in a directory
    /// of its own, and these in one.
    fn share_clone(&mut self, place: &Place) {
        if self.clones.iter().any(|known| known.mount == place.mount && place.real.starts_with(&known.real)) {
            return;
        }
        // To give up a clone that is not needed would wait for all processors.
        let wider = place.real.ancestors().nth(2).and_then(|dir| Cloned::of(dir, place.mount));
        let cloned = wider.or_else(|| Cloned::of(place.real.parent()?, place.mount));
        self.clones.extend(cloned);
    }

    fn maps_ids(&self) -> bool {
        !(self.options.uid_map.is_identity() && self.options.gid_map.is_identity())
    }

    /// Returns the mapping of ids that the mount has applied which `layer` lies on, if it is to be taken back.
    pub(super) fn mount_ids(&mut self, layer: BorrowedFd<'_>) -> Option<MountIds> {
        MountIds::of(layer, self.options, &mut self.mounts)
    }

    /// Makes a layer of an open directory, which is at `path`.
    pub(super) fn layer_of(
        &mut self,
        path: PathBuf,
        plain: OwnedFd,
        mount_ids: Option<Arc<MountIds>>,
    ) -> Result<LowerLayer> {
        let (stat, mount) = sys::stat::stat_with_mount(plain.as_fd())?;
        let real = sys::real_path(plain.as_fd(), &path);
        let place = Place { path, real, mount };
        let root = self.clone_of(plain, &place, &stat);
        let dirs = (place.path.parent(), place.real.parent());
        self.last =
            if let (Some(given), Some(real)) = dirs { Some((given.into(), real.into())) } else { None };
        Ok(self.layer(place, root, stat, mount_ids))
    }

    fn layer(
        &mut self,
        place: Place,
        Root { fd: root, shared }: Root,
        root_stat: Stat,
        mount_ids: Option<Arc<MountIds>>,
    ) -> LowerLayer {
        let names = match sys::xattr::list_dir(root.as_fd()) {
            Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
            names => names,
        };
        let FileSystem { uuid, handles_last, handles_have_numbers, has_verity } =
            self.file_system(&root_stat, root.as_fd());
        let Place { path, real, mount } = place;
        LowerLayer {
            root_stat,
            mount,
            epoch: None,
            uuid,
            mount_ids,
            bare_root: names.as_ref().is_ok_and(Vec::is_empty),
            owners: Owners::of_root_with(&names.unwrap_or_default()),
            hidden: Vec::new(),
            keeps_removed: false,
            catalog: None,
            attributes: Arc::default(),
            handles_last,
            handles_have_numbers,
            has_verity,
            root: Arc::new(root),
            shared_clone: shared,
            path,
            real,
            index: None,
            was_upper: false,
        }
    }

    /// Returns the facts about the file system that a directory is on.
    fn file_system(&mut self, stat: &Stat, dir: BorrowedFd<'_>) -> FileSystem {
        if let Some((_, known)) = self.file_systems.iter().find(|(known, _)| *known == stat.dev) {
            return *known;
        }
        let handles_last = sys::handle::last(dir);
        let handle = sys::handle::handle_of(dir).ok().filter(|_| handles_last);
        let handles_have_numbers =
            handle.is_some_and(|(kind, handle)| origin::ino_of_handle(kind, &handle) == Some(stat.ino));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(readable) = rustix::fs::openat(dir, c".", flags, Mode::empty()) else {
            // Another layer of it may be readable.
            return FileSystem { handles_last, handles_have_numbers, ..FileSystem::default() };
        };
        let knows_verity = || {
            let measured = sys::verity::measure(readable.as_fd());
            !matches!(measured, Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS))
        };
        let has_verity = self.options.verity != Verity::Off && knows_verity();
        let stores_uuid = !matches!(self.options.uuid, UuidPolicy::Off | UuidPolicy::Null);
        let uuid = if stores_uuid { sys::uuid::of(readable.as_fd()) } else { Ok([0; 16]) };
        let uuid = uuid.unwrap_or_default();
        let found = FileSystem { uuid, handles_last, handles_have_numbers, has_verity };
        self.file_systems.push((stat.dev, found));
        found
    }
}

impl Cloned {
    /// None if the directory at `real` is on another mount, or cannot be had.
    fn of(real: &Path, mount: u64) -> Option<Self> {
        let plain = open_dir(real).ok()?;
        let (_, there) = sys::stat::stat_with_mount(plain.as_fd()).ok()?;
        let dir = (there == mount).then(|| private_clone(plain.as_fd()).ok()).flatten()?;
        Some(Self { real: real.to_path_buf(), mount, dir: Arc::new(dir) })
    }
}

fn open_dir(path: &Path) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    sys::retry(|| rustix::fs::openat(CWD, path, flags, Mode::empty()))
}

fn private_clone(plain: BorrowedFd<'_>) -> std::result::Result<OwnedFd, Errno> {
    let clone =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let root = open_tree(plain, c"", clone)?;
    protect(&root);
    Ok(root)
}

/// Makes a clone of a layer's mount read-only and keeps access times from being moved through it, as kernel overlayfs does.
fn protect(mount: &OwnedFd) {
    let quiet = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOATIME;
    // In a user namespace access times of mounts from outside are locked. What cannot be had is no loss: nothing here
    // writes, and files and directories are opened quietly where that is allowed.
    let done = sys::mount_attr::set(mount.as_fd(), quiet, libc::MOUNT_ATTR__ATIME)
        .or_else(|_| sys::mount_attr::set(mount.as_fd(), libc::MOUNT_ATTR_RDONLY, 0));
    if let Err(errno) = done {
        tracing::debug!("a lower layer's mount keeps its flags: {errno}");
    }
}
