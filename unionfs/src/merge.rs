//! The listing of one directory over all its layers: each name once, nothing that is hidden.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

use crate::error::{Errno, Result};
use crate::ondisk::{self, NameClass};
use crate::request::FileKind;
use crate::stack::LayerStack;
use crate::stack::lower::{LowerDir, LowerLayer};
use crate::stack::owners::Owners;
use crate::sys;

/// Number of the layer that serves a name.
pub(crate) type ListedLayer = u16;

/// Returns a layer's number as listings hold it.
pub(crate) fn listed(layer: usize) -> ListedLayer {
    ListedLayer::try_from(layer).unwrap_or(ListedLayer::MAX)
}

/// The names of a directory at one moment.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    names: Vec<u8>,
    entries: Vec<Listed>,
    /// Positions in the order of the names, made at the first question for a name.
    sorted: OnceLock<Vec<u32>>,
}

#[derive(Clone, Copy, Debug)]
struct Listed {
    start: u32,
    len: u16,
    kind: FileKind,
    layer: ListedLayer,
    ino: u64,
}

/// One name of a listing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListedName<'a> {
    /// The name.
    pub name: &'a [u8],
    /// Type.
    pub kind: FileKind,
    /// `d_ino` on the layer.
    pub ino: u64,
    /// The topmost layer that has it.
    pub layer: ListedLayer,
}

impl Listing {
    /// Returns how many names there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the name at `index`.
    pub(crate) fn get(&self, index: usize) -> Option<ListedName<'_>> {
        let entry = self.entries.get(index)?;
        let start = entry.start as usize;
        let name = self.names.get(start..start + usize::from(entry.len))?;
        Some(ListedName { name, kind: entry.kind, ino: entry.ino, layer: entry.layer })
    }

    /// Returns the position of `name`.
    pub(crate) fn find(&self, name: &[u8]) -> Option<usize> {
        let name_at = |index: u32| self.get(index as usize).map(|entry| entry.name);
        let sorted = self.sorted.get_or_init(|| {
            let mut order: Vec<u32> = (0..u32::try_from(self.entries.len()).unwrap_or(u32::MAX)).collect();
            order.sort_unstable_by_key(|&index| name_at(index));
            order
        });
        let found = sorted.binary_search_by_key(&Some(name), |&index| name_at(index)).ok()?;
        sorted.get(found).map(|&index| index as usize)
    }

    /// Gives back what was taken for growing.
    fn fit(mut self) -> Self {
        self.names.shrink_to_fit();
        self.entries.shrink_to_fit();
        self
    }

    fn push(&mut self, name: &[u8], kind: FileKind, ino: u64, layer: ListedLayer) {
        let (Ok(start), Ok(len)) = (u32::try_from(self.names.len()), u16::try_from(name.len())) else {
            return;
        };
        self.names.extend_from_slice(name);
        self.entries.push(Listed { start, len, kind, layer, ino });
    }
}

/// Names already decided by a layer above; empty while only one layer is read.
type Seen = HashSet<Box<[u8]>>;

/// Lists a directory from its upper part and what its lowers hold.
pub(crate) fn list(stack: &LayerStack, upper: BorrowedFd<'_>, lowers: &Listing) -> Result<Listing> {
    let mut listing = Listing::default();
    let mut seen = Seen::new();
    let number = listed(stack.upper_number());
    let layer = Layer { fd: upper, number, hides: None, more_below: !lowers.is_empty() };
    add_layer(&mut listing, &mut seen, stack, &layer)?;
    for entry in (0..lowers.len()).filter_map(|index| lowers.get(index)) {
        if !seen.contains(entry.name) {
            listing.push(entry.name, entry.kind, entry.ino, entry.layer);
        }
    }
    Ok(listing.fit())
}

/// Lists what the lowers of a directory hold; `None` if that is more than `limit` names.
pub(crate) fn list_lowers(
    stack: &LayerStack,
    lowers: &[Arc<LowerDir>],
    limit: usize,
) -> Result<Option<Listing>> {
    let mut listing = Listing::default();
    let mut seen = Seen::new();
    for (position, lower) in lowers.iter().enumerate() {
        if lower.sealed {
            continue;
        }
        let fd = stack.lower(lower)?.dir_fd(&stack.fds, lower)?;
        let layer = Layer {
            fd: fd.as_fd(),
            number: listed(lower.layer),
            hides: Some(lower),
            more_below: position + 1 < lowers.len(),
        };
        add_layer(&mut listing, &mut seen, stack, &layer)?;
        if listing.len() > limit {
            return Ok(None);
        }
    }
    Ok(Some(listing.fit()))
}

struct Layer<'a> {
    fd: BorrowedFd<'a>,
    number: ListedLayer,
    hides: Option<&'a LowerDir>,
    more_below: bool,
}

fn add_layer(listing: &mut Listing, seen: &mut Seen, stack: &LayerStack, layer: &Layer<'_>) -> Result<()> {
    let filter = !seen.is_empty();
    // `.wh.NAME` speaks of the layers below only, whatever its place in this one.
    let mut whited = Vec::new();
    let hidden_here = |name: &[u8]| match layer.hides {
        Some(dir) => stack.lower(dir).is_ok_and(|lower| lower.hides(dir, name)),
        None => false,
    };
    sys::dirents::for_each_name(layer.fd, |entry| {
        match ondisk::classify(entry.name) {
            NameClass::Plain => {}
            NameClass::Whiteout(target) => {
                whited.push(Box::from(target));
                return Ok(true);
            }
            NameClass::Opaque | NameClass::Reserved => return Ok(true),
        }
        if (filter && seen.contains(entry.name)) || hidden_here(entry.name) {
            return Ok(true);
        }
        let kind = shown_kind(stack, layer, &entry)?;
        if layer.more_below {
            seen.insert(entry.name.into());
        }
        if let Some(kind) = kind {
            listing.push(entry.name, kind, entry.ino, layer.number);
        }
        Ok(true)
    })?;
    if layer.more_below {
        seen.extend(whited);
    }
    Ok(())
}

/// Returns the type of an entry, `None` for a whiteout. Asks the file system only where the listing cannot tell.
fn shown_kind(
    stack: &LayerStack,
    layer: &Layer<'_>,
    entry: &sys::dirents::RawEntry<'_>,
) -> std::result::Result<Option<FileKind>, Errno> {
    let owners = match layer.hides {
        Some(dir) => stack.lower(dir).map_or(Owners::Inodes, LowerLayer::owners),
        None => stack.upper_owners(),
    };
    let may_be_xattr_whiteout = layer.hides.is_some_and(|dir| dir.xattr_whiteouts);
    match entry.kind {
        Some(FileKind::CharDevice) | None => {}
        Some(FileKind::Regular) if may_be_xattr_whiteout => {
            let pin = sys::pin_at(layer.fd, entry.name)?;
            let whiteout = sys::xattr::get(pin.as_fd(), &stack.namespace.name("whiteout"));
            let empty = sys::stat_fd(pin.as_fd())?.size == 0;
            return Ok((whiteout.is_err() || !empty).then_some(FileKind::Regular));
        }
        Some(FileKind::Regular) if !owners.are_inodes() => {}
        known => return Ok(known),
    }
    match owners.stat_at(layer.fd, entry.name) {
        Ok(stat) if stat.is_whiteout() => Ok(None),
        Ok(stat) => Ok(Some(stat.kind())),
        Err(Errno::NOENT) => Ok(None),
        // A record that cannot be read: who looks the name up is told, the other names are not lost.
        Err(Errno::IO) if !owners.are_inodes() => Ok(entry.kind),
        Err(errno) => Err(errno),
    }
}
