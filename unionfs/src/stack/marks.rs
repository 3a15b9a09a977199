//! What one directory of one layer says about the layers below it.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};

use crate::error::{Errno, Error, Result};
use crate::ondisk::{self, NameClass, Namespace, Redirect, metacopy};
use crate::stack::attributes::Attributes;
use crate::sys;

/// The `.wh.` names of a directory, learnt from one reading of it.
#[derive(Debug, Default)]
pub(crate) struct DirMarks {
    /// Names hidden in the layers below.
    pub whiteouts: HashSet<Box<[u8]>>,
}

/// What a directory's attributes, and its `.wh..wh..opq`, say.
#[derive(Debug, Default)]
pub(crate) struct DirAttrs {
    /// Nothing below this directory shows through.
    pub opaque: bool,
    /// Empty files in it may be whiteouts by attribute.
    pub xattr_whiteouts: bool,
    /// Where it goes on below, if not under its own name.
    pub redirect: Option<Redirect>,
}

/// Reads the names of a directory once and keeps those that hide others.
pub(crate) fn scan_names(dir: BorrowedFd<'_>) -> Result<DirMarks> {
    let mut marks = DirMarks::default();
    sys::dirents::for_each_name(dir, |entry| {
        if let NameClass::Whiteout(target) = ondisk::classify(entry.name) {
            marks.whiteouts.insert(target.into());
        }
        Ok(true)
    })?;
    Ok(marks)
}

/// Reads the attributes of a directory. `follow` says whether redirects count; one that breaks the kernel's rules
/// is an error then, since merging elsewhere would show a wrong tree.
///
/// # Errors
/// EINVAL and EACCES for a bad redirect, EPERM for any redirect where they are not followed.
pub(crate) fn read_attrs(
    attributes: &Attributes,
    dir: BorrowedFd<'_>,
    namespace: Namespace,
    follow: Follow,
) -> Result<DirAttrs> {
    let mut attrs = DirAttrs::default();
    let redirect_name = namespace.name("redirect");
    let list = match attributes.list_dir(dir) {
        Ok(list) => list,
        Err(error) if matches!(error.errno(), Errno::OPNOTSUPP | Errno::NOSYS) => Vec::new(),
        Err(error) => return Err(error),
    };
    for name in sys::xattr::names(&list) {
        if ondisk::OPAQUE_XATTRS.contains(&name) {
            match attributes.get(dir, name)?.first() {
                Some(&ondisk::OPAQUE_YES) => attrs.opaque = true,
                Some(&ondisk::OPAQUE_XATTR_WHITEOUTS) => attrs.xattr_whiteouts = true,
                _ => {}
            }
        } else if name == redirect_name {
            attrs.redirect = Some(parse_redirect(&attributes.get(dir, name)?, follow)?);
        }
    }
    attrs.opaque = attrs.opaque || has_opaque_file(dir);
    Ok(attrs)
}

/// As [`read_attrs`], of a directory that is known to have no attributes.
pub(crate) fn without_attributes(dir: BorrowedFd<'_>) -> DirAttrs {
    DirAttrs { opaque: has_opaque_file(dir), ..DirAttrs::default() }
}

/// What to do with redirects that are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Follow {
    /// Follow them.
    Yes,
    /// Looking up an object that has one fails with EPERM, as in the kernel with `redirect_dir=nofollow`.
    No,
}

/// Parses a redirect by the rules of this mount.
///
/// # Errors
/// EINVAL and EACCES for a bad one, EPERM for any where they are not followed.
pub(crate) fn parse_redirect(value: &[u8], follow: Follow) -> Result<Redirect> {
    if follow == Follow::No {
        return Err(Error::new(Errno::PERM));
    }
    ondisk::parse_redirect(value).map_err(|bad| match bad {
        ondisk::BadRedirect::Malformed => Error::new(Errno::INVAL),
        ondisk::BadRedirect::Climbs => Error::new(Errno::ACCESS),
    })
}

fn has_opaque_file(dir: BorrowedFd<'_>) -> bool {
    sys::stat_at(dir.as_fd(), ondisk::OPAQUE_FILE).is_ok()
}

/// What the attributes of an upper object that is no directory say about where it came from.
#[derive(Debug, Default)]
pub(crate) struct FileMarks {
    /// If it is an empty regular file: it is a whiteout.
    pub whiteout: bool,
    /// It holds attributes only.
    pub metacopy: bool,
    /// Where its data is, if not under its own name.
    pub redirect: Option<Redirect>,
    /// The inode number it was shown with before it was copied up.
    pub ino: Option<u64>,
    /// The record of the lower object, for a member of the index.
    pub origin: Option<Vec<u8>>,
    /// It stands in the index; by how much its shown number of links differs from its own.
    pub nlink: Option<i64>,
    /// It is a metacopy only until its data is safe on the disk: the mark that says how far that is.
    pub unfinished: Option<Vec<u8>>,
}

/// Name of the mark that keeps a shown inode number where the origin does not say it, beside the kernel's marks, which
/// ignores it. Its value is decimal.
pub(crate) const INO: &str = "ino";

/// Reads the value of [`INO`].
pub(crate) fn parse_ino(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Reads the marks of `name` in a directory.
///
/// # Errors
/// As [`read_attrs`] for redirects.
pub(crate) fn read_file_marks(
    attributes: &Attributes,
    dir: BorrowedFd<'_>,
    name: &[u8],
    namespace: Namespace,
    follow: Follow,
) -> Result<FileMarks> {
    for _ in 0..MARK_TRIES {
        match try_read_file_marks(attributes, dir, name, namespace, follow) {
            // A mark that was listed went meanwhile: the file was just finished.
            Err(error) if error.is(Errno::NODATA) => {}
            result => return result,
        }
    }
    Err(Error::new(Errno::IO))
}

/// How often the marks of a file are read again that change meanwhile, before giving up.
const MARK_TRIES: usize = 100;

fn try_read_file_marks(
    attributes: &Attributes,
    dir: BorrowedFd<'_>,
    name: &[u8],
    namespace: Namespace,
    follow: Follow,
) -> Result<FileMarks> {
    let mut marks = FileMarks::default();
    let list = match attributes.list_at(dir, name) {
        Ok(list) => list,
        Err(error) => match error.errno() {
            Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::ACCESS => return Ok(marks),
            _ => return Err(error),
        },
    };
    let prefix = namespace.name("");
    let mut note = None;
    for mark in sys::xattr::names(&list).filter_map(|name| name.strip_prefix(prefix.as_slice())) {
        let value = || attributes.get_at(dir, name, &[prefix.as_slice(), mark].concat());
        match mark {
            b"metacopy" => {
                marks.metacopy = true;
                note = match value() {
                    // Only a file that this process may read is ever left unfinished.
                    Err(error) if error.is(Errno::ACCESS) || error.is(Errno::PERM) => None,
                    value => metacopy::note(&value?).map(<[u8]>::to_vec),
                };
            }
            b"whiteout" => marks.whiteout = true,
            b"redirect" => marks.redirect = Some(parse_redirect(&value()?, follow)?),
            b"ino" => marks.ino = parse_ino(&value()?),
            b"origin" => marks.origin = Some(value()?).filter(|record| !record.is_empty()),
            b"unfinished" => marks.unfinished = Some(value()?),
            b"nlink" => marks.nlink = ondisk::origin::parse_nlink(&value()?),
            _ => {}
        }
    }
    marks.unfinished = note.or(marks.unfinished);
    Ok(marks)
}
