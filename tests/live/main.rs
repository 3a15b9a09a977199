//! A mount that is asked and changed while it is used: `unionfs ctl`.

mod commands;
mod load;
mod reload;
mod roles;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use e2e::snapshot::Snapshot;

/// Mount options for each way that requests travel: the one that is taken here by itself, and the others.
const TRANSPORTS: [&str; 3] = ["", ",transport=dev", ",transport=fuser"];

fn snapshot(root: &Path) -> Snapshot {
    Snapshot::take(root).unwrap_or_else(|error| panic!("{}: {error}", root.display()))
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Ends the others when a program fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
