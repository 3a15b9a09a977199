//! The listing of one directory over all its layers: each name once, nothing that is hidden.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use crate::error::{Errno, Result};
use crate::lookup::DirView;
use crate::ondisk::{self, NameClass};
use crate::request::FileKind;
use crate::stack::LayerStack;
use crate::stack::lower::LowerDir;
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

/// Lists a directory.
pub(crate) fn list(stack: &LayerStack, dir: &DirView<'_>) -> Result<Listing> {
    let mut listing = Listing::default();
    let mut seen = Seen::new();
    if let Some(upper) = dir.upper {
        let number = listed(stack.upper_number());
        let layer = Layer { fd: upper, number, hides: None, more_below: !dir.lowers.is_empty() };
        add_layer(&mut listing, &mut seen, stack, &layer)?;
    }
    for (position, lower) in dir.lowers.iter().enumerate() {
        if lower.sealed {
            continue;
        }
        let fd = stack.lower(lower)?.dir_fd(&stack.fds, lower)?;
        let layer = Layer {
            fd: fd.as_fd(),
            number: listed(lower.layer),
            hides: Some(lower),
            more_below: position + 1 < dir.lowers.len(),
        };
        add_layer(&mut listing, &mut seen, stack, &layer)?;
    }
    Ok(listing)
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
    let may_be_xattr_whiteout = layer.hides.is_some_and(|dir| dir.xattr_whiteouts);
    match entry.kind {
        Some(FileKind::CharDevice) | None => {}
        Some(FileKind::Regular) if may_be_xattr_whiteout => {
            let pin = sys::pin_at(layer.fd, entry.name)?;
            let whiteout = sys::xattr::get(pin.as_fd(), &stack.namespace.name("whiteout"));
            let empty = sys::stat_fd(pin.as_fd())?.size == 0;
            return Ok((whiteout.is_err() || !empty).then_some(FileKind::Regular));
        }
        known => return Ok(known),
    }
    match sys::stat_at(layer.fd, entry.name) {
        Ok(stat) if stat.is_whiteout() => Ok(None),
        Ok(stat) => Ok(Some(stat.kind())),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}
