//! Listings of directories that are read without being opened.
//!
//! Where the kernel sends no OPENDIR, a listing is known by the positions in it only. So each position names the
//! listing it belongs to: two readers of one directory, or a reader of a directory that changes, get every name that
//! stays exactly once. A listing stays after its end was read: the kernel keeps the names with their positions, and when
//! it drops them, to have memory, while programs read them, it goes on here in the middle. Only a listing that had to
//! make room is made anew, and reading goes on at the same place in it. Those of a directory go with its node.

use std::collections::HashMap;
use std::ops::ControlFlow;

use lru::LruCache;
use parking_lot::Mutex;

use crate::dir_cache::Account;
use crate::error::{Errno, Error, Result};
use crate::handles::Snapshot;
use crate::request::{DirEntry, Entry, NodeId};
use crate::union::Union;

/// Listings kept at least of those whose end was not read, whatever they weigh.
const KEPT: usize = 63;
/// Numbers of the listings of a directory are from 1 to this.
const LAST: u64 = 127;
/// The positions before the first name of a listing: `.` and `..`.
const DOTS: u64 = 2;

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
#[derive(Debug, Default)]
pub(super) struct Snapshots(Mutex<Kept>);

/// A directory and the number of a listing of it.
type Key = (NodeId, u64);

#[derive(Debug)]
struct Kept {
    /// Those that are being read.
    begun: LruCache<Key, Snapshot>,
    /// Those whose end was read.
    ended: LruCache<Key, Snapshot>,
    /// The numbers that listings of a directory have, a bit for each.
    numbers: HashMap<NodeId, u128>,
    account: Account,
    /// The number that came back last because none was free.
    came_back: u64,
}

/// What takes the names of a listing.
pub(super) type Sink<'a> = dyn FnMut(DirEntry<'_>, Option<Entry>) -> ControlFlow<()> + 'a;

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
        let position = Position::decode(offset);
        if offset != 0 && position.listing == 0 {
            return Err(never_given());
        }
        let known = if offset == 0 { None } else { self.0.lock().resume((node, position.listing)) };
        if let Some(snapshot) = known {
            if position.index > snapshot.listing.len() as u64 + DOTS {
                return Err(never_given());
            }
            match read_from(union, (node, &snapshot), position, plus, sink) {
                // Of a directory that had this number before.
                Err(error) if error.is(Errno::BADF) => {}
                given => return self.note(given, (node, position.listing)),
            }
        }
        let snapshot = union.snapshot(node)?;
        let listing = self.0.lock().begin(node, snapshot.clone());
        let given = read_from(union, (node, &snapshot), Position { listing, ..position }, plus, sink);
        self.note(given, (node, listing))
    }

    /// Notes that a listing ended if nothing was `given`.
    fn note(&self, given: Result<bool>, key: Key) -> Result<()> {
        if !given? {
            self.0.lock().end(key);
        }
        Ok(())
    }

    /// Drops the listings of a directory whose node is gone.
    pub(super) fn lose(&self, node: NodeId) {
        let dropped = self.0.lock().lose(node);
        drop(dropped);
    }

    /// Drops all listings.
    pub(super) fn clear(&self) {
        *self.0.lock() = Kept::default();
    }
}

/// The answer to a position that no listing can have given, as ext4 and xfs give it for some.
fn never_given() -> Error {
    Error::new(Errno::INVAL)
}

/// Returns whether there was any name to give.
fn read_from(
    union: &Union,
    (node, snapshot): (NodeId, &Snapshot),
    position: Position,
    plus: bool,
    sink: &mut Sink<'_>,
) -> Result<bool> {
    let mut given = false;
    union.read_snapshot(node, snapshot, position.index, plus, &mut |name, entry| {
        given = true;
        let next = Position { index: name.next_offset, ..position };
        sink(DirEntry { next_offset: next.encode(), ..name }, entry)
    })?;
    Ok(given)
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            begun: LruCache::unbounded(),
            ended: LruCache::unbounded(),
            numbers: HashMap::new(),
            account: Account::default(),
            came_back: 0,
        }
    }
}

impl Kept {
    /// Returns a listing that is read on.
    fn resume(&mut self, key: Key) -> Option<Snapshot> {
        if let Some(ended) = self.ended.pop(&key) {
            self.begun.put(key, ended);
        }
        self.begun.get(&key).cloned()
    }

    /// Keeps a new listing and returns its number.
    fn begin(&mut self, node: NodeId, snapshot: Snapshot) -> u64 {
        let taken = self.numbers.get(&node).copied().unwrap_or(0);
        let free = (1..=LAST).find(|number| taken & 1 << number == 0);
        // Small numbers keep positions dense: few that nobody was given lie below those that somebody was.
        let number = free.unwrap_or_else(|| {
            self.came_back = self.came_back % LAST + 1;
            self.came_back
        });
        drop(self.take_out((node, number)));
        self.account.add(snapshot.listing.weight());
        *self.numbers.entry(node).or_default() |= 1 << number;
        self.begun.put((node, number), snapshot);
        self.make_room();
        number
    }

    /// Takes a listing out of all that refers to it.
    fn take_out(&mut self, key: Key) -> Option<Snapshot> {
        let snapshot = self.ended.pop(&key).or_else(|| self.begun.pop(&key))?;
        self.note_out(key, &snapshot);
        Some(snapshot)
    }

    /// Notes that a listing is in neither list any more.
    fn note_out(&mut self, (node, number): Key, snapshot: &Snapshot) {
        self.account.take_off(snapshot.listing.weight());
        if let Some(taken) = self.numbers.get_mut(&node) {
            *taken &= !(1 << number);
            if *taken == 0 {
                self.numbers.remove(&node);
            }
        }
    }

    fn lose(&mut self, node: NodeId) -> Vec<Snapshot> {
        let taken = self.numbers.get(&node).copied().unwrap_or(0);
        let numbers = (1..=LAST).filter(|number| taken & 1 << number != 0);
        numbers.filter_map(|number| self.take_out((node, number))).collect()
    }

    fn end(&mut self, key: Key) {
        if let Some(ended) = self.begun.pop(&key) {
            self.ended.put(key, ended);
            self.make_room();
        }
    }

    /// Drops the listings that were not used for the longest time, first of those whose end was read.
    fn make_room(&mut self) {
        while self.account.is_overdrawn() {
            let ended = self.ended.pop_lru();
            let dropped = match ended {
                None if self.begun.len() > KEPT => self.begun.pop_lru(),
                ended => ended,
            };
            let Some((key, snapshot)) = dropped else { break };
            self.note_out(key, &snapshot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::merge::Listing;

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

    #[test]
    fn listings_that_ended_make_room_for_those_that_are_read() {
        let snapshot = || Snapshot { listing: Arc::default(), version: 0, serial: 0 };
        let mut kept = Kept::default();
        let begun: Vec<Key> =
            (0..100).map(|node| (NodeId(node), kept.begin(NodeId(node), snapshot()))).collect();
        let weight = snapshot().listing.weight();
        let most = Account::NAMES / weight;
        for node in 100..most as u64 + 200 {
            let number = kept.begin(NodeId(node), snapshot());
            kept.end((NodeId(node), number));
        }
        assert_eq!((kept.account.weight(), kept.begun.len() + kept.ended.len()), (most * weight, most));
        assert!(begun.iter().all(|key| kept.resume(*key).is_some()));
        for node in 0..most as u64 + 200 {
            kept.begin(NodeId(node), snapshot());
        }
        assert_eq!((kept.account.weight(), kept.begun.len(), kept.ended.len()), (most * weight, most, 0));
        assert_eq!(kept.numbers.values().map(|taken| taken.count_ones() as usize).sum::<usize>(), most);
    }

    #[test]
    fn listings_of_a_directory_go_with_its_node() {
        let snapshot = || Snapshot { listing: Arc::default(), version: 0, serial: 0 };
        let mut kept = Kept::default();
        let [first, second, other] =
            [1, 1, 2].map(|node| (NodeId(node), kept.begin(NodeId(node), snapshot())));
        kept.end(second);
        assert_eq!(kept.lose(NodeId(1)).len(), 2);
        assert!(kept.resume(first).is_none() && kept.resume(second).is_none());
        assert!(kept.resume(other).is_some());
        assert_eq!((kept.account.weight(), kept.numbers.len()), (snapshot().listing.weight(), 1));
    }

    #[test]
    fn a_directory_has_as_many_listings_as_there_are_numbers() {
        let mut kept = Kept::default();
        let mut begin = || {
            let snapshot = Snapshot { listing: Arc::default(), version: 0, serial: 0 };
            let number = kept.begin(NodeId::ROOT, snapshot);
            (number, kept.account.weight())
        };
        let numbers: BTreeSet<u64> = (0..LAST).map(|_| begin().0).collect();
        assert!(numbers.into_iter().eq(1..=LAST));
        let (number, weight) = begin();
        assert!((1..=LAST).contains(&number));
        assert_eq!(weight, LAST as usize * Listing::default().weight());
    }
}
