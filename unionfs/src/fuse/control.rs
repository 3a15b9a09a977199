//! Commands to a live mount, through a socket that its server listens on.
//!
//! The socket is named by the device number of the mount, in a directory of the server's user. Nobody inside the mount
//! reaches it by a name there, not even where that directory lies in a layer: a socket is found by its inode, and the one
//! that the mount shows is another. The directory and the socket are their owner's only, and the server asks the kernel
//! who is connected.
//!
//! A request is `unionfs-ctl 1` and the words of the command, each ended by NUL, up to the end of writing. The answer is
//! one byte, `0` for done or `1` for an error, and text.

mod client;
mod commands;
mod place;
mod server;

pub use self::client::{ask, role_of};
pub use self::commands::Live;
pub use self::place::{MountId, mount_at};
pub use self::server::Control;

/// The first word of a request: who does not know it is of another version.
const GREETING: &[u8] = b"unionfs-ctl 1";

/// Longest request: a command and two paths.
const REQUEST_MAX: u64 = 16 << 10;
