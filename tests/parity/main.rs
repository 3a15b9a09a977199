//! The same calls on the union, on a plain copy of the merged tree, and on kernel overlayfs: results, error
//! numbers and trees are equal, before and after remounts.

mod change;
mod make;
mod random;
mod remove;
mod rename;
mod rights;
mod roles;
mod storage;
mod table;
