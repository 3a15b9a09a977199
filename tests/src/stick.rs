//! A file system as it is on a memory stick, in an image: exFAT or vfat, by the kernel or by a FUSE driver.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes of an image. It has holes.
const SIZE: u64 = 512 << 20;

/// How long the store of a mount that was taken away may still be written.
const PATIENCE: Duration = Duration::from_secs(20);

/// What formats an image and mounts it.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// exFAT by the kernel's driver.
    Exfat,
    /// exFAT by the program `mount.exfat-fuse`.
    ExfatFuse,
    /// vfat by the kernel's driver.
    Vfat,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Exfat, Self::ExfatFuse, Self::Vfat];

    /// Returns those that this host has.
    pub fn here() -> Vec<Self> {
        Self::ALL.into_iter().filter(|kind| kind.is_here()).collect()
    }

    /// Returns whether this host has it.
    pub fn is_here(self) -> bool {
        let (formatter, _) = self.formatter();
        let driver = match self {
            Self::Exfat => knows("exfat"),
            Self::Vfat => knows("vfat"),
            Self::ExfatFuse => found("mount.exfat-fuse"),
        };
        driver && found(formatter) && found("losetup")
    }

    const fn formatter(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Exfat | Self::ExfatFuse => ("mkfs.exfat", &[]),
            Self::Vfat => ("mkfs.vfat", &["-F", "32"]),
        }
    }
}

/// Returns whether the kernel has a file system, if need be after it was loaded.
fn knows(name: &str) -> bool {
    let listed = || {
        let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        known.lines().any(|line| line.split_whitespace().next_back() == Some(name))
    };
    listed() || (quiet(Command::new("modprobe").arg(name)) && listed())
}

fn found(program: &str) -> bool {
    let places = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&places).collect();
    places.extend(["/sbin", "/usr/sbin"].map(PathBuf::from));
    places.iter().any(|place| place.join(program).exists())
}

fn quiet(command: &mut Command) -> bool {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A mounted image, unmounted on drop.
#[derive(Debug)]
pub struct Stick {
    kind: Kind,
    /// The loop device of the image.
    device: OsString,
    /// Where it is mounted.
    pub root: PathBuf,
}

impl Stick {
    /// Makes an image in the directory `at` and mounts it there.
    pub fn new(kind: Kind, at: &Path) -> Self {
        Self::with_size(kind, at, SIZE)
    }

    /// Makes an image of `size` bytes.
    pub fn with_size(kind: Kind, at: &Path, size: u64) -> Self {
        let (image, root) = (at.join("image"), at.join("stick"));
        std::fs::File::create(&image).unwrap().set_len(size).unwrap();
        std::fs::create_dir(&root).unwrap();
        let (formatter, arguments) = kind.formatter();
        assert!(quiet(Command::new(formatter).args(arguments).arg(&image)), "{formatter} failed");
        let attached = Command::new("losetup").args(["--find", "--show"]).arg(&image).output().unwrap();
        assert!(attached.status.success(), "losetup: {}", attached.stderr.escape_ascii());
        let device = OsString::from_vec(attached.stdout.trim_ascii().to_vec());
        let stick = Self { kind, device, root };
        stick.mount();
        stick
    }

    fn mount(&self) {
        let mut command = match self.kind {
            Kind::ExfatFuse => Command::new("mount.exfat-fuse"),
            Kind::Exfat | Kind::Vfat => {
                let mut command = Command::new("mount");
                let name = if matches!(self.kind, Kind::Exfat) { "exfat" } else { "vfat" };
                command.args(["-i", "-t", name]);
                command
            }
        };
        assert!(quiet(command.arg(&self.device).arg(&self.root)), "{:?} cannot be mounted", self.kind);
    }

    /// Takes it out and puts it in again, so that nothing is remembered of it.
    pub fn replug(&self) {
        self.unmount();
        self.mount();
    }

    fn unmount(&self) {
        let begun = Instant::now();
        while !quiet(Command::new("umount").arg(&self.root)) {
            assert!(begun.elapsed() < PATIENCE, "{} stays busy", self.root.display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Stick {
    fn drop(&mut self) {
        if std::thread::panicking() {
            quiet(Command::new("umount").arg("-l").arg(&self.root));
        } else {
            self.unmount();
        }
        quiet(Command::new("losetup").arg("--detach").arg(&self.device));
    }
}
