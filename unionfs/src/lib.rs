//! A union filesystem in userspace: branches stacked, whiteouts, copy-up on write.
//!
//! Vocabulary, as in kernel overlayfs: the **upper** is the one writable layer, the **lowers** are read-only, the
//! **workdir** is where objects are built. A **whiteout** hides a name in the layers below, an **opaque** directory
//! hides all its names there, a **redirect** tells where a renamed directory goes on. **Copy-up** brings a lower
//! object to the upper before it is changed.
//!
//! Lock order: the gate (each method of `Union` enters it once), `moves` of the tree (while a directory is renamed), an inode's `copy_up`, `names` of directories (two of them by number), `data`, then the inode table,
//! then `state`, then the caches. No table, cache or `state` lock is held across a system call; `copy_up`, `names`
//! and `data` belong to one inode and are. Caches and handles are in shards by number, of which one is locked at a time.
//!
//! Order of files: each uses only files listed below it.
//!
//! - 16 `cli`
//! - 15 `plugin`, `store`
//! - 14 `fuse`, `tools`
//! - 13 `union`
//! - 12 `reload`, `rename`, `rotate`
//! - 11 `create`, `remove`, `attr` (knows `file_io`), `file_io` (knows `attr`), `inode_flags`, `xattr_ops`
//! - 10 `copy_up`, `links`
//! - 9 `upper_file` (knows `verity`), `verity` (knows `upper_file`)
//! - 8 `tree` (knows `identity`), `identity` (knows `tree`)
//! - 7 `dir_cache`, `handles`, `idle_files`, `index`, `inode_table`, `unfinished`
//! - 6 `inode`, `merge`
//! - 5 `lookup`, `parts`
//! - 4 `stack`
//! - 3 `options`, `ondisk`
//! - 2 `idmap`, `shards`, `sys`
//! - 1 `counts`, `gate`, `name`, `request`
//! - 0 `error`

mod attr;
pub mod cli;
mod copy_up;
pub mod counts;
mod create;
mod dir_cache;
pub mod error;
mod file_io;
pub mod fuse;
mod gate;
mod handles;
mod identity;
mod idle_files;
pub mod idmap;
mod index;
mod inode;
mod inode_flags;
mod inode_table;
mod links;
mod lookup;
mod merge;
mod name;
pub mod ondisk;
pub mod options;
mod parts;
mod plugin;
mod reload;
mod remove;
mod rename;
pub mod request;
mod rotate;
mod shards;
mod stack;
mod store;
mod sys;
pub mod tools;
mod tree;
mod unfinished;
pub mod union;
mod upper_file;
mod verity;
mod xattr_ops;

pub use error::{Errno, Error, Result};
pub use options::{MountOptions, OptionError, Warning};
pub use union::Union;
