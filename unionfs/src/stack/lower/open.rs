//! How lower layers are opened: what is found out about each root, and about each file system once.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::LowerLayer;
use crate::error::{Errno, Error, Result};
use crate::ondisk::origin;
use crate::options::{MountOptions, UuidPolicy};
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
        Self { options, mounts: MountTable::default(), file_systems: Vec::new() }
    }

    /// Opens the directory at `path` as a layer, without the file systems mounted below it.
    ///
    /// # Errors
    /// What open(2) says of the path; ENOTDIR if it is no directory.
    pub(crate) fn open(&mut self, path: &Path) -> Result<LowerLayer> {
        let name = path.as_os_str().as_encoded_bytes();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let plain = sys::retry(|| rustix::fs::openat(CWD, path, flags, Mode::empty()))
            .map_err(|e| Error::new(e).during("open lower layer", name))?;
        let mount_ids = self.mount_ids(plain.as_fd()).map(Arc::new);
        self.layer_of(path.to_path_buf(), plain, mount_ids)
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
        let (root_stat, mount) = sys::stat::stat_with_mount(plain.as_fd())?;
        let real = sys::real_path(plain.as_fd(), &path);
        // A private clone of the mount shows what lies under other mounts, as kernel overlayfs does. It needs
        // privilege over the mount namespace; without it, mount points are seen as empty directories.
        let clone =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let root = match open_tree(&plain, c"", clone) {
            Ok(root) => {
                protect(&root);
                root
            }
            Err(_) => plain,
        };
        let names = match sys::xattr::list_dir(root.as_fd()) {
            Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
            names => names,
        };
        let FileSystem { uuid, handles_last, handles_have_numbers, has_verity } =
            self.file_system(&root_stat, root.as_fd());
        Ok(LowerLayer {
            root_stat,
            mount,
            epoch: None,
            uuid,
            mount_ids,
            bare_root: names.as_ref().is_ok_and(Vec::is_empty),
            owners: Owners::of_root_with(&names.unwrap_or_default()),
            hidden: Vec::new(),
            catalog: None,
            attributes: Arc::default(),
            handles_last,
            handles_have_numbers,
            has_verity,
            root: Arc::new(root),
            path,
            real,
            index: None,
            was_upper: false,
        })
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
        let has_verity = !matches!(
            sys::verity::measure(readable.as_fd()),
            Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS)
        );
        let stores_uuid = !matches!(self.options.uuid, UuidPolicy::Off | UuidPolicy::Null);
        let uuid = if stores_uuid { sys::handle::file_system_uuid(readable.as_fd()) } else { Ok([0; 16]) };
        let uuid = uuid.unwrap_or_default();
        let found = FileSystem { uuid, handles_last, handles_have_numbers, has_verity };
        self.file_systems.push((stat.dev, found));
        found
    }
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
