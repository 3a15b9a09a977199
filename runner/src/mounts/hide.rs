//! Paths of `/proc` and `/sys` that tell about or change the host.

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::tree::{Options, attach, bind, new};
use crate::error::{During, Result};
use crate::sys::mount::{Reach, set_attributes};

/// Not to be seen, as with docker.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// To be read only.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Covers the masked paths: files by the null device, directories by one empty read-only file system.
pub(super) fn mask() -> Result<()> {
    let mut empty: Option<&str> = None;
    let throttles = thermal_throttles();
    for path in MASKED.into_iter().chain(throttles.iter().map(String::as_str)) {
        let Some(place) = open(path)? else { continue };
        let stat = rustix::fs::fstat(&place).during(format_args!("look at {path}"))?;
        let cover = if !FileType::from_raw_mode(stat.st_mode).is_dir() {
            bind(CWD, "/dev/null", Reach::One).during("bind the null device")?
        } else if let Some(first) = empty {
            bind(CWD, first, Reach::One).during("bind the empty directory")?
        } else {
            empty = Some(path);
            let options = Options::default().string("mode", "555").string("size", "4k");
            let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            new("tmpfs", &options, attributes).during("mount an empty directory")?
        };
        attach(&cover, &place).during(format_args!("mask {path}"))?;
    }
    Ok(())
}

/// Makes the read-only paths read-only.
pub(super) fn protect() -> Result<()> {
    for path in READ_ONLY {
        let Some(place) = open(path)? else { continue };
        let view = bind(CWD, path, Reach::Recursive).during(format_args!("bind {path}"))?;
        set_attributes(&view, libc::MOUNT_ATTR_RDONLY, Reach::Recursive)
            .during(format_args!("make {path} read-only"))?;
        attach(&view, &place).during(format_args!("protect {path}"))?;
    }
    Ok(())
}

fn open(path: &str) -> Result<Option<OwnedFd>> {
    match rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        // Which of these exist depends on the kernel; below a bound /proc some may be out of reach already.
        Err(Errno::NOENT | Errno::ACCESS) => Ok(None),
        result => result.map(Some).during(format_args!("open {path}")),
    }
}

/// One directory for each processor, where there are any.
fn thermal_throttles() -> Vec<String> {
    let of = |cpu: usize| format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle");
    if rustix::fs::access(of(0), rustix::fs::Access::EXISTS).is_err() {
        return Vec::new();
    }
    (0..)
        .map(of)
        .take_while(|path| rustix::fs::access(path.as_str(), rustix::fs::Access::EXISTS).is_ok())
        .collect()
}
