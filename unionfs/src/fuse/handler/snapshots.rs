//! Listings of directories that are read without being opened.
//!
//! Where the kernel sends no OPENDIR, a listing is known by the positions in it only. So each position names the
//! listing it belongs to: two readers of one directory, or a reader of a directory that changes, get every name that
//! stays exactly once. The listings that were last used are kept; one that is gone is made anew, and reading goes on at
//! the same place in it.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;

use lru::LruCache;
use parking_lot::Mutex;

use crate::error::{Errno, Result};
use crate::request::{DirEntry, Entry, Fh, NodeId};
use crate::union::Union;

/// Listings kept at most. There are twice as many numbers, so that a number comes back late.
const KEPT: NonZeroUsize = NonZeroUsize::MIN.saturating_add(63 - 1);
/// Numbers of listings are from 1 to this.
const LAST: u64 = 127;

/// Positions have 24 bits and the listing's number 7, so that they fit what 32-bit programs can take.
const SHORT_BITS: u32 = 24;
/// Longer positions have this bit, 48 bits, and the number above them.
const LONG: u64 = 1 << 62;
const LONG_BITS: u32 = 48;

/// A position: which listing, and where in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    listing: u64,
    index: u64,
}

impl Position {
    const fn encode(self) -> u64 {
        if self.index < 1 << SHORT_BITS {
            self.listing << SHORT_BITS | self.index
        } else {
            LONG | self.listing << LONG_BITS | self.index & ((1 << LONG_BITS) - 1)
        }
    }

    const fn decode(offset: u64) -> Self {
        let bits = if offset & LONG == 0 { SHORT_BITS } else { LONG_BITS };
        Self { listing: offset >> bits & LAST, index: offset & ((1 << bits) - 1) }
    }
}

/// The listings.
#[derive(Debug)]
pub(super) struct Snapshots(Mutex<Kept>);

#[derive(Debug)]
struct Kept {
    by_number: LruCache<u64, (NodeId, Fh)>,
    last: u64,
}

/// What takes the names of a listing.
pub(super) type Sink<'a> = dyn FnMut(DirEntry<'_>, Option<Entry>) -> ControlFlow<()> + 'a;

impl Default for Snapshots {
    fn default() -> Self {
        Self(Mutex::new(Kept { by_number: LruCache::new(KEPT), last: 0 }))
    }
}

impl Snapshots {
    /// Gives the names of `node` from `offset` on to `sink`, each with its entry if `plus`.
    pub(super) fn read(
        &self,
        union: &Union,
        node: NodeId,
        offset: u64,
        plus: bool,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let mut position = Position::decode(offset);
        let mut known = if offset == 0 { None } else { self.find(position.listing, node) };
        loop {
            let is_new = known.is_none();
            let fh = match known {
                Some(fh) => fh,
                None => {
                    let fh = union.opendir(node)?;
                    position.listing = self.keep(union, node, fh);
                    fh
                }
            };
            match self.read_from(union, (node, fh), position, plus, sink) {
                // Closed meanwhile, by another reader who made room.
                Err(error) if error.is(Errno::BADF) && !is_new => known = None,
                result => return result,
            }
        }
    }

    fn read_from(
        &self,
        union: &Union,
        (node, fh): (NodeId, Fh),
        position: Position,
        plus: bool,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let mut given = false;
        let mut shown = |name: DirEntry<'_>, entry| {
            given = true;
            let next = Position { index: name.next_offset, ..position };
            sink(DirEntry { next_offset: next.encode(), ..name }, entry)
        };
        if plus {
            union.readdirplus(node, fh, position.index, &mut shown)?;
        } else {
            union.readdir(node, fh, position.index, &mut |name| shown(name, None))?;
        }
        if !given {
            // The end was read: nobody goes on from here.
            let ended = self.0.lock().by_number.pop(&position.listing);
            if let Some((_, fh)) = ended {
                union.releasedir(fh);
            }
        }
        Ok(())
    }

    fn find(&self, listing: u64, node: NodeId) -> Option<Fh> {
        let mut kept = self.0.lock();
        kept.by_number.get(&listing).filter(|(of, _)| *of == node).map(|(_, fh)| *fh)
    }

    /// Keeps a listing and returns its number.
    fn keep(&self, union: &Union, node: NodeId, fh: Fh) -> u64 {
        let mut kept = self.0.lock();
        let free = (1..=LAST).map(|step| (kept.last + step) % LAST + 1);
        // There are more numbers than listings kept.
        let number = free.into_iter().find(|number| !kept.by_number.contains(number)).unwrap_or(LAST);
        kept.last = number;
        let displaced = kept.by_number.push(number, (node, fh));
        drop(kept);
        if let Some((_, (_, fh))) = displaced {
            union.releasedir(fh);
        }
        number
    }

    /// Closes all listings.
    pub(super) fn clear(&self, union: &Union) {
        let mut kept = self.0.lock();
        while let Some((_, (_, fh))) = kept.by_number.pop_lru() {
            union.releasedir(fh);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_they_were_written_and_are_short_if_they_can_be() {
        for listing in [1, 2, 100, LAST] {
            for index in [1, 2, 70_000, (1 << 24) - 1, 1 << 24, 1 << 40] {
                let position = Position { listing, index };
                assert_eq!(Position::decode(position.encode()), position);
                assert!(position.encode() <= i64::MAX.cast_unsigned());
                if index < 1 << 24 {
                    assert!(position.encode() <= i32::MAX.cast_unsigned().into(), "for 32-bit programs");
                }
            }
        }
        assert_ne!(Position { listing: 1, index: 0 }.encode(), 0, "0 is the beginning");
    }
}
