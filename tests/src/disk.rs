//! A small disk with a file system of a kind that the machine may not use: an image, mounted through a loop device.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Room on the disk; btrfs takes no less than 109 MiB.
const BYTES: u64 = 400 << 20;

/// A mounted disk; it is unmounted when dropped.
#[derive(Debug)]
pub struct LoopDisk {
    root: PathBuf,
}

impl LoopDisk {
    /// Makes a disk with a file system of this kind below `base`; tells what is missing.
    pub fn new(kind: &str, base: &Path) -> Result<Self, String> {
        let (image, root) = (base.join(format!("{kind}.img")), base.join(kind));
        let file = std::fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(BYTES).map_err(|error| error.to_string())?;
        std::fs::create_dir(&root).map_err(|error| error.to_string())?;
        run(&format!("mkfs.{kind}"), &["-q".as_ref(), image.as_ref()])?;
        run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), root.as_ref()])?;
        Ok(Self { root })
    }

    /// Returns where it is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if let Err(error) = run("umount", &["-l".as_ref(), self.root.as_ref()]) {
            eprintln!("{error}");
        }
    }
}

/// Runs a command and returns what it printed.
pub fn run(program: &str, arguments: &[&OsStr]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(output.stdout.trim_ascii().escape_ascii().to_string());
    }
    Err(format!("{program} {arguments:?}: {}", output.stderr.trim_ascii().escape_ascii()))
}
