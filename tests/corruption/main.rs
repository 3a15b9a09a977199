//! The two silent corruptions of fuse-overlayfs, and their variants.
//!
//! `E2E_MOUNT_PROGRAM=/usr/bin/fuse-overlayfs` shows them failing there.

mod hard_links;
mod old_handle;

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::tree::LayerTree;

/// A mount of one lower with an upper, in a scratch directory.
struct Fixture {
    mounted: Mounted,
    lower: e2e::snapshot::Snapshot,
    scratch: tempfile::TempDir,
}

impl Fixture {
    fn new(tree: &LayerTree, extra: &str) -> Self {
        let scratch = scratch();
        let mut layers = Layers::below(scratch.path(), 1);
        layers.extra = extra.to_owned();
        tree.build(&layers.lowers[0]);
        let lower = e2e::snapshot::Snapshot::take(&layers.lowers[0]).unwrap();
        Self { mounted: Mounted::new(layers), lower, scratch }
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        self.mounted.root().join(path)
    }

    fn upper(&self, path: &str) -> std::path::PathBuf {
        self.scratch.path().join("upper").join(path)
    }

    /// Unmounts, and checks that the lower is what it was and the workdir holds nothing.
    fn finish(mut self) {
        self.mounted.unmount();
        let after = e2e::snapshot::Snapshot::take(&self.scratch.path().join("lower0")).unwrap();
        assert_eq!(
            self.lower.diff(&after, ("before", "after")),
            Vec::<String>::new(),
            "the lower was written"
        );
        assert_eq!(
            e2e::sides::leftovers(&self.scratch.path().join("work")),
            Vec::<std::path::PathBuf>::new()
        );
    }
}
