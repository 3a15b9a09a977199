//! A disk in a file, whose state at one moment can be kept: what a power cut would leave on it.
//!
//! The file lies on an XFS, which copies it in one step (FICLONE), and the block device over it keeps nothing back: a
//! snapshot holds exactly the writes that the device has finished.

use std::path::{Path, PathBuf};

use e2e::disk::run;
use e2e::mounted::unmount;

/// Whether the loop device may keep writes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cached {
    No,
    /// A snapshot shares blocks, which XFS does not let be written directly in parts of a block.
    Yes,
}

/// A file system on a loop device, unmounted and detached on drop.
#[derive(Debug)]
pub struct Disk {
    device: String,
    /// Where it is mounted.
    pub root: PathBuf,
}

impl Disk {
    /// Mounts the file system in `image` on a new directory `root`.
    fn mount(image: &Path, root: PathBuf, cached: Cached, options: &str) -> Result<Self, String> {
        let direct = format!("--direct-io={}", if cached == Cached::No { "on" } else { "off" });
        let device =
            run("losetup", &[direct.as_ref(), "--find".as_ref(), "--show".as_ref(), image.as_ref()])?;
        std::fs::create_dir_all(&root).map_err(|error| error.to_string())?;
        let mut disk = Self { device, root };
        match run("mount", &["-o".as_ref(), options.as_ref(), disk.device.as_ref(), disk.root.as_ref()]) {
            Ok(_) => Ok(disk),
            Err(error) => {
                disk.root = PathBuf::new();
                Err(error)
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.root != Path::new("") {
            unmount(&self.root);
        }
        drop(run("losetup", &["--detach".as_ref(), self.device.as_ref()]));
    }
}

/// Where the disk and its snapshots lie. Fields are dropped in order.
#[derive(Debug)]
pub struct Laboratory {
    /// The disk in use.
    pub disk: Disk,
    kind: &'static str,
    shelf: Disk,
    base: PathBuf,
}

impl Laboratory {
    /// Makes a disk with a file system of this kind, `ext4` or `xfs`, below `base`; tells what is missing.
    pub fn new(base: &Path, kind: &'static str) -> Result<Self, String> {
        let make = |image: &Path, size: u64, kind: &str| {
            let file = std::fs::File::create(image).map_err(|error| error.to_string())?;
            file.set_len(size).map_err(|error| error.to_string())?;
            run(&format!("mkfs.{kind}"), &["-q".as_ref(), image.as_ref()])
        };
        let shelf_image = base.join("shelf.img");
        make(&shelf_image, 2 << 30, "xfs")?;
        let shelf = Disk::mount(&shelf_image, base.join("shelf"), Cached::No, "noatime")?;
        let image = shelf.root.join("disk.img");
        make(&image, 512 << 20, kind)?;
        let disk = Disk::mount(&image, base.join("disk"), Cached::No, "noatime")?;
        Ok(Self { disk, kind, shelf, base: base.to_owned() })
    }

    /// Keeps what the disk holds at this moment.
    pub fn cut_power(&self) {
        let [disk, snapshot] = ["disk.img", "snapshot.img"].map(|name| self.shelf.root.join(name));
        // A new file: whoever made a mount namespace meanwhile has a copy of the last mount, which still writes to the old one.
        if snapshot.exists() {
            std::fs::remove_file(&snapshot).unwrap();
        }
        let (from, to) = (std::fs::File::open(disk).unwrap(), std::fs::File::create_new(snapshot).unwrap());
        rustix::fs::ioctl_ficlone(to, from).unwrap();
    }

    /// Mounts what was kept, as after the power came back.
    pub fn power_on(&self) -> Disk {
        let options = if self.kind == "xfs" { "noatime,nouuid" } else { "noatime" };
        let image = self.shelf.root.join("snapshot.img");
        Disk::mount(&image, self.base.join("snapshot"), Cached::Yes, options).unwrap()
    }
}
