//! The plain arguments and results of [`crate::Union`]: what a request asks and what an answer tells.
//!
//! Nothing here knows FUSE: an adapter translates between these types and its protocol.

use rustix::fs::Timespec;

/// The number by which the kernel module names an object while it remembers it.
///
/// It identifies an object; it is not `st_ino`, which is only shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the union.
    pub const ROOT: Self = Self(1);
}

/// The number of an open file or directory handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fh(pub u64);

/// Who asks: ids as the mount's user namespace shows them.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// File system user id.
    pub uid: u32,
    /// File system group id.
    pub gid: u32,
    /// Process id in the server's namespace, 0 if unknown.
    pub pid: u32,
    /// The umask to apply at creation unless a default ACL does; 0 where the kernel has applied it.
    pub umask: u32,
}

/// Seconds and nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds, negative before 1970.
    pub sec: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nsec: u32,
}

impl From<Timestamp> for Timespec {
    fn from(at: Timestamp) -> Self {
        Self { tv_sec: at.sec, tv_nsec: at.nsec.into() }
    }
}

/// The type of a file system object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

impl FileKind {
    /// Returns the kind that the type bits of `mode` name; an unknown type reads as a regular file.
    pub const fn from_mode(mode: u32) -> Self {
        match mode & libc::S_IFMT {
            libc::S_IFDIR => Self::Directory,
            libc::S_IFLNK => Self::Symlink,
            libc::S_IFIFO => Self::Fifo,
            libc::S_IFSOCK => Self::Socket,
            libc::S_IFCHR => Self::CharDevice,
            libc::S_IFBLK => Self::BlockDevice,
            _ => Self::Regular,
        }
    }

    /// Returns the type bits of `st_mode`.
    pub const fn mode_bits(self) -> u32 {
        match self {
            Self::Regular => libc::S_IFREG,
            Self::Directory => libc::S_IFDIR,
            Self::Symlink => libc::S_IFLNK,
            Self::Fifo => libc::S_IFIFO,
            Self::Socket => libc::S_IFSOCK,
            Self::CharDevice => libc::S_IFCHR,
            Self::BlockDevice => libc::S_IFBLK,
        }
    }

    /// Returns the `d_type` value of a directory entry.
    pub const fn d_type(self) -> u8 {
        match self {
            Self::Regular => libc::DT_REG,
            Self::Directory => libc::DT_DIR,
            Self::Symlink => libc::DT_LNK,
            Self::Fifo => libc::DT_FIFO,
            Self::Socket => libc::DT_SOCK,
            Self::CharDevice => libc::DT_CHR,
            Self::BlockDevice => libc::DT_BLK,
        }
    }
}

/// The attributes of an object, as stat(2) shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number to show.
    pub ino: u64,
    /// Type.
    pub kind: FileKind,
    /// Permission, set-id and sticky bits: `mode & 07777`.
    pub perm: u32,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner, as shown.
    pub uid: u32,
    /// Group, as shown.
    pub gid: u32,
    /// Device number of a device node, as `dev_t`.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of data.
    pub mtime: Timestamp,
    /// Last change of attributes.
    pub ctime: Timestamp,
    /// Creation, where the layer's file system tells.
    pub btime: Option<Timestamp>,
}

/// The answer to a lookup or a creation. The kernel now holds one more reference to `node`.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The object's number.
    pub node: NodeId,
    /// Attributes.
    pub attr: Attr,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The server's present time.
    Now,
    /// This time.
    At(Timestamp),
}

/// The changes that one setattr request asks for. They are applied in the order size, owner, mode, times.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission, set-id and sticky bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// The change is asked through an open file, by ftruncate(2) and the like. The kernel does not say it of open(2).
    pub through_file: bool,
    /// The caller may not keep set-id bits through a change of size (it lacks `CAP_FSETID`).
    pub kill_suidgid: bool,
}

impl SetAttr {
    /// Returns whether nothing is to be set.
    pub fn is_empty(&self) -> bool {
        self.mode.is_none()
            && self.uid.is_none()
            && self.gid.is_none()
            && self.size.is_none()
            && self.atime.is_none()
            && self.mtime.is_none()
    }
}

/// The answer to open, create and tmpfile.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// The new handle.
    pub fh: Fh,
    /// Pages cached from earlier opens of the object are still right.
    pub keep_cache: bool,
}

/// What rename(2) may do beside the plain move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace the target if there is one.
    Replace,
    /// `RENAME_NOREPLACE`: fail with EEXIST if there is a target.
    NoReplace,
    /// `RENAME_EXCHANGE`: swap the two names.
    Exchange,
}

/// One name of a directory listing.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// The name, without slash or NUL.
    pub name: &'a [u8],
    /// The inode number that stat would show.
    pub ino: u64,
    /// Type.
    pub kind: FileKind,
    /// Where the listing goes on after this entry: the value for the next call's `offset`.
    pub next_offset: u64,
}

/// File system totals, as statfs(2) shows them.
#[derive(Clone, Copy, Debug)]
pub struct StatFs {
    /// Blocks of `frsize` bytes.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for users without privilege.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred I/O size in bytes.
    pub bsize: u32,
    /// Longest name in bytes.
    pub namelen: u32,
    /// Block size in bytes.
    pub frsize: u32,
}
