//! A layer replaced by what it is merged with: the directories change places in one step.
//!
//! The result is built beside the layer. When it is complete its name tells its own inode number, so that who finds it later
//! can tell whether the step was done: by then another directory has that name. An upper that was merged is emptied
//! after the step. In between it would change the new layer a second time, so a mark in its workdir keeps it, by that number,
//! from being mounted, by kernel overlayfs too. The same command goes on where one was interrupted.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, RenameFlags};

use super::build;
use crate::error::{Errno, Error, Result};
use crate::options::MountOptions;
use crate::stack::attributes::Attributes;
use crate::stack::lower::index::INDEX;
use crate::stack::probe;
use crate::stack::sidecar::Sidecar;
use crate::stack::workdir::{INCOMPAT, MERGE, remove_all, remove_all_with};
use crate::sys;
use crate::tools::check;
use crate::tools::check::work::names;
use crate::tools::diff::Comparison;

/// What was done.
#[derive(Debug)]
pub struct Replaced {
    /// What could not be kept, a line each.
    pub notes: Vec<String>,
    /// Where the directory is that was the layer before.
    pub old: PathBuf,
    /// The options of a mount that shows what the union showed.
    pub options: MountOptions,
    /// An earlier command was interrupted, and has now come to its end; no other was begun.
    pub finished_earlier: bool,
}

/// Puts the union of the layers of `options`, as a layer above those of `onto`, in the place of `layer`, one of its lowers, and
/// empties the upper. What was the layer is then beside it, as `LAYER.old`.
///
/// # Errors
/// EBUSY if the upper is mounted, EEXIST if there is a `LAYER.old`; what is wrong with which object. All layers are then as
/// they were, unless the step was done: then the error is of what follows, and the same call goes on with that.
pub fn replace(options: &MountOptions, onto: &[PathBuf], layer: &Path) -> Result<Replaced> {
    let work = check::hold(options)?;
    let place = Place::of(layer)?;
    place.check_is_lower(options)?;
    options.lowerdir.iter().chain(onto).try_for_each(|layer| refuse_unfinished(layer))?;
    let interrupted = place.interrupted()?;
    let mut notes = Vec::new();
    let finished_earlier = interrupted.as_ref().is_some_and(|(_, done)| *done);
    let ready = match interrupted {
        Some((ready, true)) => ready,
        other => {
            if let Some((ready, _)) = other {
                remove_all(place.parent.as_fd(), &ready)?;
            }
            place.check_old_is_free()?;
            let comparison = Comparison::onto(options, onto)?;
            let (ready, told) = place.build(&comparison, options.userxattr)?;
            notes = told;
            if let Err(error) = place.exchange(&ready, work.as_ref()) {
                if let Some(work) = &work {
                    unmark(work.as_fd())?;
                }
                remove_all(place.parent.as_fd(), &ready)?;
                return Err(error);
            }
            ready
        }
    };
    if let (Some(work), Some(upper)) = (&work, &options.upperdir) {
        place.empty(upper, work, options.userxattr)?;
    }
    place.keep_old(&ready)?;
    let mut options = options.clone();
    options.lowerdir = std::iter::once(place.path.clone()).chain(onto.iter().cloned()).collect();
    Ok(Replaced { notes, old: place.path.with_file_name(place.old_name()), options, finished_earlier })
}

/// A directory and the one that it is in.
struct Place {
    path: PathBuf,
    parent: OwnedFd,
    name: Vec<u8>,
}

impl Place {
    fn of(layer: &Path) -> Result<Self> {
        let shown = layer.as_os_str().as_bytes();
        let path = std::fs::canonicalize(layer).map_err(|e| Error::from(e).during("replace", shown))?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::new(Errno::INVAL).during("replace", shown));
        };
        Ok(Self { parent: check::open_dir(parent)?, name: name.as_bytes().to_vec(), path })
    }

    fn ino(&self) -> Result<u64> {
        Ok(sys::stat_at(self.parent.as_fd(), &self.name)?.ino)
    }

    fn old_name(&self) -> OsString {
        OsString::from_vec([&self.name, b".old".as_slice()].concat())
    }

    /// Checks that the layer is one of the lowers that are merged.
    fn check_is_lower(&self, options: &MountOptions) -> Result<()> {
        let identity = |path: &Path| rustix::fs::stat(path).map(|stat| (stat.st_dev, stat.st_ino));
        let own = identity(&self.path)?;
        if options.lowerdir.iter().any(|lower| identity(lower).is_ok_and(|lower| lower == own)) {
            return Ok(());
        }
        Err(Error::new(Errno::INVAL)
            .during("replace", self.path.as_os_str().as_bytes())
            .hint("it is none of the layers that lowerdir names"))
    }

    fn check_old_is_free(&self) -> Result<()> {
        let old = self.old_name();
        if sys::stat_at(self.parent.as_fd(), old.as_bytes()).is_err() {
            return Ok(());
        }
        Err(Error::new(Errno::EXIST)
            .during("keep the layer as", old.as_bytes())
            .hint("an earlier merge has left it there: move it away or remove it"))
    }

    fn ready_prefix(&self) -> Vec<u8> {
        [b".".as_slice(), &self.name, b".merged-"].concat()
    }

    /// Returns the name of what an interrupted command had made, and whether it has changed places with the layer.
    fn interrupted(&self) -> Result<Option<(Vec<u8>, bool)>> {
        let prefix = self.ready_prefix();
        for name in names(self.parent.as_fd())? {
            let Some(number) = name.strip_prefix(prefix.as_slice()).and_then(parse) else { continue };
            let done = sys::stat_at(self.parent.as_fd(), &name)?.ino != number;
            return Ok(Some((name, done)));
        }
        Ok(None)
    }

    /// Makes the new layer; returns its name.
    fn build(&self, comparison: &Comparison, userxattr: bool) -> Result<(Vec<u8>, Vec<String>)> {
        let partial = [b".", self.name.as_slice(), b".partial"].concat();
        let parent = self.parent.as_fd();
        // What an interrupted run left.
        remove_all(parent, &partial)?;
        let made = build(comparison, userxattr, parent, &partial).and_then(|notes| {
            let number = sys::stat_at(parent, &partial)?.ino;
            let ready = [self.ready_prefix(), number.to_string().into_bytes()].concat();
            rustix::fs::renameat(parent, partial.as_slice(), parent, ready.as_slice())?;
            Ok((ready, notes))
        });
        if made.is_err() {
            remove_all(parent, &partial)?;
        }
        made
    }

    /// Lets the new layer and the old one change places. From the mark on the upper cannot be mounted.
    fn exchange(&self, ready: &[u8], work: Option<&OwnedFd>) -> Result<()> {
        if let Some(work) = work {
            mark(work.as_fd(), sys::stat_at(self.parent.as_fd(), ready)?.ino)?;
        }
        rustix::fs::syncfs(&self.parent)?;
        let exchanged = rustix::fs::renameat_with(
            &self.parent,
            ready,
            &self.parent,
            self.name.as_slice(),
            RenameFlags::EXCHANGE,
        );
        exchanged.map_err(|errno| {
            let error = Error::new(errno).during("replace", self.path.as_os_str().as_bytes());
            error.hint(
                "it must be no mount point, and its file system must exchange names (renameat2); use --into",
            )
        })?;
        Ok(rustix::fs::syncfs(&self.parent)?)
    }

    /// Empties an upper that this layer has taken in, and takes the mark from its workdir.
    fn empty(&self, upper: &Path, work: &OwnedFd, userxattr: bool) -> Result<()> {
        if !is_marked(work.as_fd(), self.ino()?) {
            return Ok(());
        }
        let upper = check::open_dir(upper)?;
        let namespace = probe::namespace_without_upper(userxattr);
        let attributes =
            Sidecar::open(work.as_fd(), namespace, true)?.map(Attributes::beside).unwrap_or_default();
        for name in names(upper.as_fd())? {
            remove_all_with(upper.as_fd(), &name, &attributes)?;
        }
        for mark in sys::xattr::names(&attributes.list(upper.as_fd()).unwrap_or_default()) {
            if crate::ondisk::mark_of(mark).is_some() {
                attributes.remove(upper.as_fd(), mark)?;
            }
        }
        remove_all_with(work.as_fd(), INDEX, &attributes)?;
        rustix::fs::syncfs(&upper)?;
        unmark(work.as_fd())
    }

    fn keep_old(&self, ready: &[u8]) -> Result<()> {
        let (parent, old) = (&self.parent, self.old_name());
        rustix::fs::renameat_with(parent, ready, parent, old.as_bytes(), RenameFlags::NOREPLACE)
            .map_err(|errno| Error::new(errno).during("keep the layer as", old.as_bytes()))?;
        Ok(rustix::fs::fsync(parent)?)
    }
}

fn parse(number: &[u8]) -> Option<u64> {
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// Refuses a layer that is the upper of a server which has not finished all its files yet.
fn refuse_unfinished(layer: &Path) -> Result<()> {
    let root = check::open_dir(layer)?;
    match rustix::fs::flock(&root, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => Err(Error::new(Errno::BUSY)
            .during("merge the layer", layer.as_os_str().as_bytes())
            .hint("it is the upper of a mount: unmount it first")),
        // A file system without locks: there is nothing to be known.
        _ => Ok(()),
    }
}

/// Keeps an upper from being mounted until it is emptied: it is in the layer with this inode number.
fn mark(work: BorrowedFd<'_>, layer: u64) -> Result<()> {
    unmark(work)?;
    let mut at = work.try_clone_to_owned()?;
    for name in [b"work".as_slice(), INCOMPAT, MERGE, layer.to_string().as_bytes()] {
        match rustix::fs::mkdirat(&at, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::new(errno).during("mark the workdir by", name)),
        }
        at = sys::open_at(at.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY, 0)?;
    }
    // The layer may be on another file system, and must not be ahead.
    let readable = sys::open_at(work, b".", OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
    Ok(rustix::fs::syncfs(readable)?)
}

fn is_marked(work: BorrowedFd<'_>, layer: u64) -> bool {
    let path = [b"work/", INCOMPAT, b"/", MERGE, b"/", layer.to_string().as_bytes()].concat();
    sys::open_dir_beneath(work, &path).is_ok()
}

fn unmark(work: BorrowedFd<'_>) -> Result<()> {
    match sys::open_dir_beneath(work, &[b"work/", INCOMPAT].concat()) {
        Ok(incompat) => remove_all(incompat.as_fd(), MERGE)?,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    }
    let work = sys::open_at(work, b"work", OFlags::PATH | OFlags::DIRECTORY, 0)?;
    match rustix::fs::unlinkat(&work, INCOMPAT, rustix::fs::AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
