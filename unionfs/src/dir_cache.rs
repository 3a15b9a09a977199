//! Merged listings, bounded, each with the version of the directory it was read at.

use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use crate::merge::Listing;

/// Names kept in all listings together: about 20 MB.
const NAMES: usize = 400_000;

/// The cache.
#[derive(Debug)]
pub(crate) struct DirCache(Mutex<Cached>);

#[derive(Debug)]
struct Cached {
    listings: LruCache<u64, (u64, Arc<Listing>)>,
    names: usize,
}

impl Default for DirCache {
    fn default() -> Self {
        Self(Mutex::new(Cached { listings: LruCache::unbounded(), names: 0 }))
    }
}

impl DirCache {
    /// Returns the listing of a directory as it was at `version`.
    pub(crate) fn get(&self, serial: u64, version: u64) -> Option<Arc<Listing>> {
        let mut cached = self.0.lock();
        let (at, listing) = cached.listings.get(&serial)?;
        (*at == version).then(|| Arc::clone(listing))
    }

    /// Keeps a listing. The least recently used ones go when there are too many names.
    pub(crate) fn put(&self, serial: u64, version: u64, listing: &Arc<Listing>) {
        let mut cached = self.0.lock();
        let weight = |listing: &Listing| listing.len() + 1;
        if weight(listing) > NAMES / 2 {
            return;
        }
        if let Some((_, old)) = cached.listings.put(serial, (version, Arc::clone(listing))) {
            cached.names -= weight(&old);
        }
        cached.names += weight(listing);
        while cached.names > NAMES {
            let Some((_, (_, old))) = cached.listings.pop_lru() else { break };
            cached.names -= weight(&old);
        }
    }
}
