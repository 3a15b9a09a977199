//! File systems beneath the union: each mounted where nobody finds it by a path, and served by a process beside this one.
//!
//! Not in this process: a thread that waits for an answer of a FUSE server cannot be killed once the server has the request,
//! so a killed process that serves itself would wait for itself for ever.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use super::convert;
use super::mount::{self, Busy};
use super::operations::send_xattr;
use crate::error::{Errno, Error, Result};
use crate::options::MountOptions;
use crate::request::FileKind;
use crate::sys;

/// Holds such a file system where the options name it, until the layers are open.
#[derive(Debug)]
pub(crate) struct Beneath(OwnedFd);

impl Beneath {
    /// Returns a path that leads to `name` in it, as long as this is held.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        Path::new(&sys::proc_path(self.0.as_fd())).join(name)
    }
}

/// Mounts a file system, to be called `name` among the mounts, and returns it with the device to serve. It is seen on `place`, a
/// directory, for a moment only.
///
/// # Errors
/// What mounting answers.
pub(crate) fn mount_detached(place: &Path, name: &str, read_only: bool) -> Result<(Beneath, OwnedFd)> {
    let upper = (!read_only).then(|| place.to_path_buf());
    let mut options = MountOptions {
        workdir: upper.clone(),
        upperdir: upper,
        subtype: Some(name.into()),
        allow_other: Some(false),
        // Who may read a layer is for the union to say.
        default_permissions: !read_only,
        ..MountOptions::default()
    };
    options.flags.nosuid = Some(true);
    let device = mount::mount(place, &options)?;
    let root = open_dir(place);
    mount::unmount(place, Busy::Detached)?;
    let root =
        root.map_err(|errno| Error::new(errno).during("open the file system mounted on", bytes(place)))?;
    Ok((Beneath(root), device))
}

/// Opens a directory as a place.
pub(crate) fn open_dir(path: &Path) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    sys::retry(|| rustix::fs::openat(CWD, path, flags, Mode::empty()))
}

/// Serves a file system with one thread until its mount ends.
///
/// # Errors
/// The connection broke otherwise than by its end.
pub(crate) fn serve(server: impl fuser::Filesystem, device: OwnedFd) -> Result<()> {
    let mut config = fuser::Config::default();
    config.n_threads = Some(1);
    config.acl = fuser::SessionACL::All;
    let session = fuser::Session::from_fd(server, device, config.acl, config)
        .map_err(|error| Error::from(error).during("connect to", "/dev/fuse"))?;
    match session.run() {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::ENODEV)) => Ok(()),
        Err(error) => Err(Error::from(error).during("serve over", "/dev/fuse")),
    }
}

/// A name in a listing.
pub(crate) struct Listed {
    pub id: u64,
    pub kind: FileKind,
    pub name: Vec<u8>,
}

/// Adds the names from `offset` on that there is room for to what readdir(3) is told.
pub(crate) fn add_names(reply: &mut fuser::ReplyDirectory, listing: &[Listed], offset: u64) {
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    for (at, listed) in listing.iter().enumerate().skip(from) {
        let (kind, name) = (convert::file_type(listed.kind), OsStr::from_bytes(&listed.name));
        if reply.add(fuser::INodeNo(listed.id), at as u64 + 1, kind, name) {
            break;
        }
    }
}

/// Replies to a request for the value or the names of extended attributes.
pub(crate) fn send_attribute(
    reply: fuser::ReplyXattr,
    size: u32,
    value: std::result::Result<Vec<u8>, fuser::Errno>,
) {
    match value {
        Ok(value) => send_xattr(reply, size, &value),
        Err(errno) => reply.error(errno),
    }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}
