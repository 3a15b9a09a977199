//! The union: one public method per file system operation, plain arguments and plain results.
//!
//! Adapters decode a request, call one method and encode its result. Everything works without a mount.

mod listed;
mod live;

use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use crate::create::{self, New};
use crate::error::{Errno, Error, Result};
use crate::gate::Gate;
use crate::handles::{DirHandle, Snapshot};
use crate::inode::{Data, Inode};
use crate::inode_table::{Node, Seen};
use crate::merge::{self, ListedName, Listing};
use crate::options::{MountOptions, Verity};
use crate::rename::End;
use crate::request::{
    Attr, Caller, DirEntry, Entry, Fh, FileKind, NodeId, Opened, RenameMode, SetAttr, StatFs,
};
use crate::sys::Stat;
use crate::tree::Tree;
use crate::{attr, file_io, identity, inode_flags, remove, rename, xattr_ops};
use listed::look_up_listed;

/// Positions of `.` and `..` in every listing; names follow.
const DOTS: u64 = 2;

/// A mounted stack of layers.
#[derive(Debug)]
pub struct Union {
    tree: Gate<Tree>,
    /// Those of the present layers, whose paths are absolute. Held while they change.
    options: Mutex<MountOptions>,
    notices: Vec<String>,
}

impl Union {
    /// Opens the layers, checks them against each other and probes the upper.
    ///
    /// # Errors
    /// What is wrong with which layer. Nothing is left behind.
    pub fn open(options: &MountOptions) -> Result<Self> {
        let (tree, notices) = Tree::open(options)?;
        let options = Mutex::new(live::with_absolute_paths(options, &tree.stack));
        Ok(Self { tree: Gate::new(tree), options, notices })
    }

    /// Returns facts and fallbacks that were decided at open, a line each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Returns how many objects are known to the kernel or held by those that are.
    pub fn inodes(&self) -> usize {
        let tree = self.tree.enter();
        tree.table.count()
    }

    /// Returns how many bytes a change of the object would have to copy up first: 0 if it is on the upper, has no data,
    /// or cannot be told. For adapters that must not wait behind a long copy.
    pub fn bytes_to_copy_up(&self, node: NodeId) -> u64 {
        let tree = self.tree.enter();
        let Ok(inode) = tree.table.get(node) else { return 0 };
        if inode.kind != FileKind::Regular || inode.on_upper() {
            return 0;
        }
        tree.stat(&inode).map_or(0, |stat| stat.size)
    }

    /// Returns whether a change of attributes may copy data up.
    pub fn attributes_need_data(&self) -> bool {
        let tree = self.tree.enter();
        !tree.policy.metacopy || tree.policy.verity != Verity::Off
    }

    /// Returns whether to give the object another name may have to wait until its copy is safe on the disk.
    pub fn waits_to_move(&self, node: NodeId) -> bool {
        let tree = self.tree.enter();
        let Ok(inode) = tree.table.get(node) else { return false };
        let ino = if inode.kind == FileKind::Regular { inode.state.read().upper } else { None };
        ino.is_some_and(|ino| tree.unfinished.contains(ino))
    }

    /// Finds a name and counts one lookup of its object.
    ///
    /// # Errors
    /// ENOENT if there is none.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Entry> {
        let tree = self.tree.enter();
        look_up(&tree, &tree.table.get(parent)?, name)
    }

    /// Takes back `nlookup` lookups. Returns the directories that are gone with them: what is kept of these can go.
    pub fn forget(&self, node: NodeId, nlookup: u64) -> Vec<NodeId> {
        let tree = self.tree.enter();
        tree.forget(node, nlookup)
    }

    /// Returns the attributes.
    pub fn getattr(&self, node: NodeId, _fh: Option<Fh>) -> Result<Attr> {
        let tree = self.tree.enter();
        match tree.table.see(node)? {
            Seen::Whole(inode) => attr::getattr(&tree, &inode),
            Seen::Leaf(kind, lower) => tree.attr_of_leaf(node, kind, &lower),
        }
    }

    /// Changes attributes and returns the new ones.
    pub fn setattr(&self, caller: &Caller, node: NodeId, change: &SetAttr) -> Result<Attr> {
        let tree = self.tree.enter();
        tree.stack.upper()?;
        attr::setattr(&tree, caller, &tree.table.get(node)?, change)
    }

    /// Returns the target of a symbolic link.
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        let tree = self.tree.enter();
        let inode = tree.table.get(node)?;
        if inode.kind != FileKind::Symlink {
            return Err(Error::new(Errno::INVAL));
        }
        if !inode.on_upper() {
            return tree.lower_object(&inode)?.link_target();
        }
        let pin = tree.pin_upper(&inode)?;
        Ok(crate::sys::link_target(pin.as_fd())?)
    }

    /// Makes a fifo, socket, device or regular file; `mode` has the type bits.
    pub fn mknod(&self, caller: &Caller, parent: NodeId, name: &[u8], mode: u32, rdev: u64) -> Result<Entry> {
        self.make(caller, parent, name, New::Node { mode, rdev })
    }

    /// Makes a directory.
    pub fn mkdir(&self, caller: &Caller, parent: NodeId, name: &[u8], mode: u32) -> Result<Entry> {
        self.make(caller, parent, name, New::Directory { mode })
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, caller: &Caller, parent: NodeId, name: &[u8], target: &[u8]) -> Result<Entry> {
        self.make(caller, parent, name, New::Symlink { target })
    }

    fn make(&self, caller: &Caller, parent: NodeId, name: &[u8], new: New<'_>) -> Result<Entry> {
        let tree = self.tree.enter();
        tree.stack.upper()?;
        let (inode, stat, _) = create::create(&tree, caller, &tree.table.get(parent)?, name, new)?;
        Ok(entry(&tree, &inode, &stat))
    }

    /// Gives an object another name.
    pub fn link(&self, node: NodeId, parent: NodeId, name: &[u8]) -> Result<Entry> {
        let tree = self.tree.enter();
        tree.stack.upper()?;
        create::link(&tree, &tree.table.get(node)?, &tree.table.get(parent)?, name)
    }

    /// Removes a name of anything but a directory.
    pub fn unlink(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        let tree = self.tree.enter();
        remove::unlink(&tree, &tree.table.get(parent)?, name)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        let tree = self.tree.enter();
        remove::rmdir(&tree, &tree.table.get(parent)?, name)
    }

    /// Moves or exchanges names.
    pub fn rename(
        &self,
        parent: NodeId,
        name: &[u8],
        new_parent: NodeId,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        let tree = self.tree.enter();
        tree.stack.upper()?;
        let (parent, new_parent) = (tree.table.get(parent)?, tree.table.get(new_parent)?);
        let (from, to) = (End { parent: &parent, name }, End { parent: &new_parent, name: new_name });
        rename::rename(&tree, from, to, mode)
    }

    /// Makes a regular file and opens it. `flags` are those of open(2): without `O_EXCL` a file that exists is
    /// opened.
    pub fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        flags: u32,
    ) -> Result<(Entry, Opened)> {
        let tree = self.tree.enter();
        tree.stack.upper()?;
        let parent_inode = tree.table.get(parent)?;
        match create::create_open(&tree, caller, &parent_inode, name, mode) {
            Err(error) if error.is(Errno::EXIST) && flags.cast_signed() & libc::O_EXCL == 0 => {}
            result => return result,
        }
        let entry = look_up(&tree, &parent_inode, name)?;
        let opened = tree.table.get(entry.node).and_then(|inode| {
            let opened = file_io::open(&tree, &inode, flags, caller.uid != 0)?;
            Ok((Entry { attr: attr::getattr(&tree, &inode)?, ..entry }, opened))
        });
        if opened.is_err() {
            tree.forget(entry.node, 1);
        }
        opened
    }

    /// Makes a regular file without a name and opens it.
    pub fn tmpfile(
        &self,
        caller: &Caller,
        parent: NodeId,
        mode: u32,
        _flags: u32,
    ) -> Result<(Entry, Opened)> {
        let tree = self.tree.enter();
        tree.stack.upper()?;
        create::tmpfile(&tree, caller, &tree.table.get(parent)?, mode)
    }

    /// Opens a file. `kill_suidgid`: the caller may not keep set-id bits through `O_TRUNC`.
    pub fn open_file(&self, caller: &Caller, node: NodeId, flags: u32, kill_suidgid: bool) -> Result<Opened> {
        let tree = self.tree.enter();
        let inode = tree.table.get(node)?;
        if kill_suidgid && flags.cast_signed() & libc::O_TRUNC != 0 {
            attr::drop_set_gid(&tree, caller, &inode)?;
        }
        file_io::open(&tree, &inode, flags, kill_suidgid)
    }

    /// Reads until `buffer` is full or the file ends. `fh` is not needed: the node knows what serves it.
    pub fn read(&self, node: NodeId, _fh: Option<Fh>, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let tree = self.tree.enter();
        file_io::read(&tree, &tree.table.get(node)?, offset, buffer)
    }

    /// Calls `act` with the file that has the data at `offset`, and how many of the `size` bytes there are, while it serves
    /// the node. None if they are not all in one file, or cannot be read: [`Union::read`] then says why.
    pub fn lend_data<T, F>(&self, node: NodeId, offset: u64, size: usize, act: F) -> Option<T>
    where
        F: FnOnce(BorrowedFd<'_>, usize) -> Option<T>,
    {
        let tree = self.tree.enter();
        file_io::lend_data(&tree, &tree.table.get(node).ok()?, offset, size, act).ok()?
    }

    /// Writes all of `data`. `kill_suidgid`: the caller may not keep set-id bits.
    pub fn write(
        &self,
        node: NodeId,
        _fh: Option<Fh>,
        offset: u64,
        data: &[u8],
        kill_suidgid: bool,
    ) -> Result<usize> {
        let tree = self.tree.enter();
        file_io::write(&tree, &tree.table.get(node)?, offset, data, kill_suidgid)
    }

    /// Called when a descriptor is closed: every write was done when it was answered, so nothing is pending.
    pub fn flush(&self, node: NodeId, _fh: Option<Fh>) -> Result<()> {
        let tree = self.tree.enter();
        tree.table.get(node).map(drop)
    }

    /// Writes a file back to the disk.
    pub fn fsync(&self, node: NodeId, _fh: Option<Fh>, datasync: bool) -> Result<()> {
        let tree = self.tree.enter();
        file_io::fsync(&tree, &tree.table.get(node)?, datasync)
    }

    /// Closes a handle.
    pub fn release(&self, fh: Fh) {
        let tree = self.tree.enter();
        if let Some(handle) = tree.files.remove(fh) {
            file_io::release(&handle);
        }
    }

    /// Calls `act` with the file that serves an open object, if it is served by this file alone for as long as it lives,
    /// or until the upper is rotated, which waits for `act`: an upper file, or where nothing can be copied up, a lower
    /// one. Not the data of a metacopy, which may be another file after a reload.
    pub fn with_lasting_file<T>(&self, node: NodeId, act: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
        let tree = self.tree.enter();
        let inode = tree.table.get(node).ok()?;
        let file = match &*inode.data.read() {
            Some(Data::Upper(file)) if file.parts().is_none() => Arc::clone(&file.fd),
            Some(Data::Lower(file)) if tree.stack.upper.is_none() && !inode.is_metacopy() => {
                return file.lend(act).ok();
            }
            Some(_) | None => return None,
        };
        Some(act(file.as_fd()))
    }

    /// Closes a handle whose file is likely to be used again without one: it stays open for a while.
    pub fn park(&self, fh: Fh) {
        let tree = self.tree.enter();
        if let Some(handle) = tree.files.remove(fh) {
            file_io::park(&tree, &handle);
        }
    }

    /// Allocates, punches or zeroes a range.
    pub fn fallocate(
        &self,
        node: NodeId,
        _fh: Option<Fh>,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<()> {
        let tree = self.tree.enter();
        file_io::fallocate(&tree, &tree.table.get(node)?, offset, length, mode)
    }

    /// Finds the next data (`SEEK_DATA`) or hole (`SEEK_HOLE`).
    pub fn lseek(&self, node: NodeId, _fh: Option<Fh>, offset: u64, whence: u32) -> Result<u64> {
        let tree = self.tree.enter();
        file_io::lseek(&tree, &tree.table.get(node)?, offset, whence)
    }

    /// Copies between two open files: (node, handle, offset) each.
    pub fn copy_file_range(
        &self,
        source: (NodeId, Option<Fh>, u64),
        target: (NodeId, Option<Fh>, u64),
        len: u64,
    ) -> Result<u64> {
        let tree = self.tree.enter();
        let (from, to) = (tree.table.get(source.0)?, tree.table.get(target.0)?);
        file_io::copy_file_range(&tree, (&from, source.2), (&to, target.2), len)
    }

    /// Opens a directory.
    pub fn opendir(&self, node: NodeId) -> Result<Fh> {
        let tree = self.tree.enter();
        let inode = tree.table.get(node)?;
        if !inode.is_dir() {
            return Err(Error::new(Errno::NOTDIR));
        }
        Ok(tree.dirs.insert(DirHandle { inode, listing: Mutex::new(None) }))
    }

    /// Gives the entries from `offset` on, until the listing ends or `sink` breaks: what it breaks on is not consumed.
    pub fn readdir(
        &self,
        _node: NodeId,
        fh: Fh,
        offset: u64,
        sink: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let tree = self.tree.enter();
        let handle = tree.dirs.get(fh)?;
        let snapshot = snapshot_for(&tree, &handle, offset)?;
        give_names(&tree, &handle.inode, &snapshot, offset, &mut |name| sink(name))
    }

    /// As [`Self::readdir`], each entry looked up: `None` for `.`, `..` and names that cannot be. A lookup is counted
    /// for each entry that `sink` goes on from.
    pub fn readdirplus(
        &self,
        _node: NodeId,
        fh: Fh,
        offset: u64,
        sink: &mut dyn FnMut(DirEntry<'_>, Option<Entry>) -> ControlFlow<()>,
    ) -> Result<()> {
        let tree = self.tree.enter();
        let handle = tree.dirs.get(fh)?;
        let snapshot = snapshot_for(&tree, &handle, offset)?;
        give_entries(&tree, &handle.inode, &snapshot, offset, sink)
    }

    /// Returns the names of a directory as they are now.
    pub(crate) fn snapshot(&self, node: NodeId) -> Result<Snapshot> {
        let tree = self.tree.enter();
        let inode = tree.table.get(node)?;
        if !inode.is_dir() {
            return Err(Error::new(Errno::NOTDIR));
        }
        take_snapshot(&tree, &inode)
    }

    /// As [`Self::readdirplus`], or [`Self::readdir`] if not `plus`, of names that were taken before.
    ///
    /// # Errors
    /// EBADF if the number of the node is another directory's by now.
    pub(crate) fn read_snapshot(
        &self,
        node: NodeId,
        snapshot: &Snapshot,
        offset: u64,
        plus: bool,
        sink: &mut dyn FnMut(DirEntry<'_>, Option<Entry>) -> ControlFlow<()>,
    ) -> Result<()> {
        let tree = self.tree.enter();
        let inode = tree.table.get(node)?;
        if inode.serial != snapshot.serial {
            return Err(Error::new(Errno::BADF));
        }
        if plus {
            return give_entries(&tree, &inode, snapshot, offset, sink);
        }
        give_names(&tree, &inode, snapshot, offset, &mut |name| sink(name, None))
    }

    /// Closes a directory.
    pub fn releasedir(&self, fh: Fh) {
        let tree = self.tree.enter();
        drop(tree.dirs.remove(fh));
    }

    /// Writes a directory back to the disk.
    pub fn fsyncdir(&self, node: NodeId, datasync: bool) -> Result<()> {
        let tree = self.tree.enter();
        file_io::fsyncdir(&tree, &*tree.table.get(node)?, datasync)
    }

    /// Returns file system totals.
    pub fn statfs(&self) -> Result<StatFs> {
        let tree = self.tree.enter();
        attr::statfs(&tree)
    }

    /// Sets an extended attribute; `flags` are `XATTR_CREATE` and `XATTR_REPLACE`.
    pub fn setxattr(&self, node: NodeId, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        let tree = self.tree.enter();
        tree.stack.upper()?;
        xattr_ops::set(&tree, &tree.table.get(node)?, name, value, flags)
    }

    /// Returns the whole value of an extended attribute.
    pub fn getxattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        let tree = self.tree.enter();
        xattr_ops::get(&tree, &*tree.table.get(node)?, name)
    }

    /// Returns the names of the extended attributes, each ended by NUL.
    pub fn listxattr(&self, node: NodeId) -> Result<Vec<u8>> {
        let tree = self.tree.enter();
        xattr_ops::list(&tree, &*tree.table.get(node)?)
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, node: NodeId, name: &[u8]) -> Result<()> {
        let tree = self.tree.enter();
        tree.stack.upper()?;
        xattr_ops::remove(&tree, &tree.table.get(node)?, name)
    }

    /// Answers an ioctl(2) about the flags of a file or directory. `input` is what the caller's argument holds.
    pub fn ioctl(&self, node: NodeId, command: u32, input: &[u8]) -> Result<Vec<u8>> {
        let tree = self.tree.enter();
        inode_flags::ioctl(&tree, &tree.table.get(node)?, command, input)
    }

    /// Called when the mount is gone. Every change is on its layer already; what `fsync` promises was kept when it
    /// was asked. What was copied up a moment ago is finished.
    pub fn destroy(&self) {
        {
            let tree = self.tree.enter();
            tree.unfinished.finish_all();
            if let Some(upper) = tree.stack.upper.as_ref().filter(|_| tree.policy.volatile) {
                upper.workdir.unmark_volatile();
            }
        }
        tracing::debug!(inodes = self.inodes(), "unmounted");
    }
}

fn entry(tree: &Tree, inode: &Inode, stat: &Stat) -> Entry {
    Entry { node: inode.id, attr: tree.attr(inode, stat) }
}

fn entry_of(tree: &Tree, node: &Node, stat: &Stat) -> Entry {
    Entry { node: node.id(), attr: tree.attr_of_node(node, stat) }
}

fn look_up(tree: &Tree, parent: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
    let (node, stat) = tree.lookup(parent, name)?;
    if let Node::Whole(inode) = &node
        && inode.kind == FileKind::Regular
        && inode.opens.load(Ordering::Relaxed) > 0
    {
        // What is open may have grown since its name was looked at.
        return Ok(entry(tree, inode, &tree.stat(inode)?));
    }
    Ok(entry_of(tree, &node, &stat))
}

/// Returns the names for a read at `offset`: those that the handle holds, or at the beginning those of now.
fn snapshot_for(tree: &Tree, handle: &DirHandle, offset: u64) -> Result<Snapshot> {
    let mut held = handle.listing.lock();
    if let (Some(snapshot), true) = (&*held, offset > 0) {
        return Ok(snapshot.clone());
    }
    let snapshot = take_snapshot(tree, &handle.inode)?;
    *held = Some(snapshot.clone());
    Ok(snapshot)
}

fn take_snapshot(tree: &Tree, dir: &Inode) -> Result<Snapshot> {
    // Before the names: what changes while they are read is looked up anew.
    let version = dir.version.load(Ordering::Acquire);
    Ok(Snapshot { listing: tree.listing(dir)?, version, serial: dir.serial })
}

fn give_names(
    tree: &Tree,
    dir: &Inode,
    snapshot: &Snapshot,
    offset: u64,
    sink: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
) -> Result<()> {
    let devices = devices(tree, dir)?;
    each_entry(tree, dir, &snapshot.listing, offset, &devices, &mut |entry, _| sink(entry))
}

fn give_entries(
    tree: &Tree,
    dir: &Arc<Inode>,
    snapshot: &Snapshot,
    offset: u64,
    sink: &mut dyn FnMut(DirEntry<'_>, Option<Entry>) -> ControlFlow<()>,
) -> Result<()> {
    let devices = devices(tree, dir)?;
    each_entry(tree, dir, &snapshot.listing, offset, &devices, &mut |name, listed| {
        let Some(listed) = listed else { return sink(name, None) };
        let (node, stat) = match look_up_listed(tree, dir, &listed, snapshot.version) {
            Ok(found) => found,
            // Gone since the listing was read.
            Err(error) if error.is(Errno::NOENT) => return ControlFlow::Continue(()),
            // Who asks for it alone is told why it cannot be had.
            Err(_) => return sink(name, None),
        };
        let looked_up = entry_of(tree, &node, &stat);
        let flow = sink(DirEntry { ino: looked_up.attr.ino, ..name }, Some(looked_up));
        if flow.is_break() {
            tree.forget(node.id(), 1);
        }
        flow
    })
}

/// Returns the device of each part of a directory, by the layer's number.
fn devices(tree: &Tree, dir: &Inode) -> Result<Vec<(merge::ListedLayer, u64)>> {
    let mut devices = Vec::new();
    if let (Some(upper), true) = (&tree.stack.upper, dir.on_upper()) {
        devices.push((merge::listed(tree.stack.upper_number()), upper.identity().0));
    }
    for lower in &*dir.lower_dirs() {
        devices.push((merge::listed(lower.layer), lower.identity.0));
    }
    Ok(devices)
}

fn each_entry(
    tree: &Tree,
    dir: &Inode,
    listing: &Listing,
    offset: u64,
    devices: &[(merge::ListedLayer, u64)],
    sink: &mut dyn FnMut(DirEntry<'_>, Option<ListedName<'_>>) -> ControlFlow<()>,
) -> Result<()> {
    let parent_ino = dir.place().map_or_else(|| dir.ino(), |place| place.parent.ino());
    for (at, name, ino) in [(0, &b"."[..], dir.ino()), (1, b"..", parent_ino)] {
        let entry = DirEntry { name, ino, kind: FileKind::Directory, next_offset: at + 1 };
        if at >= offset && sink(entry, None).is_break() {
            return Ok(());
        }
    }
    let mut index = usize::try_from(offset.saturating_sub(DOTS)).unwrap_or(usize::MAX);
    while let Some(listed) = listing.get(index) {
        let device = devices.iter().find(|(layer, _)| *layer == listed.layer).map_or(0, |(_, dev)| *dev);
        let entry = DirEntry {
            name: listed.name,
            ino: identity::listed_ino(tree, dir, device, &listed),
            kind: listed.kind,
            next_offset: index as u64 + DOTS + 1,
        };
        if sink(entry, Some(listed)).is_break() {
            break;
        }
        index += 1;
    }
    Ok(())
}
