//! The index of a layer that is an upper which is only read: a directory beside the layer whose objects are the layer's.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::{LowerDir, LowerLayer};
use crate::error::{Errno, Error, Result};
use crate::sys;

/// Name of the index in the workdir.
pub(crate) const INDEX: &[u8] = b"index";

/// An index and its description, as that of a directory of the layer.
#[derive(Clone, Debug)]
pub(super) struct LayerIndex {
    pub(super) fd: Arc<OwnedFd>,
    pub(super) dir: Arc<LowerDir>,
}

impl LowerLayer {
    /// Reads the index in a workdir along with this layer, which has the number `number`; there may be none.
    ///
    /// # Errors
    /// It cannot be searched.
    pub(crate) fn read_index(&mut self, work: BorrowedFd<'_>, number: usize) -> Result<()> {
        let failed = |errno| Error::new(errno).during("open in the workdir the directory", INDEX);
        let fd = match sys::open_at(work, INDEX, OFlags::PATH | OFlags::DIRECTORY, 0) {
            Err(Errno::NOENT) => return Ok(()),
            fd => fd.map_err(failed)?,
        };
        // Whether it may be searched shows at a name.
        if let Err(errno) = sys::stat_at(fd.as_fd(), b".") {
            return Err(failed(errno));
        }
        let dir = LowerDir::new(number, None, b"", &sys::stat_fd(fd.as_fd())?, false);
        self.index = Some(LayerIndex { fd: Arc::new(fd), dir });
        Ok(())
    }

    /// Returns the index that is read along with this layer.
    pub(crate) fn index(&self) -> Option<&Arc<LowerDir>> {
        self.index.as_ref().map(|index| &index.dir)
    }

    /// Returns the descriptor of a directory that has no parent.
    pub(super) fn top(&self, dir: &LowerDir) -> &Arc<OwnedFd> {
        self.index.as_ref().filter(|index| index.dir.id == dir.id).map_or(&self.root, |index| &index.fd)
    }
}
