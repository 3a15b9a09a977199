//! The same calls on the union, on a plain copy of the merged tree, and on kernel overlayfs: results, error
//! numbers and trees are equal, before and after remounts.

mod random;
mod roles;
