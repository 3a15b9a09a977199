//! The tools beside the mount: what an upper changed ([`diff`]), layers of container images ([`apply`]),
//! what is wrong in an upper ([`check`]), several layers made one ([`merge`]).
//!
//! None of them mounts anything, and each sees the layers through the engine that the mount uses: `view` resolves names
//! with `lookup` and `merge`, so that a tool cannot disagree with the mount about what a tree holds.

pub mod apply;
mod attributes;
pub mod check;
pub mod diff;
mod layer;
pub mod merge;
mod tar;
mod view;
