//! Listings of directories, bounded: the merged ones, each with the version of the directory it was read at, and those of
//! what the lowers alone hold, which do not change while they are the same lowers.

use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use crate::merge::Listing;

/// Names kept in all listings together: about 20 MB.
const NAMES: usize = 400_000;
/// Lookups below in a directory after which the names of its lowers are read: one that is only passed through costs
/// less without.
const LOOKUPS: u32 = 3;

/// The cache.
#[derive(Debug)]
pub(crate) struct DirCache(Mutex<Cached>);

#[derive(Debug)]
struct Cached {
    listings: LruCache<(u64, Part), Entry>,
    names: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Part {
    Merged,
    Lowers,
}

#[derive(Debug)]
enum Entry {
    /// As it was at this version; for lowers those of which this is the topmost.
    Names(u64, Arc<Listing>),
    /// Not read yet, looked up in so often.
    Asked(u32),
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
            Self::Names(_, listing) => listing.len() + 1,
            Self::Asked(_) | Self::Large => 1,
        }
    }
}

impl Default for DirCache {
    fn default() -> Self {
        Self(Mutex::new(Cached { listings: LruCache::unbounded(), names: 0 }))
    }
}

impl DirCache {
    /// Returns the listing of a directory as it was at `version`.
    pub(crate) fn get(&self, serial: u64, version: u64) -> Option<Arc<Listing>> {
        match self.0.lock().listings.get(&(serial, Part::Merged))? {
            Entry::Names(at, listing) if *at == version => Some(Arc::clone(listing)),
            _ => None,
        }
    }

    /// Keeps a listing. The least recently used ones go when there are too many names.
    pub(crate) fn put(&self, serial: u64, version: u64, listing: &Arc<Listing>) {
        self.0.lock().put((serial, Part::Merged), Entry::Names(version, Arc::clone(listing)));
    }

    /// Returns the listing of a directory's lowers, of which `top` is the topmost.
    pub(crate) fn lowers(&self, serial: u64, top: u64) -> Option<Arc<Listing>> {
        match self.0.lock().listings.get(&(serial, Part::Lowers))? {
            Entry::Names(of, listing) if *of == top => Some(Arc::clone(listing)),
            _ => None,
        }
    }

    /// Counts a lookup on the lowers of a directory that has several, of which `top` is the topmost.
    pub(crate) fn ask_lowers(&self, serial: u64, top: u64) -> LowerNames {
        let mut cached = self.0.lock();
        match cached.listings.get_mut(&(serial, Part::Lowers)) {
            Some(Entry::Names(of, listing)) if *of == top => LowerNames::Names(Arc::clone(listing)),
            Some(Entry::Names(..)) => LowerNames::Read,
            Some(Entry::Large) => LowerNames::Unknown,
            Some(Entry::Asked(count)) if *count + 1 >= LOOKUPS => LowerNames::Read,
            Some(Entry::Asked(count)) => {
                *count += 1;
                LowerNames::Unknown
            }
            None => {
                cached.put((serial, Part::Lowers), Entry::Asked(1));
                LowerNames::Unknown
            }
        }
    }

    /// Keeps the listing of a directory's lowers; `None` if it is too large for lookups.
    pub(crate) fn put_lowers(&self, serial: u64, top: u64, listing: Option<&Arc<Listing>>) {
        let entry = listing.map_or(Entry::Large, |listing| Entry::Names(top, Arc::clone(listing)));
        self.0.lock().put((serial, Part::Lowers), entry);
    }
}

impl Cached {
    fn put(&mut self, key: (u64, Part), entry: Entry) {
        if entry.weight() > NAMES / 2 {
            return;
        }
        self.names += entry.weight();
        if let Some(old) = self.listings.put(key, entry) {
            self.names -= old.weight();
        }
        while self.names > NAMES {
            let Some((_, old)) = self.listings.pop_lru() else { break };
            self.names -= old.weight();
        }
    }
}
