//! Which names the upper part of a directory hides, beside those whose place a device has taken.

use std::os::fd::{AsFd, BorrowedFd};

use super::Tree;
use crate::error::Result;
use crate::inode::Inode;
use crate::ondisk;
use crate::stack::marks;

impl Tree {
    /// Returns whether the upper part of a directory holds `.wh.NAME`. Its names are read once.
    pub(crate) fn upper_hides(&self, dir: &Inode, name: &[u8]) -> Result<bool> {
        if let Some(whiteouts) = &dir.state.read().upper_whiteouts {
            return Ok(whiteouts.whiteouts.contains(name));
        }
        let marks = marks::scan_names(self.upper_fd(dir)?.as_fd())?;
        let mut state = dir.state.write();
        let whiteouts = state.upper_whiteouts.get_or_insert_with(|| Box::new(marks));
        Ok(whiteouts.whiteouts.contains(name))
    }

    /// Returns whether empty files in the upper part of a directory may be whiteouts by attribute. Asked once.
    pub(crate) fn may_hold_xattr_whiteouts(&self, dir: &Inode) -> Result<bool> {
        match dir.state.read().xattr_whiteouts {
            1 => return Ok(false),
            2 => return Ok(true),
            _ => {}
        }
        let value = self
            .stack
            .attributes()
            .get(self.upper_fd(dir)?.as_fd(), &self.stack.namespace.name("opaque"))
            .unwrap_or_default();
        let may = value.first() == Some(&ondisk::OPAQUE_XATTR_WHITEOUTS);
        dir.state.write().xattr_whiteouts = if may { 2 } else { 1 };
        Ok(may)
    }

    /// Marks the upper part of a directory, before the first whiteout by attribute comes into it.
    pub(crate) fn expect_xattr_whiteouts(&self, dir: &Inode, fd: BorrowedFd<'_>) -> Result<()> {
        // Without lowers the mark may be that of an opaque directory, and nothing needs to be hidden there.
        if dir.lower_dirs().is_empty() || self.may_hold_xattr_whiteouts(dir)? {
            return Ok(());
        }
        let name = self.stack.namespace.name("opaque");
        self.stack.attributes().set(fd, &name, &[ondisk::OPAQUE_XATTR_WHITEOUTS], 0)?;
        dir.state.write().xattr_whiteouts = 2;
        Ok(())
    }

    /// Notes that `.wh.NAME` was made (`true`) or removed in the upper part of a directory.
    pub(crate) fn note_upper_whiteout(&self, dir: &Inode, name: &[u8], exists: bool) {
        if let Some(marks) = &mut dir.state.write().upper_whiteouts {
            if exists {
                marks.whiteouts.insert(name.into());
            } else {
                marks.whiteouts.remove(name);
            }
        }
    }
}
