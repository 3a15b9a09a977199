//! The store: an upper on a file system that cannot hold one (exFAT, vfat), as a file system of its own beneath the union.
//!
//! There the upper is a directory with a log and files of contents (`unionfs-store`). [`beneath`] serves what they say in a
//! process beside this one, over FUSE, and has the options name the upper and the workdir in there: everything above finds a
//! file system that can do all that a union needs, and knows nothing of this.

mod contents;
mod files;
mod log;
mod objects;
mod reserve;
mod served;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::AtFlags;

use self::files::Files;
use crate::error::{Errno, Error, Result};
use crate::fuse::beneath::{Beneath, mount_detached, open_dir};
use crate::fuse::daemon::{self, Told};
use crate::options::{MountOptions, SidecarUse};
use crate::stack::upper::{STORE, has_fleeting_numbers};
use crate::sys::{self, Stat};

/// Name of the upper in the store.
const UPPER: &str = "upper";
/// Name of the workdir in the store.
const WORK: &str = "work";
/// What the mount of a store is called among the mounts.
const MOUNT_TYPE: &str = "unionfs-store";
/// What statfs(2) tells of FUSE file systems.
const FUSE: i64 = 0x6573_5546;

/// Serves the upper as a store if it is one or has to be, and has `options` name what is in there.
///
/// To be called while this process has one thread.
///
/// # Errors
/// What is wrong with the upper or the store; EBUSY if another server has it; what mounting and forking answer.
pub(crate) fn beneath(options: &mut MountOptions) -> Result<Option<Beneath>> {
    let Some(path) = options.upperdir.clone() else { return Ok(None) };
    // What cannot be opened is told by who opens the layers.
    let Ok(upper) = open_dir(&path) else { return Ok(None) };
    if !is_wanted(options, upper.as_fd())? {
        return Ok(None);
    }
    for path in [&path].into_iter().chain(&options.workdir) {
        open_dir(path).map_err(|errno| Error::new(errno).during("open as upper or workdir", bytes(path)))?;
    }
    keep_apart(&path, options)?;
    let files = Files::open(&upper, &root_of_new(options, upper.as_fd())?)?;
    let epoch = files.epoch();
    let (store, device) = mount_detached(&path, MOUNT_TYPE, false)?;
    daemon::beside(Told::under(options), move || {
        daemon::keep_only(&[&*files.descriptors(), &[device.as_fd()]].concat());
        served::serve(files, device)
    })?;
    options.upperdir = Some(store.path(UPPER));
    options.workdir = options.workdir.as_ref().map(|_| store.path(WORK));
    (options.sidecar, options.upper_epoch) = (SidecarUse::Auto, Some(epoch));
    Ok(Some(store))
}

/// Returns whether an upper is a store, or can be an upper in no other way.
///
/// # Errors
/// EINVAL where it has to be one and must not.
fn is_wanted(options: &MountOptions, upper: BorrowedFd<'_>) -> Result<bool> {
    let is_one = sys::stat_at(upper, STORE).is_ok();
    let kind = rustix::fs::fstatfs(upper).map_or(0, |stat| stat.f_type);
    let has_to_be = || -> Result<bool> {
        Ok(is_one || has_fleeting_numbers(kind) || (kind == FUSE && !holds_symbolic_links(options, upper)?))
    };
    match options.sidecar {
        SidecarUse::Store => Ok(true),
        SidecarUse::On | SidecarUse::Auto => has_to_be(),
        SidecarUse::Off if has_to_be()? => {
            Err(Error::new(Errno::INVAL).during("use option", "sidecar=off").hint(
                "the upper is a store, or on a file system (exFAT, vfat) where it can be nothing else; \
                 mount without sidecar=off",
            ))
        }
        SidecarUse::Off => Ok(false),
    }
}

/// Returns what the root of a new store shows: what the topmost lower shows, where the directory itself can show no owner and
/// mode. It is this process's if that is not root.
fn root_of_new(options: &MountOptions, upper: BorrowedFd<'_>) -> Result<Stat> {
    let own = sys::stat_fd(upper)?;
    let lower = options.lowerdir.first().and_then(|lower| open_dir(lower).ok());
    let Some(lower) = lower.filter(|_| options.sidecar != SidecarUse::Store) else { return Ok(own) };
    let lower = sys::stat_fd(lower.as_fd())?;
    if rustix::process::geteuid().is_root() {
        return Ok(lower);
    }
    Ok(Stat { uid: own.uid, gid: own.gid, ..lower })
}

/// Tries whether a file system holds symbolic links. One that does not knows no owners and modes either: a driver for exFAT,
/// or for a share of another system.
fn holds_symbolic_links(options: &MountOptions, upper: BorrowedFd<'_>) -> Result<bool> {
    let name = format!(".unionfs-probe-{}", std::process::id());
    let work = options.workdir.as_ref().and_then(|work| open_dir(work).ok());
    let dir = work.as_ref().map_or(upper, AsFd::as_fd);
    match rustix::fs::symlinkat("x", dir, &name) {
        Ok(()) => {
            rustix::fs::unlinkat(dir, &name, AtFlags::empty())?;
            Ok(true)
        }
        Err(errno) => Ok(!matches!(errno, Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL)),
    }
}

/// Keeps a lower that contains the upper or the workdir from showing them.
///
/// # Errors
/// ELOOP for a lower inside one of them.
fn keep_apart(upper: &Path, options: &mut MountOptions) -> Result<()> {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let lowers: Vec<PathBuf> =
        options.lowerdir.iter().chain(&options.datadir).map(|path| real(path)).collect();
    for writable in [upper].into_iter().chain(options.workdir.as_deref()).map(real).collect::<Vec<_>>() {
        if let Some(lower) = lowers.iter().find(|lower| lower.starts_with(&writable)) {
            return Err(Error::new(Errno::LOOP)
                .during("use lower layer", bytes(lower))
                .hint("a lower layer must not lie inside upperdir or workdir"));
        }
        if lowers.iter().any(|lower| writable.starts_with(lower)) {
            options.hidden.push(writable);
        }
    }
    Ok(())
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

#[cfg(test)]
mod tests;
