//! Which id is shown for an id on disk, and which id on disk stands for an id that is asked for.
//!
//! Pure: no system call and no global state. A mapping works in both directions; a fixed id (squash) is only shown.

use std::fmt;

/// The id shown for what no mapping covers, where the kernel does not tell another one
/// (`/proc/sys/kernel/overflowuid`, `overflowgid`).
pub const DEFAULT_OVERFLOW_ID: u32 = 65534;

/// What the kernel writes into an ACL for an id without a place in this user namespace. It takes none back.
const NO_ID: u32 = u32::MAX;

/// One run of ids: `disk..disk + len` on disk is shown as `shown..shown + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First id on disk.
    pub disk: u32,
    /// First id shown.
    pub shown: u32,
    /// Number of ids, at least 1.
    pub len: u32,
}

/// An ordered list of id ranges; the first range that covers an id decides. Empty maps every id to itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    ranges: Vec<IdRange>,
}

/// Why the text of a mapping is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdMapError {
    /// A part is not a decimal number below 2^32.
    NotANumber,
    /// The number of parts is not a multiple of three.
    IncompleteTriple,
    /// A range is empty or ends beyond the last id.
    BadRange,
}

impl fmt::Display for IdMapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotANumber => "expected decimal ids",
            Self::IncompleteTriple => "expected triples DISK:SHOWN:LENGTH joined by colons",
            Self::BadRange => "a range is empty or ends beyond the last id",
        })
    }
}

impl std::error::Error for IdMapError {}

impl IdMap {
    /// Makes a mapping of `ranges`.
    ///
    /// # Errors
    ///
    /// `BadRange` if a range is empty or leaves the 32-bit ids.
    pub fn new(ranges: Vec<IdRange>) -> Result<Self, IdMapError> {
        let fits = |first: u32, len: u32| len > 0 && first.checked_add(len - 1).is_some();
        if ranges.iter().all(|range| fits(range.disk, range.len) && fits(range.shown, range.len)) {
            Ok(Self { ranges })
        } else {
            Err(IdMapError::BadRange)
        }
    }

    /// Reads `DISK:SHOWN:LEN[:DISK:SHOWN:LEN...]`. Empty parts, such as a leading colon makes, are dropped.
    ///
    /// # Errors
    ///
    /// What [`IdMapError`] lists.
    pub fn parse(text: &[u8]) -> Result<Self, IdMapError> {
        let numbers = text
            .split(|&byte| byte == b':')
            .filter(|part| !part.is_empty())
            .map(|part| parse_id(part).ok_or(IdMapError::NotANumber))
            .collect::<Result<Vec<u32>, _>>()?;
        let (triples, rest) = numbers.as_chunks::<3>();
        if !rest.is_empty() {
            return Err(IdMapError::IncompleteTriple);
        }
        Self::new(triples.iter().map(|&[disk, shown, len]| IdRange { disk, shown, len }).collect())
    }

    /// Returns the ranges in their order.
    pub fn ranges(&self) -> &[IdRange] {
        &self.ranges
    }

    /// Returns whether the mapping leaves every id as it is.
    pub fn is_identity(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Returns the id shown for `disk`, or `None` if no range covers it.
    pub fn to_shown(&self, disk: u32) -> Option<u32> {
        if self.is_identity() {
            return Some(disk);
        }
        self.ranges.iter().find_map(|range| translate(disk, range.disk, range.shown, range.len))
    }

    /// Returns the id on disk that is shown as `shown`, or `None` if there is none.
    pub fn to_disk(&self, shown: u32) -> Option<u32> {
        if self.is_identity() {
            return Some(shown);
        }
        self.ranges.iter().find_map(|range| translate(shown, range.shown, range.disk, range.len))
    }
}

impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.ranges.iter().enumerate() {
            let separator = if index == 0 { "" } else { ":" };
            write!(f, "{separator}{}:{}:{}", range.disk, range.shown, range.len)?;
        }
        Ok(())
    }
}

/// How one kind of id, users or groups, is shown and stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdView {
    /// The mapping.
    pub map: IdMap,
    /// Every object is shown with this id, whatever the disk and the mapping say.
    pub fixed: Option<u32>,
    /// Shown for ids that the mapping does not cover.
    pub overflow: u32,
    /// The kernel's id for owners without a place in this user namespace is shown as 0.
    pub squash_overflow: bool,
}

impl Default for IdView {
    fn default() -> Self {
        Self { map: IdMap::default(), fixed: None, overflow: DEFAULT_OVERFLOW_ID, squash_overflow: false }
    }
}

impl IdView {
    /// Returns the id to show for `disk`.
    pub fn shown(&self, disk: u32) -> u32 {
        if self.squash_overflow && disk == self.overflow {
            return self.fixed.unwrap_or(0);
        }
        self.fixed.unwrap_or_else(|| self.map.to_shown(disk).unwrap_or(self.overflow))
    }

    /// Returns the id to store where `shown` is asked for, or `None` if the mapping has none (EINVAL, as chown(2)
    /// answers for an id without a place in the user namespace).
    pub fn disk(&self, shown: u32) -> Option<u32> {
        self.map.to_disk(shown)
    }

    /// Returns the id to show where an ACL names `disk`: fixed ids are those of owners only.
    pub fn named(&self, disk: u32) -> u32 {
        self.map.to_shown(disk).filter(|&shown| shown != NO_ID).unwrap_or(self.overflow)
    }

    /// Returns the id to give a copy of an object that belongs to `disk`.
    pub fn carried(&self, disk: u32) -> u32 {
        if self.squash_overflow && disk == self.overflow { 0 } else { disk }
    }

    /// Returns the view that shows owners without a place in this user namespace as 0.
    #[must_use]
    pub fn squashing_unmapped(mut self) -> Self {
        self.squash_overflow = true;
        self
    }

    /// Returns whether ids are shown as they are on disk.
    pub fn is_identity(&self) -> bool {
        self.fixed.is_none() && self.map.is_identity()
    }
}

/// Moves `id` from the run that begins at `from` to the one that begins at `to`.
fn translate(id: u32, from: u32, to: u32, len: u32) -> Option<u32> {
    let offset = id.checked_sub(from).filter(|&offset| offset < len)?;
    to.checked_add(offset)
}

/// Reads a decimal id without sign.
fn parse_id(text: &[u8]) -> Option<u32> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_translates_in_both_directions() {
        let map = IdMap::parse(b":100000:0:65536:1000:70000:1").unwrap();
        for (disk, shown) in [(100_000, 0), (100_001, 1), (165_535, 65_535), (1000, 70_000)] {
            assert_eq!(map.to_shown(disk), Some(shown), "{disk}");
            assert_eq!(map.to_disk(shown), Some(disk), "{shown}");
        }
        for id in [0, 99_999, 165_536, 999, 1001, u32::MAX] {
            assert_eq!(map.to_shown(id), None, "{id}");
        }
        assert_eq!(map.to_disk(65_536), None);
    }

    #[test]
    fn no_mapping_leaves_every_id_as_it_is() {
        let map = IdMap::parse(b"").unwrap();
        assert!(map.is_identity());
        assert_eq!((map.to_shown(7), map.to_disk(u32::MAX)), (Some(7), Some(u32::MAX)));
    }

    #[test]
    fn malformed_mappings_are_refused() {
        for (text, want) in [
            (&b"1:2"[..], IdMapError::IncompleteTriple),
            (b":0:1000:1:5", IdMapError::IncompleteTriple),
            (b"a:0:1", IdMapError::NotANumber),
            (b"+1:0:1", IdMapError::NotANumber),
            (b"4294967296:0:1", IdMapError::NotANumber),
            (b"0:0:0", IdMapError::BadRange),
            (b"4294967295:0:2", IdMapError::BadRange),
        ] {
            assert_eq!(IdMap::parse(text), Err(want), "{}", text.escape_ascii());
        }
        assert!(IdMap::parse(b"4294967295:0:1").is_ok());
    }

    #[test]
    fn a_fixed_id_beats_the_mapping_and_is_only_shown() {
        let map = IdMap::parse(b"1000:0:1").unwrap();
        let mut view = IdView { map, ..IdView::default() };
        assert_eq!(
            (view.shown(1000), view.shown(5), view.disk(0), view.disk(5)),
            (0, 65534, Some(1000), None)
        );
        assert_eq!((view.named(1000), view.named(5), IdView::default().named(NO_ID)), (0, 65534, 65534));
        view.fixed = Some(42);
        assert_eq!(view.named(1000), 0);
        assert_eq!((view.shown(1000), view.shown(5), view.disk(0)), (42, 42, Some(1000)));
    }
}
