//! File capabilities as the kernel hands them out and takes them: the value of `security.capability`. Pure.
//!
//! They count for one user namespace: the one whose root has the id that the value names, or without one the root of the
//! file system's own.

/// The attribute.
pub const NAME: &[u8] = b"security.capability";

/// Length of a value with two words of each set of capabilities: version 2.
const LENGTH: usize = 20;
/// The version stands in the high byte of the first word.
const VERSION_MASK: u32 = 0xff00_0000;
const VERSION_2: u32 = 0x0200_0000;
const VERSION_3: u32 = 0x0300_0000;

/// Translates the root of the user namespace for which the capabilities count. What is of no known form stays.
///
/// `None` if the root has no translation.
pub fn map_root(value: &[u8], user: impl Fn(u32) -> Option<u32>) -> Option<Vec<u8>> {
    let Some((magic, _)) = value.split_first_chunk::<4>() else { return Some(value.to_vec()) };
    let magic = u32::from_le_bytes(*magic);
    let root = match (magic & VERSION_MASK, value.get(LENGTH..)) {
        (VERSION_2, Some([])) => 0,
        (VERSION_3, Some(&[a, b, c, d])) => u32::from_le_bytes([a, b, c, d]),
        _ => return Some(value.to_vec()),
    };
    let root = user(root)?;
    let version = if root == 0 { VERSION_2 } else { VERSION_3 };
    let mut mapped = (magic & !VERSION_MASK | version).to_le_bytes().to_vec();
    mapped.extend_from_slice(value.get(4..LENGTH)?);
    if root != 0 {
        mapped.extend_from_slice(&root.to_le_bytes());
    }
    Some(mapped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(version: u32, root: &[u8]) -> Vec<u8> {
        [&(version | 1).to_le_bytes()[..], &[7; 16], root].concat()
    }

    #[test]
    fn the_root_for_which_they_count_is_translated() {
        let shift = |id: u32| id.checked_add(100_000);
        let back = |id: u32| id.checked_sub(100_000);
        let (own, other) = (value(VERSION_2, &[]), value(VERSION_3, &100_000_u32.to_le_bytes()));
        assert_eq!(map_root(&own, shift), Some(other.clone()));
        assert_eq!(map_root(&other, back), Some(own.clone()));
        assert_eq!(map_root(&own, back), None);
        for odd in [&b""[..], b"abc", &own[..19], &other[..23]] {
            assert_eq!(map_root(odd, back).as_deref(), Some(odd), "{odd:?}");
        }
    }
}
