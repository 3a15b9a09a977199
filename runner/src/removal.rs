//! Deleting a tree that a container made: by descriptor, through any permissions, never across a link.

use std::path::Path;

use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::{Errno, Result};

/// Removes a directory with everything in it. What is already gone is no error.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match remove_directory(CWD, path.as_os_str(), 0) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// Deeper trees are taken apart from their root again, so that neither stack nor descriptors run out.
const DEPTH: usize = 200;

fn remove_directory(parent: BorrowedFd<'_>, name: &std::ffi::OsStr, depth: usize) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(parent, name, flags, Mode::empty());
    let fd = match open() {
        // A mode without bits for its owner; an owner without privilege has to give them back first.
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            open()?
        }
        result => result?,
    };
    if empty_directory(fd.as_fd(), depth) == Err(Errno::ACCESS) {
        rustix::fs::fchmod(&fd, Mode::RWXU)?;
        empty_directory(fd.as_fd(), depth)?;
    } else {
        empty_directory(fd.as_fd(), depth)?;
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn empty_directory(directory: BorrowedFd<'_>, depth: usize) -> Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if entry.file_type() != FileType::Directory {
            match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
                // A file system that does not tell types in listings.
                Err(Errno::ISDIR | Errno::PERM) => {}
                Err(Errno::NOENT) => continue,
                result => {
                    result?;
                    continue;
                }
            }
        }
        let name = std::os::unix::ffi::OsStrExt::from_bytes(name.to_bytes());
        if depth >= DEPTH {
            lift(directory, name)?;
        } else {
            remove_directory(directory, name, depth + 1)?;
        }
    }
    Ok(())
}

/// Empties a directory too deep for recursion: its children are moved up until nothing is below.
fn lift(parent: BorrowedFd<'_>, name: &std::ffi::OsStr) -> Result<()> {
    let mut number = 0_u64;
    loop {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        let mut moved = false;
        for entry in Dir::read_from(&fd)? {
            let entry = entry?;
            let child = entry.file_name();
            if matches!(child.to_bytes(), b"." | b"..") {
                continue;
            }
            match rustix::fs::unlinkat(&fd, child, AtFlags::empty()) {
                Err(Errno::ISDIR | Errno::PERM) => {}
                result => {
                    result?;
                    continue;
                }
            }
            match rustix::fs::unlinkat(&fd, child, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                result => {
                    result?;
                    continue;
                }
            }
            // The grandchildren become children; the next round meets them.
            number += 1;
            raise(&fd, child, number)?;
            moved = true;
        }
        if !moved {
            return rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR);
        }
    }
}

fn raise(directory: impl AsFd, child: &std::ffi::CStr, number: u64) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&directory, child, flags, Mode::empty())?;
    for (index, entry) in Dir::read_from(&fd)?.enumerate() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        rustix::fs::renameat(&fd, name, &directory, format!(".removed-{number}-{index}"))?;
    }
    rustix::fs::unlinkat(&directory, child, AtFlags::REMOVEDIR)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_tree_goes_and_what_its_links_point_to_stays() {
        let outer = tempfile::tempdir().unwrap();
        let (tree, kept) = (outer.path().join("tree"), outer.path().join("kept"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        symlink(&kept, tree.join("a/link")).unwrap();
        fs::write(tree.join("a/b/f"), "x").unwrap();
        fs::set_permissions(tree.join("a/b"), fs::Permissions::from_mode(0o0)).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(kept.join("file").exists());
        remove_tree(&tree).unwrap();
    }

    #[test]
    fn depth_has_no_limit() {
        let outer = tempfile::tempdir().unwrap();
        let tree = outer.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut at = rustix::fs::open(&tree, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..DEPTH * 3 {
            rustix::fs::mkdirat(&at, "deep", Mode::RWXU).unwrap();
            rustix::fs::openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "deep", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
