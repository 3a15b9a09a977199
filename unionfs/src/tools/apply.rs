//! A layer of a container image unpacked into a directory, as a layer of a union or as a plain tree.
//!
//! The archive is somebody else's data. Whatever it says, nothing outside of the directory is touched: each entry is reached
//! from the directory's descriptor without following a symbolic link, and what cannot be done is an error that names the
//! entry. On an error the directory keeps what was unpacked until then.

mod compression;
mod target;

use std::io::Read;
use std::path::Path;

use crate::error::{Errno, Error, Result};
pub use crate::tools::attributes::Owners;
use crate::tools::tar::read::Reader;
use target::Target;

/// What is made of whiteouts and opaque directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Devices 0:0 and `trusted.overlay.opaque`: what kernel overlayfs reads.
    Overlayfs,
    /// Devices 0:0 and `user.overlay.opaque`: what it reads with `userxattr`.
    Userxattr,
    /// Files `.wh.NAME` and `.wh..wh..opq`, as they stand in the archive.
    Oci,
    /// They are obeyed: what they hide is removed from the directory.
    Plain,
}

/// What is done with a device that this process may not make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    /// It is an error.
    Required,
    /// It is left out, and told.
    Skipped,
}

/// How a layer is unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplyOptions {
    /// What is made of whiteouts and opaque directories.
    pub format: Format,
    /// Whose the files are.
    pub owners: Owners,
    /// What is done with devices.
    pub devices: Devices,
}

impl Default for ApplyOptions {
    /// The format that a mount of this process reads, and owners as told if this process may give files away.
    fn default() -> Self {
        let root = rustix::process::geteuid().is_root();
        let trusted = root && crate::stack::probe::in_initial_user_namespace();
        Self {
            format: if trusted { Format::Overlayfs } else { Format::Userxattr },
            owners: if root { Owners::Keep } else { Owners::Own },
            devices: Devices::Required,
        }
    }
}

/// Unpacks `layer`, a tar archive that may be compressed by gzip or zstd, into the directory `dir`. Returns what could not
/// be kept, a line each.
///
/// # Errors
/// What is wrong with which entry, or with the archive.
pub fn apply(layer: impl Read + 'static, dir: &Path, options: &ApplyOptions) -> Result<Vec<String>> {
    let mut reader = Reader::new(compression::open(Box::new(layer))?);
    let mut target = Target::open(dir, *options)?;
    while let Some(member) = reader.next()? {
        let name = member.path.clone();
        target.add(&mut reader, member).map_err(|error| error.during("unpack the entry", &name))?;
    }
    target.finish()
}

/// Returns the components of a name that `entry` has or leads to. A slash in front means nothing.
///
/// # Errors
/// EINVAL for `..` and for what can be no name.
fn components(path: &[u8], entry: &[u8]) -> Result<Vec<Vec<u8>>> {
    let parts = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    let parts: Vec<Vec<u8>> = parts.map(<[u8]>::to_vec).collect();
    for part in &parts {
        crate::name::check(part).map_err(|error| {
            let reason = "a name in a layer has no component \"..\" and none longer than 255 bytes";
            refused(error.errno(), entry, reason)
        })?;
    }
    Ok(parts)
}

impl Format {
    /// Returns the format of this name.
    pub fn named(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"overlayfs" => Self::Overlayfs,
            b"userxattr" => Self::Userxattr,
            b"oci" => Self::Oci,
            b"plain" => Self::Plain,
            _ => return None,
        })
    }
}

/// Returns an error that says what is wrong with the present entry.
fn refused(errno: Errno, entry: &[u8], reason: &'static str) -> Error {
    Error::new(errno).during("unpack the entry", entry).hint(reason)
}
