//! A file name: one component of a path, as bytes.

use std::fmt;
use std::sync::Arc;

use crate::error::{Errno, Error, Result};

/// The longest name that Linux file systems hold, in bytes.
pub(crate) const NAME_MAX: usize = 255;

/// One path component: not empty, without `/` and NUL, at most 255 bytes, neither `.` nor `..`.
///
/// Cheap to clone: places in the union and in a layer share the bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FileName(Arc<[u8]>);

impl FileName {
    /// Checks and takes `bytes` as a name.
    ///
    /// # Errors
    /// ENAMETOOLONG over 255 bytes, EINVAL for what can be no name.
    pub(crate) fn new(bytes: &[u8]) -> Result<Self> {
        check(bytes)?;
        Ok(Self(bytes.into()))
    }

    /// Takes the bytes of a name that was one before.
    pub(crate) fn from_checked(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// Returns the bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Checks that `bytes` can be a name.
///
/// # Errors
/// ENAMETOOLONG over 255 bytes, EINVAL for what can be no name.
pub(crate) fn check(bytes: &[u8]) -> Result<()> {
    if bytes.len() > NAME_MAX {
        return Err(Error::new(Errno::NAMETOOLONG));
    }
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.iter().any(|&b| b == b'/' || b == 0) {
        return Err(Error::new(Errno::INVAL));
    }
    Ok(())
}

impl fmt::Debug for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_single_components_are_names() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            assert_eq!(FileName::new(bad).unwrap_err().errno(), Errno::INVAL, "{bad:?}");
        }
        assert_eq!(FileName::new(&[b'x'; 256]).unwrap_err().errno(), Errno::NAMETOOLONG);
        for good in [&b"a"[..], b"...", b"\xff\xfe", &[b'x'; 255]] {
            assert_eq!(FileName::new(good).unwrap().as_bytes(), good);
        }
    }
}
