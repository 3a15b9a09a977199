//! What the catalog of a layer says, and whether it counts.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{LowerDir, LowerLayer};
use crate::error::{Errno, Error, Result};
use crate::name::FileName;
use crate::ondisk::catalog::{Block, Object};
use crate::stack::catalog::{Blocks, Catalog, Usable, Viewer, is_unchanged};
use crate::stack::dir_fds::DirFds;
use crate::sys::{self, Stat};

impl LowerLayer {
    /// Uses the catalog beside the layer, if there is one that counts. The text says why one does not.
    ///
    /// # Errors
    /// Those of reading it.
    pub(crate) fn use_catalog(
        &mut self,
        viewer: impl FnOnce() -> Result<Viewer>,
        blocks: &Arc<Blocks>,
    ) -> Result<Usable> {
        let catalog = match Catalog::open(&self.real, viewer, blocks)? {
            None => return Ok(Usable::Missing),
            Some(Err(reason)) => return Ok(Usable::No(reason)),
            Some(Ok(catalog)) => catalog,
        };
        if self.mount_ids.is_some() || !self.owners.are_inodes() {
            return Ok(Usable::No("the layer's owners are not those of its inodes"));
        }
        match catalog.read(catalog.root()) {
            Ok(block) if is_unchanged(&block, &self.root_stat) => catalog.hold_root(block),
            Ok(_) => return Ok(Usable::No("the layer is another one, or has changed")),
            Err(_) => return Ok(Usable::No("it is damaged")),
        }
        self.catalog = Some(Arc::new(catalog));
        Ok(Usable::Yes)
    }

    /// Returns what the catalog says of a directory, if it counts: it was compared with the layer then.
    pub(super) fn known(&self, fds: &DirFds, dir: &LowerDir) -> Option<Arc<Block>> {
        let (catalog, at) = (self.catalog.as_ref()?, *dir.block.get()?);
        if dir.sealed || dir.changed.load(Ordering::Relaxed) {
            return None;
        }
        if let Some(block) = catalog.kept(dir.id) {
            return Some(block);
        }
        let load = || -> Result<Option<Arc<Block>>> {
            let block = Arc::new(catalog.read(at)?);
            let now = self.stat_in_place(fds, dir)?;
            let covered = dir.parent.is_some() && now.mount_root;
            Ok((!covered && is_unchanged(&block, &now)).then_some(block))
        };
        match load() {
            Ok(Some(block)) => {
                catalog.keep(dir.id, &block);
                return Some(block);
            }
            Ok(None) => self.distrust(dir, "changed since its catalog was made"),
            Err(error) => self.distrust(dir, &error.to_string()),
        }
        None
    }

    /// Returns the attributes of what is where a directory was. It is not opened for that: most of those that are looked up
    /// have no subdirectories, and are not needed open.
    fn stat_in_place(&self, fds: &DirFds, dir: &LowerDir) -> Result<Stat> {
        Ok(match &dir.parent {
            Some(parent) => sys::stat_at(self.dir_fd(fds, parent)?.as_fd(), &dir.name)?,
            None => sys::stat_fd(self.top(dir).as_fd())?,
        })
    }

    /// Reads the directory from the layer from now on, and all below it.
    fn distrust(&self, dir: &LowerDir, reason: &str) {
        if !dir.changed.swap(true, Ordering::Relaxed) {
            let (path, layer) = (dir.path(), dir.layer);
            tracing::warn!(
                "layer {layer}: directory \"{}\": {reason}; make it anew: unionfs catalog DIR",
                path.escape_ascii()
            );
        }
    }

    /// Compares an open file with what the catalog, and so the kernel was told, says.
    ///
    /// # Errors
    /// ESTALE if it is another one or has other data. It stays so until the catalog is made anew and the union mounted
    /// again: the kernel cannot be told from here.
    pub(super) fn check_file(
        &self,
        fds: &DirFds,
        dir: &LowerDir,
        name: &FileName,
        file: BorrowedFd<'_>,
    ) -> Result<()> {
        let Some(block) = self.known(fds, dir) else { return Ok(()) };
        let same =
            |told: &Stat, now: &Stat| (told.ino, told.size, told.mtime) == (now.ino, now.size, now.mtime);
        let told = block.find(name.as_bytes(), self.root_stat.dev);
        let now = sys::stat_fd(file)?;
        if told.is_some_and(|told| !told.plain || same(&told.stat, &now)) {
            return Ok(());
        }
        tracing::warn!(
            "layer {}: \"{}/{}\" changed since the catalog was made; make it anew and mount again",
            dir.layer,
            dir.path().escape_ascii(),
            name.as_bytes().escape_ascii()
        );
        Err(Error::new(Errno::STALE))
    }

    /// Returns whether a directory that was found is what the catalog says, if that is where it was found.
    pub(crate) fn is_as_found(&self, fds: &DirFds, dir: &LowerDir) -> bool {
        dir.block.get().is_none() || self.known(fds, dir).is_some()
    }

    /// Returns whether the catalog knows that an object has no attribute that is a mark.
    pub(crate) fn is_plain(&self, fds: &DirFds, dir: &LowerDir, name: &[u8]) -> bool {
        self.known_object(fds, dir, name).is_some_and(|object| object.plain)
    }

    /// Returns whether the catalog knows that an object has no extended attributes.
    pub(crate) fn is_bare(&self, fds: &DirFds, dir: &LowerDir, name: &[u8]) -> bool {
        self.known_object(fds, dir, name).is_some_and(|object| object.bare)
    }

    /// Returns whether the catalog knows that a directory has no extended attributes.
    pub(crate) fn is_bare_dir(&self, fds: &DirFds, dir: &LowerDir) -> bool {
        let parent = dir.parent.as_ref().filter(|_| self.known(fds, dir).is_some());
        parent.is_some_and(|parent| self.is_bare(fds, parent, &dir.name))
    }

    fn known_object(&self, fds: &DirFds, dir: &LowerDir, name: &[u8]) -> Option<Object> {
        self.known(fds, dir)?.find(name, self.root_stat.dev)
    }

    /// Returns the attributes of a directory.
    pub(crate) fn stat_dir(&self, fds: &DirFds, dir: &LowerDir) -> Result<Stat> {
        match &dir.parent {
            Some(parent) if self.known(fds, dir).is_some() => self.stat(fds, parent, &dir.name),
            _ => self.pin_dir(fds, dir)?.stat(),
        }
    }
}
