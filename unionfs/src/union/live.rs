//! What a live mount is asked beside its requests: to be on disk, to take another upper, to tell how it is.

use std::path::{Path, PathBuf};

use super::Union;
use crate::counts::{Stats, add};
use crate::error::Result;
use crate::options::MountOptions;
use crate::reload::{self, Outdated};
use crate::rotate;
use crate::stack::LayerStack;

impl Union {
    /// Returns when everything that was changed is on the disk.
    ///
    /// # Errors
    /// What the upper's file system answers.
    pub fn sync(&self) -> Result<()> {
        let tree = self.tree.enter();
        tree.unfinished.finish_all();
        match &tree.stack.upper {
            Some(upper) => Ok(rustix::fs::syncfs(upper.root_fd())?),
            None => Ok(()),
        }
    }

    /// Makes the upper the topmost read-only layer and the empty directory `upper`, with its workdir, the upper. Open
    /// files and everything that is remembered stay right. Requests wait meanwhile.
    ///
    /// # Errors
    /// EROFS without an upper, EOPNOTSUPP without an index; EBUSY, EINVAL, ENOTEMPTY and EXDEV for directories that
    /// cannot take over. Nothing is changed then.
    pub fn rotate(&self, upper: &Path, work: &Path) -> Result<()> {
        let mut options = self.options.lock();
        let mut next =
            MountOptions { upperdir: Some(upper.into()), workdir: Some(work.into()), ..options.clone() };
        next.lowerdir.splice(0..0, options.upperdir.clone());
        let used: Vec<&PathBuf> = [&options.upperdir, &options.workdir].into_iter().flatten().collect();
        let layer = {
            let tree = self.tree.enter();
            rotate::check(&tree)?;
            tree.stack.open_next_upper(&next, &used)?
        };
        // What is written back now is not waited for while nobody may enter.
        self.sync()?;
        self.tree.exchange(|tree| match rotate::rotate(tree, layer, &next) {
            Ok(rotated) => (Some(rotated), Ok(())),
            Err(error) => (None, Err(error)),
        })?;
        let tree = self.tree.enter();
        *options = with_absolute_paths(&next, &tree.stack);
        add(&tree.counts.rotations, 1);
        Ok(())
    }

    /// Looks at the layers again, because they were changed by others: nothing is remembered of what is in them. Objects
    /// that are where they were stay the same ones, and who holds another one open goes on with it. Requests wait
    /// meanwhile. What the kernel remembers it must then be told to forget.
    ///
    /// # Errors
    /// With `catalog=require`: a layer whose catalog does not count any more. Nothing is changed then.
    pub(crate) fn reload(&self) -> Result<Outdated> {
        let options = self.options.lock();
        let stack = {
            let tree = self.tree.enter();
            tree.unfinished.finish_all();
            tree.stack.looked_at_again(&options)?
        };
        let outdated = self.tree.exchange(|tree| match reload::reload(tree, stack) {
            Ok((reloaded, outdated)) => (Some(reloaded), Ok(outdated)),
            Err(error) => (None, Err(error)),
        })?;
        add(&self.tree.enter().counts.reloads, 1);
        Ok(outdated)
    }

    /// Returns what was done so far, and what is held.
    pub fn stats(&self) -> Stats {
        let tree = self.tree.enter();
        let number = |count: usize| count as u64;
        let held = [
            ("nodes", number(tree.table.count())),
            ("open_files", number(tree.files.count())),
            ("open_directories", number(tree.dirs.count())),
            ("idle_files", number(tree.idle.count())),
            ("directory_descriptors", number(tree.stack.fds.count())),
            ("layers", number(tree.stack.lowers.len() + usize::from(tree.stack.upper.is_some()))),
        ];
        Stats::new(&tree.counts, held)
    }

    /// Returns a line for each layer, topmost first: role, device, path, and what was found out about it. Paths are bytes,
    /// with line ends and the like escaped.
    pub fn layers(&self) -> Vec<u8> {
        let tree = self.tree.enter();
        tree.stack.describe()
    }

    /// Returns what a directory, by device and inode number, is in this union: `upper`, `lower`, or nothing.
    pub fn role(&self, directory: (u64, u64)) -> Option<&'static str> {
        let tree = self.tree.enter();
        match &tree.stack.upper {
            Some(upper) if upper.identity() == directory => Some("upper"),
            _ => tree.stack.lowers.iter().any(|layer| layer.identity() == directory).then_some("lower"),
        }
    }
}

/// Returns options that mean the same when the current directory is another. `stack` is of the layers that they name.
pub(super) fn with_absolute_paths(options: &MountOptions, stack: &LayerStack) -> MountOptions {
    let mut options = options.clone();
    let (upper, work) = match &stack.upper {
        Some(layer) => {
            let (upper, work) = layer.real_paths(&options);
            (options.upperdir, options.workdir) = (Some(upper), Some(work));
            (None, None)
        }
        // Of a read-only mount.
        None => (options.upperdir.as_mut(), options.workdir.as_mut()),
    };
    for path in upper.into_iter().chain(work).chain(&mut options.hidden) {
        if let Ok(absolute) = std::fs::canonicalize(&*path) {
            *path = absolute;
        }
    }
    let named = options.lowerdir.len() + options.datadir.len();
    let layers = &stack.lowers;
    // A read-only upper is above them.
    let layers = layers.iter().skip(layers.len().saturating_sub(named));
    for (path, layer) in options.lowerdir.iter_mut().chain(&mut options.datadir).zip(layers) {
        path.clone_from(&layer.real);
    }
    options
}
