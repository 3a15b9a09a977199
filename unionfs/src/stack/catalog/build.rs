//! Making the catalog of a layer: one walk, blocks of subdirectories before that of their directory, the header last, and
//! a rename at the end: whoever looks finds the old catalog or the new one.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, Mode, OFlags};

use super::{Viewer, path_of};
use crate::error::{Errno, Error, Result};
use crate::ondisk;
use crate::ondisk::catalog::{BlockAt, BlockWriter, HEADER, Header, Object, Stamp, checksum};
use crate::sys::{self, Stat};

/// Times on disk may lie this far behind the clock: a directory younger than this could change once more without it
/// being seen.
const TICK: Duration = Duration::from_millis(40);
/// How often a directory that changes while it is read is read again.
const TRIES: usize = 20;

/// What was made.
#[derive(Debug)]
pub(crate) struct Built {
    /// The catalog.
    pub path: PathBuf,
    /// Objects in it.
    pub objects: u64,
    /// Bytes.
    pub len: u64,
}

/// Makes the catalog of the layer at `layer`.
///
/// # Errors
/// What the layer or the directory beside it answers; EBUSY if the layer changes meanwhile.
pub(crate) fn build(layer: &Path) -> Result<Built> {
    let label = layer.as_os_str().as_encoded_bytes();
    let path = path_of(layer).ok_or_else(|| {
        Error::new(Errno::INVAL).during("name a catalog beside", label).hint("name an existing directory")
    })?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = sys::retry(|| rustix::fs::openat(CWD, layer, flags, Mode::empty()))
        .map_err(|errno| Error::new(errno).during("open layer", label))?;
    let viewer = Viewer::this_process()?;
    let mut temporary = path.clone().into_os_string();
    temporary.push(format!(".{}", rustix::process::getpid()));
    let temporary = Guard(temporary.into());
    let name = temporary.0.as_os_str().as_encoded_bytes().to_vec();
    let failed = |error: std::io::Error| Error::from(error).during("write", &name);
    let mode = Mode::from_raw_mode(0o644);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, &temporary.0, flags, mode)
        .map_err(|errno| Error::new(errno).during("create", &name))?;
    let mut file = File::from(file);
    file.write_all(&[0; HEADER]).map_err(failed)?;
    let mut walk = Walk { file: std::io::BufWriter::new(file), at: HEADER as u64, objects: 0, dev: 0 };
    walk.dev = sys::stat_fd(root.as_fd())?.dev;
    let root = walk.tree(root)?;
    let (objects, len) = (walk.objects, walk.at);
    let mut file = walk.file.into_inner().map_err(|error| failed(error.into_error()))?;
    let header = Header { len, ids: viewer.ids, trusted: viewer.trusted, objects, root };
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    file.write_all(&header.encode()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    std::fs::rename(&temporary.0, &path).map_err(failed)?;
    Ok(Built { path, objects, len })
}

/// Removes the unfinished file.
struct Guard(PathBuf);

impl Drop for Guard {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.0) {
            Ok(()) => {}
            // It has its name.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "an unfinished catalog stays: {}", self.0.display()),
        }
    }
}

struct Walk {
    file: std::io::BufWriter<File>,
    at: u64,
    objects: u64,
    dev: u64,
}

/// A directory whose subdirectories are being written.
struct Open {
    fd: OwnedFd,
    stat: Stat,
    name: Vec<u8>,
    attributes: Attributes,
    block: BlockWriter,
    /// Subdirectories to go.
    pending: Vec<(Vec<u8>, Stat)>,
}

impl Walk {
    /// Writes the blocks of a tree, without recursion: trees may be deep. Returns where that of its root is.
    fn tree(&mut self, root: OwnedFd) -> Result<BlockAt> {
        let stat = sys::stat_fd(root.as_fd())?;
        let first = self.read(root, stat, Vec::new())?;
        let root_changes = Error::new(Errno::XDEV).hint("another file system is mounted in the layer's root");
        let mut stack = vec![first.ok_or(root_changes)?];
        loop {
            let Some(top) = stack.last_mut() else { return Err(Error::new(Errno::IO)) };
            if let Some((name, stat)) = top.pending.pop() {
                let fd = sys::open_at(top.fd.as_fd(), &name, OFlags::PATH | OFlags::DIRECTORY, 0)
                    .map_err(|errno| Error::new(errno).during("open", &name))?;
                let attributes = Attributes::of_dir(fd.as_fd(), &name)?;
                let Attributes { plain, bare } = attributes;
                match self.read(fd, stat, name.clone())? {
                    Some(open) => stack.push(Open { attributes, ..open }),
                    None => top.block.push(&name, Object { stat, plain, bare, block: None }),
                }
                continue;
            }
            let Some(done) = stack.pop() else { return Err(Error::new(Errno::IO)) };
            let at = self.write(done.block)?;
            match stack.last_mut() {
                None => return Ok(at),
                Some(parent) => {
                    let Attributes { plain, bare } = done.attributes;
                    let object = Object { stat: done.stat, plain, bare, block: Some(at) };
                    parent.block.push(&done.name, object);
                }
            }
        }
    }

    fn write(&mut self, block: BlockWriter) -> Result<BlockAt> {
        let bytes = block.finish().map_err(|_| Error::new(Errno::FBIG))?;
        let len = u32::try_from(bytes.len()).map_err(|_| Error::new(Errno::FBIG))?;
        let at = BlockAt { offset: self.at, len, sum: checksum(&bytes) };
        self.file.write_all(&bytes)?;
        self.at += u64::from(len);
        Ok(at)
    }

    /// Reads one directory, as it is when nothing changes it. `None` if other file systems are mounted in it: what is
    /// seen there depends on who looks.
    fn read(&mut self, fd: OwnedFd, found: Stat, name: Vec<u8>) -> Result<Option<Open>> {
        for _ in 0..TRIES {
            let before = sys::stat_fd(fd.as_fd())?;
            if is_young(&before) {
                std::thread::sleep(TICK);
                continue;
            }
            let Some((files, pending)) = self.names(fd.as_fd())? else { return Ok(None) };
            if files.iter().any(|(_, record)| is_young(&record.stat)) {
                std::thread::sleep(TICK);
                continue;
            }
            let after = sys::stat_fd(fd.as_fd())?;
            if Stamp::of(&before) == Stamp::of(&after) {
                let mut block = BlockWriter::new(after);
                self.objects += (files.len() + pending.len()) as u64;
                for (name, record) in files {
                    block.push(&name, record);
                }
                let stat = Stat { mount_root: found.mount_root, ..after };
                let attributes = Attributes { plain: false, bare: false };
                return Ok(Some(Open { fd, stat, name, attributes, block, pending }));
            }
        }
        Err(Error::new(Errno::BUSY)
            .during("catalogue the directory", name)
            .hint("the layer is being changed"))
    }

    /// Returns what is in a directory: finished records, and subdirectories.
    fn names(&self, dir: BorrowedFd<'_>) -> Result<Option<Contents>> {
        let names = sys::dirents::names(dir)?;
        let (mut files, mut directories) = (Vec::new(), Vec::new());
        for name in names {
            let stat = match sys::stat_at(dir, &name) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(Error::new(errno).during("read the attributes of", name)),
            };
            if stat.dev != self.dev || stat.mount_root {
                return Ok(None);
            }
            if stat.is_dir() {
                directories.push((name, stat));
            } else {
                let Attributes { plain, bare } = Attributes::of(sys::xattr::list_at(dir, &name), &name)?;
                files.push((name, Object { stat, plain, bare, block: None }));
            }
        }
        Ok(Some((files, directories)))
    }
}

type Contents = (Vec<(Vec<u8>, Object)>, Vec<(Vec<u8>, Stat)>);

/// Returns whether an object could change once more without its times telling.
fn is_young(stat: &Stat) -> bool {
    let newest = stat.mtime.max(stat.ctime);
    let Ok(sec) = u64::try_from(newest.sec) else { return false };
    let then = SystemTime::UNIX_EPOCH + Duration::new(sec, newest.nsec);
    // A time in the future says nothing about now.
    SystemTime::now().duration_since(then).is_ok_and(|age| age < TICK)
}

/// What the extended attributes of an object are.
#[derive(Clone, Copy, Debug)]
struct Attributes {
    /// None is a mark of a union.
    plain: bool,
    /// There are none.
    bare: bool,
}

impl Attributes {
    fn of(list: std::result::Result<Vec<u8>, Errno>, name: &[u8]) -> Result<Self> {
        match list {
            Ok(list) => {
                let plain = !sys::xattr::names(&list).any(ondisk::is_private_xattr);
                Ok(Self { plain, bare: list.is_empty() })
            }
            // What such a file system answers to questions for attributes is for it to say.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(Self { plain: true, bare: false }),
            Err(Errno::PERM | Errno::ACCESS) => Ok(Self { plain: false, bare: false }),
            Err(errno) => Err(Error::new(errno).during("list attributes of", name)),
        }
    }

    /// Those of a directory; a file that makes it opaque counts as a mark.
    fn of_dir(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Self> {
        let found = Self::of(sys::xattr::list(dir), name)?;
        let opaque = !matches!(sys::stat_at(dir, ondisk::OPAQUE_FILE), Err(Errno::NOENT));
        Ok(Self { plain: found.plain && !opaque, ..found })
    }
}
