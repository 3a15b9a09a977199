//! The catalog of a lower layer, as it is used: found beside the layer, believed only where the layer is as it was.
//!
//! A layer at `DIR` has its catalog in `DIR.catalog`, made by `unionfs catalog DIR`. What it says of a directory counts
//! once that directory was compared with the layer: same inode, owner, mode and times. So names that were added, removed
//! or renamed, and changes of directories, are noticed; the directory, and all below it, is then read from the layer
//! again. A file is compared when its data is opened. It is read block by block into memory, not mapped: a catalog that
//! is cut short or whose disk fails must not kill the server. The page cache shares it among all mounts.

mod build;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::{CWD, Mode, OFlags};

pub(crate) use self::build::build;
use crate::error::{Errno, Error, Result};
use crate::ondisk::catalog::{Block, BlockAt, Broken, HEADER, Header, checksum};
use crate::sys::{self, Stat};

/// What the name of a layer's directory gets for the name of its catalog.
const SUFFIX: &str = ".catalog";
/// Bytes of blocks kept in memory, for all layers of a mount together.
const KEPT: usize = 24 << 20;
/// The capability that lets `trusted.*` attributes be seen, CAP_SYS_ADMIN.
const SYS_ADMIN: u64 = 1 << 21;

/// Returns where the catalog of a layer is.
pub(crate) fn path_of(layer: &Path) -> Option<PathBuf> {
    beside(&std::fs::canonicalize(layer).ok()?)
}

/// Returns where the catalog of a layer is whose path is absolute and has no symbolic links.
fn beside(layer: &Path) -> Option<PathBuf> {
    let mut name = layer.file_name()?.to_os_string();
    name.push(SUFFIX);
    Some(layer.with_file_name(name))
}

/// How this process sees owners and attributes: a catalog made by who sees them otherwise does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Viewer {
    user: u32,
    ids: u64,
    trusted: bool,
}

impl Viewer {
    /// Asks the kernel.
    pub(crate) fn this_process() -> Result<Self> {
        let read = |name: &str| {
            std::fs::read_to_string(format!("/proc/self/{name}"))
                .map_err(|error| Error::from(error).during("read in /proc/self", name.as_bytes()))
        };
        let maps = [read("uid_map")?, read("gid_map")?].concat();
        let numbers: Vec<&str> = maps.split_whitespace().collect();
        let initial = numbers.get(..3) == Some(&["0", "0", "4294967295"]);
        let status = read("status")?;
        let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let capabilities =
            capabilities.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
        let ids = checksum(numbers.join(" ").as_bytes());
        let user = rustix::process::geteuid().as_raw();
        Ok(Self { user, ids, trusted: initial && capabilities & SYS_ADMIN != 0 })
    }
}

/// The open catalog of a layer.
#[derive(Debug)]
pub(crate) struct Catalog {
    file: OwnedFd,
    header: Header,
    blocks: Arc<Blocks>,
    /// That of the layer's root, from its comparison with the layer until the root is described.
    root: Mutex<Option<Arc<Block>>>,
}

impl Catalog {
    /// Opens the catalog of the layer at `layer`, a path without symbolic links; `None` if there is none. The text says
    /// why one does not count.
    ///
    /// # Errors
    /// EACCES and others of open(2).
    pub(crate) fn open(
        layer: &Path,
        viewer: impl FnOnce() -> Result<Viewer>,
        blocks: &Arc<Blocks>,
    ) -> Result<Option<std::result::Result<Self, &'static str>>> {
        let Some(path) = beside(layer) else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match sys::retry(|| rustix::fs::openat(CWD, &path, flags, Mode::empty())) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => {
                return Err(Error::new(errno).during("open", path.as_os_str().as_encoded_bytes()));
            }
        };
        let stat = sys::stat_fd(file.as_fd())?;
        let viewer = viewer()?;
        if stat.mode & libc::S_IFMT != libc::S_IFREG
            || (stat.uid != 0 && stat.uid != viewer.user)
            || stat.mode & (libc::S_IWGRP | libc::S_IWOTH) != 0
        {
            return Ok(Some(Err("others could have written it")));
        }
        let Ok(header) = read(&file, 0, HEADER).and_then(|bytes| Ok(Header::parse(&bytes)?)) else {
            return Ok(Some(Err("it is damaged, or of another version")));
        };
        if header.len != stat.size || !header.root.is_within(stat.size) {
            return Ok(Some(Err("it is cut short")));
        }
        if header.ids != viewer.ids || (viewer.trusted && !header.trusted) {
            return Ok(Some(Err("it was made in another user namespace or with less privilege")));
        }
        Ok(Some(Ok(Self { file, header, blocks: Arc::clone(blocks), root: Mutex::default() })))
    }

    /// Returns where the block of the layer's root is.
    pub(crate) const fn root(&self) -> BlockAt {
        self.header.root
    }

    /// Holds the block of the root, which is as it was, until it is taken.
    pub(crate) fn hold_root(&self, block: Block) {
        *self.root.lock() = Some(Arc::new(block));
    }

    /// Returns the block of the root, once.
    pub(crate) fn take_root(&self) -> Option<Arc<Block>> {
        self.root.lock().take()
    }

    /// Returns the block of the directory with this number, if it is in memory.
    pub(crate) fn kept(&self, dir: u64) -> Option<Arc<Block>> {
        self.blocks.0.lock().by_dir.get(&dir).map(Arc::clone)
    }

    /// Keeps the block of a directory that is as it was.
    pub(crate) fn keep(&self, dir: u64, block: &Arc<Block>) {
        self.blocks.keep(dir, block);
    }

    /// Reads a block.
    ///
    /// # Errors
    /// EIO if it is damaged.
    pub(crate) fn read(&self, at: BlockAt) -> Result<Block> {
        if !at.is_within(self.header.len) {
            return Err(Error::new(Errno::IO));
        }
        let bytes = read(&self.file, at.offset, at.len as usize)?;
        Ok(Block::parse(bytes.into(), at.sum)?)
    }
}

/// Whether a layer's catalog is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usable {
    /// It is.
    Yes,
    /// There is none.
    Missing,
    /// There is one that does not count.
    No(&'static str),
}

impl From<Broken> for Error {
    fn from(_: Broken) -> Self {
        Self::new(Errno::IO)
    }
}

fn read(file: &OwnedFd, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    if sys::copy::read_full(file.as_fd(), &mut bytes, offset)? < len {
        return Err(Error::new(Errno::IO));
    }
    Ok(bytes)
}

/// Blocks in memory, by the number of their directory; the least recently used go when there are too many bytes.
#[derive(Debug)]
pub(crate) struct Blocks(Mutex<Kept>);

#[derive(Debug)]
struct Kept {
    by_dir: LruCache<u64, Arc<Block>>,
    bytes: usize,
}

impl Default for Blocks {
    fn default() -> Self {
        Self(Mutex::new(Kept { by_dir: LruCache::unbounded(), bytes: 0 }))
    }
}

impl Blocks {
    fn keep(&self, dir: u64, block: &Arc<Block>) {
        let mut gone = Vec::new();
        let mut kept = self.0.lock();
        kept.bytes += block.size();
        gone.extend(kept.by_dir.put(dir, Arc::clone(block)));
        kept.bytes -= gone.iter().map(|old| old.size()).sum::<usize>();
        while kept.bytes > KEPT && kept.by_dir.len() > 1 {
            let Some((_, old)) = kept.by_dir.pop_lru() else { break };
            kept.bytes -= old.size();
            gone.push(old);
        }
        drop(kept);
        drop(gone);
    }
}

/// Returns whether a directory is what it was when its block was made.
pub(crate) fn is_unchanged(block: &Block, now: &Stat) -> bool {
    block.stamp == crate::ondisk::catalog::Stamp::of(now)
}
