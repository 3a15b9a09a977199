//! One call of a random history, as a value that prints as it would be written in a test.

use std::fmt;

/// A path relative to the root under test.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(pub Vec<u8>);

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// Where the held handles of a history live.
pub type Slot = usize;

/// The number of held handles.
pub const SLOTS: Slot = 5;

/// How a handle is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// O_RDONLY.
    Read,
    /// O_WRONLY.
    Write,
    /// O_RDWR.
    Both,
    /// O_RDWR and O_TRUNC.
    Truncate,
    /// O_WRONLY and O_APPEND.
    Append,
    /// O_RDWR and O_CREAT.
    Create,
}

/// What rename is asked beside the move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Replace the target.
    Replace,
    /// RENAME_NOREPLACE.
    NoReplace,
    /// RENAME_EXCHANGE.
    Exchange,
}

/// What mknod makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    Device,
    /// An empty regular file.
    File,
}

/// What fallocate is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Allocate, growing the file.
    Grow,
    /// Allocate, keeping the size.
    Keep,
    /// Make a hole.
    Punch,
    /// Make zeros.
    Zero,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is the call of its name; fields are its arguments")]
pub enum Op {
    Create { path: Name, mode: u32 },
    Put { path: Name, len: usize, seed: u64 },
    Write { path: Name, offset: u64, len: usize, seed: u64 },
    Append { path: Name, len: usize, seed: u64 },
    Truncate { path: Name, size: u64 },
    Read { path: Name, offset: u64, len: usize },
    Unlink { path: Name },
    Mkdir { path: Name, mode: u32 },
    Rmdir { path: Name },
    Rename { from: Name, to: Name, over: Over },
    Link { from: Name, to: Name },
    Symlink { path: Name, target: Name },
    Readlink { path: Name },
    Chmod { path: Name, mode: u32 },
    Chown { path: Name, uid: Option<u32>, gid: Option<u32> },
    Times { path: Name, seconds: Option<i64> },
    SetXattr { path: Name, name: Name, value: Name, flag: Over },
    RemoveXattr { path: Name, name: Name },
    Xattrs { path: Name },
    Stat { path: Name },
    Access { path: Name, bits: u32 },
    List { path: Name },
    Open { slot: Slot, path: Name, how: How },
    ReadHandle { slot: Slot, offset: u64, len: usize },
    WriteHandle { slot: Slot, offset: u64, len: usize, seed: u64 },
    TruncateHandle { slot: Slot, size: u64 },
    StatHandle { slot: Slot },
    ChmodHandle { slot: Slot, mode: u32 },
    SyncHandle { slot: Slot },
    CloseHandle { slot: Slot },
    Allocate { path: Name, space: Space, offset: u64, len: u64 },
    Holes { path: Name },
    Mknod { path: Name, special: Special, mode: u32 },
    CopyRange { from: Name, to: Name, source: u64, target: u64, len: usize },
    MapWrite { path: Name, offset: usize, len: usize, seed: u64 },
    MapRead { path: Name, offset: usize, len: usize },
    Tmpfile { directory: Name, to: Name, len: usize, seed: u64 },
    RemoveAll { path: Name },
    Compare,
    Remount,
    Rotate,
}

/// A call and who makes it.
#[derive(Clone, PartialEq, Eq)]
pub struct Step {
    /// The call.
    pub op: Op,
    /// Made with the file system ids of an ordinary user ([`USER`]) instead of root.
    pub as_user: bool,
}

/// The ids of the ordinary user of a history.
pub const USER: u32 = 1000;

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", if self.as_user { "as user: " } else { "" }, self.op)
    }
}
