//! Whether the file that holds the data of a metacopy is the one that was meant (option `verity`).
//!
//! A metacopy may demand an fs-verity digest of the file that it refers to, as kernel overlayfs and composefs images
//! have it. The kernel keeps that digest true to the contents; here it is only compared.

use std::os::fd::AsFd;

use crate::error::{Errno, Error, Result};
use crate::inode::Inode;
use crate::ondisk::metacopy::{self, Digest};
use crate::options::Verity;
use crate::stack::lower::LowerFile;
use crate::tree::Tree;
use crate::upper_file;

/// Checks the file with the data of a node against the digest that the node demands.
///
/// # Errors
/// EIO if it is another file, not protected by fs-verity, or, with `verity=require`, none is demanded.
pub(crate) fn check(tree: &Tree, inode: &Inode, data: &LowerFile) -> Result<()> {
    if tree.policy.verity == Verity::Off || !inode.is_metacopy() {
        return Ok(());
    }
    let name = tree.stack.namespace.name("metacopy");
    let value = if inode.on_upper() {
        tree.stack.attributes().get(tree.pin_upper(inode)?.as_fd(), &name)?
    } else {
        tree.lower_object(inode)?.mark(&name)?
    };
    let demanded = metacopy::parse(&value).map_err(|_| refuse("its metacopy mark is malformed"))?;
    judge(tree.policy.verity, demanded.as_ref(), || data.verity_digest()).map_err(refuse)
}

/// Returns the value of the mark of a metacopy that is about to be made of a lower file: with the digest of the file
/// that holds the data, if it has one. `None`: none may be made.
pub(crate) fn mark(tree: &Tree, inode: &Inode) -> Result<Option<Vec<u8>>> {
    if tree.policy.verity == Verity::Off {
        return Ok(Some(Vec::new()));
    }
    let data = upper_file::open_lower_data(tree, inode)?;
    Ok(match data.verity_digest() {
        Ok(digest) => Some(metacopy::header(&digest)),
        Err(_) if tree.policy.verity == Verity::Require => None,
        Err(_) => Some(Vec::new()),
    })
}

/// Compares the digest that is demanded with that of the file. The error says what is wrong.
fn judge(
    verity: Verity,
    demanded: Option<&Digest>,
    measured: impl FnOnce() -> std::result::Result<Digest, Errno>,
) -> std::result::Result<(), &'static str> {
    let Some(demanded) = demanded else {
        return match verity {
            Verity::Require => Err("it demands no digest, and verity=require does"),
            Verity::Off | Verity::On => Ok(()),
        };
    };
    match measured() {
        Ok(digest) if digest == *demanded => Ok(()),
        Ok(_) => Err("the file with its data has another fs-verity digest"),
        Err(Errno::NODATA) => Err("the file with its data is not protected by fs-verity"),
        Err(_) => Err("the file system of its data, or this kernel, has no fs-verity"),
    }
}

fn refuse(reason: &'static str) -> Error {
    tracing::warn!(reason, "a file is not opened");
    Error::new(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_compared_as_the_options_say() {
        let digest = |byte| Digest { algorithm: 1, bytes: vec![byte; 32] };
        let other_algorithm = Digest { algorithm: 2, ..digest(1) };
        for (verity, demanded, measured, passes) in [
            (Verity::On, None, Err(Errno::NODATA), true),
            (Verity::Require, None, Ok(digest(1)), false),
            (Verity::On, Some(digest(1)), Ok(digest(1)), true),
            (Verity::Require, Some(digest(1)), Ok(digest(1)), true),
            (Verity::On, Some(digest(1)), Ok(digest(2)), false),
            (Verity::On, Some(digest(1)), Ok(other_algorithm), false),
            (Verity::On, Some(digest(1)), Err(Errno::NODATA), false),
            (Verity::On, Some(digest(1)), Err(Errno::NOTTY), false),
        ] {
            let judged = judge(verity, demanded.as_ref(), || measured.clone());
            assert_eq!(judged.is_ok(), passes, "{verity:?} {demanded:?} {measured:?}");
        }
    }
}
