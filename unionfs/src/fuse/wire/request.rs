//! What the kernel sends: headers and requests.

use super::bytes::Reader;
use super::flags::SetattrValid;
use super::init::InitIn;
use super::opcode::Opcode;
use super::{IN_HEADER_LEN, NAME_MAX, WireError};
use crate::request::{Fh, NodeId, Timestamp};

/// The bit of `unique` that marks a request sent again after a RESEND notification.
pub const UNIQUE_RESEND: u64 = 1 << 63;

/// The first 40 bytes of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Length of the whole message.
    pub len: u32,
    /// Number of the operation; may be one that this codec does not know.
    pub opcode: u32,
    /// Number of the request, to be repeated in the answer.
    pub unique: u64,
    /// The object asked about.
    pub node: NodeId,
    /// User id of the caller, `u32::MAX` if it is not mapped in the mount's user namespace.
    pub uid: u32,
    /// Group id of the caller.
    pub gid: u32,
    /// Process id of the caller, 0 if it is not visible to the server.
    pub pid: u32,
    /// Bytes of extensions at the end of the message.
    pub extensions_len: usize,
}

impl Header {
    /// Reads the header at the front of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        Self::read(&mut Reader::new(bytes)).ok_or(WireError::Truncated)
    }

    fn read(input: &mut Reader<'_>) -> Option<Self> {
        let len = input.u32()?;
        let opcode = input.u32()?;
        let unique = input.u64()?;
        let node = NodeId(input.u64()?);
        let (uid, gid, pid) = (input.u32()?, input.u32()?, input.u32()?);
        let extensions_len = usize::from(input.u16()?) * 8;
        input.skip(2)?;
        Some(Self { len, opcode, unique, node, uid, gid, pid, extensions_len })
    }
}

/// A whole time, as SETATTR carries it: seconds are signed.
const fn timestamp(sec: u64, nsec: u32) -> Timestamp {
    Timestamp { sec: sec.cast_signed(), nsec }
}

/// The argument of SETATTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetattrIn {
    /// Which fields count.
    pub valid: SetattrValid,
    /// Handle through which the change is asked.
    pub fh: Fh,
    /// New size.
    pub size: u64,
    /// Lock owner.
    pub lock_owner: u64,
    /// New access time.
    pub atime: Timestamp,
    /// New modification time.
    pub mtime: Timestamp,
    /// New change time.
    pub ctime: Timestamp,
    /// New mode, with type bits.
    pub mode: u32,
    /// New owner.
    pub uid: u32,
    /// New group.
    pub gid: u32,
}

/// A lock as GETLK and SETLK carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockIn {
    /// Handle.
    pub fh: Fh,
    /// Lock owner.
    pub owner: u64,
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub kind: u32,
    /// Process.
    pub pid: u32,
    /// `LK_FLOCK` for flock.
    pub lk_flags: u32,
}

/// The argument of COPY_FILE_RANGE and COPY_FILE_RANGE_64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyIn {
    /// Handle of the source, whose node the header names.
    pub fh_in: Fh,
    /// Offset in the source.
    pub off_in: u64,
    /// The target.
    pub node_out: NodeId,
    /// Handle of the target.
    pub fh_out: Fh,
    /// Offset in the target.
    pub off_out: u64,
    /// Bytes.
    pub len: u64,
    /// No flag is defined.
    pub flags: u64,
}

/// The pairs of node and count in BATCH_FORGET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForgetList<'a> {
    pairs: &'a [u8],
}

impl<'a> ForgetList<'a> {
    /// Returns each node with the number of lookups to take back.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, u64)> + use<'a> {
        let mut rest = Reader::new(self.pairs);
        std::iter::from_fn(move || Some((NodeId(rest.u64()?), rest.u64()?)))
    }
}

/// One request. Names have no slash and no NUL and are 1 to 255 bytes long; data is as long as its size field says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The fields have the names of the system calls' arguments.
pub enum Request<'a> {
    Init(InitIn),
    Destroy,
    Lookup {
        name: &'a [u8],
    },
    Forget {
        nlookup: u64,
    },
    BatchForget {
        list: ForgetList<'a>,
    },
    Getattr {
        fh: Option<Fh>,
    },
    Statx {
        fh: Option<Fh>,
        flags: u32,
        mask: u32,
    },
    Setattr(SetattrIn),
    Readlink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    Mknod {
        name: &'a [u8],
        mode: u32,
        rdev: u32,
        umask: u32,
    },
    Mkdir {
        name: &'a [u8],
        mode: u32,
        umask: u32,
    },
    Unlink {
        name: &'a [u8],
    },
    Rmdir {
        name: &'a [u8],
    },
    Rename {
        name: &'a [u8],
        new_parent: NodeId,
        new_name: &'a [u8],
        flags: u32,
    },
    Link {
        node: NodeId,
        name: &'a [u8],
    },
    Open {
        flags: u32,
        open_flags: u32,
    },
    Create {
        name: &'a [u8],
        flags: u32,
        mode: u32,
        umask: u32,
        open_flags: u32,
    },
    Tmpfile {
        flags: u32,
        mode: u32,
        umask: u32,
        open_flags: u32,
    },
    Read {
        fh: Fh,
        offset: u64,
        size: u32,
        read_flags: u32,
        lock_owner: u64,
        flags: u32,
    },
    Write {
        fh: Fh,
        offset: u64,
        data: &'a [u8],
        write_flags: u32,
        lock_owner: u64,
        flags: u32,
    },
    Flush {
        fh: Fh,
        lock_owner: u64,
    },
    Release {
        fh: Fh,
        flags: u32,
        release_flags: u32,
        lock_owner: u64,
    },
    Fsync {
        fh: Fh,
        fsync_flags: u32,
    },
    Opendir {
        flags: u32,
    },
    Readdir {
        fh: Fh,
        offset: u64,
        size: u32,
    },
    Readdirplus {
        fh: Fh,
        offset: u64,
        size: u32,
    },
    Releasedir {
        fh: Fh,
    },
    Fsyncdir {
        fh: Fh,
        fsync_flags: u32,
    },
    Statfs,
    Syncfs,
    Setxattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: u32,
        setxattr_flags: u32,
    },
    Getxattr {
        name: &'a [u8],
        size: u32,
    },
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: &'a [u8],
    },
    Access {
        mask: u32,
    },
    Getlk(LockIn),
    Setlk {
        lock: LockIn,
        wait: bool,
    },
    Interrupt {
        unique: u64,
    },
    Bmap {
        block: u64,
        block_size: u32,
    },
    Ioctl {
        fh: Fh,
        flags: u32,
        cmd: u32,
        arg: u64,
        data: &'a [u8],
        out_size: u32,
    },
    Poll {
        fh: Fh,
        kh: u64,
        flags: u32,
        events: u32,
    },
    Fallocate {
        fh: Fh,
        offset: u64,
        length: u64,
        mode: u32,
    },
    Lseek {
        fh: Fh,
        offset: u64,
        whence: u32,
    },
    CopyFileRange(CopyIn),
    CopyFileRange64(CopyIn),
    NotifyReply {
        offset: u64,
        data: &'a [u8],
    },
    /// DAX, only for virtiofs.
    Setupmapping,
    /// DAX, only for virtiofs.
    Removemapping,
    /// A request of a newer kernel.
    Unknown,
}

/// Splits a whole message, as read from the device, and reads it.
pub fn parse(message: &[u8], setxattr_ext: bool) -> Result<(Header, Request<'_>), WireError> {
    let header = Header::parse(message)?;
    let len = usize::try_from(header.len).map_err(|_| WireError::Length)?;
    if len != message.len() {
        return Err(WireError::Length);
    }
    let body = message.get(IN_HEADER_LEN..).ok_or(WireError::Truncated)?;
    let end = body.len().checked_sub(header.extensions_len).ok_or(WireError::Length)?;
    let body = body.get(..end).ok_or(WireError::Length)?;
    let fixed_len = Opcode::from_number(header.opcode).map_or(0, |opcode| opcode.fixed_len(setxattr_ext));
    let (fixed, data) = body.split_at_checked(fixed_len).ok_or(WireError::Truncated)?;
    Ok((header, parse_parts(&header, setxattr_ext, fixed, data)?))
}

/// Reads a request whose fixed argument and data come apart, as a ring delivers them. `fixed` may be longer than the
/// argument; `data` must end where the request's data, without extensions, ends.
pub fn parse_parts<'a>(
    header: &Header,
    setxattr_ext: bool,
    fixed: &'a [u8],
    data: &'a [u8],
) -> Result<Request<'a>, WireError> {
    let Some(opcode) = Opcode::from_number(header.opcode) else { return Ok(Request::Unknown) };
    let mut arg = Reader::new(fixed);
    let mut data = Reader::new(data);
    if let Some(request) = parse_namespace(opcode, &mut arg, &mut data)? {
        return Ok(request);
    }
    if let Some(request) = parse_file(opcode, &mut arg, &mut data).ok_or(WireError::Truncated)? {
        return Ok(request);
    }
    parse_rest(opcode, setxattr_ext, &mut arg, &mut data)
}

/// Requires a name that can be one component of a path.
fn component<'a>(data: &mut Reader<'a>) -> Result<&'a [u8], WireError> {
    let name = data.until_nul().ok_or(WireError::Truncated)?;
    if name.is_empty() || name.contains(&b'/') {
        return Err(WireError::Name);
    }
    if name.len() > NAME_MAX {
        return Err(WireError::NameTooLong);
    }
    Ok(name)
}

/// Reads the requests that carry names of directory entries.
fn parse_namespace<'a>(
    opcode: Opcode,
    arg: &mut Reader<'a>,
    data: &mut Reader<'a>,
) -> Result<Option<Request<'a>>, WireError> {
    let u32_of = |arg: &mut Reader<'a>| arg.u32().ok_or(WireError::Truncated);
    let u64_of = |arg: &mut Reader<'a>| arg.u64().ok_or(WireError::Truncated);
    let request = match opcode {
        Opcode::Lookup => Request::Lookup { name: component(data)? },
        Opcode::Unlink => Request::Unlink { name: component(data)? },
        Opcode::Rmdir => Request::Rmdir { name: component(data)? },
        Opcode::Symlink => {
            Request::Symlink { name: component(data)?, target: data.until_nul().ok_or(WireError::Truncated)? }
        }
        Opcode::Mknod => {
            let (mode, rdev, umask) = (u32_of(arg)?, u32_of(arg)?, u32_of(arg)?);
            Request::Mknod { name: component(data)?, mode, rdev, umask }
        }
        Opcode::Mkdir => {
            let (mode, umask) = (u32_of(arg)?, u32_of(arg)?);
            Request::Mkdir { name: component(data)?, mode, umask }
        }
        Opcode::Rename => {
            let new_parent = NodeId(u64_of(arg)?);
            Request::Rename { name: component(data)?, new_parent, new_name: component(data)?, flags: 0 }
        }
        Opcode::Rename2 => {
            let (new_parent, flags) = (NodeId(u64_of(arg)?), u32_of(arg)?);
            Request::Rename { name: component(data)?, new_parent, new_name: component(data)?, flags }
        }
        Opcode::Link => Request::Link { node: NodeId(u64_of(arg)?), name: component(data)? },
        Opcode::Create => {
            let (flags, mode, umask, open_flags) = (u32_of(arg)?, u32_of(arg)?, u32_of(arg)?, u32_of(arg)?);
            Request::Create { name: component(data)?, flags, mode, umask, open_flags }
        }
        _ => return Ok(None),
    };
    Ok(Some(request))
}

/// Reads the requests about open files and directories. The outer none: truncated.
fn parse_file<'a>(
    opcode: Opcode,
    arg: &mut Reader<'a>,
    data: &mut Reader<'a>,
) -> Option<Option<Request<'a>>> {
    let request = match opcode {
        Opcode::Open => Request::Open { flags: arg.u32()?, open_flags: arg.u32()? },
        Opcode::Opendir => Request::Opendir { flags: arg.u32()? },
        Opcode::Tmpfile => {
            // The name is the parent's dentry and means nothing.
            Request::Tmpfile {
                flags: arg.u32()?,
                mode: arg.u32()?,
                umask: arg.u32()?,
                open_flags: arg.u32()?,
            }
        }
        Opcode::Read | Opcode::Readdir | Opcode::Readdirplus => return read_in(opcode, arg).map(Some),
        Opcode::Write => return write_in(arg, data).map(Some),
        Opcode::Release => {
            let (fh, flags, release_flags) = (Fh(arg.u64()?), arg.u32()?, arg.u32()?);
            Request::Release { fh, flags, release_flags, lock_owner: arg.u64()? }
        }
        Opcode::Releasedir => Request::Releasedir { fh: Fh(arg.u64()?) },
        Opcode::Flush => {
            let fh = Fh(arg.u64()?);
            arg.skip(8)?;
            Request::Flush { fh, lock_owner: arg.u64()? }
        }
        Opcode::Fsync => Request::Fsync { fh: Fh(arg.u64()?), fsync_flags: arg.u32()? },
        Opcode::Fsyncdir => Request::Fsyncdir { fh: Fh(arg.u64()?), fsync_flags: arg.u32()? },
        Opcode::Fallocate => {
            let (fh, offset, length) = (Fh(arg.u64()?), arg.u64()?, arg.u64()?);
            Request::Fallocate { fh, offset, length, mode: arg.u32()? }
        }
        Opcode::Lseek => Request::Lseek { fh: Fh(arg.u64()?), offset: arg.u64()?, whence: arg.u32()? },
        Opcode::CopyFileRange => Request::CopyFileRange(copy_in(arg)?),
        Opcode::CopyFileRange64 => Request::CopyFileRange64(copy_in(arg)?),
        Opcode::Getlk => Request::Getlk(lock_in(arg)?),
        Opcode::Setlk => Request::Setlk { lock: lock_in(arg)?, wait: false },
        Opcode::Setlkw => Request::Setlk { lock: lock_in(arg)?, wait: true },
        Opcode::Ioctl => {
            let (fh, flags, cmd, argument) = (Fh(arg.u64()?), arg.u32()?, arg.u32()?, arg.u64()?);
            let in_size = usize::try_from(arg.u32()?).ok()?;
            let out_size = arg.u32()?;
            Request::Ioctl { fh, flags, cmd, arg: argument, data: data.bytes(in_size)?, out_size }
        }
        Opcode::Poll => {
            Request::Poll { fh: Fh(arg.u64()?), kh: arg.u64()?, flags: arg.u32()?, events: arg.u32()? }
        }
        _ => return Some(None),
    };
    Some(Some(request))
}

fn read_in<'a>(opcode: Opcode, arg: &mut Reader<'a>) -> Option<Request<'a>> {
    let (fh, offset, size) = (Fh(arg.u64()?), arg.u64()?, arg.u32()?);
    let (read_flags, lock_owner, flags) = (arg.u32()?, arg.u64()?, arg.u32()?);
    Some(match opcode {
        Opcode::Readdir => Request::Readdir { fh, offset, size },
        Opcode::Readdirplus => Request::Readdirplus { fh, offset, size },
        _ => Request::Read { fh, offset, size, read_flags, lock_owner, flags },
    })
}

fn write_in<'a>(arg: &mut Reader<'a>, data: &mut Reader<'a>) -> Option<Request<'a>> {
    let (fh, offset) = (Fh(arg.u64()?), arg.u64()?);
    let size = usize::try_from(arg.u32()?).ok()?;
    let (write_flags, lock_owner, flags) = (arg.u32()?, arg.u64()?, arg.u32()?);
    Some(Request::Write { fh, offset, data: data.bytes(size)?, write_flags, lock_owner, flags })
}

fn copy_in(arg: &mut Reader<'_>) -> Option<CopyIn> {
    Some(CopyIn {
        fh_in: Fh(arg.u64()?),
        off_in: arg.u64()?,
        node_out: NodeId(arg.u64()?),
        fh_out: Fh(arg.u64()?),
        off_out: arg.u64()?,
        len: arg.u64()?,
        flags: arg.u64()?,
    })
}

fn lock_in(arg: &mut Reader<'_>) -> Option<LockIn> {
    Some(LockIn {
        fh: Fh(arg.u64()?),
        owner: arg.u64()?,
        start: arg.u64()?,
        end: arg.u64()?,
        kind: arg.u32()?,
        pid: arg.u32()?,
        lk_flags: arg.u32()?,
    })
}

fn setattr_in(arg: &mut Reader<'_>) -> Option<SetattrIn> {
    let valid = SetattrValid::from_bits_retain(arg.u32()?);
    arg.skip(4)?;
    let (fh, size, lock_owner) = (Fh(arg.u64()?), arg.u64()?, arg.u64()?);
    let (atime, mtime, ctime) = (arg.u64()?, arg.u64()?, arg.u64()?);
    let (atime_nsec, mtime_nsec, ctime_nsec) = (arg.u32()?, arg.u32()?, arg.u32()?);
    let mode = arg.u32()?;
    arg.skip(4)?;
    Some(SetattrIn {
        valid,
        fh,
        size,
        lock_owner,
        atime: timestamp(atime, atime_nsec),
        mtime: timestamp(mtime, mtime_nsec),
        ctime: timestamp(ctime, ctime_nsec),
        mode,
        uid: arg.u32()?,
        gid: arg.u32()?,
    })
}

/// Reads what the other two do not know: attributes, extended attributes, and the connection's own requests.
fn parse_rest<'a>(
    opcode: Opcode,
    setxattr_ext: bool,
    arg: &mut Reader<'a>,
    data: &mut Reader<'a>,
) -> Result<Request<'a>, WireError> {
    if opcode == Opcode::Init {
        return InitIn::read(data).map(Request::Init).ok_or(WireError::Truncated);
    }
    match opcode {
        Opcode::Setxattr | Opcode::Getxattr | Opcode::Removexattr | Opcode::Listxattr => {
            parse_xattr(opcode, setxattr_ext, arg, data)
        }
        _ => parse_plain(opcode, arg, data).ok_or(WireError::Truncated),
    }
}

fn parse_xattr<'a>(
    opcode: Opcode,
    setxattr_ext: bool,
    arg: &mut Reader<'a>,
    data: &mut Reader<'a>,
) -> Result<Request<'a>, WireError> {
    let request = (|| {
        Some(match opcode {
            Opcode::Setxattr => {
                let (size, flags) = (usize::try_from(arg.u32()?).ok()?, arg.u32()?);
                let setxattr_flags = if setxattr_ext { arg.u32()? } else { 0 };
                Request::Setxattr { name: data.until_nul()?, value: data.bytes(size)?, flags, setxattr_flags }
            }
            Opcode::Getxattr => Request::Getxattr { size: arg.u32()?, name: data.until_nul()? },
            Opcode::Removexattr => Request::Removexattr { name: data.until_nul()? },
            _ => Request::Listxattr { size: arg.u32()? },
        })
    })()
    .ok_or(WireError::Truncated)?;
    match request {
        Request::Setxattr { name: b"", .. }
        | Request::Getxattr { name: b"", .. }
        | Request::Removexattr { name: b"" } => Err(WireError::Name),
        _ => Ok(request),
    }
}

fn parse_plain<'a>(opcode: Opcode, arg: &mut Reader<'a>, data: &mut Reader<'a>) -> Option<Request<'a>> {
    Some(match opcode {
        Opcode::Destroy => Request::Destroy,
        Opcode::Forget => Request::Forget { nlookup: arg.u64()? },
        Opcode::BatchForget => {
            let count = usize::try_from(arg.u32()?).ok()?;
            Request::BatchForget { list: ForgetList { pairs: data.bytes(count.checked_mul(16)?)? } }
        }
        Opcode::Getattr => {
            let flags = arg.u32()?;
            arg.skip(4)?;
            let fh = Fh(arg.u64()?);
            Request::Getattr { fh: (flags & super::flags::GETATTR_FH != 0).then_some(fh) }
        }
        Opcode::Statx => {
            let getattr_flags = arg.u32()?;
            arg.skip(4)?;
            let fh = Fh(arg.u64()?);
            let fh = (getattr_flags & super::flags::GETATTR_FH != 0).then_some(fh);
            Request::Statx { fh, flags: arg.u32()?, mask: arg.u32()? }
        }
        Opcode::Setattr => Request::Setattr(setattr_in(arg)?),
        Opcode::Readlink => Request::Readlink,
        Opcode::Statfs => Request::Statfs,
        Opcode::Syncfs => Request::Syncfs,
        Opcode::Access => Request::Access { mask: arg.u32()? },
        Opcode::Interrupt => Request::Interrupt { unique: arg.u64()? },
        Opcode::Bmap => Request::Bmap { block: arg.u64()?, block_size: arg.u32()? },
        Opcode::NotifyReply => {
            arg.skip(8)?;
            let (offset, size) = (arg.u64()?, usize::try_from(arg.u32()?).ok()?);
            Request::NotifyReply { offset, data: data.bytes(size)? }
        }
        Opcode::Setupmapping => Request::Setupmapping,
        Opcode::Removemapping => Request::Removemapping,
        // Read by the functions before this one; a new opcode without a reader is refused, not misread.
        _ => Request::Unknown,
    })
}
