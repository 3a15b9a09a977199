//! A file that the kernel knows and nobody has used: its place, and no more.
//!
//! Everything else follows from the place: a leaf has one name, is served under that name by one layer, and its number
//! is the inode number that it shows.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Candidate, Node, ObjectKey};
use crate::inode::{Inode, Lower, Place, State};
use crate::name::FileName;
use crate::request::{FileKind, NodeId};
use crate::stack::FS_SHIFT;
use crate::stack::lower::LowerDir;

/// Names up to this length are stored in the leaf itself: the whole of it is 56 bytes, what an allocation of 64 holds.
const SHORT: usize = 30;

/// The node of an unused file.
#[derive(Debug)]
pub(crate) struct Leaf {
    id: NodeId,
    parent: Arc<Inode>,
    name: Name,
    /// Lookups by the kernel.
    refs: u32,
    /// The number of the layer that serves it.
    layer: u16,
    kind: FileKind,
}

#[derive(Debug)]
enum Name {
    Short(u8, [u8; SHORT]),
    Long(Box<[u8]>),
}

impl Name {
    fn new(bytes: &[u8]) -> Self {
        let mut short = [0; SHORT];
        match (short.get_mut(..bytes.len()), u8::try_from(bytes.len())) {
            (Some(space), Ok(len)) => {
                space.copy_from_slice(bytes);
                Self::Short(len, short)
            }
            _ => Self::Long(bytes.into()),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short(len, bytes) => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Self::Long(bytes) => bytes,
        }
    }
}

/// Whether a whole node can be a leaf.
#[derive(Debug)]
pub(super) enum Now {
    Yes(Box<Leaf>),
    /// It is in use.
    Later,
    /// More is to be remembered of it than a leaf holds.
    Never,
}

impl Leaf {
    /// Returns the leaf of an object that is looked up for the first time, if its place is all there is to remember.
    ///
    /// Preconditions: the node gets the usual number of its key.
    pub(super) fn of(candidate: &Candidate) -> Option<Self> {
        if !candidate.is_plain() {
            return None;
        }
        let place = (&candidate.parent, candidate.name.as_bytes());
        Self::new(candidate.key, candidate.kind, place, candidate.upper, &candidate.lower)
    }

    fn new(
        key: ObjectKey,
        kind: FileKind,
        (parent, name): (&Arc<Inode>, &[u8]),
        upper: Option<u64>,
        lower: &Lower,
    ) -> Option<Self> {
        let layer = match (upper, lower) {
            (Some(ino), Lower::None) if ino == key.number => key.layer()?,
            (None, Lower::File(dir, own, _)) if own.as_bytes() == name => {
                let held = parent.state.read().lower.dirs().iter().any(|held| Arc::ptr_eq(held, dir));
                u16::try_from(dir.layer).ok().filter(|_| held)?
            }
            _ => return None,
        };
        if kind == FileKind::Directory || key.layer() != Some(layer) {
            return None;
        }
        let id = key.usual_id()?;
        let parent = Arc::clone(parent);
        Some(Self { id, parent, name: Name::new(name), refs: 1, layer, kind })
    }

    /// Tells whether a whole node can be a leaf now, and makes it.
    pub(super) fn can_be(inode: &mut Arc<Inode>) -> Now {
        let Some(key) = inode.key.get().filter(|key| key.usual_id() == Some(inode.id)) else {
            return Now::Never;
        };
        // Only the table holds it, so nobody is in the middle of anything and no lock is needed.
        let Some(inode) = Arc::get_mut(inode) else { return Now::Later };
        // Every field is named: whoever adds one decides here whether it may be forgotten.
        let Inode {
            id,
            serial: _,
            shown,
            kind,
            refs,
            key: _,
            opens,
            version: _,
            copy_up: _,
            names: _,
            state,
            data,
        } = inode;
        let State {
            place,
            other_places,
            upper,
            pinned,
            lower,
            lower_data,
            index,
            upper_whiteouts: _,
            default_acl: _,
            xattr_whiteouts: _,
            impure: _,
            made_here: _,
            may_hold_marks: _,
            lost_links,
            unlinked,
            lost,
        } = state.get_mut();
        let more = other_places.is_some()
            || pinned.is_some()
            || lower_data.is_some()
            || index.is_some()
            || *lost_links > 0
            || *unlinked
            || *lost
            || *shown.get_mut() != id.0;
        let (false, Some(place)) = (more, place) else { return Now::Never };
        if data.get_mut().is_some() || *opens.get_mut() > 0 {
            return Now::Later;
        }
        let refs = u32::try_from(*refs.get_mut());
        let leaf = Self::new(key, *kind, (&place.parent, place.name.as_bytes()), *upper, lower);
        match (leaf, refs) {
            (Some(leaf), Ok(refs)) => Now::Yes(Box::new(Self { refs, ..leaf })),
            _ => Now::Never,
        }
    }

    /// Makes the whole node. The caller sets its key.
    pub(crate) fn grow(self) -> Inode {
        let name = FileName::from_checked(self.name.as_bytes());
        let dir = self.lower_dir();
        let state = State {
            upper: dir.is_none().then_some(self.number()),
            lower: dir.map_or(Lower::None, |dir| Lower::File(dir, name.clone(), self.number())),
            place: Some(Place { parent: self.parent, name }),
            ..State::default()
        };
        let inode = Inode::new(self.id, self.id.0, self.kind, state);
        inode.refs.store(self.refs.into(), Ordering::Relaxed);
        inode
    }

    /// The directory of a lower that holds the file, none for one of the upper: parts of a directory on the lowers never
    /// change.
    fn lower_dir(&self) -> Option<Arc<LowerDir>> {
        let state = self.parent.state.read();
        state.lower.dirs().iter().find(|dir| dir.layer == usize::from(self.layer)).map(Arc::clone)
    }

    /// Returns which object this is.
    pub(crate) fn key(&self) -> ObjectKey {
        ObjectKey::new(self.layer.into(), self.id.0 >> FS_SHIFT, self.number())
    }

    /// Returns the lower file that serves it; `None` if the upper does.
    pub(super) fn on_lower(&self) -> Option<Lower> {
        let dir = self.lower_dir()?;
        Some(Lower::File(dir, FileName::from_checked(self.name.as_bytes()), self.number()))
    }

    /// The inode number on the layer.
    const fn number(&self) -> u64 {
        self.id.0 & ((1 << FS_SHIFT) - 1)
    }

    /// Returns the node's number.
    pub(crate) const fn id(&self) -> NodeId {
        self.id
    }

    /// Returns the directory of the union that holds the file.
    pub(crate) const fn parent(&self) -> &Arc<Inode> {
        &self.parent
    }

    /// Returns the name in it.
    pub(crate) fn name(&self) -> &[u8] {
        self.name.as_bytes()
    }

    /// Returns its type.
    pub(crate) const fn kind(&self) -> FileKind {
        self.kind
    }

    /// Returns what callers see of it.
    pub(super) const fn known(&self) -> Node {
        Node::Leaf(self.id, self.kind)
    }

    /// Returns whether this is `name` in `parent`.
    pub(super) fn is_at(&self, parent: &Inode, name: &[u8]) -> bool {
        self.parent.id == parent.id && self.name.as_bytes() == name
    }

    /// Counts a lookup. `false` if a leaf cannot count so many.
    pub(super) fn count(&mut self) -> bool {
        self.refs.checked_add(1).map(|refs| self.refs = refs).is_some()
    }

    /// Takes lookups back; returns whether none is left.
    pub(super) fn release(&mut self, count: u64) -> bool {
        self.refs = self.refs.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
        self.refs == 0
    }
}
