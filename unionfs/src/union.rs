//! The union: one public method per file system operation, plain arguments and plain results.
//!
//! SKELETON: signatures only, so that adapters, tests and benchmarks can be written against it.
#![allow(unused_variables, clippy::todo, missing_docs, clippy::too_many_arguments)]

use std::ops::ControlFlow;

use crate::error::Result;
use crate::options::MountOptions;
use crate::request::*;

/// A mounted stack of layers.
#[derive(Debug)]
pub struct Union {}

impl Union {
    /// Opens the layers, checks and probes them.
    pub fn open(options: &MountOptions) -> Result<Self> {
        todo!()
    }
    /// Facts and fallbacks decided at open, one line each, for `-d`.
    pub fn notices(&self) -> &[String] {
        todo!()
    }
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Entry> {
        todo!()
    }
    pub fn forget(&self, node: NodeId, nlookup: u64) {
        todo!()
    }
    pub fn getattr(&self, node: NodeId, fh: Option<Fh>) -> Result<Attr> {
        todo!()
    }
    pub fn setattr(&self, caller: &Caller, node: NodeId, change: &SetAttr) -> Result<Attr> {
        todo!()
    }
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        todo!()
    }
    /// `mode` has the type bits; fifo, socket, devices, regular.
    pub fn mknod(&self, caller: &Caller, parent: NodeId, name: &[u8], mode: u32, rdev: u64) -> Result<Entry> {
        todo!()
    }
    pub fn mkdir(&self, caller: &Caller, parent: NodeId, name: &[u8], mode: u32) -> Result<Entry> {
        todo!()
    }
    pub fn symlink(&self, caller: &Caller, parent: NodeId, name: &[u8], target: &[u8]) -> Result<Entry> {
        todo!()
    }
    pub fn link(&self, node: NodeId, parent: NodeId, name: &[u8]) -> Result<Entry> {
        todo!()
    }
    pub fn unlink(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        todo!()
    }
    pub fn rmdir(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        todo!()
    }
    pub fn rename(
        &self,
        parent: NodeId,
        name: &[u8],
        new_parent: NodeId,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        todo!()
    }
    /// `flags`: open(2) flags. O_CREAT semantics: fails EEXIST if the name exists and O_EXCL is set.
    pub fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        flags: u32,
    ) -> Result<(Entry, Opened)> {
        todo!()
    }
    pub fn tmpfile(&self, caller: &Caller, parent: NodeId, mode: u32, flags: u32) -> Result<(Entry, Opened)> {
        todo!()
    }
    /// `kill_suidgid`: with O_TRUNC the caller may not keep set-id bits.
    pub fn open_file(&self, node: NodeId, flags: u32, kill_suidgid: bool) -> Result<Opened> {
        todo!()
    }
    /// `fh` is None where the adapter keeps no handles (the kernel was told not to send OPEN).
    pub fn read(&self, node: NodeId, fh: Option<Fh>, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        todo!()
    }
    pub fn write(
        &self,
        node: NodeId,
        fh: Option<Fh>,
        offset: u64,
        data: &[u8],
        kill_suidgid: bool,
    ) -> Result<usize> {
        todo!()
    }
    pub fn flush(&self, node: NodeId, fh: Option<Fh>) -> Result<()> {
        todo!()
    }
    pub fn fsync(&self, node: NodeId, fh: Option<Fh>, datasync: bool) -> Result<()> {
        todo!()
    }
    pub fn release(&self, fh: Fh) {
        todo!()
    }
    pub fn fallocate(&self, node: NodeId, fh: Option<Fh>, offset: u64, length: u64, mode: u32) -> Result<()> {
        todo!()
    }
    pub fn lseek(&self, node: NodeId, fh: Option<Fh>, offset: u64, whence: u32) -> Result<u64> {
        todo!()
    }
    pub fn copy_file_range(
        &self,
        source: (NodeId, Option<Fh>, u64),
        target: (NodeId, Option<Fh>, u64),
        len: u64,
    ) -> Result<u64> {
        todo!()
    }
    pub fn opendir(&self, node: NodeId) -> Result<Fh> {
        todo!()
    }
    /// Gives entries from `offset` on until the listing ends or `sink` breaks (the entry it breaks on is not consumed).
    pub fn readdir(
        &self,
        node: NodeId,
        fh: Fh,
        offset: u64,
        sink: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        todo!()
    }
    /// As readdir with a looked-up entry each (None for `.` and `..` and for names that vanished); a lookup is counted
    /// for each entry that `sink` continues on.
    pub fn readdirplus(
        &self,
        node: NodeId,
        fh: Fh,
        offset: u64,
        sink: &mut dyn FnMut(DirEntry<'_>, Option<Entry>) -> ControlFlow<()>,
    ) -> Result<()> {
        todo!()
    }
    pub fn releasedir(&self, fh: Fh) {
        todo!()
    }
    pub fn fsyncdir(&self, node: NodeId, datasync: bool) -> Result<()> {
        todo!()
    }
    pub fn statfs(&self) -> Result<StatFs> {
        todo!()
    }
    /// `flags`: XATTR_CREATE, XATTR_REPLACE.
    pub fn setxattr(&self, node: NodeId, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        todo!()
    }
    /// The whole value; the adapter applies the size rules (ERANGE).
    pub fn getxattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        todo!()
    }
    /// Names, each ended by NUL.
    pub fn listxattr(&self, node: NodeId) -> Result<Vec<u8>> {
        todo!()
    }
    pub fn removexattr(&self, node: NodeId, name: &[u8]) -> Result<()> {
        todo!()
    }
    /// Flushes what is pending and gives up the workdir; after it no call may come.
    pub fn destroy(&self) {
        todo!()
    }
}
