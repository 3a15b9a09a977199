//! How far the kernel reads ahead in files of the mount.
//!
//! The kernel starts with 128 KiB, and the first exchange can only lower it. Larger requests read a file that is not
//! cached nearly twice as fast; root may ask for them afterwards.

use super::control::MountId;
use crate::error::{Errno, Error, Result};
use crate::sys;

/// As large as the largest answer that goes through a pipe, and small enough that what was read is in a cache of the processor
/// until it is used.
const KIBIBYTES: u64 = 512;

/// Raises the read-ahead of a mount, if this process may.
///
/// # Errors
///
/// What open(2) and write(2) of the setting in /sys answer: EACCES for who is not root.
pub fn raise(mount: MountId) -> Result<()> {
    let setting = format!("/sys/class/bdi/{mount}/read_ahead_kb");
    let now = sys::read_setting(&setting).map_err(|errno| Error::new(errno).during("read", &setting))?;
    let now: u64 = now.trim().parse().map_err(|_| Error::new(Errno::INVAL).during("understand", &setting))?;
    // Someone may have raised it further.
    if now < KIBIBYTES {
        std::fs::write(&setting, KIBIBYTES.to_string())
            .map_err(|error| Error::from(error).during("write", &setting))?;
    }
    Ok(())
}
