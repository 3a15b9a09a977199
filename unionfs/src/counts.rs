//! What a union has done since it was opened, and what it holds now.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counted as it happens; none of it on the way of a read or a lookup.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Objects copied up.
    pub copied_up: AtomicU64,
    /// Bytes of data that were copied, neither shared nor left out as holes.
    pub copied_bytes: AtomicU64,
    /// Names hidden.
    pub whiteouts: AtomicU64,
    /// Uppers that became lowers.
    pub rotations: AtomicU64,
    /// Times that the layers were looked at again.
    pub reloads: AtomicU64,
    /// Listings made by reading directories.
    pub listings_read: AtomicU64,
    /// Listings that were remembered.
    pub listings_known: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// Numbers about a union, each with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats(Vec<(&'static str, u64)>);

impl Stats {
    /// Puts together what was counted and what is held.
    pub(crate) fn new(counts: &Counts, held: impl IntoIterator<Item = (&'static str, u64)>) -> Self {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut numbers = vec![
            ("copied_up", load(&counts.copied_up)),
            ("copied_up_bytes", load(&counts.copied_bytes)),
            ("whiteouts", load(&counts.whiteouts)),
            ("rotations", load(&counts.rotations)),
            ("reloads", load(&counts.reloads)),
            ("listings_read", load(&counts.listings_read)),
            ("listings_known", load(&counts.listings_known)),
        ];
        numbers.extend(held);
        Self(numbers)
    }

    /// Returns one of the numbers.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
    }

    /// Returns a line for each number.
    pub fn text(&self) -> String {
        self.0.iter().map(|(name, number)| format!("{name} {number}\n")).collect()
    }

    /// Returns the members of a JSON object.
    pub fn json(&self) -> String {
        let members: Vec<String> =
            self.0.iter().map(|(name, number)| format!("\"{name}\":{number}")).collect();
        members.join(",")
    }
}
