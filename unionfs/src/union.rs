//! The union: one public method per file system operation, plain arguments and plain results.
//!
//! Adapters decode a request, call one method and encode its result. Everything works without a mount.

use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::create::{self, New};
use crate::error::{Errno, Error, Result};
use crate::handles::DirHandle;
use crate::inode::{Data, Inode};
use crate::inode_table::Node;
use crate::lookup::{DirView, Found};
use crate::merge::{self, ListedName, Listing};
use crate::name::FileName;
use crate::options::MountOptions;
use crate::rename::End;
use crate::request::{
    Attr, Caller, DirEntry, Entry, Fh, FileKind, NodeId, Opened, RenameMode, SetAttr, StatFs,
};
use crate::sys::Stat;
use crate::tree::Tree;
use crate::{attr, file_io, identity, lookup, remove, rename, xattr_ops};

/// Positions of `.` and `..` in every listing; names follow.
const DOTS: u64 = 2;

/// A mounted stack of layers.
#[derive(Debug)]
pub struct Union {
    tree: Tree,
    notices: Vec<String>,
}

impl Union {
    /// Opens the layers, checks them against each other and probes the upper.
    ///
    /// # Errors
    /// What is wrong with which layer. Nothing is left behind.
    pub fn open(options: &MountOptions) -> Result<Self> {
        let (tree, notices) = Tree::open(options)?;
        Ok(Self { tree, notices })
    }

    /// Returns facts and fallbacks that were decided at open, a line each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Returns how many objects are known to the kernel or held by those that are.
    pub fn inodes(&self) -> usize {
        self.tree.table.count()
    }

    /// Returns how many bytes a change of the object would have to copy up first: 0 if it is on the upper, has no data,
    /// or cannot be told. For adapters that must not wait behind a long copy.
    pub fn bytes_to_copy_up(&self, node: NodeId) -> u64 {
        let Ok(inode) = self.inode(node) else { return 0 };
        if inode.kind != FileKind::Regular || inode.on_upper() {
            return 0;
        }
        self.tree.stat(&inode).map_or(0, |stat| stat.size)
    }

    fn inode(&self, node: NodeId) -> Result<Arc<Inode>> {
        self.tree.table.get(node)
    }

    fn entry(&self, inode: &Inode, stat: &Stat) -> Entry {
        Entry { node: inode.id, attr: self.tree.attr(inode, stat) }
    }

    fn entry_of(&self, node: &Node, stat: &Stat) -> Entry {
        Entry { node: node.id(), attr: self.tree.attr_of_node(node, stat) }
    }

    /// Finds a name and counts one lookup of its object.
    ///
    /// # Errors
    /// ENOENT if there is none.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Entry> {
        let (node, stat) = self.tree.lookup(&self.inode(parent)?, name)?;
        if let Node::Whole(inode) = &node
            && inode.kind == FileKind::Regular
            && inode.opens.load(Ordering::Relaxed) > 0
        {
            // What is open may have grown since its name was looked at.
            let stat = self.tree.stat(inode)?;
            return Ok(self.entry(inode, &stat));
        }
        Ok(self.entry_of(&node, &stat))
    }

    /// Takes back `nlookup` lookups.
    pub fn forget(&self, node: NodeId, nlookup: u64) {
        self.tree.forget(node, nlookup);
    }

    /// Returns the attributes.
    pub fn getattr(&self, node: NodeId, _fh: Option<Fh>) -> Result<Attr> {
        attr::getattr(&self.tree, &*self.inode(node)?)
    }

    /// Changes attributes and returns the new ones.
    pub fn setattr(&self, _caller: &Caller, node: NodeId, change: &SetAttr) -> Result<Attr> {
        self.tree.stack.upper()?;
        attr::setattr(&self.tree, &self.inode(node)?, change)
    }

    /// Returns the target of a symbolic link.
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        let inode = self.inode(node)?;
        if inode.kind != FileKind::Symlink {
            return Err(Error::new(Errno::INVAL));
        }
        if !inode.on_upper() {
            return self.tree.pin_lower(&inode)?.link_target();
        }
        let pin = self.tree.pin_upper(&inode)?;
        Ok(rustix::fs::readlinkat(&pin, c"", Vec::new())?.into_bytes())
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
        self.tree.stack.upper()?;
        let (inode, stat, _) = create::create(&self.tree, caller, &self.inode(parent)?, name, new)?;
        Ok(self.entry(&inode, &stat))
    }

    /// Gives an object another name.
    pub fn link(&self, node: NodeId, parent: NodeId, name: &[u8]) -> Result<Entry> {
        self.tree.stack.upper()?;
        create::link(&self.tree, &self.inode(node)?, &self.inode(parent)?, name)
    }

    /// Removes a name of anything but a directory.
    pub fn unlink(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        remove::unlink(&self.tree, &self.inode(parent)?, name)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        remove::rmdir(&self.tree, &self.inode(parent)?, name)
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
        self.tree.stack.upper()?;
        let (parent, new_parent) = (self.inode(parent)?, self.inode(new_parent)?);
        let (from, to) = (End { parent: &parent, name }, End { parent: &new_parent, name: new_name });
        rename::rename(&self.tree, from, to, mode)
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
        self.tree.stack.upper()?;
        let parent_inode = self.inode(parent)?;
        match create::create_open(&self.tree, caller, &parent_inode, name, mode) {
            Err(error) if error.is(Errno::EXIST) && flags.cast_signed() & libc::O_EXCL == 0 => {}
            result => return result,
        }
        let entry = self.lookup(parent, name)?;
        match self.open_file(entry.node, flags, caller.uid != 0) {
            Ok(opened) => Ok((Entry { attr: self.getattr(entry.node, None)?, ..entry }, opened)),
            Err(error) => {
                self.forget(entry.node, 1);
                Err(error)
            }
        }
    }

    /// Makes a regular file without a name and opens it.
    pub fn tmpfile(
        &self,
        caller: &Caller,
        parent: NodeId,
        mode: u32,
        _flags: u32,
    ) -> Result<(Entry, Opened)> {
        self.tree.stack.upper()?;
        create::tmpfile(&self.tree, caller, &self.inode(parent)?, mode)
    }

    /// Opens a file. `kill_suidgid`: the caller may not keep set-id bits through `O_TRUNC`.
    pub fn open_file(&self, node: NodeId, flags: u32, kill_suidgid: bool) -> Result<Opened> {
        file_io::open(&self.tree, &self.inode(node)?, flags, kill_suidgid)
    }

    /// Reads until `buffer` is full or the file ends. `fh` is not needed: the node knows what serves it.
    pub fn read(&self, node: NodeId, _fh: Option<Fh>, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        file_io::read(&self.tree, &self.inode(node)?, offset, buffer)
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
        file_io::write(&self.tree, &self.inode(node)?, offset, data, kill_suidgid)
    }

    /// Called when a descriptor is closed: every write was done when it was answered, so nothing is pending.
    pub fn flush(&self, node: NodeId, _fh: Option<Fh>) -> Result<()> {
        self.inode(node).map(drop)
    }

    /// Writes a file back to the disk.
    pub fn fsync(&self, node: NodeId, _fh: Option<Fh>, datasync: bool) -> Result<()> {
        file_io::fsync(&self.tree, &self.inode(node)?, datasync)
    }

    /// Closes a handle.
    pub fn release(&self, fh: Fh) {
        if let Some(handle) = self.tree.files.remove(fh) {
            file_io::release(&handle);
        }
    }

    /// Returns the upper file that serves an open object, if it is served by one: it stays the same for as long as the
    /// object lives.
    pub fn upper_file(&self, node: NodeId) -> Option<Arc<OwnedFd>> {
        let inode = self.inode(node).ok()?;
        match &*inode.data.read() {
            Some(Data::Upper(file)) => Some(Arc::clone(&file.fd)),
            Some(Data::Lower(_)) | None => None,
        }
    }

    /// Closes a handle whose file is likely to be used again without one: it stays open for a while.
    pub fn park(&self, fh: Fh) {
        if let Some(handle) = self.tree.files.remove(fh) {
            file_io::park(&self.tree, &handle);
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
        file_io::fallocate(&self.tree, &self.inode(node)?, offset, length, mode)
    }

    /// Finds the next data (`SEEK_DATA`) or hole (`SEEK_HOLE`).
    pub fn lseek(&self, node: NodeId, _fh: Option<Fh>, offset: u64, whence: u32) -> Result<u64> {
        file_io::lseek(&self.tree, &self.inode(node)?, offset, whence)
    }

    /// Copies between two open files: (node, handle, offset) each.
    pub fn copy_file_range(
        &self,
        source: (NodeId, Option<Fh>, u64),
        target: (NodeId, Option<Fh>, u64),
        len: u64,
    ) -> Result<u64> {
        let (from, to) = (self.inode(source.0)?, self.inode(target.0)?);
        file_io::copy_file_range(&self.tree, (&from, source.2), (&to, target.2), len)
    }

    /// Opens a directory.
    pub fn opendir(&self, node: NodeId) -> Result<Fh> {
        let inode = self.inode(node)?;
        if !inode.is_dir() {
            return Err(Error::new(Errno::NOTDIR));
        }
        Ok(self.tree.dirs.insert(DirHandle { inode, listing: parking_lot::Mutex::new(None) }))
    }

    /// Gives the entries from `offset` on, until the listing ends or `sink` breaks: what it breaks on is not consumed.
    pub fn readdir(
        &self,
        _node: NodeId,
        fh: Fh,
        offset: u64,
        sink: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let handle = self.tree.dirs.get(fh)?;
        let (listing, _) = self.listing_for(&handle, offset)?;
        let devices = self.devices(&handle.inode)?;
        self.each_entry(&handle.inode, &listing, offset, &devices, &mut |entry, _| sink(entry))
    }

    /// As [`Self::readdir`], each entry looked up: `None` for `.`, `..` and names that are gone. A lookup is counted
    /// for each entry that `sink` goes on from.
    pub fn readdirplus(
        &self,
        _node: NodeId,
        fh: Fh,
        offset: u64,
        sink: &mut dyn FnMut(DirEntry<'_>, Option<Entry>) -> ControlFlow<()>,
    ) -> Result<()> {
        let handle = self.tree.dirs.get(fh)?;
        let (listing, version) = self.listing_for(&handle, offset)?;
        let devices = self.devices(&handle.inode)?;
        self.each_entry(&handle.inode, &listing, offset, &devices, &mut |entry, listed| {
            let Some(listed) = listed else { return sink(entry, None) };
            let Some((node, stat)) = self.look_up_listed(&handle.inode, &listed, version) else {
                return sink(entry, None);
            };
            let looked_up = self.entry_of(&node, &stat);
            let flow = sink(DirEntry { ino: looked_up.attr.ino, ..entry }, Some(looked_up));
            if flow.is_break() {
                self.tree.forget(node.id(), 1);
            }
            flow
        })
    }

    /// Returns the names for a read at `offset`: those that the handle holds, or at the beginning those of now.
    fn listing_for(&self, handle: &DirHandle, offset: u64) -> Result<(Arc<Listing>, u64)> {
        let mut held = handle.listing.lock();
        let version = handle.inode.version.load(Ordering::Acquire);
        if let (Some(listing), true) = (&*held, offset > 0) {
            return Ok((Arc::clone(listing), version));
        }
        let listing = self.tree.listing(&handle.inode)?;
        *held = Some(Arc::clone(&listing));
        Ok((listing, version))
    }

    /// Returns the device of each part of a directory, by the layer's index in a listing.
    fn devices(&self, dir: &Inode) -> Result<Vec<(merge::ListedLayer, u64)>> {
        let mut devices = Vec::new();
        if let (Some(upper), true) = (&self.tree.stack.upper, dir.on_upper()) {
            devices.push((merge::UPPER, upper.identity().0));
        }
        for lower in &*dir.lower_dirs() {
            let layer = merge::ListedLayer::try_from(lower.layer + 1).unwrap_or(merge::ListedLayer::MAX);
            devices.push((layer, lower.identity.0));
        }
        Ok(devices)
    }

    fn each_entry(
        &self,
        dir: &Inode,
        listing: &Listing,
        offset: u64,
        devices: &[(merge::ListedLayer, u64)],
        sink: &mut dyn FnMut(DirEntry<'_>, Option<ListedName<'_>>) -> ControlFlow<()>,
    ) -> Result<()> {
        let parent_ino = dir.place().map_or(dir.ino, |place| place.parent.ino);
        for (at, name, ino) in [(0, &b"."[..], dir.ino), (1, b"..", parent_ino)] {
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
                ino: identity::listed_ino(&self.tree, dir, device, &listed),
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

    /// Looks a listed name up, on the one layer that serves it if the listing is still right. `None` if it is gone.
    fn look_up_listed(
        &self,
        parent: &Arc<Inode>,
        listed: &ListedName<'_>,
        version: u64,
    ) -> Option<(Node, Stat)> {
        if parent.version.load(Ordering::Acquire) == version
            && let Ok(Some(found)) = self.find_listed(parent, listed)
            && let Ok(name) = FileName::new(listed.name)
            && let Ok(Some(entered)) = self.tree.enter(parent, name, found, version)
        {
            return Some(entered);
        }
        self.tree.lookup(parent, listed.name).ok()
    }

    fn find_listed(&self, parent: &Inode, listed: &ListedName<'_>) -> Result<Option<Found>> {
        let hold = self.tree.hold(parent)?;
        if listed.layer == merge::UPPER {
            return hold.find(listed.name);
        }
        let serves = |dir: &crate::stack::lower::LowerDir| dir.layer + 1 == usize::from(listed.layer);
        let Some(at) = hold.lowers.iter().position(|dir| serves(dir)) else { return Ok(None) };
        let lowers = hold.lowers.get(at..).unwrap_or_default();
        let view = DirView { upper: None, lowers, upper_hides: &|_| Ok(false) };
        lookup::find(&self.tree.stack, &view, listed.name)
    }

    /// Closes a directory.
    pub fn releasedir(&self, fh: Fh) {
        drop(self.tree.dirs.remove(fh));
    }

    /// Writes a directory back to the disk.
    pub fn fsyncdir(&self, node: NodeId, datasync: bool) -> Result<()> {
        file_io::fsyncdir(&self.tree, &*self.inode(node)?, datasync)
    }

    /// Returns file system totals.
    pub fn statfs(&self) -> Result<StatFs> {
        attr::statfs(&self.tree)
    }

    /// Sets an extended attribute; `flags` are `XATTR_CREATE` and `XATTR_REPLACE`.
    pub fn setxattr(&self, node: NodeId, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        self.tree.stack.upper()?;
        xattr_ops::set(&self.tree, &self.inode(node)?, name, value, flags)
    }

    /// Returns the whole value of an extended attribute.
    pub fn getxattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        xattr_ops::get(&self.tree, &*self.inode(node)?, name)
    }

    /// Returns the names of the extended attributes, each ended by NUL.
    pub fn listxattr(&self, node: NodeId) -> Result<Vec<u8>> {
        xattr_ops::list(&self.tree, &*self.inode(node)?)
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, node: NodeId, name: &[u8]) -> Result<()> {
        self.tree.stack.upper()?;
        xattr_ops::remove(&self.tree, &self.inode(node)?, name)
    }

    /// Called when the mount is gone. Every change is on its layer already; what `fsync` promises was kept when it
    /// was asked.
    pub fn destroy(&self) {
        tracing::debug!(inodes = self.inodes(), "unmounted");
    }
}
