//! Listings of directories, bounded: the merged ones, each with the version of the directory it was read at, and those of
//! what the lowers alone hold, which do not change while they are the same lowers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lru::LruCache;
use parking_lot::Mutex;

use crate::merge::Listing;
use crate::shards::{SHARDS, Shards};

/// What is known of a directory without its names, in names.
const NOTE_WEIGHT: usize = 4;
/// Layers that lookups in a directory may ask before the names of its lowers are read: one of few layers that is only
/// passed through costs less without, and for `.wh.` names each of many is read at the first lookup anyway.
const QUESTIONS: usize = 8;

/// What the listings weigh that are kept together, and how much they may.
#[derive(Debug, Default)]
pub(crate) struct Account(AtomicUsize);

impl Account {
    /// Names at most: about 20 MB.
    pub(crate) const NAMES: usize = 400_000;

    /// Adds what was kept.
    pub(crate) fn add(&self, weight: usize) {
        self.0.fetch_add(weight, Ordering::Relaxed);
    }

    /// Takes off what was dropped.
    pub(crate) fn take_off(&self, weight: usize) {
        self.0.fetch_sub(weight, Ordering::Relaxed);
    }

    /// Returns whether something is to be dropped.
    pub(crate) fn is_overdrawn(&self) -> bool {
        self.weight() > Self::NAMES
    }

    /// Returns what is kept now.
    pub(crate) fn weight(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The cache.
#[derive(Debug)]
pub(crate) struct DirCache {
    shards: Shards<Shard>,
    /// Of all of them.
    account: Account,
}

type Shard = Mutex<LruCache<(u64, Part), Entry>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Part {
    Merged,
    Lowers,
}

#[derive(Debug)]
enum Entry {
    /// As it was at this version; for lowers those of which this is the topmost.
    Names(u64, Arc<Listing>),
    /// Not read yet, so many layers asked for a name.
    Asked(usize),
    /// Too many names to read them for the sake of a lookup.
    Large,
}

/// What is known of the lowers of a directory.
#[derive(Debug)]
pub(crate) enum LowerNames {
    /// Their names.
    Names(Arc<Listing>),
    /// Not worth reading, or not yet.
    Unknown,
    /// Now is the time to read them.
    Read,
}

impl Entry {
    fn weight(&self) -> usize {
        match self {
            Self::Names(_, listing) => listing.weight(),
            Self::Asked(_) | Self::Large => NOTE_WEIGHT,
        }
    }
}

impl Default for DirCache {
    fn default() -> Self {
        Self { shards: Shards::new(|| Mutex::new(LruCache::unbounded())), account: Account::default() }
    }
}

impl DirCache {
    /// Returns the listing of a directory as it was at `version`.
    pub(crate) fn get(&self, serial: u64, version: u64) -> Option<Arc<Listing>> {
        match self.shards.of(serial).lock().get(&(serial, Part::Merged))? {
            Entry::Names(at, listing) if *at == version => Some(Arc::clone(listing)),
            _ => None,
        }
    }

    /// Keeps a listing. The least recently used ones go when there are too many names.
    pub(crate) fn put(&self, serial: u64, version: u64, listing: &Arc<Listing>) {
        self.keep((serial, Part::Merged), Entry::Names(version, Arc::clone(listing)));
    }

    /// Returns the listing of a directory's lowers, of which `top` is the topmost.
    pub(crate) fn lowers(&self, serial: u64, top: u64) -> Option<Arc<Listing>> {
        match self.shards.of(serial).lock().get(&(serial, Part::Lowers))? {
            Entry::Names(of, listing) if *of == top => Some(Arc::clone(listing)),
            _ => None,
        }
    }

    /// Counts a lookup on the lowers of a directory that has `layers` of them, several, of which `top` is the topmost.
    pub(crate) fn ask_lowers(&self, serial: u64, top: u64, layers: usize) -> LowerNames {
        match self.shards.of(serial).lock().get_mut(&(serial, Part::Lowers)) {
            Some(Entry::Names(of, listing)) if *of == top => return LowerNames::Names(Arc::clone(listing)),
            Some(Entry::Names(..)) => return LowerNames::Read,
            Some(Entry::Large) => return LowerNames::Unknown,
            Some(Entry::Asked(asked)) if *asked + layers < QUESTIONS => {
                *asked += layers;
                return LowerNames::Unknown;
            }
            Some(Entry::Asked(_)) => return LowerNames::Read,
            None if layers >= QUESTIONS => return LowerNames::Read,
            None => {}
        }
        self.keep((serial, Part::Lowers), Entry::Asked(layers));
        LowerNames::Unknown
    }

    /// Keeps the listing of a directory's lowers; `None` if it is too large for lookups.
    pub(crate) fn put_lowers(&self, serial: u64, top: u64, listing: Option<&Arc<Listing>>) {
        let entry = listing.map_or(Entry::Large, |listing| Entry::Names(top, Arc::clone(listing)));
        self.keep((serial, Part::Lowers), entry);
    }

    fn keep(&self, key: (u64, Part), entry: Entry) {
        let weight = entry.weight();
        if weight > Account::NAMES / 2 {
            return;
        }
        self.account.add(weight);
        let old = self.shards.of(key.0).lock().put(key, entry);
        self.forget(old);
        self.make_room(key.0);
    }

    /// Drops listings that were not used for the longest time in their part, one part after the other. The one that was
    /// just kept, in the part of `serial`, is not the first.
    fn make_room(&self, serial: u64) {
        let mut parts = self.shards.after(serial);
        let mut in_vain = 0;
        while self.account.is_overdrawn() && in_vain < SHARDS {
            let Some(part) = parts.next() else { return };
            let old = part.lock().pop_lru();
            in_vain = if old.is_some() { 0 } else { in_vain + 1 };
            self.forget(old.map(|(_, old)| old));
        }
    }

    /// Drops what is known of a directory whose node is gone.
    pub(crate) fn lose(&self, serial: u64) {
        for part in [Part::Merged, Part::Lowers] {
            let old = self.shards.of(serial).lock().pop(&(serial, part));
            self.forget(old);
        }
    }

    /// Takes a dropped entry off the account. Its names are given back with no lock held.
    fn forget(&self, old: Option<Entry>) {
        if let Some(old) = old {
            self.account.take_off(old.weight());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_a_directory_goes_with_its_node() {
        let cache = DirCache::default();
        let listing = Arc::new(Listing::default());
        cache.put(7, 1, &listing);
        cache.put_lowers(7, 3, Some(&listing));
        cache.put(8, 1, &listing);
        cache.lose(7);
        assert!(cache.get(7, 1).is_none() && cache.lowers(7, 3).is_none() && cache.get(8, 1).is_some());
        assert_eq!(cache.account.weight(), listing.weight());
    }

    #[test]
    fn many_small_listings_are_bounded_too() {
        let cache = DirCache::default();
        let listing = Arc::new(Listing::default());
        let most = Account::NAMES / listing.weight();
        (0..2 * most as u64).for_each(|serial| cache.put(serial, 1, &listing));
        let kept = cache.shards.iter().map(|shard| shard.lock().len()).sum::<usize>();
        assert!(kept <= most, "{kept}");
    }
}
