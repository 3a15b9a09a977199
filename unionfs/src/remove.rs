//! Removing names: plainly where only the upper has them, with a whiteout where a lower provides them.

mod held;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, OFlags, RenameFlags};

use crate::copy_up::{self, Need};
use crate::counts::add;
use crate::error::{Errno, Error, Result};
use crate::inode::Inode;
use crate::links;
use crate::ondisk;
use crate::stack::LayerStack;
use crate::stack::dir_fds::DirKey;
use crate::stack::probe::{self, WhiteoutForm};
use crate::stack::upper::UpperLayer;
use crate::stack::workdir::Temp;
use crate::sys;
use crate::tree::{Peeked, Tree};

pub(crate) use held::Held;

/// Removes a name of anything but a directory. No data is copied.
///
/// # Errors
/// ENOENT, EISDIR, and what the upper answers.
pub(crate) fn unlink(tree: &Tree, parent: &Arc<Inode>, name: &[u8]) -> Result<()> {
    let upper = tree.stack.upper()?;
    copy_up::ensure_upper(tree, parent, Need::Data)?;
    let victim = tree.peek(parent, name)?;
    if victim.inode.is_dir() {
        return Err(Error::new(Errno::ISDIR));
    }
    keep_count(tree, &victim)?;
    let _names = parent.names.lock();
    still_there(&victim, parent, name)?;
    let dir = tree.upper_fd(parent)?;
    let on_upper = victim.inode.on_upper();
    let provided = !on_upper || tree.below_provides(parent, name)?;
    let named = on_upper && has_upper_name(&tree.stack, &victim.inode, dir.as_fd(), name)?;
    let held =
        if on_upper { Held::without(tree, upper, &victim, dir.as_fd(), name)? } else { Held::default() };
    match (provided, named) {
        (false, _) => upper.workdir.unlink(dir.as_fd(), name)?,
        (true, false) => put_whiteout(tree, upper, parent, dir.as_fd(), name)?,
        (true, true) => replace_by_whiteout(tree, upper, parent, dir.as_fd(), name)?,
    }
    links::lose_link(tree, &victim.inode, victim.stat.nlink, named)?;
    forget_name(tree, &victim.inode, parent, name, held, is_last_link(tree, &victim));
    Ok(())
}

/// Brings a lower object with several names into the index before one of them goes: only there it is counted. No data
/// is copied.
pub(crate) fn keep_count(tree: &Tree, victim: &Peeked<'_>) -> Result<()> {
    if tree.index.is_some() && victim.stat.nlink > 1 && !victim.inode.is_dir() && !victim.inode.on_upper() {
        copy_up::ensure_upper(tree, &victim.inode, Need::Metadata)?;
    }
    Ok(())
}

/// Checks that an object is where it was before the locks were taken.
///
/// # Errors
/// ENOENT if it was removed or renamed meanwhile.
pub(crate) fn still_there(object: &Peeked<'_>, parent: &Inode, name: &[u8]) -> Result<()> {
    let state = object.inode.state.read();
    let others = state.other_places.as_deref().map(Vec::as_slice).unwrap_or_default();
    let found = state.place.iter().chain(others).any(|place| place.is(parent, name));
    if found { Ok(()) } else { Err(Error::new(Errno::NOENT)) }
}

/// Returns whether the upper has an object under the name: members of the index may be reached without.
pub(crate) fn has_upper_name(
    stack: &LayerStack,
    inode: &Inode,
    dir: BorrowedFd<'_>,
    name: &[u8],
) -> Result<bool> {
    if inode.state.read().index.is_none() {
        return Ok(true);
    }
    match sys::stat_at(dir, name) {
        Ok(stat) => Ok(!stack.is_upper_whiteout(dir, name, &stat)),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Returns whether an object has no name left once the present one is gone.
pub(crate) fn is_last_link(tree: &Tree, victim: &Peeked<'_>) -> bool {
    // Without an index each name of a lower file is an object of its own.
    victim.stat.nlink <= 1 || victim.inode.is_dir() || (!victim.inode.on_upper() && tree.index.is_none())
}

/// Puts a whiteout over the upper file `name`.
fn replace_by_whiteout(
    tree: &Tree,
    upper: &UpperLayer,
    parent: &Inode,
    dir: BorrowedFd<'_>,
    name: &[u8],
) -> Result<()> {
    match upper.features.whiteouts {
        WhiteoutForm::CharDevice | WhiteoutForm::Xattr => {
            let whiteout = new_whiteout(tree, upper, parent, dir)?;
            let buried = upper.workdir.bury(dir, name)?;
            whiteout.publish(dir, name, RenameFlags::empty())?;
            buried.name_is_gone();
            tree.sync_names(dir)
        }
        WhiteoutForm::DotWh => {
            put_whiteout(tree, upper, parent, dir, name)?;
            upper.workdir.unlink(dir, name)
        }
    }
}

/// Makes, in the workdir, a whiteout that is to take the place of a name in a directory.
pub(crate) fn new_whiteout<'a>(
    tree: &Tree,
    upper: &'a UpperLayer,
    parent: &Inode,
    dir: BorrowedFd<'_>,
) -> Result<Temp<'a>> {
    add(&tree.counts.whiteouts, 1);
    let temp = upper.workdir.temp();
    match upper.features.whiteouts {
        WhiteoutForm::CharDevice => probe::make_whiteout(upper.workdir.fd(), temp.name())?,
        WhiteoutForm::Xattr => {
            tree.expect_xattr_whiteouts(parent, dir)?;
            probe::make_xattr_whiteout(upper.workdir.fd(), temp.name(), tree.stack.namespace)?;
        }
        WhiteoutForm::DotWh => return Err(Error::new(Errno::IO)),
    }
    Ok(temp)
}

/// Makes a whiteout where the upper has no object of that name, or for `.wh.NAME` also where it has.
pub(crate) fn put_whiteout(
    tree: &Tree,
    upper: &UpperLayer,
    parent: &Inode,
    dir: BorrowedFd<'_>,
    name: &[u8],
) -> Result<()> {
    if upper.features.whiteouts != WhiteoutForm::Xattr {
        add(&tree.counts.whiteouts, 1);
    }
    match upper.features.whiteouts {
        WhiteoutForm::CharDevice => probe::make_whiteout(dir, name)?,
        WhiteoutForm::Xattr => {
            new_whiteout(tree, upper, parent, dir)?.publish(dir, name, RenameFlags::NOREPLACE)?;
        }
        WhiteoutForm::DotWh => {
            let flags = OFlags::WRONLY | OFlags::CREATE;
            sys::open_at(dir, &ondisk::whiteout_name(name), flags, 0o600)?;
            tree.note_upper_whiteout(parent, name, true);
        }
    }
    tree.sync_names(dir)
}

/// Removes an empty directory. Empty is judged on the merged view.
///
/// # Errors
/// ENOENT, ENOTDIR, ENOTEMPTY, and what the upper answers.
pub(crate) fn rmdir(tree: &Tree, parent: &Arc<Inode>, name: &[u8]) -> Result<()> {
    let upper = tree.stack.upper()?;
    copy_up::ensure_upper(tree, parent, Need::Data)?;
    let _names = parent.names.lock();
    let victim = tree.peek(parent, name)?;
    if !victim.inode.is_dir() {
        return Err(Error::new(Errno::NOTDIR));
    }
    // Nothing may appear in it while it is judged and removed.
    let _inner = victim.inode.names.lock();
    let dir = tree.upper_fd(parent)?;
    let on_upper = victim.inode.on_upper();
    let provided = !on_upper || tree.below_provides(parent, name)?;
    let pin = if on_upper { Some(tree.pin_upper(&victim.inode)?) } else { None };
    let alone = !provided && victim.inode.lower_dirs().is_empty();
    if alone && upper.workdir.attributes.outside(dir.as_fd(), name)?.is_none() {
        // Only marks, which are not shown, can make the disk's judgement another than ours.
        match rustix::fs::unlinkat(dir.as_fd(), name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            result => {
                result?;
                forget_name(tree, &victim.inode, parent, name, Held::by(pin), true);
                return Ok(());
            }
        }
    }
    if !tree.listing(&victim.inode)?.is_empty() {
        return Err(Error::new(Errno::NOTEMPTY));
    }
    match (provided, pin.is_some()) {
        (true, false) => put_whiteout(tree, upper, parent, dir.as_fd(), name)?,
        (true, true) if upper.features.whiteouts != WhiteoutForm::DotWh => {
            // In one step the whiteout takes the place and the directory, with marks in it, is in the workdir.
            let whiteout = new_whiteout(tree, upper, parent, dir.as_fd())?;
            whiteout.publish(dir.as_fd(), name, RenameFlags::EXCHANGE)?;
            tree.sync_names(dir.as_fd())?;
        }
        (true, true) => {
            put_whiteout(tree, upper, parent, dir.as_fd(), name)?;
            remove_upper_dir(upper, dir.as_fd(), name)?;
        }
        (false, _) => remove_upper_dir(upper, dir.as_fd(), name)?,
    }
    forget_name(tree, &victim.inode, parent, name, Held::by(pin), true);
    Ok(())
}

/// Removes a directory that holds nothing but marks.
fn remove_upper_dir(upper: &UpperLayer, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    if upper.workdir.attributes.outside(dir, name)?.is_some() {
        return upper.workdir.discard(dir, name);
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => upper.workdir.discard(dir, name),
        result => Ok(result?),
    }
}

/// Takes a removed name away from its node, which lives on while anybody holds it.
///
/// `held` is what was held of the upper object before it was removed; `gone` tells whether this was its last link on
/// disk.
pub(crate) fn forget_name(
    tree: &Tree,
    inode: &Arc<Inode>,
    parent: &Inode,
    name: &[u8],
    held: Held<'_>,
    gone: bool,
) {
    let last = tree.table.unlink(inode, parent, name);
    if gone {
        tree.table.unkey(inode);
    }
    held.settle(inode, !last);
    if inode.is_dir() {
        inode.version.fetch_add(1, Ordering::Release);
        tree.stack.fds.remove(DirKey::Upper(inode.serial));
    }
}
