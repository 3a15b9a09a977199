//! Rotation: the upper becomes the topmost lower and an empty one takes over, while the mount lives.
//!
//! Nobody else uses the tree meanwhile. The upper is first made to be a layer that says everything itself: names that
//! lead to its objects only through the index in the workdir get those objects, and the index is given up. Up to there
//! every step leaves a valid upper, and what is on disk shows the same tree with the old stack and with the new one. Then
//! nodes are told that what they had on the upper is on a lower. Objects without a name are part of no layer: they stay
//! what they are, private to who holds them.

mod names;
mod special;

use std::collections::HashMap;
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::copy_up;
use crate::error::{Errno, Error, Result};
use crate::index::Index;
use crate::inode::{Data, Inode, Lower, State};
use crate::inode_table::ObjectKey;
use crate::ondisk;
use crate::options::MountOptions;
use crate::request::NodeId;
use crate::stack::dir_fds::DirKey;
use crate::stack::lower::{LowerDir, LowerLayer};
use crate::stack::marks;
use crate::stack::probe::WhiteoutForm;
use crate::stack::upper::UpperLayer;
use crate::sys;
use crate::tree::{Tree, no_whiteouts};

/// Makes `next` the upper. `options` are those of the mount that then is.
///
/// Preconditions: no request is under way.
///
/// # Errors
/// What the layers answer; the tree is then as it was.
pub(crate) fn rotate(tree: &Tree, next: UpperLayer, options: &MountOptions) -> Result<Tree> {
    special::check(tree)?;
    names::complete(tree)?;
    // A layer has no file that only its server knows how to read.
    tree.unfinished.finish_all();
    if !tree.unfinished.is_empty() {
        return Err(Error::new(Errno::IO)
            .during("rotate", "a mount with copied-up files that cannot be written to the disk")
            .hint("the server's log tells which"));
    }
    let stack = tree.stack.rotated(next, options)?;
    let index = Index::open(&stack)?;
    if index.is_none() {
        return Err(no_index());
    }
    let rotated = tree.with_stack(stack, index, options);
    let nodes = tree.table.whole();
    let sunk = Sunk::describe(tree, rotated.stack.top_root()?, &nodes)?;
    clothe_root(tree, rotated.stack.top_lower()?, rotated.stack.upper()?)?;
    names::leave_index(tree, &nodes)?;
    if tree.policy.volatile {
        // The mark forbids to mount what may have been lost; the old upper is read-only from now on.
        let now = tree.stack.upper()?;
        rustix::fs::syncfs(now.root_fd())?;
        now.workdir.unmark_volatile();
    }
    rotated.stack.take_numbers_over(&tree.stack);
    // From here on nothing can fail.
    for inode in &nodes {
        sunk.sink(&rotated, inode);
    }
    Ok(rotated)
}

/// Checks what can be checked before requests are kept waiting.
///
/// # Errors
/// EROFS without an upper; EOPNOTSUPP without an index, with attributes beside the upper and with whiteouts that are files.
pub(crate) fn check(tree: &Tree) -> Result<()> {
    let upper = tree.stack.upper()?;
    let refuse =
        |what: &str, hint: &'static str| Err(Error::new(Errno::OPNOTSUPP).during("rotate", what).hint(hint));
    if upper.workdir.attributes.sidecar().is_some() {
        return refuse("an upper whose attributes are in its workdir", "it is no layer without them");
    }
    if upper.features.whiteouts == WhiteoutForm::Xattr {
        return refuse("an upper with whiteouts by attribute", "unmount, and mount with it as a lower layer");
    }
    if tree.index.is_none() { Err(no_index()) } else { Ok(()) }
}

fn no_index() -> Error {
    Error::new(Errno::OPNOTSUPP)
        .during("rotate", "a mount without an index")
        .hint("hard links made on it would fall apart: mount with index=on, on a file system with attributes and handles")
}

/// Gives the root of the new upper what the root of the old one shows: it is what the whole tree begins with.
fn clothe_root(tree: &Tree, sunk: &LowerLayer, next: &UpperLayer) -> Result<()> {
    let now = tree.stack.upper()?;
    let source = sunk.beside(now.root_fd().try_clone_to_owned()?);
    let stat = source.stat()?;
    let kept = source.xattr_names().unwrap_or_default();
    let old = sys::xattr::list(next.root_fd()).unwrap_or_default();
    for name in sys::xattr::names(&old) {
        if !ondisk::is_private_xattr(name) && !kept.iter().any(|kept| kept == name) {
            // A label of the host, for instance, may stay.
            if let Err(errno) = sys::xattr::remove(next.root_fd(), name) {
                tracing::debug!("an attribute of the new upper's root stays: {errno}");
            }
        }
    }
    copy_up::copy_metadata(tree, &source, &stat, next.root_fd())?;
    if let Some(namespace) = now.features.namespace {
        // Tells later mounts that objects of this layer may keep another number than their own.
        let number = tree.table.get(NodeId::ROOT)?.ino().to_string();
        sys::xattr::set(now.root_fd(), &namespace.name(marks::INO), number.as_bytes(), 0)?;
    }
    Ok(())
}

/// The upper of before as a lower.
struct Sunk {
    /// Its directories that have nodes, by the serial number of the node.
    dirs: HashMap<u64, Arc<LowerDir>>,
    /// Index of its device.
    device: u64,
    number: usize,
}

impl Sunk {
    /// Describes all directories that will be needed.
    fn describe(tree: &Tree, root: Arc<LowerDir>, nodes: &[Arc<Inode>]) -> Result<Self> {
        let device = tree.stack.upper()?.identity().0;
        let number = root.layer;
        let mut sunk = Self { dirs: HashMap::new(), device: tree.stack.device_index(device), number };
        sunk.dirs.insert(tree.table.get(NodeId::ROOT)?.serial, root);
        for inode in nodes {
            let state = inode.state.read();
            let dir = match &state.place {
                Some(place) if is_named_upper(&state, inode) => {
                    if inode.is_dir() {
                        Arc::clone(inode)
                    } else {
                        Arc::clone(&place.parent)
                    }
                }
                _ => continue,
            };
            drop(state);
            sunk.describe_dir(dir, device)?;
        }
        Ok(sunk)
    }

    /// Describes one directory and those above it. No recursion: trees may be deep.
    fn describe_dir(&mut self, dir: Arc<Inode>, device: u64) -> Result<()> {
        let mut missing = Vec::new();
        let mut at = dir;
        while !self.dirs.contains_key(&at.serial) {
            let place = at.place().ok_or(Error::new(Errno::IO))?;
            missing.push((at, place.name));
            at = place.parent;
        }
        let mut parent = self.dirs.get(&at.serial).map(Arc::clone);
        while let Some((dir, name)) = missing.pop() {
            let ino = dir.state.read().upper.ok_or(Error::new(Errno::IO))?;
            let described = LowerDir::of_upper(self.number, parent, name.as_bytes(), (device, ino));
            self.dirs.insert(dir.serial, Arc::clone(&described));
            parent = Some(described);
        }
        Ok(())
    }

    /// Tells a node that its part on the upper is now one on a lower. Layers keep their numbers, so it is known by the
    /// same key. The root is another object now, and what has no name would get one on the new upper.
    fn sink(&self, rotated: &Tree, inode: &Arc<Inode>) {
        let mut data = inode.data.write();
        let mut state = inode.state.write();
        let Some(own) = state.upper else { return };
        let key = |number| ObjectKey::new(rotated.stack.upper_number(), self.device, number);
        if !is_named_upper(&state, inode) {
            drop(state);
            return rotated.table.change_key(inode, key(own));
        }
        state.upper = None;
        state.pinned = None;
        state.lost_links = 0;
        state.impure = false;
        state.upper_whiteouts = None;
        if inode.is_dir() {
            let Some(dir) = self.dirs.get(&inode.serial) else { return };
            let below = state.lower.dirs().iter();
            state.lower = Lower::Dirs([dir].into_iter().chain(below).map(Arc::clone).collect());
            rotated.stack.fds.move_key(DirKey::Upper(inode.serial), DirKey::Lower(dir.id));
        } else if let Some(place) = &state.place {
            let Some(dir) = self.dirs.get(&place.parent.serial) else { return };
            state.lower = Lower::File(Arc::clone(dir), place.name.clone(), own);
            *data = data.take().and_then(|data| as_lower(data, rotated.stack.top_lower().ok()?));
        }
        if let (NodeId::ROOT, Some(upper)) = (inode.id, &rotated.stack.upper) {
            let number = upper.identity().1;
            state.upper = Some(number);
            state.upper_whiteouts = no_whiteouts();
            drop(state);
            rotated.table.change_key(inode, key(number));
        }
    }
}

/// Returns whether an object is part of the upper: what has no name is not.
fn is_named_upper(state: &State, inode: &Inode) -> bool {
    let named = inode.id == NodeId::ROOT || (state.place.is_some() && !state.unlinked);
    state.upper.is_some() && named
}

/// Turns the open file of an object that has sunk into one of a lower. None: it will be opened anew when it is needed.
fn as_lower(data: Data, layer: &LowerLayer) -> Option<Data> {
    let Data::Upper(file) = data else { return Some(data) };
    let readable = rustix::fs::fcntl_getfl(&file.fd).is_ok_and(|flags| !flags.contains(OFlags::WRONLY));
    let fd = Arc::try_unwrap(file.fd).ok().filter(|_| readable)?;
    Some(Data::Lower(layer.beside(fd)))
}
