//! The tree of the union in memory, over the layers: how a node's object is reached on disk.
//!
//! An upper object is reached by its place: the parent's descriptor and the name. A rename may be under way between
//! the disk and the memory, so what is reached is checked against the node's inode number and tried again.

mod names;
mod peek;
mod policy;
mod reach;
mod whiteouts;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rustix::fs::OFlags;

use crate::counts::Counts;
use crate::dir_cache::DirCache;
use crate::error::{Errno, Error, Result};
use crate::handles::{DirHandle, FileHandle, Handles};
use crate::identity;
use crate::idle_files::IdleFiles;
use crate::idmap::IdView;
use crate::index::Index;
use crate::inode::{Data, Inode, Lower, LowerData, Place, State};
use crate::inode_table::{Candidate, InodeTable, Node, ObjectKey};
use crate::lookup::{self, DirView, Found, LowerPart};
use crate::name::{self, FileName};
use crate::options::MountOptions;
use crate::parts::Parts;
use crate::request::{Attr, FileKind, NodeId};
use crate::stack::dir_fds::DirKey;
use crate::stack::lower::{DirFd, LowerDir, LowerName};
use crate::stack::marks::{self, DirMarks};
use crate::stack::{self, LayerStack};
use crate::sys::{self, Stat};
use crate::unfinished::Unfinished;
pub(crate) use peek::Peeked;
pub(crate) use policy::Policy;

/// The union in memory.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The layers.
    pub stack: LayerStack,
    /// The nodes.
    pub table: Arc<InodeTable>,
    /// Merged listings.
    pub listings: Arc<DirCache>,
    /// Open files.
    pub files: Arc<Handles<FileHandle>>,
    /// Open directories.
    pub dirs: Arc<Handles<DirHandle>>,
    /// Which upper inodes stand for lower ones with several names.
    pub(crate) index: Option<Arc<Index>>,
    /// Copied-up files that are not safe on the disk yet.
    pub(crate) unfinished: Arc<Unfinished>,
    /// What was done so far.
    pub(crate) counts: Arc<Counts>,
    /// Files in use without a handle.
    pub(crate) idle: Arc<IdleFiles>,
    /// How owners are shown and stored.
    pub uids: IdView,
    /// How groups are shown and stored.
    pub gids: IdView,
    /// Held while a directory is moved: where it is on the lowers must not change while it is written down.
    pub(crate) moves: Arc<Mutex<()>>,
    /// Facts about this mount.
    pub policy: Policy,
}

impl Tree {
    /// Opens the layers and makes the root.
    pub(crate) fn open(options: &MountOptions) -> Result<(Self, Vec<String>)> {
        let (mut stack, notices) = LayerStack::open(options)?;
        if let Err(error) = stack.read_index(options) {
            tracing::warn!("hard links of changed files are shown apart: {error}");
        }
        let (identity, upper) = match (&stack.upper, stack.lowers.first()) {
            (Some(upper), _) => (upper.identity(), Some(upper.identity().1)),
            (None, Some(lower)) => (lower.identity(), None),
            (None, None) => return Err(Error::new(Errno::INVAL)),
        };
        let state = State { upper, lower: root_lowers(&stack)?, ..State::default() };
        let ino = stack.shown_ino(identity.0, identity.1);
        let root = Arc::new(Inode::new(NodeId::ROOT, ino, FileKind::Directory, state));
        let device = stack.device_index(identity.0);
        let key = match upper {
            Some(ino) => ObjectKey::new(stack.upper_number(), device, ino),
            None => ObjectKey::new(stack.top, device, identity.1),
        };
        let overflow = |kind: &str| {
            let text = sys::read_setting(&format!("/proc/sys/kernel/overflow{kind}")).unwrap_or_default();
            text.trim().parse::<u32>().unwrap_or(65534)
        };
        let policy = Policy::new(options, &stack);
        let index = if options.index == Some(false) { None } else { Index::open(&stack)?.map(Arc::new) };
        let mut uids = options.uid_view(overflow("uid"));
        let mut gids = options.gid_view(overflow("gid"));
        if options.squash_unmapped {
            uids = uids.squashing_unmapped();
            gids = gids.squashing_unmapped();
        }
        let tree = Self {
            table: Arc::new(InodeTable::new(&root, key)),
            listings: Arc::default(),
            files: Arc::default(),
            dirs: Arc::default(),
            moves: Arc::default(),
            counts: Arc::default(),
            index,
            unfinished: Arc::new(Unfinished::new(stack.upper.as_deref(), policy.sync_copy_up)),
            idle: Arc::new(IdleFiles::new(stack::descriptor_budget())),
            uids,
            gids,
            policy,
            stack,
        };
        Ok((tree, notices))
    }

    /// Returns this tree over another upper, with a stack that serves the same names: nodes and handles are shared.
    pub(crate) fn with_stack(&self, stack: LayerStack, index: Option<Index>, options: &MountOptions) -> Self {
        let policy = Policy::new(options, &stack);
        Self {
            index: index.map(Arc::new),
            unfinished: Arc::new(Unfinished::new(stack.upper.as_deref(), policy.sync_copy_up)),
            policy,
            ..self.with_same_upper(stack)
        }
    }

    /// Returns this tree over a stack with the same upper: nodes and handles are shared.
    fn with_same_upper(&self, stack: LayerStack) -> Self {
        Self {
            table: Arc::clone(&self.table),
            listings: Arc::clone(&self.listings),
            files: Arc::clone(&self.files),
            dirs: Arc::clone(&self.dirs),
            counts: Arc::clone(&self.counts),
            moves: Arc::clone(&self.moves),
            idle: Arc::clone(&self.idle),
            index: self.index.clone(),
            uids: self.uids.clone(),
            gids: self.gids.clone(),
            unfinished: Arc::clone(&self.unfinished),
            policy: self.policy.clone(),
            stack,
        }
    }

    /// Returns this tree over the same layers looked at again: listings and files in use without a handle are forgotten.
    pub(crate) fn looked_at_again(&self, stack: LayerStack) -> Self {
        let idle = Arc::new(IdleFiles::new(stack::descriptor_budget()));
        Self { listings: Arc::default(), idle, ..self.with_same_upper(stack) }
    }

    /// Returns a descriptor of the upper part of a directory.
    ///
    /// # Errors
    /// ENOENT if the directory was removed, EIO if its place cannot be found.
    pub(crate) fn upper_fd(&self, dir: &Inode) -> Result<DirFd<'_>> {
        if dir.id == NodeId::ROOT {
            return Ok(DirFd::Root(self.stack.upper()?.root_fd()));
        }
        if let Some(fd) = self.stack.fds.get(DirKey::Upper(dir.serial)) {
            return Ok(DirFd::Cached(fd));
        }
        // Collect the way up to an ancestor that is open, then go down: no recursion, trees may be deep.
        let mut missing = vec![];
        let mut at: Option<Place> = None;
        loop {
            let current: &Inode = at.as_ref().map_or(dir, |place| &place.parent);
            if current.id == NodeId::ROOT || self.stack.fds.get(DirKey::Upper(current.serial)).is_some() {
                break;
            }
            if let Some(fd) = &current.state.read().pinned {
                self.stack.fds.put(DirKey::Upper(current.serial), Arc::clone(fd));
                break;
            }
            let place = current.place().ok_or(current.gone())?;
            missing.push(at.replace(place));
        }
        let mut opened = None;
        while let Some(place) = missing.pop() {
            let current: &Inode = place.as_ref().map_or(dir, |place| &place.parent);
            let fd = Arc::new(self.open_upper_dir(current)?);
            self.stack.fds.put(DirKey::Upper(current.serial), Arc::clone(&fd));
            opened = Some(fd);
        }
        let fd = opened.or_else(|| self.stack.fds.get(DirKey::Upper(dir.serial)));
        Ok(DirFd::Cached(fd.ok_or(Error::new(Errno::IO))?))
    }

    /// Opens a directory whose parent is open or near it.
    fn open_upper_dir(&self, dir: &Inode) -> Result<OwnedFd> {
        self.reach(dir, |parent, name| {
            let fd = sys::open_at(parent, name, OFlags::PATH | OFlags::DIRECTORY, 0)?;
            let ino = sys::stat_fd(fd.as_fd())?.ino;
            Ok((fd, ino))
        })
    }

    /// Returns the attributes of the object that serves a node, from its layer.
    pub(crate) fn stat(&self, inode: &Inode) -> Result<Stat> {
        let stat = self.own_stat(inode)?;
        Ok(self.shown_stat(inode, stat))
    }

    /// Returns what a node shows whose object has these attributes: links may be counted elsewhere, size and blocks be those
    /// of its data.
    pub(crate) fn shown_stat(&self, inode: &Inode, mut stat: Stat) -> Stat {
        let state = inode.state.read();
        stat.nlink = shown_links(&state, stat.nlink);
        if let Some(data) = &state.lower_data {
            (stat.blocks, stat.size) = (data.blocks, data.size);
        }
        stat
    }

    /// Returns the attributes of the object itself.
    pub(crate) fn own_stat(&self, inode: &Inode) -> Result<Stat> {
        let owners = self.stack.upper_owners();
        if let Some(Data::Upper(file)) = &*inode.data.read_recursive() {
            return match file.parts() {
                Some(parts) => parts.stat(file.fd.as_fd(), owners),
                None => Ok(owners.stat_fd(file.fd.as_fd())?),
            };
        }
        if inode.on_upper() {
            let number = inode.state.read().upper;
            if let Some(stat) = number.and_then(|ino| self.unfinished.stat(ino, owners)) {
                return stat;
            }
            if let Some(pinned) = &inode.state.read().pinned {
                return Ok(owners.stat_fd(pinned.as_fd())?);
            }
            if inode.is_dir() {
                return Ok(owners.stat_fd(self.upper_fd(inode)?.as_fd())?);
            }
            let upper = self.stack.upper()?;
            return self
                .reach(inode, |parent, name| upper.stat_at(parent, name).map(|stat| (stat, stat.ino)));
        }
        let lower = inode.state.read().lower.clone();
        self.lower_stat(&lower).unwrap_or_else(|| Err(inode.gone()))
    }

    /// Returns the attributes of an object on the lowers; `None` if it is on none.
    fn lower_stat(&self, lower: &Lower) -> Option<Result<Stat>> {
        let fds = &self.stack.fds;
        Some(match lower {
            Lower::File(dir, name, number) => {
                let stat = self.stack.lower(dir).and_then(|layer| layer.stat(fds, dir, name.as_bytes()));
                // Others have put another file there: two files must not be mixed.
                let same = |stat: Stat| if stat.ino == *number { Ok(stat) } else { Err(Errno::STALE.into()) };
                stat.and_then(same)
            }
            Lower::Held(file) => file.stat(),
            Lower::Dirs(dirs) => dirs
                .first()
                .ok_or(Error::new(Errno::NOENT))
                .and_then(|dir| self.stack.lower(dir)?.stat_dir(fds, dir)),
            Lower::None => return None,
        })
    }

    /// Makes a file safe that was copied up and is unfinished, and takes its marks away.
    pub(crate) fn finish(&self, inode: &Inode) -> Result<()> {
        let ino = inode.state.read().upper;
        ino.map_or(Ok(()), |ino| self.unfinished.finish(ino))
    }

    /// Brings the names in a directory of the upper to the disk, where the mount promises that.
    pub(crate) fn sync_names(&self, dir: BorrowedFd<'_>) -> Result<()> {
        if !self.policy.strict {
            return Ok(());
        }
        let readable = sys::open_at(dir, b".", OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
        Ok(sys::retry(|| rustix::fs::fsync(&readable))?)
    }

    /// Returns how a file is served that the upper has in parts.
    pub(crate) fn parts(&self, inode: &Inode) -> Option<Arc<Parts>> {
        let ino = if inode.kind == FileKind::Regular { inode.state.read().upper } else { None };
        self.unfinished.parts(ino?)
    }

    /// Translates a layer's attributes into those to show.
    pub(crate) fn attr(&self, inode: &Inode, stat: &Stat) -> Attr {
        let mut attr = self.attr_of(inode.ino(), inode.kind, stat);
        if inode.is_dir() && (self.policy.static_nlink || self.is_merged(inode)) {
            // The count of its subdirectories is not known without reading all its layers; 1 says so.
            attr.nlink = 1;
        }
        attr
    }

    /// As [`Self::attr`] for a node that was just looked up.
    pub(crate) fn attr_of_node(&self, node: &Node, stat: &Stat) -> Attr {
        match node {
            Node::Whole(inode) => self.attr(inode, stat),
            Node::Leaf(id, kind) => self.attr_of(id.0, *kind, stat),
        }
    }

    /// Returns what to show of a file of a lower that nobody has changed or holds.
    pub(crate) fn attr_of_leaf(&self, id: NodeId, kind: FileKind, lower: &Lower) -> Result<Attr> {
        let stat = self.lower_stat(lower).ok_or(Error::new(Errno::IO))??;
        Ok(self.attr_of(id.0, kind, &stat))
    }

    fn attr_of(&self, ino: u64, kind: FileKind, stat: &Stat) -> Attr {
        Attr {
            ino: if self.policy.ino32 { ino & u64::from(u32::MAX) } else { ino },
            kind,
            perm: stat.mode & 0o7777,
            nlink: stat.nlink,
            uid: self.uids.shown(stat.uid),
            gid: self.gids.shown(stat.gid),
            rdev: stat.rdev,
            size: stat.size,
            blocks: stat.blocks,
            blksize: stat.blksize,
            atime: stat.atime,
            mtime: stat.mtime,
            ctime: stat.ctime,
            btime: stat.btime,
        }
    }

    fn is_merged(&self, dir: &Inode) -> bool {
        let state = dir.state.read();
        state.lower.dirs().len() + usize::from(state.upper.is_some()) > 1
    }

    /// Holds what is needed to look names up in a directory.
    pub(crate) fn hold<'a>(&'a self, dir: &'a Inode) -> Result<DirHold<'a>> {
        let upper = if dir.on_upper() { Some(self.upper_fd(dir)?) } else { None };
        Ok(DirHold { tree: self, dir, upper, lowers: dir.lower_dirs() })
    }

    /// Finds `name` in a directory, makes its node and counts one lookup.
    ///
    /// # Errors
    /// ENOENT if there is no such name.
    pub(crate) fn lookup(&self, parent: &Arc<Inode>, name: &[u8]) -> Result<(Node, Stat)> {
        name::check(name).map_err(|e| if e.is(Errno::INVAL) { Error::new(Errno::NOENT) } else { e })?;
        if !parent.is_dir() {
            return Err(Error::new(Errno::NOTDIR));
        }
        loop {
            let version = parent.version.load(Ordering::Acquire);
            let listing = self.listings.get(parent.serial, version).filter(|_| self.policy.caches_names);
            if listing.is_some_and(|listing| listing.find(name).is_none()) {
                return Err(Error::new(Errno::NOENT));
            }
            let hold = self.hold(parent)?;
            let found = hold.find(name)?.ok_or(Error::new(Errno::NOENT))?;
            drop(hold);
            if let Some(found) = self.enter(parent, FileName::new(name)?, found, version)? {
                return Ok(found);
            }
        }
    }

    /// Returns a node that was just looked up as one that can be used.
    pub(crate) fn whole(&self, node: Node) -> Result<Arc<Inode>> {
        match node {
            Node::Whole(inode) => Ok(inode),
            Node::Leaf(id, _) => self.table.get(id),
        }
    }

    /// Makes or finds the node of what was found, and counts one lookup. `None` if it may be outdated.
    pub(crate) fn enter(
        &self,
        parent: &Arc<Inode>,
        name: FileName,
        found: Found,
        version: u64,
    ) -> Result<Option<(Node, Stat)>> {
        let (candidate, stat, upper) = self.candidate(parent, name, found)?;
        let mut stat = stat;
        let Some(node) = self.table.insert(candidate, version) else { return Ok(None) };
        if let Node::Whole(inode) = &node {
            if let Some(fd) = upper {
                self.stack.fds.put(DirKey::Upper(inode.serial), Arc::new(fd));
            }
            let lost = inode.state.read().lost_links;
            stat.nlink = stat.nlink.saturating_sub(lost);
        }
        Ok(Some((node, stat)))
    }

    /// Tells who it is that was found: what its node would be, its attributes, and for a directory of the upper a descriptor.
    pub(crate) fn candidate(
        &self,
        parent: &Arc<Inode>,
        name: FileName,
        found: Found,
    ) -> Result<(Candidate, Stat, Option<OwnedFd>)> {
        let identity = identity::identify(self, &name, &found)?;
        let Found { upper, lower, data, .. } = found;
        let mut stat = identity.stat;
        // A lower name that leads through the index: whether there is data below is for the object in the index to say.
        let data = match identity.data {
            None if upper.is_none() && identity.index.is_some() => None,
            own => data.or(own),
        };
        if let Some(data) = &data {
            stat.blocks = self.stack.stat_of(data).map_or(stat.blocks, |data| data.blocks);
        }
        let blocks = stat.blocks;
        if upper.is_some() {
            stat = self.unfinished.stat(stat.ino, self.stack.upper_owners()).unwrap_or(Ok(stat))?;
        }
        let candidate = Candidate {
            key: identity.key,
            ino: identity.ino,
            kind: stat.kind(),
            upper: (upper.is_some() || (identity.index.is_some() && identity.place.is_none()))
                .then_some(stat.ino),
            lower: match (identity.place, lower) {
                (Some(LowerName { dir, name }), _) => Lower::File(dir, name, stat.ino),
                (None, LowerPart::Dirs(dirs)) => Lower::Dirs(dirs.into()),
                (None, LowerPart::File(dir)) if identity.index.is_none() => {
                    Lower::File(dir, name.clone(), stat.ino)
                }
                (None, LowerPart::None | LowerPart::File(_)) => Lower::None,
            },
            lower_data: data.map(|file| LowerData { file, blocks, size: stat.size }),
            index: identity.index,
            parent: Arc::clone(parent),
            name,
        };
        Ok((candidate, stat, upper.flatten()))
    }

    /// Takes back lookups of a node. Returns the directories that are gone with them.
    pub(crate) fn forget(&self, id: NodeId, count: u64) -> Vec<NodeId> {
        let mut directories = Vec::new();
        for gone in self.table.forget(id, count) {
            if gone.kind == FileKind::Directory {
                self.listings.lose(gone.serial);
                directories.push(gone.id);
            } else {
                // It may be closed by now, and yet hold what pins it.
                self.idle.forget(gone.serial);
            }
        }
        directories
    }

    /// Returns whether the upper part of a directory may hold objects that show another inode number than their own.
    pub(crate) fn is_impure(&self, dir: &Inode) -> bool {
        if dir.state.read().impure {
            return true;
        }
        let Ok(fd) = self.upper_fd(dir) else { return false };
        let impure = self.stack.attributes().get(fd.as_fd(), &self.stack.namespace.name("impure")).is_ok();
        if impure {
            dir.state.write().impure = true;
        }
        impure
    }

    /// Marks the upper part of a directory as holding objects with an origin; kernel overlayfs needs the mark too.
    pub(crate) fn mark_impure(&self, dir: &Inode, fd: BorrowedFd<'_>) -> Result<()> {
        if dir.state.read().impure || self.stack.upper()?.features.namespace.is_none() {
            return Ok(());
        }
        self.stack.attributes().set(fd, &self.stack.namespace.name("impure"), b"y", 0)?;
        dir.state.write().impure = true;
        Ok(())
    }
}

/// A directory held open for lookups.
#[derive(Debug)]
pub(crate) struct DirHold<'a> {
    tree: &'a Tree,
    dir: &'a Inode,
    upper: Option<DirFd<'a>>,
    /// Its parts on the lowers.
    pub lowers: Arc<[Arc<LowerDir>]>,
}

impl DirHold<'_> {
    /// Calls `act` with the directory's layers.
    pub(crate) fn with_view<T>(&self, act: impl FnOnce(&DirView<'_>) -> Result<T>) -> Result<T> {
        let hides = |name: &[u8]| self.tree.upper_hides(self.dir, name);
        let upper = self.upper.as_ref().map(AsFd::as_fd);
        let below = |name: &[u8]| self.tree.known_below(self.dir, &self.lowers, name);
        let unmarked = self.dir.is_unmarked();
        act(&DirView { upper, lowers: &self.lowers, unmarked, upper_hides: &hides, below: &below })
    }

    /// Finds a name.
    pub(crate) fn find(&self, name: &[u8]) -> Result<Option<Found>> {
        self.with_view(|view| lookup::find(&self.tree.stack, view, name))
    }
}

/// Returns the number of links to show for an object whose inode has `links`.
pub(crate) fn shown_links(state: &State, links: u32) -> u32 {
    if let Some(indexed) = &state.index {
        return u32::try_from(i64::from(links) + indexed.difference).unwrap_or(0);
    }
    links.saturating_sub(state.lost_links)
}

/// Returns what the root has on the lowers: nothing where the root of the upper hides them.
pub(crate) fn root_lowers(stack: &LayerStack) -> Result<Lower> {
    let hidden = match &stack.upper {
        Some(upper) => {
            marks::read_attrs(stack.attributes(), upper.root_fd(), stack.namespace, stack.follow)?.opaque
        }
        None => false,
    };
    Ok(Lower::Dirs(if hidden { Arc::from([]) } else { stack.roots.clone().into() }))
}

/// The `.wh.` names of a directory whose upper part was just made: none.
pub(crate) fn no_whiteouts() -> Option<Box<DirMarks>> {
    Some(Box::default())
}
