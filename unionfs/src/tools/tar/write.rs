//! Writing an archive: a ustar header for each member, and a pax header before it for what that cannot hold.

use std::io::{self, Write};

use super::{BLOCK, Kind, Member, NAME_FIELD, XATTR, checksum, field, padding, pax};
use crate::request::FileKind;

/// Writes archives.
pub(crate) struct Writer<'a> {
    out: &'a mut dyn Write,
    /// Data of the present member still to come.
    left: u64,
    padding: u64,
}

impl std::fmt::Debug for Writer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("left", &self.left).finish_non_exhaustive()
    }
}

impl<'a> Writer<'a> {
    /// Begins an archive.
    pub(crate) fn new(out: &'a mut dyn Write) -> Self {
        Self { out, left: 0, padding: 0 }
    }

    /// Begins a member. Of a file with data exactly `size` bytes follow by [`Self::data`].
    pub(crate) fn member(&mut self, member: &Member) -> io::Result<()> {
        self.end_member()?;
        let records = records(member);
        if !records.is_empty() {
            let mut header = [0; BLOCK];
            let base =
                member.path.rsplit(|&byte| byte == b'/').find(|part| !part.is_empty()).unwrap_or_default();
            let name = [b"PaxHeaders/", base].concat();
            put(&mut header, field::NAME, name.get(..NAME_FIELD).unwrap_or(&name));
            finish_header(&mut header, b'x', 0o644, records.len() as u64);
            self.out.write_all(&header)?;
            self.out.write_all(&records)?;
            self.zeros(padding(records.len() as u64))?;
        }
        self.out.write_all(&header(member))?;
        if member.kind == Kind::Object(FileKind::Regular) {
            (self.left, self.padding) = (member.size, padding(member.size));
        }
        Ok(())
    }

    /// Writes data of the present member.
    pub(crate) fn data(&mut self, data: &[u8]) -> io::Result<()> {
        let len = data.len() as u64;
        self.left = self.left.checked_sub(len).ok_or(io::ErrorKind::InvalidInput)?;
        self.out.write_all(data)
    }

    /// Writes the end of the archive.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.end_member()?;
        self.zeros(2 * BLOCK as u64)?;
        self.out.flush()
    }

    fn end_member(&mut self) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let padding = std::mem::take(&mut self.padding);
        self.zeros(padding)
    }

    fn zeros(&mut self, count: u64) -> io::Result<()> {
        let zeros = [0; 2 * BLOCK];
        let count = usize::try_from(count).unwrap_or(0);
        self.out.write_all(zeros.get(..count).unwrap_or_default())
    }
}

/// Largest number of an octal field of `width` bytes with its final NUL.
const fn octal_max(width: usize) -> u64 {
    (1 << (3 * (width - 1))) - 1
}

fn octal(header: &mut [u8; BLOCK], range: std::ops::Range<usize>, number: u64) {
    let width = range.len() - 1;
    // What does not fit stands in a pax record.
    let number = if number > octal_max(range.len()) { 0 } else { number };
    put(header, range, format!("{number:0width$o}").as_bytes());
}

fn put(header: &mut [u8; BLOCK], range: std::ops::Range<usize>, bytes: &[u8]) {
    if let Some(field) = header.get_mut(range).and_then(|field| field.get_mut(..bytes.len())) {
        field.copy_from_slice(bytes);
    }
}

/// Returns the path as it is written: a directory ends in a slash.
fn written_path(member: &Member) -> Vec<u8> {
    let mut path = member.path.clone();
    if member.kind == Kind::Object(FileKind::Directory) && !path.ends_with(b"/") {
        path.push(b'/');
    }
    path
}

fn fits_name_field(path: &[u8]) -> bool {
    path.len() <= NAME_FIELD && path.is_ascii()
}

fn records(member: &Member) -> Vec<u8> {
    let mut records = Vec::new();
    let path = written_path(member);
    if !fits_name_field(&path) {
        pax::push(&mut records, b"path", &path);
    }
    if !fits_name_field(&member.link) {
        pax::push(&mut records, b"linkpath", &member.link);
    }
    for (key, number, width) in [
        (&b"uid"[..], u64::from(member.uid), field::UID.len()),
        (b"gid", u64::from(member.gid), field::GID.len()),
        (b"size", member.size, field::SIZE.len()),
    ] {
        if number > octal_max(width) {
            pax::push(&mut records, key, number.to_string().as_bytes());
        }
    }
    let whole = u64::try_from(member.mtime.sec).is_ok_and(|sec| sec <= octal_max(field::MTIME.len()));
    if member.mtime.nsec != 0 || !whole {
        pax::push(&mut records, b"mtime", pax::time_text(member.mtime).as_bytes());
    }
    for (name, value) in &member.xattrs {
        pax::push(&mut records, &[XATTR, name].concat(), value);
    }
    records
}

fn header(member: &Member) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let path = written_path(member);
    put(&mut header, field::NAME, path.get(..NAME_FIELD).unwrap_or(&path));
    put(&mut header, field::LINK, member.link.get(..NAME_FIELD).unwrap_or(&member.link));
    octal(&mut header, field::UID, member.uid.into());
    octal(&mut header, field::GID, member.gid.into());
    octal(&mut header, field::MTIME, u64::try_from(member.mtime.sec).unwrap_or(0));
    octal(&mut header, field::MAJOR, member.device.0.into());
    octal(&mut header, field::MINOR, member.device.1.into());
    let kind = match member.kind {
        Kind::HardLink => b'1',
        Kind::Object(FileKind::Symlink) => b'2',
        Kind::Object(FileKind::CharDevice) => b'3',
        Kind::Object(FileKind::BlockDevice) => b'4',
        Kind::Object(FileKind::Directory) => b'5',
        Kind::Object(FileKind::Fifo) => b'6',
        Kind::Object(FileKind::Regular | FileKind::Socket) => b'0',
    };
    let size = if member.kind == Kind::Object(FileKind::Regular) { member.size } else { 0 };
    finish_header(&mut header, kind, member.mode & 0o7777, size);
    header
}

fn finish_header(header: &mut [u8; BLOCK], kind: u8, mode: u32, size: u64) {
    octal(header, field::MODE, mode.into());
    octal(header, field::SIZE, size);
    put(header, field::MAGIC, b"ustar\x0000");
    if let Some(byte) = header.get_mut(field::TYPE) {
        *byte = kind;
    }
    let sum = checksum(header);
    put(header, field::CHECKSUM, format!("{sum:06o}\0 ").as_bytes());
}
