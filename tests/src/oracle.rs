//! What the union is compared with: kernel overlayfs, and a plain copy of the merged tree.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount};

use crate::mounted::{Layers, unmount};

/// A mount of kernel overlayfs, unmounted on drop.
#[derive(Debug)]
pub struct KernelOverlay {
    layers: Layers,
    live: bool,
}

impl KernelOverlay {
    /// Mounts; `layers.extra` holds more options, such as `,redirect_dir=on`.
    pub fn new(layers: Layers) -> Self {
        let mut overlay = Self { layers, live: false };
        overlay.mount();
        overlay
    }

    /// Returns the root of the mounted tree.
    pub fn root(&self) -> &Path {
        &self.layers.target
    }

    fn mount(&mut self) {
        let text = std::ffi::CString::new(self.layers.options().as_bytes()).unwrap();
        // Inodes of the mount before may still be on their way out; index=on then refuses the workdir.
        // So does a copy of the mount in a mount namespace that someone has made meanwhile.
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut outcome =
            mount("overlay", &self.layers.target, "overlay", MountFlags::empty(), text.as_c_str());
        while outcome == Err(rustix::io::Errno::BUSY) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            outcome = mount("overlay", &self.layers.target, "overlay", MountFlags::empty(), text.as_c_str());
        }
        outcome.unwrap_or_else(|error| panic!("kernel overlayfs {text:?}: {error}"));
        self.live = true;
    }

    /// Unmounts and mounts again.
    pub fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    /// Unmounts.
    pub fn unmount(&mut self) {
        if std::mem::take(&mut self.live) {
            unmount(&self.layers.target);
        }
    }
}

impl Drop for KernelOverlay {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// Copies a tree with everything that can be seen of it, as `cp -a` does, and returns where.
pub fn copy_tree(source: &Path, target: PathBuf) -> PathBuf {
    let status =
        Command::new("cp").args(["-a", "--sparse=auto", "--"]).arg(source).arg(&target).status().unwrap();
    assert!(status.success(), "cp -a {} {}: {status}", source.display(), target.display());
    target
}
