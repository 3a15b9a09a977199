//! The upper layer: the one place where the union writes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use rustix::fs::{CWD, Mode, NFS_SUPER_MAGIC, OFlags};

use crate::error::{Errno, Error, Result};
use crate::ondisk;
use crate::ondisk::unfinished::Writer;
use crate::options::MountOptions;
use crate::stack::lease::{self, Lease};
use crate::stack::owners::Owners;
use crate::stack::probe::Features;
use crate::stack::settle::{self, Durability};
use crate::stack::workdir::Workdir;
use crate::sys::{self, Stat};

/// The writable layer and its workdir.
#[derive(Debug)]
pub(crate) struct UpperLayer {
    /// As it was given.
    pub path: PathBuf,
    root: OwnedFd,
    root_stat: Stat,
    /// Where objects are built.
    pub workdir: Workdir,
    /// What the file system can do.
    pub features: Features,
    /// Where owners and modes are kept.
    pub owners: Owners,
    /// What its data needs to survive a power cut.
    pub(crate) durability: Durability,
    /// Who this server is in marks of unfinished files.
    pub(crate) writer: Writer,
    /// Held while files are unfinished.
    pub(crate) lease: Arc<Lease>,
    /// Held while a file is settled that another server left unfinished.
    pub(crate) settling: Mutex<()>,
    /// No lower could be reflinked here so far; asking again is a wasted call.
    pub(crate) no_reflink: AtomicBool,
    /// The kernel may remember other attributes than those of now.
    is_remote: bool,
}

impl UpperLayer {
    /// Opens the upper at `path`.
    pub(crate) fn open_root(path: &Path) -> Result<(OwnedFd, Stat)> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = sys::retry(|| rustix::fs::openat(CWD, path, flags, Mode::empty()))
            .map_err(|e| Error::new(e).during("open upper layer", path.as_os_str().as_encoded_bytes()))?;
        let stat = sys::stat_fd(root.as_fd())?;
        Ok((root, stat))
    }

    /// Puts together what was opened and probed.
    pub(crate) fn new(
        path: PathBuf,
        root: OwnedFd,
        root_stat: Stat,
        workdir: Workdir,
        features: Features,
        owners: Owners,
        epoch: Option<[u8; 16]>,
    ) -> Result<Self> {
        let durability = Durability::of(root.as_fd())?;
        let writer = settle::writer(root.as_fd());
        let writer = epoch.map_or(writer, |epoch| writer.since(epoch));
        let lease = Arc::new(Lease::new(root.as_fd(), workdir.base_fd(), writer)?);
        let no_reflink = AtomicBool::new(false);
        let is_remote = REMOTE.contains(&workdir.file_system);
        Ok(Self {
            path,
            root,
            root_stat,
            workdir,
            features,
            owners,
            durability,
            writer,
            lease,
            settling: Mutex::new(()),
            no_reflink,
            is_remote,
        })
    }

    /// Returns the attributes that `name` in a directory of the layer shows.
    pub(crate) fn stat_at(&self, dir: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<Stat, Errno> {
        if self.hides(name) {
            return Err(Errno::NOENT);
        }
        if self.is_remote { self.owners.stat_at_asking(dir, name) } else { self.owners.stat_at(dir, name) }
    }

    /// Returns whether a name here is none of the union's: the client of a network file system has made it.
    pub(crate) fn hides(&self, name: &[u8]) -> bool {
        self.workdir.is_nfs() && ondisk::is_silly_name(name)
    }

    /// Finishes what a killed server left behind whole; what is not whole is settled when it is looked up.
    pub(crate) fn finish_left_behind(&self) -> Result<()> {
        let Some(before) = lease::left_behind(self.workdir.base_fd()) else { return Ok(()) };
        let namespace = self.features.namespace.filter(|_| before.outlives_in(&self.writer));
        let finished = match namespace {
            Some(namespace) => {
                settle::finish_left_behind(self.root_fd(), namespace, self.durability, self.writer)?
            }
            None => true,
        };
        if finished {
            lease::remove_note(self.workdir.base_fd());
        }
        Ok(())
    }

    /// Returns the root directory.
    pub(crate) fn root_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Returns where upper and workdir are, which `options` name: absolute and without symbolic links.
    pub(crate) fn real_paths(&self, options: &MountOptions) -> (PathBuf, PathBuf) {
        let named =
            |path: &Option<PathBuf>, dir| sys::real_path(dir, path.as_deref().unwrap_or(Path::new("")));
        (named(&options.upperdir, self.root_fd()), named(&options.workdir, self.workdir.base_fd()))
    }

    /// Returns the attributes that the root had when it was opened.
    pub(crate) fn root_stat(&self) -> &Stat {
        &self.root_stat
    }

    /// Returns the device and inode number of the root.
    pub(crate) fn identity(&self) -> (u64, u64) {
        (self.root_stat.dev, self.root_stat.ino)
    }
}

/// File systems whose server sets times of modification: FUSE, NFS.
const REMOTE: [i64; 2] = [0x6573_5546, NFS_SUPER_MAGIC];

/// File systems that give an object another inode number when they have forgotten it: vfat, exFAT.
const FLEETING_NUMBERS: [i64; 2] = [0x4d44, 0x2011_bab0];

/// Checks that objects can be told apart by their inode numbers.
///
/// # Errors
/// EINVAL with a hint if they cannot.
pub(crate) fn check_inode_numbers(upper: &Path, root: BorrowedFd<'_>) -> Result<()> {
    let kind = rustix::fs::fstatfs(root).map_or(0, |stat| stat.f_type);
    if !has_fleeting_numbers(kind) {
        return Ok(());
    }
    Err(Error::new(Errno::INVAL).during("use upper layer", upper.as_os_str().as_encoded_bytes()).hint(
        "vfat and exFAT hold no owners, modes, links or lasting inode numbers; the command unionfs keeps a store there, \
         unless sidecar=off is given",
    ))
}

/// Name of the store in an upper on such a file system, which the command serves as another file system beneath the union.
pub(crate) const STORE: &[u8] = b"unionfs-store";

/// Returns whether file systems of a kind, as statfs(2) tells it, give objects other inode numbers after a while.
pub(crate) fn has_fleeting_numbers(kind: i64) -> bool {
    FLEETING_NUMBERS.contains(&kind)
}

/// Checks that a rename can move objects from the workdir to the upper.
///
/// # Errors
/// EXDEV with a hint if it cannot.
pub(crate) fn check_same_file_system(upper: &Path, root: BorrowedFd<'_>, work: BorrowedFd<'_>) -> Result<()> {
    let probe = c".unionfs-probe";
    let same_device = sys::stat_fd(root)?.dev == sys::stat_fd(work)?.dev;
    // The same device may still be two mounts, between which rename(2) gives EXDEV: try it with a name that is not
    // there, ENOENT then says that the mounts are one.
    let crosses = matches!(rustix::fs::renameat(work, probe, root, probe), Err(Errno::XDEV));
    if same_device && !crosses {
        return Ok(());
    }
    Err(Error::new(Errno::XDEV)
        .during("use the workdir with upper layer", upper.as_os_str().as_encoded_bytes())
        .hint("workdir must be on the same file system and mount as upperdir"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_without_lasting_inode_numbers_are_known() {
        // From linux/magic.h: vfat, exFAT; ext4, NFS, tmpfs, FUSE.
        for (kind, fleeting) in [
            (0x4d44, true),
            (0x2011_bab0, true),
            (0xef53, false),
            (0x6969, false),
            (0x0102_1994, false),
            (0x6573_5546, false),
        ] {
            assert_eq!(has_fleeting_numbers(kind), fleeting, "{kind:x}");
        }
    }
}
