//! The workdir: where objects are built before one rename publishes them, and where removed ones go.
//!
//! A crash leaves files only here; the next mount sweeps them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, NFS_SUPER_MAGIC, OFlags, RenameFlags};

use crate::error::{Errno, Error, Result};
use crate::ondisk::Namespace;
use crate::stack::attributes::{Attributes, NATIVE};
use crate::stack::sidecar::{Key, Sidecar};
use crate::sys;

/// Name of the directory of temporary objects inside the workdir, as in kernel overlayfs.
const WORK: &[u8] = b"work";
/// The directory of marks that forbid mounting, in `work`: a directory for each feature, as in kernel overlayfs.
pub(crate) const INCOMPAT: &[u8] = b"incompat";
/// The feature of mounts that sync nothing, and what stands in its directory.
pub(crate) const VOLATILE: &[u8] = b"volatile";
/// The feature of uppers that were merged into a lower and are not yet emptied.
pub(crate) const MERGE: &[u8] = b"merge";
const DIRTY: &[u8] = b"dirty";
/// How long a lock that another process holds is waited for: a lazily detached mount may still be ending.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// The directory `work` in the workdir, and the lock on the workdir.
#[derive(Debug)]
pub(crate) struct Workdir {
    /// Holds the lock; never read.
    locked: OwnedFd,
    work: OwnedFd,
    next: AtomicU64,
    /// Distinguishes the names of this mount from those that a crash left.
    salt: u64,
    /// Where attributes of the objects here and on the upper are.
    pub(crate) attributes: Attributes,
    /// Another process had the lock.
    shared: bool,
    /// The type of the file system, which is the upper's too (statfs(2)).
    pub(crate) file_system: i64,
}

/// A temporary object by name. Dropping it removes the object, unless it was published.
#[derive(Debug)]
pub(crate) struct Temp<'a> {
    workdir: &'a Workdir,
    name: Option<Vec<u8>>,
}

/// An object that is about to lose a name of the upper, kept by another one here as long as it has anything outside of its
/// file system: that goes with this name, also if a crash comes between.
#[derive(Debug)]
#[must_use = "what is kept of the object stays unless it is told that the name is gone"]
pub(crate) struct Buried<'a>(Option<Grave<'a>>);

#[derive(Debug)]
struct Grave<'a> {
    temp: Temp<'a>,
    /// What is kept of the object, if the name was its last one.
    last: Option<Key>,
}

impl Workdir {
    /// Opens the workdir at `path`, takes its lock and sweeps what a crash left.
    ///
    /// The second value tells when another process holds the lock.
    pub(crate) fn open(path: &Path) -> Result<(Self, Option<String>)> {
        let bytes = path.as_os_str().as_encoded_bytes();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let locked = sys::retry(|| rustix::fs::openat(CWD, path, flags, Mode::empty()))
            .map_err(|e| Error::new(e).during("open workdir", bytes))?;
        let notice = lock(locked.as_fd()).then_some(
            "workdir is in use by another mount; changing both gives undefined results".to_owned(),
        );
        let is_new = match rustix::fs::mkdirat(&locked, WORK, Mode::from_raw_mode(0o700)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(Error::new(errno).during("make the directory work in workdir", bytes)),
        };
        let work = sys::open_at(locked.as_fd(), WORK, OFlags::RDONLY | OFlags::DIRECTORY, 0)
            .map_err(|e| Error::new(e).during("open the directory work in workdir", bytes))?;
        if !is_new {
            refuse_incompatible(work.as_fd())?;
        }
        let salt = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let salt = (salt.tv_sec.cast_unsigned() << 30) ^ salt.tv_nsec.cast_unsigned();
        // For the sweep: what it removes may have attributes beside it.
        let sidecar = Sidecar::open(locked.as_fd(), Namespace::User, false)?;
        let attributes = sidecar.map(Attributes::beside).unwrap_or_default();
        let file_system = rustix::fs::fstatfs(&work)?.f_type;
        let shared = notice.is_some();
        let workdir = Self { locked, work, next: AtomicU64::new(0), salt, attributes, shared, file_system };
        if notice.is_none() && !is_new {
            workdir.sweep()?;
        }
        Ok((workdir, notice))
    }

    /// Returns the directory of temporary objects.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.work.as_fd()
    }

    /// Returns whether the file system is an NFS client's.
    pub(crate) fn is_nfs(&self) -> bool {
        self.file_system == NFS_SUPER_MAGIC
    }

    /// Returns whether another mount used it at the start.
    pub(crate) const fn is_shared(&self) -> bool {
        self.shared
    }

    /// Returns the workdir itself.
    pub(crate) fn base_fd(&self) -> BorrowedFd<'_> {
        self.locked.as_fd()
    }

    /// Returns a name that nothing here has, guarded: whatever is made under it is removed unless published.
    pub(crate) fn temp(&self) -> Temp<'_> {
        let serial = self.next.fetch_add(1, Ordering::Relaxed);
        Temp { workdir: self, name: Some(format!("#{:x}{serial:08x}", self.salt).into_bytes()) }
    }

    /// Moves an object out of the union into the workdir and removes it there, with all that is in it.
    pub(crate) fn discard(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let temp = self.temp();
        rustix::fs::renameat(dir, name, self.fd(), temp.name())?;
        drop(temp);
        Ok(())
    }

    /// Leaves the mark that nothing here is synced, where kernel overlayfs puts it and looks for it.
    pub(crate) fn mark_volatile(&self) -> Result<()> {
        let mut at = self.work.try_clone()?;
        for name in [INCOMPAT, VOLATILE] {
            match rustix::fs::mkdirat(&at, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(Error::new(errno).during("mark the workdir volatile by", name)),
            }
            at = sys::open_at(at.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY, 0)?;
        }
        let dirty = sys::open_at(at.as_fd(), DIRTY, OFlags::WRONLY | OFlags::CREATE, 0o600)?;
        drop(dirty);
        Ok(())
    }

    /// Takes that mark away: the mount ended cleanly.
    pub(crate) fn unmark_volatile(&self) {
        if let Err(error) = remove_all_with(self.fd(), INCOMPAT, &self.attributes) {
            tracing::warn!("the workdir stays marked volatile: {error}");
        }
    }

    fn sweep(&self) -> Result<()> {
        let names = sys::dirents::names(self.fd())?;
        for name in names {
            remove_all_with(self.fd(), &name, &self.attributes)?;
        }
        Ok(())
    }

    /// Takes a name of a file away, and with the last one what is kept of the file outside of its file system.
    ///
    /// What is open, and the file may be, keeps on NFS a name in its directory, which then could not be removed. Here that
    /// is in nobody's way.
    pub(crate) fn unlink(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        if self.is_nfs() {
            return self.discard(dir, name);
        }
        let buried = self.bury(dir, name)?;
        rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
        buried.name_is_gone();
        Ok(())
    }

    /// Prepares that something takes the name of a file.
    pub(crate) fn bury(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<Buried<'_>> {
        let Some(key) = self.attributes.outside(dir, name)? else { return Ok(Buried(None)) };
        let last = (sys::stat_at(dir, name)?.nlink <= 1).then_some(key);
        let temp = self.temp();
        rustix::fs::linkat(dir, name, self.fd(), temp.name(), AtFlags::empty())?;
        Ok(Buried(Some(Grave { temp, last })))
    }
}

impl Buried<'_> {
    /// Removes what is kept of the object if it has no name left.
    ///
    /// Its link count does not tell: an NFS client keeps a name of what is open.
    pub(crate) fn name_is_gone(self) {
        let Some(Grave { temp, last }) = self.0 else { return };
        let forgotten = last.map_or(Ok(()), |key| temp.workdir.attributes.forget(&key));
        if let Err(error) = forgotten {
            tracing::warn!(
                "attributes of a removed file stay in the sidecar, `unionfs check` finds them: {error}"
            );
        }
    }
}

impl Temp<'_> {
    /// Returns the name in the workdir.
    pub(crate) fn name(&self) -> &[u8] {
        self.name.as_deref().unwrap_or_default()
    }

    /// Moves the object to `name` in `dir`, in one step.
    ///
    /// With `EXCHANGE` the object that was there is now the guarded one and is removed on drop.
    pub(crate) fn publish(mut self, dir: BorrowedFd<'_>, name: &[u8], flags: RenameFlags) -> Result<()> {
        let from = self.workdir.fd();
        let result = rustix::fs::renameat_with(from, self.name(), dir, name, flags);
        let result = match result {
            // A file system without flags for rename: nothing else moves a temporary object here, so plain is right.
            Err(Errno::INVAL | Errno::NOSYS) if flags == RenameFlags::NOREPLACE => {
                rustix::fs::renameat(from, self.name(), dir, name)
            }
            other => other,
        };
        result?;
        if flags != RenameFlags::EXCHANGE {
            self.name = None;
        }
        Ok(())
    }
}

impl Drop for Temp<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            match remove_all_with(self.workdir.fd(), &name, &self.workdir.attributes) {
                Ok(()) => {}
                // Swept at the next mount.
                Err(error) => tracing::debug!(%error, "cannot remove a temporary object"),
            }
        }
    }
}

/// Refuses a workdir that a mount with a feature has marked that we must not ignore: `volatile`, after a crash.
fn refuse_incompatible(work: BorrowedFd<'_>) -> Result<()> {
    let incompat = match sys::open_at(work, INCOMPAT, OFlags::PATH | OFlags::DIRECTORY, 0) {
        Err(Errno::NOENT) => return Ok(()),
        result => result?,
    };
    let mut feature = None;
    sys::dirents::for_each_name(incompat.as_fd(), |entry| {
        feature = Some(entry.name.to_vec());
        Ok(false)
    })?;
    let Some(feature) = feature else { return Ok(()) };
    if feature == MERGE {
        return Err(Error::new(Errno::INVAL).during("mount in the middle of", "unionfs merge").hint(
            "upperdir was about to be emptied, its contents may be in a lower already: give that command again",
        ));
    }
    Err(Error::new(Errno::INVAL).during("mount after an unclean end of a mount with", feature).hint(
        "files in upperdir may be torn: make upperdir and workdir anew, or trust them and remove work/incompat in workdir",
    ))
}

/// Tries to lock the workdir; returns whether another process kept it for too long.
pub(crate) fn lock(fd: BorrowedFd<'_>) -> bool {
    let start = Instant::now();
    loop {
        match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if start.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(Errno::WOULDBLOCK) => return true,
            // A file system without locks: nothing to be known.
            Ok(()) | Err(_) => return false,
        }
    }
}

/// Removes `name` in `dir` and everything below it. What is gone already is fine.
///
/// Works through the tree with a stack of open directories one level at a time, never by a path string.
pub(crate) fn remove_all(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    remove_all_with(dir, name, &NATIVE)
}

/// As [`remove_all`], with what is kept of the objects in `attributes`.
pub(crate) fn remove_all_with(dir: BorrowedFd<'_>, name: &[u8], attributes: &Attributes) -> Result<()> {
    forget_attributes(dir, name, attributes)?;
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let inner = open_for_removal(dir, name)?;
    let names = sys::dirents::names(inner.as_fd())?;
    for child in names {
        remove_all_with(inner.as_fd(), &child, attributes)?;
    }
    Ok(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

/// Removes what is kept of an object outside of its file system, if this is its last name.
fn forget_attributes(dir: BorrowedFd<'_>, name: &[u8], attributes: &Attributes) -> Result<()> {
    let Some(key) = attributes.outside(dir, name)? else { return Ok(()) };
    let stat = sys::stat_at(dir, name)?;
    if stat.is_dir() || stat.nlink <= 1 { attributes.forget(&key) } else { Ok(()) }
}

/// Opens a directory to empty it; an ordinary user first needs the right to.
fn open_for_removal(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    match sys::open_at(dir, name, flags, 0) {
        Err(Errno::ACCESS) => {
            let pin = sys::pin_at(dir, name)?;
            rustix::fs::chmodat(CWD, sys::proc_path(pin.as_fd()), Mode::RWXU, AtFlags::empty())?;
            Ok(sys::open_at(dir, name, flags, 0)?)
        }
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Makes a file `f` that has an attribute in the sidecar, and calls `test` with the workdir and the upper.
    fn with_a_kept_file(test: impl FnOnce(&Workdir, &Path, BorrowedFd<'_>)) {
        let place = tempfile::tempdir().unwrap();
        let (upper, path) = (place.path().join("upper"), place.path().join("workdir"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&path).unwrap();
        fs::write(upper.join("f"), "old").unwrap();
        let (mut workdir, _) = Workdir::open(&path).unwrap();
        let sidecar = Sidecar::make(workdir.base_fd(), Namespace::User, false).unwrap();
        workdir.attributes = Attributes::beside(sidecar);
        workdir.attributes.set(fs::File::open(upper.join("f")).unwrap().as_fd(), b"user.x", b"1", 0).unwrap();
        test(&workdir, &upper, fs::File::open(&upper).unwrap().as_fd());
        assert!(super::super::sidecar::is_empty(workdir.fd()).unwrap(), "a name stays in the workdir");
    }

    fn is_kept(workdir: &Workdir) -> bool {
        workdir.attributes.sidecar().unwrap().is_used().unwrap()
    }

    #[test]
    fn what_is_kept_of_a_replaced_file_goes_though_an_nfs_client_keeps_a_name() {
        with_a_kept_file(|workdir, upper, dir| {
            let buried = workdir.bury(dir, b"f").unwrap();
            fs::rename(upper.join("f"), upper.join(".nfs000000000000051100000019")).unwrap();
            assert!(is_kept(workdir));
            buried.name_is_gone();
            assert!(!is_kept(workdir));
        });
    }

    #[test]
    fn what_is_kept_of_a_file_stays_when_its_name_was_not_taken() {
        with_a_kept_file(|workdir, _, dir| {
            drop(workdir.bury(dir, b"f").unwrap());
            assert!(is_kept(workdir));
        });
    }

    #[test]
    fn what_is_kept_of_a_file_stays_as_long_as_it_has_another_name() {
        with_a_kept_file(|workdir, upper, dir| {
            fs::hard_link(upper.join("f"), upper.join("other")).unwrap();
            workdir.unlink(dir, b"f").unwrap();
            assert!(is_kept(workdir));
            workdir.unlink(dir, b"other").unwrap();
            assert!(!is_kept(workdir));
        });
    }
}
