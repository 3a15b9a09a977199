//! Hard links of objects that cannot say where they come from.
//!
//! Attributes of ordinary users are for files and directories only. A symbolic link, pipe, socket or device of a lower with
//! several names is split at its first change where there are no others, so an upper that has one is no lower yet.

use std::os::fd::AsFd as _;

use crate::error::{Errno, Error, Result};
use crate::ondisk::Namespace;
use crate::request::FileKind;
use crate::sys;
use crate::tree::Tree;

/// Checks that every object of the upper stays what it is as one of a lower.
///
/// # Errors
/// EOPNOTSUPP if one would be split, EACCES if that cannot be found out.
pub(super) fn check(tree: &Tree) -> Result<()> {
    let upper = tree.stack.upper()?;
    if upper.features.namespace != Some(Namespace::User) {
        return Ok(());
    }
    // By path: descriptors of all directories still to be read could be too many.
    let mut paths = vec![Vec::new()];
    while let Some(path) = paths.pop() {
        let opened =
            if path.is_empty() { None } else { Some(sys::open_dir_beneath(upper.root_fd(), &path)?) };
        let dir = opened.as_ref().map_or(upper.root_fd(), |opened| opened.as_fd());
        let mut split = None;
        let listed = sys::dirents::for_each_name(dir, |entry| {
            let at = || {
                if path.is_empty() { entry.name.to_vec() } else { [&path, &b"/"[..], entry.name].concat() }
            };
            let kind =
                entry.kind.map_or_else(|| sys::stat_at(dir, entry.name).map(|stat| stat.kind()), Ok)?;
            match kind {
                FileKind::Directory => paths.push(at()),
                FileKind::Regular => {}
                _ => {
                    let stat = sys::stat_at(dir, entry.name)?;
                    if stat.nlink > 1 && !stat.is_whiteout() {
                        split = Some(at());
                    }
                }
            }
            Ok(split.is_none())
        });
        listed.map_err(|errno| Error::new(errno).during("rotate: read the upper's directory", &path))?;
        if let Some(path) = split {
            return Err(Error::new(Errno::OPNOTSUPP)
                .during("rotate an upper with a hard link of no file", &path)
                .hint("without trusted.* attributes, links of symbolic links, pipes and devices would fall apart"));
        }
    }
    Ok(())
}
