//! A union filesystem in userspace: branches stacked, whiteouts, copy-up on write.
pub mod cli;
pub mod error;
pub mod fuse;
pub mod idmap;
pub mod options;
pub mod request;
pub mod union;

pub use error::{Errno, Error, Result};
pub use options::{MountOptions, OptionError, Warning};
pub use union::Union;
