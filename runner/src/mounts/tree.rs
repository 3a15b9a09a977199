//! Detached mounts: made, bound and attached by descriptor.

use std::ffi::OsStr;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::FileType;
use rustix::io::Result;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::sys::mount::Reach;

/// Options of a new file system.
#[derive(Debug, Default)]
pub(crate) struct Options {
    strings: Vec<(String, String)>,
    flags: Vec<String>,
}

impl Options {
    /// Adds `key=value`.
    pub(crate) fn string(mut self, key: &str, value: &str) -> Self {
        self.strings.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Adds a bare option.
    pub(crate) fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }
}

/// Makes a file system, attached nowhere.
pub(crate) fn new(kind: &str, options: &Options, attributes: MountAttrFlags) -> Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in &options.strings {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    for flag in &options.flags {
        fsconfig_set_flag(context.as_fd(), flag)?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Makes another view of a place of this mount namespace, attached nowhere.
pub(crate) fn bind(directory: impl AsFd, path: impl AsRef<OsStr>, reach: Reach) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if reach == Reach::Recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if path.as_ref().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    open_tree(directory, path.as_ref(), flags)
}

/// Puts a detached mount on a place.
pub(crate) fn attach(mount: &OwnedFd, place: &OwnedFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", place, "", flags)
}

/// Returns whether the root of a mount is a directory.
pub(crate) fn is_directory(mount: &OwnedFd) -> Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(mount)?.st_mode).is_dir())
}
