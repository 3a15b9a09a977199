//! Moving names: which case it is, what must stand in the upper before, and the one step that moves.
//!
//! Order for a crash at any moment: marks on the moved directory first (a redirect or an opaque mark on a directory
//! still in its old place changes nothing there), then the rename, with the whiteout in the same step.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use parking_lot::MutexGuard;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};

use crate::copy_up::{self, Need};
use crate::counts::add;
use crate::create::{check_new_name, remove_dot_wh, set_opaque};
use crate::error::{Errno, Error, Result};
use crate::inode::Inode;
use crate::links;
use crate::name::FileName;
use crate::ondisk::{REDIRECT_MAX, Redirect};
use crate::remove::{
    Held, forget_name, has_upper_name, is_last_link, keep_count, new_whiteout, put_whiteout, still_there,
};
use crate::request::RenameMode;
use crate::stack::marks;
use crate::stack::probe::WhiteoutForm;
use crate::stack::upper::UpperLayer;
use crate::stack::workdir::Buried;
use crate::sys;
use crate::tree::{Peeked, Tree};

/// One end of a rename.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    /// The directory.
    pub parent: &'a Arc<Inode>,
    /// The name in it.
    pub name: &'a [u8],
}

/// Moves or exchanges names.
///
/// # Errors
/// As rename(2); EXDEV for a directory with lowers where no redirect can be stored.
pub(crate) fn rename(tree: &Tree, from: End<'_>, to: End<'_>, mode: RenameMode) -> Result<()> {
    check_new_name(tree, to.name)?;
    let source = tree.peek(from.parent, from.name)?;
    let target = match tree.peek(to.parent, to.name) {
        Ok(target) => Some(target),
        Err(error) if error.is(Errno::NOENT) => None,
        Err(error) => return Err(error),
    };
    if !check(tree, &source, target.as_ref(), mode)? {
        return Ok(());
    }
    copy_up::ensure_upper(tree, &source.inode, Need::Safe)?;
    // Not implied: an object with several names is on the upper by any of them.
    copy_up::ensure_upper(tree, from.parent, Need::Data)?;
    copy_up::ensure_upper(tree, to.parent, Need::Data)?;
    if let (Some(target), RenameMode::Exchange) = (&target, mode) {
        copy_up::ensure_upper(tree, &target.inode, Need::Safe)?;
    }
    if let (Some(target), RenameMode::Replace) = (&target, mode) {
        keep_count(tree, target)?;
    }
    let moves_dir = source.inode.is_dir() || target.as_ref().is_some_and(|target| target.inode.is_dir());
    let _move = moves_dir.then(|| tree.moves.lock());
    let _names = lock_parents(from.parent, to.parent);
    still_there(&source, from.parent, from.name)?;
    if let Some(target) = &target {
        still_there(target, to.parent, to.name)?;
    }
    let upper = tree.stack.upper()?;
    let job = Rename {
        tree,
        upper,
        from,
        to,
        from_fd: tree.upper_fd(from.parent)?,
        to_fd: tree.upper_fd(to.parent)?,
    };
    match (mode, &target) {
        (RenameMode::Exchange, Some(target)) => job.exchange(&source.inode, &target.inode),
        _ => job.replace(&source.inode, target.as_ref()),
    }
}

/// Applies the rules of rename(2). `false` if there is nothing to do.
fn check(tree: &Tree, source: &Peeked<'_>, target: Option<&Peeked<'_>>, mode: RenameMode) -> Result<bool> {
    let needs_redirect = |inode: &Inode| inode.is_dir() && !inode.lower_dirs().is_empty();
    match (mode, target) {
        (RenameMode::NoReplace, Some(_)) => return Err(Error::new(Errno::EXIST)),
        (RenameMode::Exchange, None) => return Err(Error::new(Errno::NOENT)),
        (_, Some(target)) if target.inode.id == source.inode.id => return Ok(false),
        (RenameMode::Exchange, Some(target)) => {
            if !tree.policy.redirect && needs_redirect(&target.inode) {
                return Err(Error::new(Errno::XDEV));
            }
        }
        (_, Some(target)) => match (source.inode.is_dir(), target.inode.is_dir()) {
            (true, false) => return Err(Error::new(Errno::NOTDIR)),
            (false, true) => return Err(Error::new(Errno::ISDIR)),
            (true, true) if !tree.listing(&target.inode)?.is_empty() => {
                return Err(Error::new(Errno::NOTEMPTY));
            }
            _ => {}
        },
        (_, None) => {}
    }
    if !tree.policy.redirect && needs_redirect(&source.inode) {
        return Err(Error::new(Errno::XDEV));
    }
    Ok(true)
}

/// Locks the names of both parents, always in the same order.
fn lock_parents<'a>(
    a: &'a Arc<Inode>,
    b: &'a Arc<Inode>,
) -> (MutexGuard<'a, ()>, Option<MutexGuard<'a, ()>>) {
    if a.id == b.id {
        return (a.names.lock(), None);
    }
    let (first, second) = if a.id < b.id { (a, b) } else { (b, a) };
    let first = first.names.lock();
    (first, Some(second.names.lock()))
}

/// A rename whose objects are on the upper and whose directories are locked.
struct Rename<'a> {
    tree: &'a Tree,
    upper: &'a UpperLayer,
    from: End<'a>,
    to: End<'a>,
    from_fd: crate::stack::lower::DirFd<'a>,
    to_fd: crate::stack::lower::DirFd<'a>,
}

impl Rename<'_> {
    fn replace(&self, source: &Arc<Inode>, target: Option<&Peeked<'_>>) -> Result<()> {
        let (tree, from, to) = (self.tree, self.from, self.to);
        let leaves_whiteout = tree.below_provides(from.parent, from.name)?;
        if !from.parent.is_unmarked() {
            to.parent.may_hold_marks();
        }
        if source.is_dir() {
            self.mark_moved(source, to)?;
        }
        links::link_up(tree, source, self.from_fd.as_fd(), from.name)?;
        let mut held = Held::default();
        let mut named = false;
        if let Some(target) = target.filter(|target| target.inode.on_upper()) {
            held = Held::without(tree, self.upper, target, self.to_fd.as_fd(), to.name)?;
            named = has_upper_name(&tree.stack, &target.inode, self.to_fd.as_fd(), to.name)?;
            if target.inode.is_dir() {
                self.empty_target(&target.inode)?;
            }
        }
        let buried = match target {
            Some(target) if named && !target.inode.is_dir() => {
                Some(self.upper.workdir.bury(self.to_fd.as_fd(), to.name)?)
            }
            _ => None,
        };
        let replaced = self.upper.workdir.attributes.outside(self.to_fd.as_fd(), to.name)?;
        self.move_name(source, leaves_whiteout, target.is_some())?;
        buried.into_iter().for_each(Buried::name_is_gone);
        if let Some(key) = replaced.filter(|_| target.is_some_and(|target| target.inode.is_dir())) {
            self.upper.workdir.attributes.forget(&key)?;
        }
        if !to.parent.lower_dirs().is_empty() && tree.upper_hides(to.parent, to.name)? {
            remove_dot_wh(tree, to.parent, self.to_fd.as_fd(), to.name)?;
        }
        if let Some(target) = target {
            if !target.inode.is_dir() {
                links::lose_link(tree, &target.inode, target.stat.nlink, named)?;
            }
            forget_name(tree, &target.inode, to.parent, to.name, held, is_last_link(tree, target));
        }
        self.note_origin(source, to.parent, self.to_fd.as_fd())?;
        tree.table.rename(source, (from.parent, from.name), (to.parent, FileName::new(to.name)?));
        Ok(())
    }

    /// Marks the new directory if the object shows another inode number than its own.
    fn note_origin(&self, moved: &Inode, parent: &Inode, fd: BorrowedFd<'_>) -> Result<()> {
        let Some(own) = moved.state.read().upper else { return Ok(()) };
        if self.tree.stack.shown_ino(self.upper.identity().0, own) == moved.ino() {
            return Ok(());
        }
        self.tree.mark_impure(parent, fd)
    }

    /// The step that moves, and with it the whiteout if a lower provides the old name.
    fn move_name(&self, source: &Inode, leaves_whiteout: bool, replaces: bool) -> Result<()> {
        let (from, to) = (self.from.name, self.to.name);
        let over_whiteout = !replaces
            && source.is_dir()
            && sys::stat_at(self.to_fd.as_fd(), to)
                .is_ok_and(|stat| self.tree.stack.is_upper_whiteout(self.to_fd.as_fd(), to, &stat));
        if over_whiteout {
            if leaves_whiteout && self.upper.features.whiteouts == WhiteoutForm::Xattr {
                self.tree.expect_xattr_whiteouts(self.from.parent, self.from_fd.as_fd())?;
            }
            // A directory cannot replace a whiteout; they change places, and it is then where the name was.
            self.from.parent.may_hold_marks();
            self.rename_at(RenameFlags::EXCHANGE)?;
            if !leaves_whiteout {
                rustix::fs::unlinkat(self.from_fd.as_fd(), from, AtFlags::empty())?;
            }
            return Ok(());
        }
        match (leaves_whiteout, self.upper.features.whiteouts) {
            (false, _) => self.rename_at(RenameFlags::empty()),
            (true, WhiteoutForm::CharDevice) => {
                add(&self.tree.counts.whiteouts, 1);
                self.rename_at(RenameFlags::WHITEOUT)?;
                self.tree.sync_names(self.to_fd.as_fd())?;
                self.tree.sync_names(self.from_fd.as_fd())
            }
            (true, WhiteoutForm::Xattr) => {
                self.move_leaving_file(source)?;
                self.tree.sync_names(self.to_fd.as_fd())?;
                self.tree.sync_names(self.from_fd.as_fd())
            }
            (true, WhiteoutForm::DotWh) => {
                put_whiteout(self.tree, self.upper, self.from.parent, self.from_fd.as_fd(), from)?;
                self.rename_at(RenameFlags::empty())
            }
        }
    }

    /// Moves, and leaves a whiteout that the kernel does not make by itself. Between the steps a file has both names, and
    /// a directory has changed places with what it replaces.
    fn move_leaving_file(&self, source: &Inode) -> Result<()> {
        let (tree, upper) = (self.tree, self.upper);
        let (from, to) = (self.from_fd.as_fd(), self.to_fd.as_fd());
        let whiteout = new_whiteout(tree, upper, self.from.parent, from)?;
        if !source.is_dir() {
            let second = upper.workdir.temp();
            rustix::fs::linkat(from, self.from.name, upper.workdir.fd(), second.name(), AtFlags::empty())?;
            second.publish(to, self.to.name, RenameFlags::empty())?;
            return whiteout.publish(from, self.from.name, RenameFlags::empty());
        }
        match sys::stat_at(to, self.to.name) {
            Ok(_) => {
                self.rename_at(RenameFlags::EXCHANGE)?;
                whiteout.publish(from, self.from.name, RenameFlags::EXCHANGE)
            }
            Err(Errno::NOENT) => {
                tree.expect_xattr_whiteouts(self.to.parent, to)?;
                whiteout.publish(to, self.to.name, RenameFlags::NOREPLACE)?;
                self.rename_at(RenameFlags::EXCHANGE)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn rename_at(&self, flags: RenameFlags) -> Result<()> {
        let (from, to) = (self.from_fd.as_fd(), self.to_fd.as_fd());
        if flags.is_empty() {
            return Ok(rustix::fs::renameat(from, self.from.name, to, self.to.name)?);
        }
        Ok(rustix::fs::renameat_with(from, self.from.name, to, self.to.name, flags)?)
    }

    fn exchange(&self, source: &Arc<Inode>, target: &Arc<Inode>) -> Result<()> {
        if !self.upper.features.exchange {
            return Err(Error::new(Errno::INVAL));
        }
        if !self.from.parent.is_unmarked() || !self.to.parent.is_unmarked() {
            self.from.parent.may_hold_marks();
            self.to.parent.may_hold_marks();
        }
        if source.is_dir() {
            self.mark_moved(source, self.to)?;
        }
        if target.is_dir() {
            self.mark_moved(target, self.from)?;
        }
        let (from, to) = (self.from, self.to);
        links::link_up(self.tree, source, self.from_fd.as_fd(), from.name)?;
        links::link_up(self.tree, target, self.to_fd.as_fd(), to.name)?;
        self.rename_at(RenameFlags::EXCHANGE)?;
        self.note_origin(source, to.parent, self.to_fd.as_fd())?;
        self.note_origin(target, from.parent, self.from_fd.as_fd())?;
        let (from_name, to_name) = (FileName::new(from.name)?, FileName::new(to.name)?);
        self.tree.table.rename(source, (from.parent, from.name), (to.parent, to_name));
        self.tree.table.rename(target, (to.parent, to.name), (from.parent, from_name));
        Ok(())
    }

    /// Marks a directory for its new place: with lowers, where they are; without, that what the new place has below
    /// does not belong to it.
    fn mark_moved(&self, dir: &Arc<Inode>, to: End<'_>) -> Result<()> {
        let fd = self.tree.upper_fd(dir)?;
        if let Some(value) = redirect_value(self.tree, dir, to.parent)? {
            let namespace = self.upper.features.namespace.ok_or(Error::new(Errno::XDEV))?;
            let attributes = self.tree.stack.attributes();
            return attributes.set(fd.as_fd(), &namespace.name("redirect"), &value, 0);
        }
        if self.tree.below_provides(to.parent, to.name)? {
            set_opaque(self.tree, fd.as_fd())?;
        }
        Ok(())
    }

    /// Makes the upper part of the target directory, empty in the merged view, empty on disk too, so that it can be
    /// replaced: it changes places with an opaque twin.
    fn empty_target(&self, target: &Inode) -> Result<()> {
        let dir = self.to_fd.as_fd();
        let old = self.tree.upper_fd(target)?;
        let mut empty = true;
        sys::dirents::for_each_name(old.as_fd(), |_| {
            empty = false;
            Ok(false)
        })?;
        if empty {
            return Ok(());
        }
        let workdir = &self.upper.workdir;
        if !self.upper.features.exchange {
            return self.take_marks_out(target, old.as_fd());
        }
        let twin = workdir.temp();
        rustix::fs::mkdirat(workdir.fd(), twin.name(), Mode::RWXU)?;
        let fd = sys::open_at(workdir.fd(), twin.name(), OFlags::PATH | OFlags::DIRECTORY, 0)?;
        set_opaque(self.tree, fd.as_fd())?;
        self.upper.owners.copy(old.as_fd(), fd.as_fd())?;
        twin.publish(dir, self.to.name, RenameFlags::EXCHANGE)?;
        // Without attributes the opaque mark is a file, which must go before the rename.
        remove_opaque_file(fd.as_fd())
    }

    /// Takes the marks out of a directory that shows nothing, one by one: as soon as it is opaque none of them counts.
    fn take_marks_out(&self, target: &Inode, dir: BorrowedFd<'_>) -> Result<()> {
        if !target.lower_dirs().is_empty() {
            set_opaque(self.tree, dir)?;
        }
        let marks = sys::dirents::names(dir)?;
        for mark in marks.iter().filter(|mark| *mark != crate::ondisk::OPAQUE_FILE) {
            self.upper.workdir.discard(dir, mark)?;
        }
        remove_opaque_file(dir)
    }
}

fn remove_opaque_file(dir: BorrowedFd<'_>) -> Result<()> {
    match rustix::fs::unlinkat(dir, crate::ondisk::OPAQUE_FILE, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Returns the redirect of a directory for its place in `parent`; none if it has no lowers.
///
/// # Errors
/// EXDEV if the path is longer than kernel overlayfs follows.
fn redirect_value(tree: &Tree, dir: &Arc<Inode>, parent: &Arc<Inode>) -> Result<Option<Vec<u8>>> {
    if dir.lower_dirs().is_empty() {
        return Ok(None);
    }
    let mut path = path_below(tree, dir)?;
    // A relative redirect is looked up in the lowers of the new parent.
    if !parent.lower_dirs().is_empty()
        && let Some((name, above)) = path.split_last()
        && path_below(tree, parent)? == above
    {
        return Ok(Some(name.clone()));
    }
    path.insert(0, Vec::new());
    let path = path.join(&b'/');
    if path.len() > REDIRECT_MAX {
        return Err(Error::new(Errno::XDEV));
    }
    Ok(Some(path))
}

/// Returns the path of a directory with lowers in the merged tree of the lowers: where redirects are followed from. A
/// layer may have moved what lies below it, so it is not the path on the layer that holds the directory.
///
/// Preconditions: no directory with lowers is being moved.
fn path_below(tree: &Tree, dir: &Arc<Inode>) -> Result<Vec<Vec<u8>>> {
    let namespace = tree.stack.upper()?.features.namespace;
    let mut path = Vec::new();
    let mut at = Arc::clone(dir);
    while let Some(place) = at.place() {
        let redirect = match namespace.filter(|_| at.on_upper()) {
            None => None,
            Some(namespace) => {
                let fd = tree.upper_fd(&at)?;
                match tree.stack.attributes().get(fd.as_fd(), &namespace.name("redirect")) {
                    Ok(value) => Some(marks::parse_redirect(&value, tree.stack.follow)?),
                    Err(error) if error.is(Errno::NODATA) => None,
                    Err(error) => return Err(error),
                }
            }
        };
        match redirect {
            Some(Redirect::Absolute(components)) => {
                path.extend(components.into_iter().rev());
                break;
            }
            Some(Redirect::Sibling(name)) => path.push(name),
            None => path.push(place.name.as_bytes().to_vec()),
        }
        at = place.parent;
    }
    path.reverse();
    Ok(path)
}
