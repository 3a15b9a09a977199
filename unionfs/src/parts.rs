//! A large file whose data is copied up in parts: which parts the upper file has, and how both files serve it meanwhile.
//!
//! A write copies the blocks that it touches and does not cover; the rest follows in the background. A block counts as
//! there only after its bytes are: what was half written is written again. Beyond `limit` nothing comes from the lower.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use rustix::fs::SeekFrom;

use crate::counts::{Counts, add};
use crate::error::{Errno, Error, Result};
use crate::stack::lower::LowerFile;
use crate::stack::owners::Owners;
use crate::sys::{self, Stat};

/// The unit of copying: one small write costs one of these, and a map of 1 TiB has a mebibyte.
const BLOCK: u64 = 128 << 10;
/// The smallest unit, for mounts that copy small files in parts too.
const SMALLEST: u64 = 4 << 10;
/// Bytes copied while the map is held: reads and writes wait for so long at most.
const STRIDE: u64 = 1 << 20;

/// A file that the upper has in parts.
#[derive(Debug)]
pub(crate) struct Parts {
    lower: LowerFile,
    /// Blocks of 512 bytes that the lower file has.
    lower_blocks: u64,
    map: RwLock<Map>,
    /// All blocks before this one are there. Changed under `map`.
    begun: AtomicU64,
    complete: AtomicBool,
    counts: Arc<Counts>,
}

/// Which blocks are there.
#[derive(Debug)]
struct Map {
    /// Bytes of a block. Immutable.
    block: u64,
    /// Bytes from the beginning that may come from the lower.
    limit: u64,
    /// Blocks below the limit that are not there.
    absent: u64,
    /// A bit for each block of the lower: it is there.
    present: Vec<u64>,
}

impl Map {
    fn blocks(&self) -> u64 {
        self.limit.div_ceil(self.block)
    }

    /// Returns whether a block has to be read from the lower.
    fn is_absent(&self, block: u64) -> bool {
        let word = usize::try_from(block / 64).ok().and_then(|index| self.present.get(index));
        block < self.blocks() && word.is_some_and(|word| word & (1 << (block % 64)) == 0)
    }

    fn set_present(&mut self, block: u64) {
        if !self.is_absent(block) {
            return;
        }
        let index = usize::try_from(block / 64).unwrap_or(usize::MAX);
        if let Some(word) = self.present.get_mut(index) {
            *word |= 1 << (block % 64);
            self.absent -= 1;
        }
    }

    /// Returns the blocks that `len` bytes at `at` touch and that may come from the lower.
    fn touched(&self, at: u64, len: u64) -> std::ops::Range<u64> {
        let end = at.saturating_add(len).min(self.limit);
        if at >= end { 0..0 } else { at / self.block..end.div_ceil(self.block) }
    }

    /// Returns whether a read at `at` goes to the lower, and where that changes, at `end` at the latest.
    fn run(&self, at: u64, end: u64) -> (bool, u64) {
        let absent = self.is_absent(at / self.block) && at < self.limit;
        let mut to = at;
        while to < end && (self.is_absent(to / self.block) && to < self.limit) == absent {
            to = (to / self.block + 1) * self.block;
            if absent {
                to = to.min(self.limit);
            } else if to >= self.limit {
                to = end;
            }
        }
        (absent, to.min(end))
    }
}

impl Parts {
    /// Begins with an upper file that has the size of the lower and none of its data.
    ///
    /// `from` is the size from which files are copied in parts: blocks are no larger.
    pub(crate) fn new(lower: LowerFile, stat: &Stat, from: u64, counts: Arc<Counts>) -> Self {
        let block = from.checked_next_power_of_two().unwrap_or(BLOCK).clamp(SMALLEST, BLOCK);
        let blocks = stat.size.div_ceil(block);
        let words = usize::try_from(blocks.div_ceil(64)).unwrap_or(usize::MAX);
        let map = Map { block, limit: stat.size, absent: blocks, present: vec![0; words] };
        let complete = AtomicBool::new(blocks == 0);
        let (map, begun) = (RwLock::new(map), AtomicU64::new(0));
        Self { lower, lower_blocks: stat.blocks, map, begun, complete, counts }
    }

    /// Returns whether the upper file has everything: then it alone serves.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Returns the attributes of the file, as if it had all its data.
    pub(crate) fn stat(&self, upper: BorrowedFd<'_>, owners: Owners) -> Result<Stat> {
        let _still = self.hold_still();
        let stat = owners.stat_fd(upper)?;
        let blocks = if self.is_complete() { stat.blocks } else { stat.blocks.max(self.lower_blocks) };
        Ok(Stat { blocks, ..stat })
    }

    /// Keeps the background from touching the file, whose times would be seen to change, or be put back to what they were.
    pub(crate) fn hold_still(&self) -> impl Drop + '_ {
        Still(self.map.read_recursive())
    }

    /// Reads at `at` until `buffer` is full or the file ends.
    pub(crate) fn read(&self, upper: BorrowedFd<'_>, buffer: &mut [u8], at: u64) -> Result<usize> {
        let map = self.map.read_recursive();
        let end = at.saturating_add(buffer.len() as u64);
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let from = at + done as u64;
            let (lower, to) = map.run(from, end);
            let len = usize::try_from(to - from).unwrap_or(usize::MAX).min(rest.len());
            let part = rest.get_mut(..len).ok_or(Error::new(Errno::IO))?;
            let got = if lower {
                self.lower.read_at(part, from)?
            } else {
                sys::retry(|| rustix::io::pread(upper, &mut *part, from))?
            };
            if got == 0 {
                break;
            }
            done += got;
        }
        Ok(done)
    }

    /// Writes all of `bytes` at `at`.
    pub(crate) fn write(&self, upper: BorrowedFd<'_>, bytes: &[u8], at: u64) -> Result<()> {
        let len = bytes.len() as u64;
        {
            let map = self.map.read_recursive();
            if !map.touched(at, len).any(|block| map.is_absent(block)) {
                return Ok(sys::copy::write_all(upper, bytes, at)?);
            }
        }
        let mut map = self.map.write();
        let touched = map.touched(at, len);
        let covered = |map: &Map, block: u64| {
            at <= block * map.block && at + len >= ((block + 1) * map.block).min(map.limit)
        };
        for block in [touched.start, touched.end.saturating_sub(1)] {
            if map.is_absent(block) && !covered(&map, block) {
                self.copy(&mut map, upper, block..block + 1)?;
            }
        }
        sys::copy::write_all(upper, bytes, at)?;
        touched.for_each(|block| map.set_present(block));
        self.note(&map);
        Ok(())
    }

    /// Sets the size.
    pub(crate) fn truncate(&self, upper: BorrowedFd<'_>, size: u64) -> Result<()> {
        let mut map = self.map.write();
        if size < map.limit {
            let last = size / map.block;
            if !size.is_multiple_of(map.block) && map.is_absent(last) {
                self.copy(&mut map, upper, last..last + 1)?;
            }
            sys::retry(|| rustix::fs::ftruncate(upper, size))?;
            let gone = size.div_ceil(map.block)..map.blocks();
            let absent = gone.filter(|&block| map.is_absent(block)).count() as u64;
            map.absent -= absent;
            map.limit = size;
            self.note(&map);
            return Ok(());
        }
        Ok(sys::retry(|| rustix::fs::ftruncate(upper, size))?)
    }

    /// Copies what is missing, `budget` bytes of it or little more. Returns whether all is there.
    pub(crate) fn advance(&self, upper: BorrowedFd<'_>, budget: u64) -> Result<bool> {
        let mut copied = 0;
        while !self.is_complete() && copied < budget {
            let mut map = self.map.write();
            let begun = self.begun.load(Ordering::Relaxed);
            let Some(start) = (begun..map.blocks()).find(|&block| map.is_absent(block)) else {
                self.note(&map);
                break;
            };
            let mut end = start + 1;
            while end < start + STRIDE / map.block && map.is_absent(end) {
                end += 1;
            }
            let before = sys::stat_fd(upper)?;
            self.copy(&mut map, upper, start..end)?;
            // Copying is no change of the file.
            sys::set_both_times(upper, before.atime, before.mtime)?;
            self.note(&map);
            copied += (end - start) * map.block;
            self.begun.store(end, Ordering::Relaxed);
            // Who waits for the file comes before the next blocks.
            RwLockWriteGuard::unlock_fair(map);
        }
        Ok(self.is_complete())
    }

    /// Copies everything that is missing.
    pub(crate) fn finish(&self, upper: BorrowedFd<'_>) -> Result<()> {
        while !self.advance(upper, u64::MAX)? {}
        Ok(())
    }

    /// Copies blocks that follow each other, holes left out.
    fn copy(&self, map: &mut Map, upper: BorrowedFd<'_>, blocks: std::ops::Range<u64>) -> Result<()> {
        let (mut at, end) = (blocks.start * map.block, (blocks.end * map.block).min(map.limit));
        let is_hole = match self.lower.seek(SeekFrom::Data(at)) {
            Ok(data) => data >= end,
            Err(error) => error.is(Errno::NXIO),
        };
        if !is_hole {
            let mut buffer = vec![0; usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX)];
            while at < end {
                let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
                let part = buffer.get_mut(..want).ok_or(Error::new(Errno::IO))?;
                let got = self.lower.read_at(part, at)?;
                if got == 0 {
                    // Shorter than it was: the lower changed under us. What is missing stays a hole.
                    break;
                }
                sys::copy::write_all(upper, part.get(..got).ok_or(Error::new(Errno::IO))?, at)?;
                at += got as u64;
                add(&self.counts.copied_bytes, got as u64);
            }
        }
        blocks.for_each(|block| map.set_present(block));
        Ok(())
    }

    fn note(&self, map: &Map) {
        if map.absent == 0 {
            self.complete.store(true, Ordering::Release);
        }
    }
}

/// See [`Parts::hold_still`].
struct Still<'a>(#[expect(dead_code, reason = "held, never read")] RwLockReadGuard<'a, Map>);

impl Drop for Still<'_> {
    fn drop(&mut self) {}
}
