//! `mount -o remount`: other flags for a mount that is there. mount(8) leaves that to the command of the type.

use std::path::Path;
use std::process::ExitCode;

use super::{Failure, complain, runtime_directory};
use crate::fuse::{control, mount};
use crate::options::MountOptions;

/// Changes the flags of the mount. When one is read-only from then on, what was written is on the disk, as after a remount
/// of a file system of the kernel.
pub(super) fn run(mountpoint: &Path, options: &MountOptions) -> Result<ExitCode, Failure> {
    // mount(8) repeats what /proc/mounts shows.
    let shown = MountOptions {
        flags: options.flags,
        allow_other: options.allow_other,
        remount: true,
        ..MountOptions::default()
    };
    if *options != shown {
        complain(
            &"a remount changes flags of the mount only (ro, nosuid, ...): other options stay as they are",
        );
    }
    mount::remount(mountpoint, options)?;
    if options.flags.read_only
        && let Err(text) = control::ask(mountpoint, &[b"flush"], runtime_directory().as_deref())?
    {
        return Err(text.escape_ascii().to_string().into());
    }
    Ok(ExitCode::SUCCESS)
}
