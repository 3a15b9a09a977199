//! The tools beside the mount: what an upper changed ([`diff`]), layers of container images ([`apply`]).
//!
//! None of them mounts anything, and each sees the layers through the engine that the mount uses: [`view`] resolves names
//! with `lookup` and `merge`, so that a tool cannot disagree with the mount about what a tree holds.

pub mod apply;
mod attributes;
pub mod diff;
mod layer;
mod tar;
mod view;
