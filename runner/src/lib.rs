//! A small container runner on a userspace union filesystem.
//!
//! A container has a root made of read-only layers and one private upper directory; everything it changes lands
//! there. See `process` for the processes and what they say to each other, `process::child` for the order of
//! isolation.
//!
//! Order of files: each uses only files listed below it.
//!
//! - 6 `cli` (knows `commands`), `commands` (knows `cli`)
//! - 5 `container`
//! - 4 `process`, `state`, `diff`
//! - 3 `account`, `mounts`, `seccomp`
//! - 2 `capabilities`, `cgroup`, `idmap`, `network`
//! - 1 `removal`, `root`, `spec`
//! - 0 `error`, `subid`, `sys`

pub mod account;
pub mod capabilities;
pub mod cgroup;
pub mod cli;
pub mod commands;
pub mod container;
pub mod diff;
pub mod error;
pub mod idmap;
pub mod mounts;
pub mod network;
mod process;
mod removal;
pub mod root;
pub mod seccomp;
pub mod spec;
pub mod state;
pub mod subid;
mod sys;
