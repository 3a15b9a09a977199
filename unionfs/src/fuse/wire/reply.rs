//! What the server answers.

use super::bytes::Writer;
use super::flags::OpenReply;
use crate::fuse::convert::may_lose_set_id;
use crate::request::{Attr, DirEntry, Entry, Fh, StatFs, Timestamp};

/// How long the kernel may use what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ttl {
    /// Whole seconds.
    pub sec: u64,
    /// And nanoseconds.
    pub nsec: u32,
}

impl Ttl {
    /// Not at all.
    pub const ZERO: Self = Self { sec: 0, nsec: 0 };

    /// Returns a lifetime of this many seconds. Negative and not-a-number are none, the largest is about 30 years.
    pub fn from_secs(seconds: f64) -> Self {
        // Beyond it the kernel's jiffies could overflow; to a cache it is for ever.
        const LONGEST: f64 = 1e9;
        let duration = std::time::Duration::try_from_secs_f64(seconds.min(LONGEST)).unwrap_or_default();
        Self { sec: duration.as_secs(), nsec: duration.subsec_nanos() }
    }

    /// Returns whether nothing may be cached.
    pub const fn is_zero(self) -> bool {
        self.sec == 0 && self.nsec == 0
    }
}

/// Lifetimes for names and attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ttls {
    /// Of a name.
    pub entry: Ttl,
    /// Of attributes.
    pub attr: Ttl,
    /// Of the absence of a name.
    pub negative: Ttl,
}

/// Size of an entry answer.
pub const ENTRY_LEN: usize = 128;
/// Size of the fixed part of a name in READDIR.
const DIRENT_LEN: usize = 24;

/// The kernel's 32-bit form of a device number (`new_encode_dev`).
pub fn encode_rdev(rdev: u64) -> u32 {
    let (major, minor) = (libc::major(rdev), libc::minor(rdev));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Turns the kernel's 32-bit form of a device number into `dev_t`.
pub fn decode_rdev(rdev: u32) -> u64 {
    libc::makedev((rdev & 0x000f_ff00) >> 8, (rdev & 0xff) | ((rdev >> 12) & 0x000f_ff00))
}

const fn seconds(time: Timestamp) -> u64 {
    time.sec.cast_unsigned()
}

fn attr(w: &mut Writer<'_>, attr: &Attr) {
    w.u64(attr.ino).u64(attr.size).u64(attr.blocks);
    w.u64(seconds(attr.atime)).u64(seconds(attr.mtime)).u64(seconds(attr.ctime));
    w.u32(attr.atime.nsec).u32(attr.mtime.nsec).u32(attr.ctime.nsec);
    w.u32(attr.perm | attr.kind.mode_bits());
    w.u32(attr.nlink).u32(attr.uid).u32(attr.gid).u32(encode_rdev(attr.rdev)).u32(attr.blksize).u32(0);
}

/// Returns how long attributes may be used. Those with set-id bits not at all: a write or truncation takes the bits
/// away without telling the kernel so, and it would go on executing the file with them.
fn attr_ttl(of: &Attr, ttls: &Ttls) -> Ttl {
    if may_lose_set_id(of) { Ttl::ZERO } else { ttls.attr }
}

fn entry_into(w: &mut Writer<'_>, entry: &Entry, ttls: &Ttls) {
    let ttl = attr_ttl(&entry.attr, ttls);
    w.u64(entry.node.0).u64(0).u64(ttls.entry.sec).u64(ttl.sec);
    w.u32(ttls.entry.nsec).u32(ttl.nsec);
    attr(w, &entry.attr);
}

/// Answer to LOOKUP and creations. The node number says which object; `attr.ino` is only shown.
pub fn entry(out: &mut [u8], entry: &Entry, ttls: &Ttls) -> Option<usize> {
    let mut w = Writer::new(out);
    entry_into(&mut w, entry, ttls);
    w.finish()
}

/// Answer to LOOKUP of a name that does not exist, to be remembered.
pub fn negative_entry(out: &mut [u8], ttls: &Ttls) -> Option<usize> {
    let mut w = Writer::new(out);
    w.u64(0).u64(0).u64(ttls.negative.sec).u64(0).u32(ttls.negative.nsec).u32(0);
    w.zeros(88).finish()
}

/// Answer to GETATTR and SETATTR.
pub fn attributes(out: &mut [u8], of: &Attr, ttls: &Ttls) -> Option<usize> {
    let mut w = Writer::new(out);
    let ttl = attr_ttl(of, ttls);
    w.u64(ttl.sec).u32(ttl.nsec).u32(0);
    attr(&mut w, of);
    w.finish()
}

/// Answer to STATX.
pub fn statx(out: &mut [u8], of: &Attr, ttls: &Ttls) -> Option<usize> {
    let mask = libc::STATX_BASIC_STATS | if of.btime.is_some() { libc::STATX_BTIME } else { 0 };
    let time = |w: &mut Writer<'_>, time: Timestamp| {
        w.u64(seconds(time)).u32(time.nsec).i32(0);
    };
    let mode = u16::try_from((of.perm | of.kind.mode_bits()) & 0xffff).ok()?;
    let mut w = Writer::new(out);
    let ttl = attr_ttl(of, ttls);
    w.u64(ttl.sec).u32(ttl.nsec).u32(0).zeros(16);
    w.u32(mask).u32(of.blksize).u64(0);
    w.u32(of.nlink).u32(of.uid).u32(of.gid).u16(mode).u16(0);
    w.u64(of.ino).u64(of.size).u64(of.blocks).u64(0);
    time(&mut w, of.atime);
    time(&mut w, of.btime.unwrap_or_default());
    time(&mut w, of.ctime);
    time(&mut w, of.mtime);
    w.u32(libc::major(of.rdev)).u32(libc::minor(of.rdev)).u32(0).u32(0);
    w.zeros(14 * 8).finish()
}

/// Answer to OPEN and OPENDIR; `backing` is the backing id with `OpenReply::PASSTHROUGH`, else 0.
pub fn open(out: &mut [u8], fh: Fh, flags: OpenReply, backing: u32) -> Option<usize> {
    let mut w = Writer::new(out);
    w.u64(fh.0).u32(flags.bits()).u32(backing).finish()
}

/// Answer to CREATE and TMPFILE.
pub fn create(
    out: &mut [u8],
    created: &Entry,
    ttls: &Ttls,
    fh: Fh,
    flags: OpenReply,
    backing: u32,
) -> Option<usize> {
    let mut w = Writer::new(out);
    entry_into(&mut w, created, ttls);
    w.u64(fh.0).u32(flags.bits()).u32(backing).finish()
}

/// Answer to WRITE and COPY_FILE_RANGE: bytes written.
pub fn written(out: &mut [u8], size: u32) -> Option<usize> {
    let mut w = Writer::new(out);
    w.u32(size).u32(0).finish()
}

/// Answer that is one 64-bit number: LSEEK, COPY_FILE_RANGE_64, BMAP.
pub fn number(out: &mut [u8], value: u64) -> Option<usize> {
    let mut w = Writer::new(out);
    w.u64(value).finish()
}

/// Answer to GETXATTR and LISTXATTR with size 0: the size that is needed.
pub fn xattr_size(out: &mut [u8], size: u32) -> Option<usize> {
    let mut w = Writer::new(out);
    w.u32(size).u32(0).finish()
}

/// Answer to IOCTL: success, and what is copied to the caller.
pub fn ioctl(out: &mut [u8], value: &[u8]) -> Option<usize> {
    let mut w = Writer::new(out);
    w.zeros(16).bytes(value).finish()
}

/// Answer that is only bytes.
pub fn bytes(out: &mut [u8], value: &[u8]) -> Option<usize> {
    let mut w = Writer::new(out);
    w.bytes(value).finish()
}

/// Answer to STATFS.
pub fn statfs(out: &mut [u8], of: &StatFs) -> Option<usize> {
    let mut w = Writer::new(out);
    w.u64(of.blocks).u64(of.bfree).u64(of.bavail).u64(of.files).u64(of.ffree);
    w.u32(of.bsize).u32(of.namelen).u32(of.frsize);
    w.zeros(28).finish()
}

/// Answer to POLL: the events that are ready.
pub fn poll(out: &mut [u8], revents: u32) -> Option<usize> {
    let mut w = Writer::new(out);
    w.u32(revents).u32(0).finish()
}

/// Collects names for READDIR and READDIRPLUS until the next does not fit.
#[derive(Debug)]
pub struct DirWriter<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl<'a> DirWriter<'a> {
    /// Fills at most `size` bytes of `out`.
    pub fn new(out: &'a mut [u8], size: u32) -> Self {
        let limit = usize::try_from(size).unwrap_or(usize::MAX).min(out.len());
        let (buffer, _) = out.split_at_mut(limit);
        Self { buffer, len: 0 }
    }

    /// Bytes filled.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns whether nothing was added.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a name; false if it does not fit.
    pub fn push(&mut self, name: &DirEntry<'_>) -> bool {
        let needed = (DIRENT_LEN + name.name.len()).next_multiple_of(8);
        self.append(needed, |w| dirent(w, name))
    }

    /// Appends a name with its entry; without one the kernel learns the name only. False if it does not fit.
    pub fn push_plus(&mut self, name: &DirEntry<'_>, entry: Option<&Entry>, ttls: &Ttls) -> bool {
        let needed = (ENTRY_LEN + DIRENT_LEN + name.name.len()).next_multiple_of(8);
        self.append(needed, |w| {
            match entry {
                Some(entry) => entry_into(w, entry, ttls),
                None => {
                    w.zeros(ENTRY_LEN);
                }
            }
            dirent(w, name);
        })
    }

    fn append(&mut self, needed: usize, fill: impl FnOnce(&mut Writer<'_>)) -> bool {
        let end = self.len.saturating_add(needed);
        let Some(place) = self.buffer.get_mut(self.len..end) else { return false };
        let mut w = Writer::new(place);
        fill(&mut w);
        let Some(written) = w.finish() else { return false };
        if let Some(padding) = place.get_mut(written..) {
            padding.fill(0);
        }
        self.len = end;
        true
    }
}

fn dirent(w: &mut Writer<'_>, name: &DirEntry<'_>) {
    // A name is at most 255 bytes; a longer one would make the kernel refuse the answer, not misread it.
    let len = u32::try_from(name.name.len()).unwrap_or(u32::MAX);
    w.u64(name.ino).u64(name.next_offset).u32(len).u32(u32::from(name.kind.d_type())).bytes(name.name);
}

/// Writes the 16 bytes before an answer: `len` is the length of what follows, `error` a positive errno or 0.
pub fn out_header(out: &mut [u8], unique: u64, error: i32, len: usize) -> Option<usize> {
    let total = u32::try_from(len.checked_add(super::OUT_HEADER_LEN)?).ok()?;
    let mut w = Writer::new(out);
    w.u32(total).i32(error.checked_neg()?).u64(unique).finish()
}
