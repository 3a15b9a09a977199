//! Making new objects: files, directories, nodes, symbolic links, hard links, unnamed files.
//!
//! An object is made in its place if that makes it right in one step; else it is built in the workdir and published
//! by one rename: over a whiteout, or when it must belong to somebody else than this process.

mod recorded;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Uid};

use crate::copy_up::{self, Need};
use crate::error::{Errno, Error, Result};
use crate::handles::FileHandle;
use crate::inode::{Data, Inode, State, UpperFile};
use crate::inode_table::ObjectKey;
use crate::lookup::Found;
use crate::name::{self, FileName};
use crate::ondisk::{self, NameClass, acl};
use crate::request::{Caller, Entry, FileKind, NodeId, Opened};
use crate::stack::probe::WhiteoutForm;
use crate::sys::{self, Stat};
use crate::tree::{Tree, no_whiteouts};

/// What to make.
#[derive(Clone, Copy, Debug)]
pub(crate) enum New<'a> {
    /// A regular file, to be opened.
    File {
        /// Permission bits, umask not applied.
        mode: u32,
    },
    /// A directory.
    Directory {
        /// Permission bits, umask not applied.
        mode: u32,
    },
    /// A fifo, socket, device or regular file.
    Node {
        /// Type and permission bits, umask not applied.
        mode: u32,
        /// Device number.
        rdev: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: &'a [u8],
    },
}

impl New<'_> {
    const fn mode(&self) -> u32 {
        match self {
            Self::File { mode } | Self::Directory { mode } | Self::Node { mode, .. } => *mode & 0o7777,
            Self::Symlink { .. } => 0o777,
        }
    }

    const fn is_symlink(&self) -> bool {
        matches!(self, Self::Symlink { .. })
    }
}

/// What stands in the upper where the new name goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Covered {
    /// Nothing: nothing was ever deleted there.
    No,
    /// A whiteout of a form that takes the name's place.
    Whiteout,
    /// A `.wh.NAME` beside it.
    DotWh,
}

/// Checks that a user may give an object this name.
///
/// # Errors
/// EINVAL for names that would be marks; ENAMETOOLONG for names whose whiteout could not be written.
pub(crate) fn check_new_name(tree: &Tree, name: &[u8]) -> Result<()> {
    name::check(name)?;
    if ondisk::classify(name) != NameClass::Plain {
        return Err(Error::new(Errno::INVAL));
    }
    let form = tree.stack.upper()?.features.whiteouts;
    if form == WhiteoutForm::DotWh && name.len() + ondisk::WHITEOUT_PREFIX.len() > name::NAME_MAX {
        return Err(Error::new(Errno::NAMETOOLONG));
    }
    Ok(())
}

/// Makes an object and counts one lookup of it. The descriptor is of a regular file, for reading and writing.
pub(crate) fn create(
    tree: &Tree,
    caller: &Caller,
    parent: &Arc<Inode>,
    name: &[u8],
    new: New<'_>,
) -> Result<(Arc<Inode>, Stat, Option<OwnedFd>)> {
    check_new_name(tree, name)?;
    if let New::Node { mode, rdev } = new
        && mode & libc::S_IFMT == libc::S_IFCHR
        && rdev == 0
    {
        // A whiteout; kernel overlayfs answers the same.
        return Err(Error::new(Errno::PERM));
    }
    copy_up::ensure_upper(tree, parent, Need::Data)?;
    let _names = parent.names.lock();
    let dir = Target { tree, caller, parent, fd: tree.upper_fd(parent)?, name };
    let (stat, fd) = dir.make(new)?;
    let (inode, stat) = dir.enter(stat, fd.is_none())?;
    Ok((inode, stat, fd))
}

/// A name about to be made.
struct Target<'a> {
    tree: &'a Tree,
    caller: &'a Caller,
    parent: &'a Arc<Inode>,
    fd: crate::stack::lower::DirFd<'a>,
    name: &'a [u8],
}

impl Target<'_> {
    fn make(&self, new: New<'_>) -> Result<(Stat, Option<OwnedFd>)> {
        if self.parent.state.read().unlinked {
            return Err(Error::new(Errno::NOENT));
        }
        let covered = covered(self.tree, self.parent, self.fd.as_fd(), self.name)?;
        let inherits = has_default_acl(self.tree, self.parent)?;
        let mode = if inherits { new.mode() } else { new.mode() & !self.caller.umask };
        let in_place = self.owner_is_ours() && self.tree.stack.upper_owners().are_inodes();
        if covered == Covered::No && in_place {
            match make_at(self.fd.as_fd(), self.name, new, mode) {
                Ok(fd) => return self.finish(self.fd.as_fd(), self.name, fd, new, mode, inherits),
                Err(Errno::EXIST) if self.is_stray_whiteout() => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.make_in_workdir(new, mode, inherits, covered)
    }

    /// Objects that this process makes belong to it; that is right if it is who asks.
    fn owner_is_ours(&self) -> bool {
        let (uid, gid) = self.wanted_owner();
        let ours = self.tree.policy.own_ids;
        uid.is_none_or(|uid| uid == ours.0) && gid.is_none_or(|gid| gid == ours.1)
    }

    /// The ids to store; `None` where they are squashed and so stay this process's.
    fn wanted_owner(&self) -> (Option<u32>, Option<u32>) {
        let tree = self.tree;
        let uid = if tree.uids.fixed.is_some() { None } else { tree.uids.disk(self.caller.uid) };
        let gid = if tree.gids.fixed.is_some() { None } else { tree.gids.disk(self.caller.gid) };
        (uid, gid)
    }

    /// A whiteout in a directory that has no lowers: another program left it.
    fn is_stray_whiteout(&self) -> bool {
        let (stack, dir) = (&self.tree.stack, self.fd.as_fd());
        sys::stat_at(dir, self.name).is_ok_and(|stat| stack.is_upper_whiteout(dir, self.name, &stat))
    }

    fn make_in_workdir(
        &self,
        new: New<'_>,
        mode: u32,
        inherits: bool,
        covered: Covered,
    ) -> Result<(Stat, Option<OwnedFd>)> {
        let upper = self.tree.stack.upper()?;
        if !upper.owners.are_inodes() && !inherits {
            // The record says all that a directory would give.
            let temp = upper.workdir.temp();
            let from = (upper.workdir.fd(), temp.name());
            let (stat, fd) = self.make_recorded(from, new, mode, inherits)?;
            self.publish(from, &stat, covered)?;
            return Ok((stat, fd));
        }
        // What is made inside a directory with the parent's default ACL inherits as it would in the parent.
        let nursery = upper.workdir.temp();
        rustix::fs::mkdirat(upper.workdir.fd(), nursery.name(), Mode::RWXU)?;
        let nest = sys::open_at(upper.workdir.fd(), nursery.name(), OFlags::PATH | OFlags::DIRECTORY, 0)?;
        if inherits {
            let acl = sys::xattr::get(self.fd.as_fd(), acl::DEFAULT)?;
            sys::xattr::set(nest.as_fd(), acl::DEFAULT, &acl, 0)?;
        }
        let parent = sys::stat_fd(self.fd.as_fd())?;
        if parent.mode & libc::S_ISGID != 0 {
            rustix::fs::chownat(&nest, c"", None, Some(Gid::from_raw(parent.gid)), AtFlags::EMPTY_PATH)?;
            let mode = Mode::RWXU | Mode::SGID;
            rustix::fs::chmodat(CWD, sys::proc_path(nest.as_fd()), mode, AtFlags::empty())?;
        }
        let (stat, fd) = if upper.owners.are_inodes() {
            let made = make_at(nest.as_fd(), self.name, new, mode)?;
            self.finish(nest.as_fd(), self.name, made, new, mode, inherits)?
        } else {
            self.make_recorded((nest.as_fd(), self.name), new, mode, inherits)?
        };
        self.publish((nest.as_fd(), self.name), &stat, covered)?;
        Ok((stat, fd))
    }

    /// Moves an object that was made in the workdir to its place.
    fn publish(&self, from: (BorrowedFd<'_>, &[u8]), stat: &Stat, covered: Covered) -> Result<()> {
        if stat.is_dir() && covered != Covered::No {
            let dir = sys::pin_at(from.0, from.1)?;
            set_opaque(self.tree, dir.as_fd())?;
        }
        let to = self.fd.as_fd();
        let rename = |flags| rustix::fs::renameat_with(from.0, from.1, to, self.name, flags);
        match covered {
            Covered::Whiteout if stat.is_dir() => {
                // The whiteout is in the workdir now and goes with the guard of what was there.
                rename(RenameFlags::EXCHANGE)?;
            }
            Covered::Whiteout => rename(RenameFlags::empty())?,
            Covered::No | Covered::DotWh => match rename(RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) if self.is_stray_whiteout() => rename(RenameFlags::EXCHANGE)?,
                Err(Errno::INVAL | Errno::NOSYS) => rename(RenameFlags::empty())?,
                result => result?,
            },
        }
        if covered == Covered::DotWh {
            remove_dot_wh(self.tree, self.parent, to, self.name)?;
        }
        Ok(())
    }

    /// Gives a new object its owner, and the mode that this process's umask may have cut.
    fn finish(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        fd: Option<OwnedFd>,
        new: New<'_>,
        mode: u32,
        inherits: bool,
    ) -> Result<(Stat, Option<OwnedFd>)> {
        self.tree.stack.attributes().born_at(dir, name)?;
        let stat = match &fd {
            Some(fd) => sys::stat_fd(fd.as_fd())?,
            None => sys::stat_at(dir, name)?,
        };
        let (uid, mut gid) = self.wanted_owner();
        if gid.is_some_and(|gid| gid != stat.gid) {
            let parent = sys::stat_fd(self.fd.as_fd())?;
            if parent.mode & libc::S_ISGID != 0 {
                gid = Some(parent.gid);
            }
        }
        let uid = uid.filter(|&uid| uid != stat.uid);
        let gid = gid.filter(|&gid| gid != stat.gid);
        let chown = uid.is_some() || gid.is_some();
        // What the directory gave: its group, its ACL.
        let wanted = if inherits || new.is_symlink() {
            stat.mode & 0o7777
        } else {
            mode | (stat.mode & libc::S_ISGID)
        };
        let chmod = stat.mode & 0o7777 != wanted || (chown && wanted & 0o6000 != 0);
        if !chown && !chmod {
            return Ok((stat, fd));
        }
        if chown {
            let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            let done = rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
            self.tree.policy.owner_stored(done)?;
        }
        if chmod {
            let pin = sys::pin_at(dir, name)?;
            let mode = Mode::from_raw_mode(wanted);
            rustix::fs::chmodat(CWD, sys::proc_path(pin.as_fd()), mode, AtFlags::empty())?;
        }
        Ok((sys::stat_at(dir, name)?, fd))
    }

    /// Gives a file without a name its owner and mode.
    fn own_unnamed(&self, fd: &OwnedFd, mode: u32, inherits: bool) -> Result<()> {
        let (uid, gid) = self.wanted_owner();
        let stat = sys::stat_fd(fd.as_fd())?;
        let uid = uid.filter(|&uid| uid != stat.uid).map(Uid::from_raw);
        // A set-gid directory gives its group, as the file system did.
        let inherits_group = sys::stat_fd(self.fd.as_fd())?.mode & libc::S_ISGID != 0;
        let gid = gid.filter(|&gid| gid != stat.gid && !inherits_group).map(Gid::from_raw);
        if uid.is_some() || gid.is_some() {
            self.tree.policy.owner_stored(rustix::fs::fchown(fd, uid, gid))?;
        }
        if !inherits {
            rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))?;
        }
        Ok(())
    }

    /// Makes the node of what was made.
    fn enter(&self, stat: Stat, fresh_dir: bool) -> Result<(Arc<Inode>, Stat)> {
        self.tree.table.touch(self.parent);
        let version = self.parent.version.load(Ordering::Acquire);
        if let Some(numbers) = self.tree.stack.numbers_for(&stat) {
            numbers.born(&stat);
        }
        let found = Found::new(stat, Some(None));
        let entered = self.tree.enter(self.parent, FileName::new(self.name)?, found, version)?;
        let (node, stat) = entered.ok_or(Error::new(Errno::IO))?;
        let inode = self.tree.whole(node)?;
        if fresh_dir && stat.is_dir() {
            let mut state = inode.state.write();
            state.upper_whiteouts = no_whiteouts();
            state.made_here = true;
        }
        Ok((inode, stat))
    }
}

/// Makes the object itself. The descriptor is of a regular file, for reading and writing.
fn make_at(
    dir: BorrowedFd<'_>,
    name: &[u8],
    new: New<'_>,
    mode: u32,
) -> std::result::Result<Option<OwnedFd>, Errno> {
    let permissions = Mode::from_raw_mode(mode);
    match new {
        New::File { .. } => {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
            return sys::open_at(dir, name, flags, mode).map(Some);
        }
        New::Directory { .. } => rustix::fs::mkdirat(dir, name, permissions)?,
        New::Node { mode, rdev } => {
            let kind = FileType::from_raw_mode(mode & libc::S_IFMT);
            rustix::fs::mknodat(dir, name, kind, permissions, rdev)?;
        }
        New::Symlink { target } => rustix::fs::symlinkat(target, dir, name)?,
    }
    Ok(None)
}

/// Tells what stands where a new name goes.
///
/// # Errors
/// EEXIST if the name is visible.
fn covered(tree: &Tree, parent: &Inode, upper: BorrowedFd<'_>, name: &[u8]) -> Result<Covered> {
    let lowers = parent.lower_dirs();
    if lowers.is_empty() {
        return Ok(Covered::No);
    }
    match sys::stat_at(upper, name) {
        Ok(stat) if tree.stack.is_upper_whiteout(upper, name, &stat) => Ok(Covered::Whiteout),
        Ok(_) => Err(Error::new(Errno::EXIST)),
        Err(Errno::NOENT) if tree.upper_hides(parent, name)? => Ok(Covered::DotWh),
        Err(Errno::NOENT) if tree.below_provides(parent, name)? => Err(Error::new(Errno::EXIST)),
        Err(Errno::NOENT) => Ok(Covered::No),
        Err(errno) => Err(errno.into()),
    }
}

/// Removes the `.wh.NAME` beside a name that exists again.
pub(crate) fn remove_dot_wh(tree: &Tree, parent: &Inode, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    match rustix::fs::unlinkat(dir, ondisk::whiteout_name(name), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    tree.note_upper_whiteout(parent, name, false);
    Ok(())
}

/// Marks a directory of the upper opaque.
pub(crate) fn set_opaque(tree: &Tree, dir: BorrowedFd<'_>) -> Result<()> {
    match tree.stack.upper()?.features.namespace {
        Some(namespace) => {
            tree.stack.attributes().set(dir, &namespace.name("opaque"), &[ondisk::OPAQUE_YES], 0)
        }
        None => {
            let flags = OFlags::WRONLY | OFlags::CREATE;
            Ok(sys::open_at(dir, ondisk::OPAQUE_FILE, flags, 0o600).map(drop)?)
        }
    }
}

/// Returns whether new objects in a directory get an ACL from it. Asked once, and again after ACLs were set.
fn has_default_acl(tree: &Tree, dir: &Inode) -> Result<bool> {
    match dir.state.read().default_acl {
        1 => return Ok(false),
        2 => return Ok(true),
        _ => {}
    }
    let has = sys::xattr::get(tree.upper_fd(dir)?.as_fd(), acl::DEFAULT).is_ok();
    dir.state.write().default_acl = if has { 2 } else { 1 };
    Ok(has)
}

/// Makes a regular file and opens it.
pub(crate) fn create_open(
    tree: &Tree,
    caller: &Caller,
    parent: &Arc<Inode>,
    name: &[u8],
    mode: u32,
) -> Result<(Entry, Opened)> {
    let (inode, stat, fd) = create(tree, caller, parent, name, New::File { mode })?;
    let fd = fd.ok_or(Error::new(Errno::IO))?;
    let opened = serve(tree, &inode, fd, &stat);
    Ok((Entry { node: inode.id, attr: tree.attr(&inode, &stat) }, opened))
}

/// Opens a handle on a file that was just made.
fn serve(tree: &Tree, inode: &Arc<Inode>, fd: OwnedFd, stat: &Stat) -> Opened {
    let mut data = inode.data.write();
    inode.opens.fetch_add(1, Ordering::Relaxed);
    *data = Some(Data::Upper(UpperFile::new(Arc::new(fd), true, stat.mode)));
    drop(data);
    Opened { fh: tree.files.insert(FileHandle { inode: Arc::clone(inode) }), keep_cache: true }
}

/// Makes a regular file without a name and opens it.
///
/// # Errors
/// EOPNOTSUPP if the upper's file system has no O_TMPFILE.
pub(crate) fn tmpfile(
    tree: &Tree,
    caller: &Caller,
    parent: &Arc<Inode>,
    mode: u32,
) -> Result<(Entry, Opened)> {
    copy_up::ensure_upper(tree, parent, Need::Data)?;
    let dir = Target { tree, caller, parent, fd: tree.upper_fd(parent)?, name: b"" };
    let flags = OFlags::RDWR | OFlags::TMPFILE;
    let inherits = has_default_acl(tree, parent)?;
    let mode = if inherits { mode & 0o7777 } else { mode & 0o7777 & !caller.umask };
    let fd = sys::open_at(dir.fd.as_fd(), b".", flags, mode)?;
    tree.stack.attributes().born(fd.as_fd())?;
    let owners = tree.stack.upper_owners();
    if owners.are_inodes() {
        dir.own_unnamed(&fd, mode, inherits)?;
    } else {
        owners.record(fd.as_fd(), &dir.new_record(New::File { mode }, mode, inherits)?)?;
    }
    let stat = owners.stat_fd(fd.as_fd())?;
    let state = State {
        upper: Some(stat.ino),
        pinned: Some(Arc::new(fd.try_clone()?)),
        unlinked: true,
        ..State::default()
    };
    let key = ObjectKey::new(tree.stack.upper_number(), tree.stack.device_index(stat.dev), stat.ino);
    let ino = tree.stack.shown_ino(stat.dev, stat.ino);
    let inode = tree.table.insert_unnamed(key, ino, FileKind::Regular, state);
    let opened = serve(tree, &inode, fd, &stat);
    Ok((Entry { node: inode.id, attr: tree.attr(&inode, &stat) }, opened))
}

/// Gives an object another name.
///
/// # Errors
/// EPERM for directories, EEXIST if the name is taken, EXDEV and EMLINK as the upper's file system says.
pub(crate) fn link(tree: &Tree, node: &Arc<Inode>, parent: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
    check_new_name(tree, name)?;
    if node.is_dir() || node.id == NodeId::ROOT {
        return Err(Error::new(Errno::PERM));
    }
    copy_up::ensure_upper(tree, node, Need::Safe)?;
    copy_up::ensure_upper(tree, parent, Need::Data)?;
    let _names = parent.names.lock();
    if parent.state.read().unlinked {
        return Err(Error::new(Errno::NOENT));
    }
    let to = tree.upper_fd(parent)?;
    let covered = covered(tree, parent, to.as_fd(), name)?;
    parent.may_hold_marks();
    let pin = tree.pin_upper(node)?;
    let source = sys::proc_path(pin.as_fd());
    let link_to = |dir: BorrowedFd<'_>, name: &[u8]| {
        rustix::fs::linkat(CWD, source.as_str(), dir, name, AtFlags::SYMLINK_FOLLOW)
    };
    match covered {
        Covered::No => link_to(to.as_fd(), name)?,
        Covered::Whiteout => {
            let upper = tree.stack.upper()?;
            let temp = upper.workdir.temp();
            link_to(upper.workdir.fd(), temp.name())?;
            temp.publish(to.as_fd(), name, RenameFlags::empty())?;
        }
        Covered::DotWh => {
            link_to(to.as_fd(), name)?;
            remove_dot_wh(tree, parent, to.as_fd(), name)?;
        }
    }
    let own = node.state.read().upper.unwrap_or_default();
    if tree.stack.shown_ino(tree.stack.upper()?.identity().0, own) != node.ino() {
        tree.mark_impure(parent, to.as_fd())?;
    }
    tree.table.link(node, parent, FileName::new(name)?);
    tree.table.remember(node);
    let stat = tree.stat(node)?;
    Ok(Entry { node: node.id, attr: tree.attr(node, &stat) })
}
