//! The same layers, looked at again: what is in them may have been changed by others.
//!
//! A layer is the directory that was mounted. Its path is not looked up again: it may lead into the mount itself.

use std::sync::Arc;

use super::lower::{LowerDir, LowerLayer};
use super::{LayerStack, describe_roots, no_fds, use_catalogs};
use crate::error::{Errno, Error, Result};
use crate::options::MountOptions;

impl LayerStack {
    /// Returns these layers with nothing remembered of what is in them. `options` are those of the mount.
    ///
    /// Must not be called while requests are kept waiting: paths are looked up, which may be on this very mount.
    ///
    /// # Errors
    /// With `catalog=require`: a layer whose catalog does not count any more.
    pub(crate) fn looked_at_again(&self, options: &MountOptions) -> Result<Self> {
        let mut lowers = self.lowers.iter().map(LowerLayer::again).collect::<Result<Vec<_>>>()?;
        let mut notices = Vec::new();
        use_catalogs(&mut lowers, options, &mut notices)?;
        for notice in notices {
            tracing::info!("{notice}");
        }
        let names = lowers.len() - options.datadir.len();
        let (roots, data_roots) = describe_roots(&mut lowers, names, self.top, self.namespace)?;
        Ok(Self {
            upper: self.upper.clone(),
            lowers,
            top: self.top,
            roots,
            data_roots,
            fds: no_fds(),
            namespace: self.namespace,
            follow: self.follow,
            xino: self.xino,
            devices: Arc::clone(&self.devices),
            origins: self.origins.clone(),
            numbers: self.numbers.clone(),
        })
    }

    /// Describes a directory of a lower again, by its place.
    ///
    /// # Errors
    /// ESTALE if there is another one by now; what the layer answers.
    pub(crate) fn describe_again(&self, dir: &LowerDir) -> Result<Arc<LowerDir>> {
        let layer = self.lower(dir)?;
        if let Some(index) = layer.index().filter(|index| index.id == dir.id) {
            return Ok(Arc::clone(index));
        }
        let mut now = layer.root_dir(dir.layer, self.namespace)?.0;
        for name in dir.path().split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let looked = layer.look_on_disk(&self.fds, &now, name)?;
            now = LowerDir::found(&now, name, &looked, false);
        }
        if now.identity == dir.identity { Ok(now) } else { Err(Error::new(Errno::STALE)) }
    }
}
