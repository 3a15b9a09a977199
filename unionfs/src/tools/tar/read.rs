//! Reading an archive: one member after the other, its data as a stream. Nothing that it says is trusted: lengths are
//! bounded before memory is taken, and what is damaged is an error that names the member.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};

use super::{BLOCK, Kind, Member, XATTR, checksum, field, padding, pax};
use crate::error::{Errno, Error, Result};
use crate::request::{FileKind, Timestamp};

/// Most bytes of one pax header or long name. Attributes of a file have at most 64 KiB each, names 4 KiB.
const EXTENSION_MAX: u64 = 4 << 20;
/// Most extents of a file with holes.
const EXTENTS_MAX: usize = 1 << 20;

/// Reads archives.
pub(crate) struct Reader<R> {
    input: R,
    /// Stored data of the present member not yet read, and its padding.
    left: u64,
    padding: u64,
    globals: Vec<u8>,
    last: Vec<u8>,
}

impl<R> std::fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("left", &self.left).finish_non_exhaustive()
    }
}

/// What precedes a header and speaks of it.
#[derive(Default)]
struct Extensions {
    pax: Vec<u8>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: Read> Reader<R> {
    /// Begins to read.
    pub(crate) fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0, globals: Vec::new(), last: Vec::new() }
    }

    /// Returns the next member, `None` at the end mark. What was not read of the one before is passed over.
    ///
    /// # Errors
    /// A damaged or truncated archive; of reading.
    pub(crate) fn next(&mut self) -> Result<Option<Member>> {
        self.pass_over()?;
        let mut extensions = Extensions::default();
        loop {
            let mut header = [0; BLOCK];
            self.fill(&mut header)?;
            if header == [0; BLOCK] {
                std::io::copy(&mut self.input, &mut std::io::sink()).map_err(|error| self.broken(&error))?;
                return Ok(None);
            }
            let sum = parse_number(&header, field::CHECKSUM);
            if sum != Some(checksum(&header).into()) {
                return Err(self.damaged("a header has a wrong checksum: damaged, or no tar archive"));
            }
            let size = parse_number(&header, field::SIZE).and_then(|size| u64::try_from(size).ok());
            let size = size.ok_or_else(|| self.damaged("a header has no size"))?;
            (self.left, self.padding) = (size, padding(size));
            match header.get(field::TYPE) {
                Some(b'g') => self.globals = self.extension()?,
                Some(b'x') => extensions.pax = self.extension()?,
                Some(b'L') => extensions.path = Some(until_nul(&self.extension()?).to_vec()),
                Some(b'K') => extensions.link = Some(until_nul(&self.extension()?).to_vec()),
                _ => return self.member(&header, extensions).map(Some),
            }
        }
    }

    /// Reads stored data of the present member into `buffer`; 0 at its end.
    pub(crate) fn data(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(part) = buffer.get_mut(..want).filter(|part| !part.is_empty()) else { return Ok(0) };
        let got = loop {
            match self.input.read(part) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result.map_err(|error| self.broken(&error))?,
            }
        };
        if got == 0 {
            return Err(self.broken(&ErrorKind::UnexpectedEof.into()));
        }
        self.left -= got as u64;
        Ok(got)
    }

    fn pass_over(&mut self) -> Result<()> {
        let mut buffer = [0; 16 * BLOCK];
        while self.data(&mut buffer)? > 0 {}
        self.left = std::mem::take(&mut self.padding);
        while self.data(&mut buffer)? > 0 {}
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.input.read_exact(buffer).map_err(|error| self.broken(&error))
    }

    /// Reads all data of the present member, which is an extension of the next.
    fn extension(&mut self) -> Result<Vec<u8>> {
        if self.left > EXTENSION_MAX {
            return Err(self.damaged("a header of attributes is larger than any could be"));
        }
        let mut data = vec![0; usize::try_from(self.left).unwrap_or(0)];
        self.left = 0;
        self.fill(&mut data)?;
        self.pass_over()?;
        Ok(data)
    }

    fn member(&mut self, header: &[u8; BLOCK], extensions: Extensions) -> Result<Member> {
        let mut member = self.basic_member(header, &extensions)?;
        let records = [self.globals.as_slice(), &extensions.pax].concat();
        let records = pax::parse(&records).ok_or_else(|| self.damaged("its pax header is malformed"))?;
        let mut stored = None;
        let mut sparse = Sparse::default();
        for (key, value) in records {
            self.record(&mut member, &mut sparse, &mut stored, key, value)
                .ok_or_else(|| self.damaged("its pax header has a value that cannot be"))?;
        }
        self.last.clone_from(&member.path);
        if let Some(stored) = stored {
            (self.left, self.padding) = (stored, padding(stored));
            member.size = stored;
        }
        if !matches!(member.kind, Kind::Object(FileKind::Regular)) {
            // Some writers give directories and links the size of what they name, without data.
            (self.left, self.padding) = (0, 0);
            member.size = 0;
        }
        if header.get(field::TYPE) == Some(&b'S') {
            self.old_sparse(header, &mut sparse)?;
        }
        self.apply_sparse(&mut member, sparse)?;
        Ok(member)
    }

    fn basic_member(&mut self, header: &[u8; BLOCK], extensions: &Extensions) -> Result<Member> {
        let text = |range: std::ops::Range<usize>| until_nul(header.get(range).unwrap_or_default());
        let mut path = text(field::NAME).to_vec();
        let posix = header.get(field::MAGIC).is_some_and(|magic| magic.starts_with(b"ustar\0"));
        if posix && !text(field::PREFIX).is_empty() {
            path = [text(field::PREFIX), b"/", path.as_slice()].concat();
        }
        let path = extensions.path.clone().unwrap_or(path);
        self.last.clone_from(&path);
        let kind = match header.get(field::TYPE).copied().unwrap_or(0) {
            0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Object(FileKind::Directory),
            0 | b'0' | b'7' | b'S' => Kind::Object(FileKind::Regular),
            b'1' => Kind::HardLink,
            b'2' => Kind::Object(FileKind::Symlink),
            b'3' => Kind::Object(FileKind::CharDevice),
            b'4' => Kind::Object(FileKind::BlockDevice),
            b'5' => Kind::Object(FileKind::Directory),
            b'6' => Kind::Object(FileKind::Fifo),
            _ => return Err(self.damaged("it is of a type that no layer has")),
        };
        let number = |range| parse_number(header, range);
        let small = |range| u32::try_from(number(range).unwrap_or(0)).unwrap_or(u32::MAX);
        let sec = number(field::MTIME).and_then(|sec| i64::try_from(sec).ok());
        Ok(Member {
            path,
            kind,
            link: extensions.link.clone().unwrap_or_else(|| text(field::LINK).to_vec()),
            mode: small(field::MODE) & 0o7777,
            uid: small(field::UID),
            gid: small(field::GID),
            size: self.left,
            mtime: Timestamp { sec: sec.unwrap_or(0), nsec: 0 },
            atime: None,
            device: (small(field::MAJOR), small(field::MINOR)),
            xattrs: BTreeMap::new(),
            extents: None,
        })
    }

    /// Takes one pax record into account; `None` if its value is malformed.
    fn record(
        &self,
        member: &mut Member,
        sparse: &mut Sparse,
        stored: &mut Option<u64>,
        key: &[u8],
        value: &[u8],
    ) -> Option<()> {
        match key {
            b"path" => member.path = value.to_vec(),
            b"linkpath" => member.link = value.to_vec(),
            b"uid" => member.uid = u32::try_from(pax::number(value)?).ok()?,
            b"gid" => member.gid = u32::try_from(pax::number(value)?).ok()?,
            b"size" => *stored = Some(pax::number(value)?),
            b"mtime" => member.mtime = pax::parse_time(value)?,
            b"atime" => member.atime = Some(pax::parse_time(value)?),
            b"GNU.sparse.name" => sparse.name = Some(value.to_vec()),
            b"GNU.sparse.major" => sparse.map_in_data = value == b"1",
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => sparse.size = Some(pax::number(value)?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => sparse.numbers.push(pax::number(value)?),
            b"GNU.sparse.map" => {
                let numbers = value.split(|&byte| byte == b',').map(pax::number);
                sparse.numbers = numbers.collect::<Option<_>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    (!name.is_empty() && !name.contains(&0)).then_some(())?;
                    member.xattrs.insert(name.to_vec(), value.to_vec());
                }
            }
        }
        Some(())
    }

    /// Reads the extents that follow the header of GNU's older form.
    fn old_sparse(&mut self, header: &[u8; BLOCK], sparse: &mut Sparse) -> Result<()> {
        let damaged = "its map of holes is malformed";
        let mut block = *header;
        let (mut at, mut count, mut more) = (386, 4, 482);
        let size = parse_number(header, 483..495).and_then(|size| u64::try_from(size).ok());
        sparse.size = Some(size.ok_or_else(|| self.damaged(damaged))?);
        loop {
            for entry in (0..count).map(|index| at + 24 * index) {
                if block.get(entry) == Some(&0) {
                    break;
                }
                for range in [entry..entry + 12, entry + 12..entry + 24] {
                    let number = parse_number(&block, range).and_then(|number| u64::try_from(number).ok());
                    sparse.numbers.push(number.ok_or_else(|| self.damaged(damaged))?);
                }
            }
            if block.get(more).is_none_or(|more| *more == 0) {
                return Ok(());
            }
            if sparse.numbers.len() > 2 * EXTENTS_MAX {
                return Err(self.damaged(damaged));
            }
            self.fill(&mut block)?;
            (at, count, more) = (0, 21, 504);
        }
    }

    /// Makes what was told of holes a checked list of extents.
    fn apply_sparse(&mut self, member: &mut Member, mut sparse: Sparse) -> Result<()> {
        if let Some(name) = sparse.name.take() {
            member.path = name;
        }
        if sparse.map_in_data {
            self.read_map(&mut sparse)?;
        }
        let Some(size) = sparse.size else { return Ok(()) };
        let stored = self.left;
        let (pairs, rest) = sparse.numbers.as_chunks::<2>();
        let mut end = 0;
        let mut total = 0_u64;
        let in_order = pairs.iter().all(|&[offset, length]| {
            let fits = offset >= end && offset.checked_add(length).is_some_and(|end| end <= size);
            end = offset.saturating_add(length);
            total = total.saturating_add(length);
            fits
        });
        if !rest.is_empty() || !in_order || total != stored {
            return Err(self.damaged("its map of holes is malformed"));
        }
        member.size = size;
        member.extents = Some(pairs.iter().map(|&[offset, length]| (offset, length)).collect());
        Ok(())
    }

    /// Reads the map that stands before the data: decimal numbers, a line each, padded to whole blocks.
    fn read_map(&mut self, sparse: &mut Sparse) -> Result<()> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut line = Vec::new();
        loop {
            let mut block = [0; BLOCK];
            if self.left < BLOCK as u64 {
                return Err(self.damaged("its map of holes is malformed"));
            }
            self.fill(&mut block)?;
            self.left -= BLOCK as u64;
            for byte in block {
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                let number = pax::number(&std::mem::take(&mut line));
                numbers.push(number.ok_or_else(|| self.damaged("its map of holes is malformed"))?);
                let count = usize::try_from(numbers.first().copied().unwrap_or(0)).unwrap_or(usize::MAX);
                if count > EXTENTS_MAX {
                    return Err(self.damaged("it has more holes than any file"));
                }
                if numbers.len() == 1 + 2 * count {
                    sparse.numbers = numbers.split_off(1);
                    return Ok(());
                }
            }
            if line.len() > 20 {
                return Err(self.damaged("its map of holes is malformed"));
            }
        }
    }

    fn damaged(&self, reason: &'static str) -> Error {
        Error::new(Errno::BADMSG).during("read the archive at or after the entry", &self.last).hint(reason)
    }

    fn broken(&self, error: &std::io::Error) -> Error {
        let reason = match error.kind() {
            ErrorKind::UnexpectedEof => "the archive is truncated",
            _ => "the archive cannot be read or is damaged",
        };
        let errno = Errno::from_io_error(error).unwrap_or(Errno::BADMSG);
        Error::new(errno).during("read the archive at or after the entry", &self.last).hint(reason)
    }
}

/// What is told of a file's holes.
#[derive(Default)]
struct Sparse {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    numbers: Vec<u64>,
    map_in_data: bool,
}

fn until_nul(text: &[u8]) -> &[u8] {
    text.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Reads a number of a header: octal text, or GNU's binary form; empty is 0.
fn parse_number(header: &[u8; BLOCK], range: std::ops::Range<usize>) -> Option<i128> {
    let bytes = header.get(range)?;
    let first = *bytes.first()?;
    if first & 0x80 != 0 {
        let negative = first == 0xff;
        let start = if negative { -1_i128 } else { i128::from(first & 0x7f) };
        let rest = bytes.get(1..)?;
        return Some(rest.iter().fold(start, |number, byte| (number << 8) | i128::from(*byte)));
    }
    let text = until_nul(bytes).trim_ascii();
    if text.is_empty() {
        return Some(0);
    }
    i128::from_str_radix(std::str::from_utf8(text).ok()?, 8).ok().filter(|number| *number >= 0)
}
