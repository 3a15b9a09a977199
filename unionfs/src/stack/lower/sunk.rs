//! A layer that was an upper: made of one by a rotation, or told by the mark of its root.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::open::Opener;
use super::{LowerDir, LowerLayer, NEXT_DIR_ID};
use crate::error::{Errno, Error, Result};
use crate::ondisk::Namespace;
use crate::options::MountOptions;
use crate::stack::LayerStack;
use crate::stack::marks;
use crate::stack::upper::UpperLayer;

impl LowerDir {
    /// Describes a directory of an upper that has become a lower.
    pub(crate) fn of_upper(
        layer: usize,
        parent: Option<Arc<Self>>,
        name: &[u8],
        identity: (u64, u64),
    ) -> Arc<Self> {
        Arc::new(Self {
            id: NEXT_DIR_ID.fetch_add(1, Ordering::Relaxed),
            layer,
            sealed: false,
            parent,
            name: name.to_vec(),
            identity,
            xattr_whiteouts: false,
            marks: OnceLock::new(),
            impure: OnceLock::new(),
            block: OnceLock::new(),
            changed: AtomicBool::new(false),
        })
    }
}

impl LowerLayer {
    /// Makes a lower of the root of an upper, which nobody changes any more.
    ///
    /// # Errors
    /// EOPNOTSUPP on an idmapped mount, whose lowers show other owners than its uppers.
    pub(crate) fn of_upper(upper: &UpperLayer, options: &MountOptions) -> Result<Self> {
        let (path, root) = (upper.path.clone(), upper.root_fd());
        let mut opener = Opener::new(options);
        if opener.mount_ids(root).is_some() {
            return Err(Error::new(Errno::OPNOTSUPP)
                .during("use as a lower layer", path.as_os_str().as_encoded_bytes())
                .hint("it lies on an idmapped mount and the options map ids too"));
        }
        let root = root.try_clone_to_owned()?;
        let keeps_removed = upper.workdir.is_nfs();
        Ok(Self { was_upper: true, keeps_removed, ..opener.layer_of(path, root, None)? })
    }

    /// Learns from the root's mark whether this layer was an upper once.
    pub(crate) fn look_for_upper_mark(&mut self, namespace: Namespace) {
        let mark = || self.attributes.get(self.root.as_fd(), &namespace.name(marks::INO));
        self.was_upper |= !self.bare_root && mark().is_ok();
    }

    /// Returns the inode number that `name` in `dir`, whose own number is `ino`, was shown with before, if that is known.
    pub(crate) fn kept_ino(&self, stack: &LayerStack, dir: &LowerDir, name: &[u8], ino: u64) -> Option<u64> {
        if !self.was_upper || dir.sealed {
            return None;
        }
        let fd = self.dir_fd(&stack.fds, dir).ok()?;
        let impure = || self.attributes.get(fd.as_fd(), &stack.namespace.name("impure")).is_ok();
        if !dir.impure.get_or_init(impure) {
            return None;
        }
        stack.recorded_or_marked_ino(&self.attributes, fd.as_fd(), name, ino)
    }
}
