//! How far the kernel reads ahead in files of the mount.
//!
//! The kernel starts with 128 KiB, and the first exchange can only lower it. Larger requests read a file that is not
//! cached nearly twice as fast; root may ask for them afterwards.

use crate::error::{Errno, Error, Result};

/// As large as the largest request.
const KIBIBYTES: &[u8] = b"1024";

/// Raises the read-ahead of the mount with this device number, if this process may.
///
/// # Errors
///
/// What open(2) and write(2) of the setting in /sys answer: EACCES for who is not root.
pub fn raise(device: u64) -> Result<()> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    let now = std::fs::read(&setting).map_err(|error| Error::from(error).during("read", &setting))?;
    let kibibytes = std::str::from_utf8(&now).ok().and_then(|text| text.trim().parse::<u64>().ok());
    // Someone may have raised it further.
    if kibibytes.ok_or(Error::new(Errno::INVAL).during("understand", &setting))? < 1024 {
        std::fs::write(&setting, KIBIBYTES).map_err(|error| Error::from(error).during("write", &setting))?;
    }
    Ok(())
}
