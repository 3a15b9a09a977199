//! INIT: what kernel and server agree on.

use super::bytes::{Reader, Writer};
use super::flags::InitFlags;

/// The protocol's major version.
pub const MAJOR: u32 = 7;
/// The newest minor version that this codec speaks.
pub const MINOR: u32 = 45;
/// The oldest minor version with which the message sizes of this codec are right (Linux 3.15).
pub const MINOR_MIN: u32 = 23;

/// What the kernel offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitIn {
    /// Major version.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
    /// Largest read-ahead in bytes.
    pub max_readahead: u32,
    /// What the kernel can do.
    pub flags: InitFlags,
}

impl InitIn {
    /// Reads the argument; old kernels send no second flag word, and foreign major versions send only the version.
    pub(super) fn read(data: &mut Reader<'_>) -> Option<Self> {
        let (major, minor) = (data.u32()?, data.u32()?);
        if major != MAJOR {
            return Some(Self { major, minor, max_readahead: 0, flags: InitFlags::empty() });
        }
        let max_readahead = data.u32()?;
        let low = data.u32()?;
        let extended = InitFlags::from_bits_retain(u64::from(low)).contains(InitFlags::INIT_EXT);
        let high = if extended { data.u32()? } else { 0 };
        let flags = InitFlags::from_bits_retain(u64::from(low) | u64::from(high) << 32);
        Some(Self { major, minor, max_readahead, flags })
    }
}

/// What the server chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitOut {
    /// Minor version to speak: the smaller of the two.
    pub minor: u32,
    /// Largest read-ahead in bytes; can only be lowered.
    pub max_readahead: u32,
    /// What is wanted of what was offered.
    pub flags: InitFlags,
    /// Most requests in the background.
    pub max_background: u16,
    /// Background requests from which the backing device counts as congested.
    pub congestion_threshold: u16,
    /// Largest write in bytes.
    pub max_write: u32,
    /// Granularity of times in nanoseconds.
    pub time_gran: u32,
    /// Largest request in pages.
    pub max_pages: u16,
    /// Depth of stacked file systems that backing files may have, 0 without passthrough.
    pub max_stack_depth: u32,
    /// Seconds after which an unanswered request ends the connection; 0: never.
    pub request_timeout: u16,
}

impl InitOut {
    /// Writes the answer and returns its length.
    pub fn encode(&self, out: &mut [u8]) -> Option<usize> {
        let bits = self.flags.bits();
        let low = u32::try_from(bits & u64::from(u32::MAX)).ok()?;
        let high = u32::try_from(bits >> 32).ok()?;
        let mut w = Writer::new(out);
        w.u32(MAJOR).u32(self.minor).u32(self.max_readahead).u32(low);
        w.u16(self.max_background).u16(self.congestion_threshold);
        w.u32(self.max_write).u32(self.time_gran).u16(self.max_pages).u16(0);
        w.u32(high).u32(self.max_stack_depth).u16(self.request_timeout);
        w.zeros(22).finish()
    }
}

/// Writes the answer to a kernel with another major version: it will then send INIT again with ours.
pub fn encode_version(out: &mut [u8]) -> Option<usize> {
    let mut w = Writer::new(out);
    w.u32(MAJOR).u32(MINOR).zeros(56).finish()
}
