//! The listing of one directory over all its layers: each name once, nothing that is hidden.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};

use crate::error::{Errno, Error, Result};
use crate::ondisk::{self, NameClass};
use crate::request::FileKind;
use crate::stack::LayerStack;
use crate::stack::lower::LowerDir;
use crate::sys;
use crate::sys::dirents::RawEntry;

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
    /// For a directory: the layers below its topmost one that speak of its name too, by the position of its entry.
    deeper: Vec<(u32, ListedLayer)>,
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

/// What a listing itself weighs, in names.
const OWN_WEIGHT: usize = 8;
/// So many further layers of directories weigh as much as a name.
const LAYERS_OF_A_NAME: usize = 6;

impl Listing {
    /// Returns how much memory it takes, in names, each about 50 bytes.
    pub(crate) fn weight(&self) -> usize {
        self.len() + self.deeper.len() / LAYERS_OF_A_NAME + OWN_WEIGHT
    }

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

    /// Returns the layers below the topmost one of the directory at `index` that have its name or hide it, topmost first:
    /// all others have nothing to say of it. Kept by listings of lowers alone.
    pub(crate) fn deeper(&self, index: usize) -> impl Iterator<Item = ListedLayer> {
        let start = self.deeper.partition_point(|(of, _)| (*of as usize) < index);
        let rest = self.deeper.get(start..).unwrap_or_default();
        rest.iter().take_while(move |(of, _)| *of as usize == index).map(|(_, layer)| *layer)
    }

    /// Gives back what was taken for growing.
    fn fit(mut self) -> Self {
        // Layers were met from the top, each name once in each: sorting keeps both orders.
        self.deeper.sort_unstable();
        self.deeper.dedup();
        self.names.shrink_to_fit();
        self.entries.shrink_to_fit();
        self.deeper.shrink_to_fit();
        self
    }

    /// Returns the position of the name that is added next.
    fn next_position(&self) -> Option<u32> {
        u32::try_from(self.entries.len()).ok()
    }

    /// Returns whether a layer above has decided about `name`; notes that this one speaks of a directory too.
    fn has_decided(&mut self, seen: &Seen, name: &[u8], layer: ListedLayer) -> bool {
        let decided = if seen.is_empty() { None } else { seen.get(name) };
        if let Some(Some(position)) = decided
            && self.entries.get(*position as usize).is_some_and(|entry| entry.layer != layer)
        {
            self.deeper.push((*position, layer));
        }
        decided.is_some()
    }

    fn push(&mut self, name: &[u8], kind: FileKind, ino: u64, layer: ListedLayer) {
        let (Ok(start), Ok(len)) = (u32::try_from(self.names.len()), u16::try_from(name.len())) else {
            return;
        };
        self.names.extend_from_slice(name);
        self.entries.push(Listed { start, len, kind, layer, ino });
    }
}

/// Names already decided by a layer above, with the position of a directory; empty while only one layer is read.
type Seen = HashMap<Box<[u8]>, Option<u32>>;

/// What empty regular files of one part of a directory are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EmptyFiles {
    /// Files.
    Files,
    /// Files, or whiteouts by attribute.
    MayHide,
}

impl EmptyFiles {
    /// Judges by whether the part is marked.
    pub(crate) const fn of(marked: bool) -> Self {
        if marked { Self::MayHide } else { Self::Files }
    }
}

/// Lists a directory from its upper part and what its lowers hold.
pub(crate) fn list(
    stack: &LayerStack,
    upper: BorrowedFd<'_>,
    empty_files: EmptyFiles,
    lowers: &Listing,
) -> Result<Listing> {
    let mut listing = Listing::default();
    let mut seen = Seen::new();
    let number = listed(stack.upper_number());
    let layer = Layer { names: Names::Upper(upper, empty_files), number, more_below: !lowers.is_empty() };
    add_layer(&mut listing, &mut seen, stack, &layer)?;
    for entry in (0..lowers.len()).filter_map(|index| lowers.get(index)) {
        if !seen.contains_key(entry.name) {
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
        let layer = Layer {
            names: Names::Lower(lower),
            number: listed(lower.layer),
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
    names: Names<'a>,
    number: ListedLayer,
    more_below: bool,
}

/// Where the names of one layer are read.
#[derive(Clone, Copy)]
enum Names<'a> {
    Upper(BorrowedFd<'a>, EmptyFiles),
    Lower(&'a LowerDir),
}

fn add_layer(listing: &mut Listing, seen: &mut Seen, stack: &LayerStack, layer: &Layer<'_>) -> Result<()> {
    // `.wh.NAME` speaks of the layers below only, whatever its place in this one.
    let mut whited = Vec::new();
    let hidden_here = |name: &[u8]| match layer.names {
        Names::Lower(dir) => stack.lower(dir).is_ok_and(|lower| lower.hides(dir, name)),
        Names::Upper(..) => stack.upper().is_ok_and(|upper| upper.hides(name)),
    };
    let mut add = |entry: RawEntry<'_>| {
        match ondisk::classify(entry.name) {
            NameClass::Plain => {}
            NameClass::Whiteout(target) => {
                whited.push(Box::from(target));
                return Ok(true);
            }
            NameClass::Opaque | NameClass::Reserved => return Ok(true),
        }
        if hidden_here(entry.name) || listing.has_decided(seen, entry.name, layer.number) {
            return Ok(true);
        }
        let kind = shown_kind(stack, layer.names, &entry)?;
        let position = if kind == Some(FileKind::Directory) { listing.next_position() } else { None };
        if layer.more_below {
            seen.insert(entry.name.into(), position);
        }
        if let Some(kind) = kind {
            listing.push(entry.name, kind, entry.ino, layer.number);
        }
        Ok(true)
    };
    match layer.names {
        Names::Lower(dir) => stack.lower(dir)?.for_each_name(&stack.fds, dir, add)?,
        Names::Upper(fd, _) => {
            sys::dirents::for_each_name(fd, |entry| add(entry).map_err(|error| error.errno()))?;
        }
    }
    for name in &whited {
        if !listing.has_decided(seen, name, layer.number) && layer.more_below {
            seen.insert(name.clone(), None);
        }
    }
    if let Names::Lower(dir) = layer.names {
        dir.note_whiteouts(whited);
    }
    Ok(())
}

/// Returns the type of an entry, `None` for a whiteout. Asks the file system only where the listing cannot tell.
fn shown_kind(stack: &LayerStack, names: Names<'_>, entry: &RawEntry<'_>) -> Result<Option<FileKind>> {
    let owners = match names {
        Names::Lower(dir) => stack.lower(dir)?.owners(),
        Names::Upper(..) => stack.upper_owners(),
    };
    match (entry.kind, names) {
        (Some(FileKind::CharDevice) | None, _) => {}
        (Some(FileKind::Regular), Names::Upper(fd, EmptyFiles::MayHide)) => {
            let mark = stack.attributes().get_at(fd, entry.name, &stack.namespace.name("whiteout"));
            let whiteout = mark.is_ok() && sys::stat_at(fd, entry.name).is_ok_and(|stat| stat.size == 0);
            return Ok((!whiteout).then_some(FileKind::Regular));
        }
        (Some(FileKind::Regular), Names::Lower(dir)) if dir.xattr_whiteouts => {
            let object = stack.lower(dir)?.object(&stack.fds, dir, entry.name)?;
            let whiteout = object.mark(&stack.namespace.name("whiteout")).is_ok() && object.is_empty()?;
            return Ok((!whiteout).then_some(FileKind::Regular));
        }
        (Some(FileKind::Regular), _) if !owners.are_inodes() => {}
        (known, _) => return Ok(known),
    }
    let stat = match names {
        Names::Lower(dir) => stack.lower(dir)?.stat(&stack.fds, dir, entry.name),
        Names::Upper(fd, _) => owners.stat_at(fd, entry.name).map_err(Error::from),
    };
    match stat {
        Ok(stat) if stat.is_whiteout() => Ok(None),
        Ok(stat) => Ok(Some(stat.kind())),
        Err(error) if error.is(Errno::NOENT) => Ok(None),
        // A record that cannot be read: who looks the name up is told, the other names are not lost.
        Err(error) if error.is(Errno::IO) && !owners.are_inodes() => Ok(entry.kind),
        Err(error) => Err(error),
    }
}
