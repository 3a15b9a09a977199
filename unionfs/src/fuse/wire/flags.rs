//! The flag words of the protocol.

use bitflags::bitflags;

bitflags! {
    /// What kernel and server can do: offered in INIT, the server's choice goes back. Bits from 32 up travel in
    /// the second flag word and need `INIT_EXT`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct InitFlags: u64 {
        /// Reads of one file may overtake each other.
        const ASYNC_READ = 1;
        /// The server keeps POSIX locks.
        const POSIX_LOCKS = 1 << 1;
        /// Never supported by any kernel.
        const FILE_OPS = 1 << 2;
        /// `O_TRUNC` is left to OPEN.
        const ATOMIC_O_TRUNC = 1 << 3;
        /// The server answers lookups of `.` and `..`.
        const EXPORT_SUPPORT = 1 << 4;
        /// Writes of more than one page.
        const BIG_WRITES = 1 << 5;
        /// The kernel does not apply the umask at creation; the server does.
        const DONT_MASK = 1 << 6;
        /// Splice to the device.
        const SPLICE_WRITE = 1 << 7;
        /// Splice moves pages.
        const SPLICE_MOVE = 1 << 8;
        /// Splice from the device.
        const SPLICE_READ = 1 << 9;
        /// The server keeps flock locks.
        const FLOCK_LOCKS = 1 << 10;
        /// ioctl on directories is sent.
        const HAS_IOCTL_DIR = 1 << 11;
        /// Cached pages fall when a changed mtime or size is seen.
        const AUTO_INVAL_DATA = 1 << 12;
        /// READDIRPLUS is served.
        const DO_READDIRPLUS = 1 << 13;
        /// The kernel chooses between READDIR and READDIRPLUS.
        const READDIRPLUS_AUTO = 1 << 14;
        /// Direct I/O in parallel chunks.
        const ASYNC_DIO = 1 << 15;
        /// The kernel collects writes.
        const WRITEBACK_CACHE = 1 << 16;
        /// OPEN may be answered ENOSYS.
        const NO_OPEN_SUPPORT = 1 << 17;
        /// Lookups and listings of one directory in parallel.
        const PARALLEL_DIROPS = 1 << 18;
        /// The server removes set-id bits, first version.
        const HANDLE_KILLPRIV = 1 << 19;
        /// The kernel checks and the server keeps POSIX ACLs.
        const POSIX_ACL = 1 << 20;
        /// Reading an aborted connection gives ECONNABORTED.
        const ABORT_ERROR = 1 << 21;
        /// `max_pages` of the answer counts.
        const MAX_PAGES = 1 << 22;
        /// Targets of symbolic links are cached.
        const CACHE_SYMLINKS = 1 << 23;
        /// OPENDIR may be answered ENOSYS.
        const NO_OPENDIR_SUPPORT = 1 << 24;
        /// Cached pages fall only when told.
        const EXPLICIT_INVAL_DATA = 1 << 25;
        /// DAX alignment (virtiofs).
        const MAP_ALIGNMENT = 1 << 26;
        /// Submounts (virtiofs).
        const SUBMOUNTS = 1 << 27;
        /// The server removes set-id bits and capabilities where the request asks for it.
        const HANDLE_KILLPRIV_V2 = 1 << 28;
        /// SETXATTR has its own flags.
        const SETXATTR_EXT = 1 << 29;
        /// The second flag word is there.
        const INIT_EXT = 1 << 30;
        /// Creations carry a security context.
        const SECURITY_CTX = 1 << 32;
        /// DAX chosen for each inode (virtiofs).
        const HAS_INODE_DAX = 1 << 33;
        /// Creations carry a supplementary group.
        const CREATE_SUPP_GROUP = 1 << 34;
        /// INVAL_ENTRY may expire an entry instead of dropping it.
        const HAS_EXPIRE_ONLY = 1 << 35;
        /// Shared mappings of files opened for direct I/O.
        const DIRECT_IO_ALLOW_MMAP = 1 << 36;
        /// Opens may be handed to a backing file.
        const PASSTHROUGH = 1 << 37;
        /// The server does not answer lookups of `.` and `..`: no handles over the mount.
        const NO_EXPORT_SUPPORT = 1 << 38;
        /// Requests can be sent again.
        const HAS_RESEND = 1 << 39;
        /// Idmapped mounts.
        const ALLOW_IDMAP = 1 << 40;
        /// Requests over io_uring.
        const OVER_IO_URING = 1 << 41;
        /// Requests may time out.
        const REQUEST_TIMEOUT = 1 << 42;
    }
}

bitflags! {
    /// What the kernel may do with an opened file or directory.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct OpenReply: u32 {
        /// No page cache.
        const DIRECT_IO = 1;
        /// Cached pages stay.
        const KEEP_CACHE = 1 << 1;
        /// Not seekable.
        const NONSEEKABLE = 1 << 2;
        /// The listing may be cached.
        const CACHE_DIR = 1 << 3;
        /// No file position.
        const STREAM = 1 << 4;
        /// No FLUSH at close.
        const NOFLUSH = 1 << 5;
        /// Direct writes in parallel.
        const PARALLEL_DIRECT_WRITES = 1 << 6;
        /// I/O goes to the backing file.
        const PASSTHROUGH = 1 << 7;
    }
}

bitflags! {
    /// Which fields of SETATTR count.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct SetattrValid: u32 {
        /// Mode.
        const MODE = 1;
        /// Owner.
        const UID = 1 << 1;
        /// Group.
        const GID = 1 << 2;
        /// Size.
        const SIZE = 1 << 3;
        /// Access time.
        const ATIME = 1 << 4;
        /// Modification time.
        const MTIME = 1 << 5;
        /// File handle.
        const FH = 1 << 6;
        /// Access time is now.
        const ATIME_NOW = 1 << 7;
        /// Modification time is now.
        const MTIME_NOW = 1 << 8;
        /// Lock owner.
        const LOCKOWNER = 1 << 9;
        /// Change time (writeback cache only).
        const CTIME = 1 << 10;
        /// The caller may not keep set-id bits.
        const KILL_SUIDGID = 1 << 11;
    }
}

/// GETATTR and STATX: the handle counts.
pub const GETATTR_FH: u32 = 1;
/// OPEN and CREATE: with `O_TRUNC`, the caller may not keep set-id bits.
pub const OPEN_KILL_SUIDGID: u32 = 1;
/// WRITE: from the page cache; the handle is a guess.
pub const WRITE_CACHE: u32 = 1;
/// WRITE: the lock owner counts.
pub const WRITE_LOCKOWNER: u32 = 1 << 1;
/// WRITE: the caller may not keep set-id bits.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// READ: the lock owner counts.
pub const READ_LOCKOWNER: u32 = 1 << 1;
/// FSYNC: data only.
pub const FSYNC_DATASYNC: u32 = 1;
/// SETXATTR of an access ACL: remove the set-group-id bit.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1;
/// Locks: flock, not POSIX.
pub const LK_FLOCK: u32 = 1;
/// RELEASE: flush what is cached.
pub const RELEASE_FLUSH: u32 = 1;
/// RELEASE: drop the flock of this owner.
pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
