//! What a mount is asked to be: the text of `-o` and its meaning.

use std::path::PathBuf;

/// The meaning of a mount's options.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct MountOptions {
    /// Lower layers, topmost first.
    pub lowerdir: Vec<PathBuf>,
    /// The writable layer; none mounts read-only.
    pub upperdir: Option<PathBuf>,
    /// Private directory on the upper's file system.
    pub workdir: Option<PathBuf>,
    /// Directories, as absolute paths of this process, that the union does not show although a layer has them.
    pub hidden: Vec<PathBuf>,
    /// Owners that have no id in this user namespace are shown as, and taken for, id 0.
    pub squash_unmapped: bool,
}
