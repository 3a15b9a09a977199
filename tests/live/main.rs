//! A mount that is asked and changed while it is used: `unionfs ctl`.

mod commands;
mod load;
mod roles;

use std::path::Path;

use e2e::snapshot::Snapshot;

/// Mount options for each way that requests travel: the one that is taken here by itself, and the others.
const TRANSPORTS: [&str; 3] = ["", ",transport=dev", ",transport=fuser"];

fn snapshot(root: &Path) -> Snapshot {
    Snapshot::take(root).unwrap_or_else(|error| panic!("{}: {error}", root.display()))
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
