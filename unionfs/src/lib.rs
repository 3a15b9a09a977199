//! A union filesystem in userspace: branches stacked, whiteouts, copy-up on write.
//!
//! Vocabulary, as in kernel overlayfs: the **upper** is the one writable layer, the **lowers** are read-only, the
//! **workdir** is where objects are built. A **whiteout** hides a name in the layers below, an **opaque** directory
//! hides all its names there, a **redirect** tells where a renamed directory goes on. **Copy-up** brings a lower
//! object to the upper before it is changed.
//!
//! Lock order: an inode's `copy_up`, `names` of directories (two of them by number), `data`, then the inode table,
//! then `state`, then the caches. No table, cache or `state` lock is held across a system call; `copy_up`, `names`
//! and `data` belong to one inode and are.
//!
//! Order of files, each using only those below it: cli; fuse; union; create, remove, rename, attr, xattr_ops,
//! file_io; copy_up; tree; dir_cache, handles, inode_table, inode; merge, lookup; stack; options, ondisk, idmap; sys,
//! name, request, error.

mod attr;
pub mod cli;
mod copy_up;
mod create;
mod dir_cache;
pub mod error;
mod file_io;
pub mod fuse;
mod handles;
mod identity;
mod idle_files;
pub mod idmap;
mod index;
mod inode;
mod inode_table;
mod links;
mod lookup;
mod merge;
mod name;
pub mod ondisk;
pub mod options;
mod remove;
mod rename;
pub mod request;
mod stack;
mod sys;
mod tree;
pub mod union;
mod upper_file;
mod xattr_ops;

pub use error::{Errno, Error, Result};
pub use options::{MountOptions, OptionError, Warning};
pub use union::Union;
