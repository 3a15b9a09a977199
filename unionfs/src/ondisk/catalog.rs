//! The catalog of a layer: names and attributes of everything in it, in one file. Pure: bytes in, values out.
//!
//! A header names the block of the root; each block holds one directory, and names the blocks of its subdirectories. A
//! block begins with the attributes by which a changed directory is recognised, then come the hashes of the names in
//! ascending order, the records in the same order, and the names. All numbers are little-endian.
//!
//! The bytes may be anything: what does not hold together is [`Broken`] when it is read, and nothing is read that the
//! checksum or the bounds do not cover.

use crate::name;
use crate::ondisk::{self, NameClass};
use crate::request::Timestamp;
use crate::sys::Stat;

/// What a catalog begins with; the last byte is the version of the format.
const MAGIC: [u8; 8] = *b"ufs-cat\x01";
/// Bytes of the header.
pub(crate) const HEADER: usize = 72;
const BLOCK_HEADER: usize = 64;
const HASH: usize = 4;
const RECORD: usize = 120;
/// The largest block that is read, in bytes: two million names in one directory.
const BLOCK_MAX: u64 = 1 << 28;

/// A flag of a record: the object has no attribute that is a mark of a union.
const PLAIN: u32 = 1;
/// A flag of a record: the time of creation is known.
const HAS_BTIME: u32 = 2;
/// A flag of a record: a directory with a block.
const HAS_BLOCK: u32 = 4;
/// A flag of a record: the object has no extended attributes at all.
const BARE: u32 = 8;

/// The bytes are not a catalog that this version reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken;

/// Where a block is, and what its bytes add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockAt {
    /// Position in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// Checksum.
    pub sum: u64,
}

impl BlockAt {
    /// Returns whether the block lies in a file of `len` bytes and may be read.
    pub(crate) fn is_within(&self, len: u64) -> bool {
        let end = self.offset.checked_add(self.len.into());
        u64::from(self.len) <= BLOCK_MAX && end.is_some_and(|end| end <= len)
    }
}

/// The beginning of a catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes of the whole file.
    pub len: u64,
    /// Stands for how the builder saw owners: the id mapping of its user namespace.
    pub ids: u64,
    /// The builder saw `trusted.*` attributes.
    pub trusted: bool,
    /// Objects in the layer.
    pub objects: u64,
    /// The block of the layer's root.
    pub root: BlockAt,
}

impl Header {
    /// Returns the bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer(MAGIC.to_vec());
        out.u64(self.len).u64(self.ids).u64(self.trusted.into()).u64(self.objects);
        out.u64(self.root.offset).u64(self.root.len.into()).u64(self.root.sum);
        let sum = checksum(&out.0);
        out.u64(sum);
        out.0
    }

    /// Reads the bytes.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Broken> {
        let mut input = Reader(bytes);
        if input.take(MAGIC.len())? != MAGIC {
            return Err(Broken);
        }
        let (len, ids, trusted, objects) = (input.u64()?, input.u64()?, input.u64()?, input.u64()?);
        let offset = input.u64()?;
        let root_len = u32::try_from(input.u64()?).map_err(|_| Broken)?;
        let root = BlockAt { offset, len: root_len, sum: input.u64()? };
        let covered = bytes.get(..HEADER - 8).ok_or(Broken)?;
        if input.u64()? != checksum(covered) {
            return Err(Broken);
        }
        Ok(Self { len, ids, trusted: trusted != 0, objects, root })
    }
}

/// An object in a directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Object {
    /// Attributes; the device is the layer's and not stored.
    pub stat: Stat,
    /// No attribute of it is a mark of a union.
    pub plain: bool,
    /// It has no extended attributes at all.
    pub bare: bool,
    /// For a directory: where its block is.
    pub block: Option<BlockAt>,
}

/// Puts the block of one directory together.
#[derive(Debug)]
pub(crate) struct BlockWriter {
    dir: Stat,
    names: Vec<(u32, Vec<u8>, Object)>,
}

impl BlockWriter {
    /// Begins the block of the directory with these attributes.
    pub(crate) fn new(dir: Stat) -> Self {
        Self { dir, names: Vec::new() }
    }

    /// Adds an object.
    pub(crate) fn push(&mut self, name: &[u8], record: Object) {
        self.names.push((hash(name), name.to_vec(), record));
    }

    /// Returns the bytes.
    ///
    /// # Errors
    /// The directory is larger than a block may be.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>, Broken> {
        self.names.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        let count = u32::try_from(self.names.len()).map_err(|_| Broken)?;
        let whiteouts = self.names.iter().any(|(_, name, _)| ondisk::classify(name) != NameClass::Plain);
        let mut out = Writer(Vec::new());
        let dir = &self.dir;
        out.u64(dir.ino).time(dir.mtime).time(dir.ctime).u32(dir.mode).u32(dir.uid).u32(dir.gid);
        out.u32(dir.blksize).u32(count).u32(whiteouts.into()).u64(0);
        for (hash, ..) in &self.names {
            out.u32(*hash);
        }
        let mut at = 0;
        for (_, name, record) in &self.names {
            record.write(&mut out, at, name.len())?;
            at += u32::try_from(name.len()).map_err(|_| Broken)?;
        }
        for (_, name, _) in &self.names {
            out.0.extend_from_slice(name);
        }
        if out.0.len() as u64 > BLOCK_MAX { Err(Broken) } else { Ok(out.0) }
    }
}

impl Object {
    fn write(&self, out: &mut Writer, name_at: u32, name_len: usize) -> Result<(), Broken> {
        let stat = &self.stat;
        let flag = |flag: u32, set: bool| if set { flag } else { 0 };
        let flags = flag(PLAIN, self.plain)
            | flag(BARE, self.bare)
            | flag(HAS_BTIME, stat.btime.is_some())
            | flag(HAS_BLOCK, self.block.is_some());
        let block = self.block.unwrap_or_default();
        out.u32(name_at).u32(u32::try_from(name_len).map_err(|_| Broken)?).u32(flags);
        out.u32(stat.mode).u32(stat.uid).u32(stat.gid).u32(stat.nlink).u32(block.len);
        out.u64(stat.ino).u64(stat.size).u64(stat.blocks);
        // A device has no block.
        out.u64(if self.block.is_some() { block.offset } else { stat.rdev }).u64(block.sum);
        out.time(stat.atime).time(stat.mtime).time(stat.ctime);
        out.time(stat.btime.unwrap_or(Timestamp { sec: 0, nsec: 0 }));
        Ok(())
    }
}

/// The directory that a block was made from, for comparing it with the one that is there now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    ino: u64,
    mtime: Timestamp,
    ctime: Timestamp,
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Stamp {
    /// Returns what a directory with these attributes is recognised by.
    pub(crate) fn of(stat: &Stat) -> Self {
        let Stat { ino, mtime, ctime, mode, uid, gid, .. } = *stat;
        Self { ino, mtime, ctime, mode, uid, gid }
    }
}

/// The block of one directory, checked.
#[derive(Debug)]
pub(crate) struct Block {
    bytes: Box<[u8]>,
    /// What the directory was.
    pub stamp: Stamp,
    blksize: u32,
    count: usize,
    /// Some names are marks of the OCI form (`.wh.NAME`).
    pub has_dot_wh: bool,
}

impl Block {
    /// Checks the bytes of a block, every name and record of it.
    pub(crate) fn parse(bytes: Box<[u8]>, sum: u64) -> Result<Self, Broken> {
        if checksum(&bytes) != sum {
            return Err(Broken);
        }
        let mut input = Reader(&bytes);
        let (ino, mtime, ctime) = (input.u64()?, input.time()?, input.time()?);
        let stamp = Stamp { ino, mtime, ctime, mode: input.u32()?, uid: input.u32()?, gid: input.u32()? };
        let blksize = input.u32()?;
        let count = usize::try_from(input.u32()?).map_err(|_| Broken)?;
        let has_dot_wh = input.u32()? != 0;
        let block = Self { stamp, blksize, count, has_dot_wh, bytes };
        if block.names_at().is_none_or(|at| at > block.bytes.len()) {
            return Err(Broken);
        }
        let mut last = 0;
        for index in 0..count {
            let (hashed, name) = (block.hash_at(index).ok_or(Broken)?, block.name_at(index).ok_or(Broken)?);
            name::check(name).map_err(|_| Broken)?;
            block.record_at(index, 0).ok_or(Broken)?;
            if hashed != hash(name) || hashed < last {
                return Err(Broken);
            }
            last = hashed;
        }
        Ok(block)
    }

    /// Returns how many names there are.
    pub(crate) const fn len(&self) -> usize {
        self.count
    }

    /// Returns how much memory it takes.
    pub(crate) const fn size(&self) -> usize {
        self.bytes.len()
    }

    fn records_at(&self) -> Option<usize> {
        self.count.checked_mul(HASH)?.checked_add(BLOCK_HEADER)
    }

    fn names_at(&self) -> Option<usize> {
        self.count.checked_mul(RECORD)?.checked_add(self.records_at()?)
    }

    fn hash_at(&self, index: usize) -> Option<u32> {
        Reader(self.bytes.get(BLOCK_HEADER + index * HASH..)?).u32().ok()
    }

    fn record_bytes(&self, index: usize) -> Option<&[u8]> {
        let at = self.records_at()? + index * RECORD;
        self.bytes.get(at..at + RECORD)
    }

    /// Returns the name at `index`.
    pub(crate) fn name_at(&self, index: usize) -> Option<&[u8]> {
        let mut input = Reader(self.record_bytes(index)?);
        let (at, len) = (input.u32().ok()? as usize, input.u32().ok()? as usize);
        let names = self.bytes.get(self.names_at()?..)?;
        names.get(at..at.checked_add(len)?)
    }

    /// Returns the object at `index`, on this device.
    pub(crate) fn record_at(&self, index: usize, dev: u64) -> Option<Object> {
        let mut input = Reader(self.record_bytes(index)?.get(8..)?);
        let mut read = || -> Result<Object, Broken> {
            let flags = input.u32()?;
            let (mode, uid, gid, nlink) = (input.u32()?, input.u32()?, input.u32()?, input.u32()?);
            let len = input.u32()?;
            let (ino, size, blocks) = (input.u64()?, input.u64()?, input.u64()?);
            let (offset_or_rdev, sum) = (input.u64()?, input.u64()?);
            let (atime, mtime, ctime, btime) = (input.time()?, input.time()?, input.time()?, input.time()?);
            let has_block = flags & HAS_BLOCK != 0;
            let stat = Stat {
                mode,
                inode_mode: mode,
                nlink,
                uid,
                gid,
                rdev: if has_block { 0 } else { offset_or_rdev },
                size,
                blocks,
                blksize: self.blksize,
                atime,
                mtime,
                ctime,
                btime: (flags & HAS_BTIME != 0).then_some(btime),
                dev,
                ino,
                mount_root: false,
            };
            let block = (has_block && stat.is_dir()).then_some(BlockAt { offset: offset_or_rdev, len, sum });
            Ok(Object { stat, plain: flags & PLAIN != 0, bare: flags & BARE != 0, block })
        };
        read().ok()
    }

    /// Returns the object `name`, on this device.
    pub(crate) fn find(&self, name: &[u8], dev: u64) -> Option<Object> {
        let wanted = hash(name);
        let at = |index: usize| self.hash_at(index).unwrap_or(u32::MAX);
        // Hashes are spread evenly: the place is near where the value says.
        let guess = (u64::from(wanted) * self.count as u64) >> u32::BITS;
        let mut index = usize::try_from(guess).unwrap_or(0);
        while index > 0 && at(index - 1) >= wanted {
            index -= 1;
        }
        while index < self.count && at(index) < wanted {
            index += 1;
        }
        while index < self.count && at(index) == wanted {
            if self.name_at(index) == Some(name) {
                return self.record_at(index, dev);
            }
            index += 1;
        }
        None
    }
}

/// Spreads names over 32 bits: FNV-1a, its bits mixed once more since the upper ones place a name.
fn hash(name: &[u8]) -> u32 {
    let fnv = name.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    u32::try_from(fnv.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> u32::BITS).unwrap_or(0)
}

/// Adds bytes up, eight at a time: against decay and truncation, not against forgery.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    let mut sum = 0x5bd1_e995_u64 ^ bytes.len() as u64;
    let mut chunks = bytes.chunks_exact(8);
    let mut add = |word: u64| sum = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    for chunk in &mut chunks {
        add(chunk.try_into().map_or(0, u64::from_le_bytes));
    }
    let mut rest = [0; 8];
    for (to, from) in rest.iter_mut().zip(chunks.remainder()) {
        *to = *from;
    }
    add(u64::from_le_bytes(rest));
    sum
}

/// Takes numbers from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Broken> {
        let (front, rest) = self.0.split_at_checked(len).ok_or(Broken)?;
        self.0 = rest;
        Ok(front)
    }

    fn u32(&mut self) -> Result<u32, Broken> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().map_err(|_| Broken)?))
    }

    fn u64(&mut self) -> Result<u64, Broken> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| Broken)?))
    }

    fn time(&mut self) -> Result<Timestamp, Broken> {
        Ok(Timestamp { sec: self.u64()?.cast_signed(), nsec: self.u32()? })
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, number: u32) -> &mut Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    fn u64(&mut self, number: u64) -> &mut Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    fn time(&mut self, time: Timestamp) -> &mut Self {
        self.u64(time.sec.cast_unsigned()).u32(time.nsec)
    }
}

#[cfg(test)]
mod tests;
