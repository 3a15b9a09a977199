//! A layer, or an open file of it, once more: for who looks at the layers again.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::{At, LowerFile, LowerLayer};
use crate::error::Result;
use crate::stack::owners::Owners;
use crate::sys;

impl LowerLayer {
    /// Returns the same layer with nothing remembered of what is in it.
    pub(crate) fn again(&self) -> Result<Self> {
        let (root_stat, owners) = (sys::stat_fd(self.root.as_fd())?, Owners::of_layer(self.root.as_fd()));
        Ok(Self { root_stat, owners, bare_root: false, catalog: None, ..self.clone() })
    }
}

impl LowerFile {
    /// Holds it once more.
    pub(crate) fn again(&self) -> Result<Self> {
        let (mount_ids, attributes) = (self.mount_ids.clone(), Arc::clone(&self.attributes));
        let at = match &self.at {
            At::Open(fd) => At::Open(fd.try_clone()?),
            At::Name(dir, name) => At::Name(Arc::clone(dir), name.clone()),
        };
        Ok(Self { at, mount_ids, owners: self.owners, attributes })
    }
}
