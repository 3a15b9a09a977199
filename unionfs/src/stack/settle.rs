//! Copied-up files that are not safe on the disk yet: how one is made safe, and what becomes of those that a server left
//! when it was killed or the power went.
//!
//! Such a file has the kernel's mark `metacopy`, so that everybody else sees the lower's data, with a note as its value
//! ([`Unfinished`]). It is made safe by bringing the data to the disk and then taking the mark away. A metacopy that is about to
//! be emptied has the same as a mark `unfinished` beside it, since the value may be a digest: that one alone
//! means nothing, and beside a note it does not count. A file that was left behind is whole for sure only if all data had
//! been copied and nothing in the page cache can have been lost; else it shows the lower's data again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};

use crate::error::{Errno, Result};
use crate::ondisk::Namespace;
use crate::ondisk::metacopy;
use crate::ondisk::unfinished::{Extent, UNFINISHED, Unfinished, Writer};
use crate::request::FileKind;
use crate::stack::attributes::{Attributes, NATIVE};
use crate::sys::{self, Stat};

/// How long a server that still finishes files of a layer is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the upper's file system needs so that data survives a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Nothing helps: it lives in memory.
    Memory,
    /// What changes attributes is written in order, by one journal, and after data that reached the device before (ext4
    /// with a journal, xfs): data that is written back is safe as soon as the removal of the marks is.
    Ordered,
    /// Each file's data has to be synced before its marks go.
    Each,
}

impl Durability {
    /// Finds out about the file system of an open directory.
    pub(crate) fn of(dir: BorrowedFd<'_>) -> Result<Self> {
        const TMPFS: u64 = 0x0102_1994;
        const RAMFS: u64 = 0x8584_58f6;
        const EXT4: u64 = 0xef53;
        const XFS: u64 = 0x5846_5342;
        // The type of the field differs between platforms; its low half is the number.
        let kind = (rustix::fs::fstatfs(dir)?.f_type as u64) & 0xffff_ffff;
        Ok(match kind {
            TMPFS | RAMFS => Self::Memory,
            XFS => Self::Ordered,
            EXT4 if has_journal(sys::stat_fd(dir)?.dev) => Self::Ordered,
            _ => Self::Each,
        })
    }
}

/// Returns whether the ext4 file system on a device is known to have a journal.
fn has_journal(dev: u64) -> bool {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let Ok(device) = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")) else { return false };
    let Some(name) = device.file_name() else { return false };
    std::path::Path::new("/sys/fs/ext4").join(name).join("journal_task").exists()
}

/// Returns who this process is, writing through `upper`.
pub(crate) fn writer(upper: BorrowedFd<'_>) -> Writer {
    writer_on_mount(sys::stat::mount_number(upper).unwrap_or(0))
}

/// Returns who this process is, on the mount with this number.
pub(crate) fn writer_on_mount(mount: u64) -> Writer {
    let mut server = [0; 8];
    if rustix::rand::getrandom(&mut server, rustix::rand::GetRandomFlags::empty()).is_err() {
        server = std::process::id().to_le_bytes().repeat(2).try_into().unwrap_or_default();
    }
    Writer { boot: boot_id().unwrap_or_default(), mount, server: u64::from_le_bytes(server) }
}

fn boot_id() -> Option<[u8; 16]> {
    let text = sys::read_setting("/proc/sys/kernel/random/boot_id").ok()?;
    let number = u128::from_str_radix(&text.trim().replace('-', ""), 16).ok()?;
    Some(number.to_be_bytes())
}

/// Marks a file whose data is not safe yet, or says anew how much of it is there.
pub(crate) fn mark(fd: BorrowedFd<'_>, namespace: Namespace, extent: Extent, writer: Writer) -> Result<()> {
    let value = metacopy::with_note(&Unfinished { extent, writer }.encode());
    Ok(sys::xattr::set(fd, &namespace.name("metacopy"), &value, 0)?)
}

/// Returns what says that a file is unfinished, if it is. `mark` reads its marks.
pub(crate) fn unfinished(mark: impl Fn(&str) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    let metacopy = mark("metacopy")?;
    metacopy::note(&metacopy).map(<[u8]>::to_vec).or_else(|| mark(UNFINISHED))
}

/// Marks a metacopy as unfinished, beside what its mark says.
pub(crate) fn remark(
    attributes: &Attributes,
    fd: BorrowedFd<'_>,
    namespace: Namespace,
    extent: Extent,
    writer: Writer,
) -> Result<()> {
    attributes.set(fd, &namespace.name(UNFINISHED), &Unfinished { extent, writer }.encode(), 0)
}

/// Brings a file's data to the disk, as far as is needed before [`unmark`].
pub(crate) fn write_back(fd: BorrowedFd<'_>, durability: Durability) -> Result<()> {
    match durability {
        Durability::Memory => Ok(()),
        Durability::Ordered => Ok(sys::write_back::wait(fd)?),
        Durability::Each => Ok(sys::retry(|| rustix::fs::fdatasync(fd))?),
    }
}

/// Marks of a file that is not safe yet: `metacopy`, and those that mean nothing without it.
pub(crate) type Marks = &'static [&'static str];
/// Those of a file that was made a moment ago.
pub(crate) const MARKS_OF_NEW: Marks = &["metacopy"];
/// Those of one that was a metacopy, and may have been moved as such.
pub(crate) const MARKS: Marks = &["metacopy", "redirect", UNFINISHED];

/// Takes the marks away: from here on the upper file is the file.
///
/// # Errors
/// It is a metacopy still.
pub(crate) fn unmark(
    attributes: &Attributes,
    fd: BorrowedFd<'_>,
    namespace: Namespace,
    marks: Marks,
) -> Result<()> {
    let mut is_metacopy = true;
    for mark in marks {
        match attributes.remove(fd, &namespace.name(mark)) {
            Err(error) if !error.is(Errno::NODATA) => {
                if is_metacopy {
                    return Err(error);
                }
                tracing::warn!("the mark {mark} of a finished file stays, and means nothing: {error}");
            }
            _ => is_metacopy = false,
        }
    }
    Ok(())
}

/// Makes an unfinished file the metacopy again that it is to everybody else: with the size and times of `like`, and without
/// data.
pub(crate) fn revert(
    attributes: &Attributes,
    fd: BorrowedFd<'_>,
    namespace: Namespace,
    like: &Stat,
) -> Result<()> {
    // By way of 0: no byte that was written shows if the data is copied up into holes later.
    sys::retry(|| rustix::fs::ftruncate(fd, 0))?;
    sys::retry(|| rustix::fs::ftruncate(fd, like.size))?;
    sys::set_both_times(fd, like.atime, like.mtime)?;
    let metacopy = namespace.name("metacopy");
    if attributes.get(fd, &metacopy).is_ok_and(|value| metacopy::note(&value).is_some()) {
        attributes.set(fd, &metacopy, b"", sys::xattr::REPLACE)?;
    }
    match attributes.remove(fd, &namespace.name(UNFINISHED)) {
        Err(error) if !error.is(Errno::NODATA) => Err(error),
        _ => Ok(()),
    }
}

/// Decides what becomes of a file `name` in `dir` that a server left behind on the upper, and does it. `lower` has the
/// data that it had before.
pub(crate) fn settle(
    dir: BorrowedFd<'_>,
    name: &[u8],
    (attributes, namespace, durability): (&Attributes, Namespace, Durability),
    whole: bool,
    lower: &Stat,
) -> Result<()> {
    let file = open(dir, name)?;
    let done = if whole {
        write_back(file.fd.as_fd(), durability)
            .and_then(|()| unmark(attributes, file.fd.as_fd(), namespace, MARKS))
    } else {
        revert(attributes, file.fd.as_fd(), namespace, lower)
    };
    file.restore()?;
    done?;
    let now = if whole { "whole" } else { "the file below again" };
    tracing::info!("{}: left unfinished by another server, now {now}", name.escape_ascii());
    Ok(())
}

/// A file opened for writing, with the mode to give back.
struct Opened {
    fd: OwnedFd,
    mode: Option<u32>,
}

impl Opened {
    fn restore(&self) -> Result<()> {
        let Some(mode) = self.mode else { return Ok(()) };
        Ok(rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(mode & 0o7777))?)
    }
}

/// Opens a file, also where its own mode forbids that to an ordinary user who owns it.
fn open(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Opened> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK;
    match sys::open_at(dir, name, flags, 0) {
        Ok(fd) => return Ok(Opened { fd, mode: None }),
        Err(Errno::ACCESS) => {}
        Err(errno) => return Err(errno.into()),
    }
    let pin = sys::pin_at(dir, name)?;
    let mode = sys::stat_fd(pin.as_fd())?.mode;
    let path = sys::proc_path(pin.as_fd());
    let writable = Mode::from_raw_mode((mode & 0o7777) | 0o600);
    rustix::fs::chmodat(CWD, path.as_str(), writable, AtFlags::empty())?;
    Ok(Opened { fd: sys::open_at(dir, name, flags, 0)?, mode: Some(mode) })
}

/// Waits until no server finishes files of the layer below `root` any more, or for so long that it must be a live mount.
pub(crate) fn wait_for_finisher(root: BorrowedFd<'_>) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let Ok(fd) = sys::open_at(root, b".", flags, 0) else { return };
    let start = Instant::now();
    while matches!(
        rustix::fs::flock(&fd, FlockOperation::NonBlockingLockShared),
        Err(Errno::WOULDBLOCK | Errno::INTR)
    ) && start.elapsed() < PATIENCE
    {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Finishes every file below the root of an upper that a killed server left whole: the last moment at which that can be
/// told is before the upper is unmounted. Those that are not whole are settled when they are looked up. Returns whether
/// none failed.
pub(crate) fn finish_left_behind(
    root: BorrowedFd<'_>,
    namespace: Namespace,
    durability: Durability,
    writer: Writer,
) -> Result<bool> {
    let mut all = true;
    // By path: descriptors of all directories still to be read could be too many.
    let mut paths = vec![Vec::new()];
    while let Some(path) = paths.pop() {
        let opened = if path.is_empty() { None } else { Some(sys::open_dir_beneath(root, &path)?) };
        let dir = opened.as_ref().map_or(root, AsFd::as_fd);
        let mut files = Vec::new();
        let listed = sys::dirents::for_each_name(dir, |entry| {
            let kind =
                entry.kind.map_or_else(|| sys::stat_at(dir, entry.name).map(|stat| stat.kind()), Ok)?;
            match kind {
                FileKind::Directory if path.is_empty() => paths.push(entry.name.to_vec()),
                FileKind::Directory => paths.push([&path, &b"/"[..], entry.name].concat()),
                FileKind::Regular => files.push(entry.name.to_vec()),
                _ => {}
            }
            Ok(true)
        });
        match listed {
            // Not for this process to read: what is in it is settled when it is looked up.
            Ok(()) | Err(Errno::ACCESS) => {}
            Err(errno) => return Err(errno.into()),
        }
        for name in files {
            let mark = |mark: &str| sys::xattr::get_at(dir, &name, &namespace.name(mark)).ok();
            if unfinished(mark).is_some_and(|value| is_whole(&value, writer)) {
                let stat = sys::stat_at(dir, &name)?;
                if let Err(error) = settle(dir, &name, (&NATIVE, namespace, durability), true, &stat) {
                    let error = error.during("finish the copied-up file", &name);
                    tracing::error!("{error}");
                    all = false;
                }
            }
        }
    }
    Ok(all)
}

/// Returns whether a file with this mark is whole although its server is gone, seen from `now`.
pub(crate) fn is_whole(mark: &[u8], now: Writer) -> bool {
    Unfinished::parse(mark).is_some_and(|mark| mark.extent == Extent::Whole && mark.writer.outlives_in(&now))
}

/// Returns whether this mark is `writer`'s own.
pub(crate) fn is_own(mark: &[u8], writer: Writer) -> bool {
    Unfinished::parse(mark).is_some_and(|mark| mark.writer == writer)
}
