//! The record that names a lower object on disk: kernel overlayfs' `origin` attribute and index entries.

/// First byte of a record.
const VERSION: u8 = 0;
/// Second byte of a record.
const MAGIC: u8 = 0xfb;
/// Bytes before the file system's identifier: version, magic, length, flags, handle type.
const FIXED: usize = 5;
/// Flag: the handle was written on a big-endian machine.
const BIG_ENDIAN: u8 = 1;

/// Builds the record of a lower object from its handle and its file system's identifier; `None` for a handle that
/// the format cannot hold.
pub fn record(kind: i32, handle: &[u8], uuid: &[u8; 16]) -> Option<Vec<u8>> {
    let kind = u8::try_from(kind).ok()?;
    let len = u8::try_from(FIXED + uuid.len() + handle.len()).ok()?;
    let flags = if cfg!(target_endian = "big") { BIG_ENDIAN } else { 0 };
    let mut record = vec![VERSION, MAGIC, len, flags, kind];
    record.extend_from_slice(uuid);
    record.extend_from_slice(handle);
    Some(record)
}

/// Returns the name of a record's entry in the index: its bytes in lower-case hexadecimal.
pub fn index_name(record: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0');
    record.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Returns whether `record` is laid out as one.
pub fn is_record(record: &[u8]) -> bool {
    let well_begun = matches!(record, [VERSION, MAGIC, len, ..] if usize::from(*len) == record.len());
    well_begun && record.len() > FIXED + 16
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts<'a> {
    /// Identifier of the file system; all zero where it has none or it was not to be stored.
    pub uuid: [u8; 16],
    /// Type of the handle.
    pub kind: i32,
    /// The handle.
    pub handle: &'a [u8],
}

/// Takes a record apart; `None` for what is none, or was written on a machine of the other byte order.
pub fn parts(record: &[u8]) -> Option<Parts<'_>> {
    let &[_, _, _, flags, kind] = record.first_chunk::<FIXED>()?;
    if !is_record(record) || (flags & BIG_ENDIAN != 0) != cfg!(target_endian = "big") {
        return None;
    }
    let (uuid, handle) = record.get(FIXED..)?.split_first_chunk::<16>()?;
    Some(Parts { uuid: *uuid, kind: kind.into(), handle })
}

/// Returns the inode number in a file handle, of the forms that ext4, xfs, btrfs and tmpfs make. Whether a file system
/// makes one of them must be tried: the types are not unique.
pub fn ino_of_handle(kind: i32, handle: &[u8]) -> Option<u64> {
    let wide = |at: usize| handle.get(at..)?.first_chunk().copied().map(u64::from_ne_bytes);
    let half = |at: usize| handle.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes).map(u64::from);
    match (kind, handle.len()) {
        // Number, generation.
        (0x01, 8) => half(0),
        // Generation, low half, high half.
        (0x01, 12) => Some(half(4)? | half(8)? << 32),
        // Number of 64 bits, generation (xfs); number, subvolume, generation (btrfs).
        (0x81, 12) | (0x4d, 20) => wide(0),
        _ => None,
    }
}

/// Returns the record that an entry of the index is named by.
pub fn record_of(name: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = name.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let bytes = pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?));
    bytes.collect::<Option<Vec<u8>>>().filter(|record| is_record(record))
}

/// Writes the `nlink` attribute: the shown number of links less those of the upper inode.
pub fn nlink_value(difference: i64) -> Vec<u8> {
    format!("U{difference:+}").into_bytes()
}

/// Reads the `nlink` attribute. Relative to the lower inode (`L`) it is taken as unknown.
pub fn parse_nlink(value: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(value.strip_prefix(b"U")?).ok()?;
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_laid_out_as_the_kernel_writes_it() {
        let record = record(1, &[1, 2, 3, 4], &[0xab; 16]).unwrap();
        assert_eq!(record.len(), 25);
        assert_eq!(&record[..5], &[0, 0xfb, 25, 0, 1]);
        assert_eq!(&record[21..], &[1, 2, 3, 4]);
        let name = index_name(&record);
        assert!(name.starts_with(b"00fb190001abab"));
        assert!(is_record(&record) && !is_record(&record[..24]) && !is_record(b""));
        assert_eq!(record_of(&name), Some(record));
        for bad in [&name[1..], &name[2..], b"#12", b"00FB"] {
            assert_eq!(record_of(bad), None);
        }
    }

    #[test]
    fn a_record_comes_apart_as_it_was_made() {
        let made = record(1, &[9; 8], &[0xab; 16]).unwrap();
        assert_eq!(parts(&made), Some(Parts { uuid: [0xab; 16], kind: 1, handle: &[9; 8] }));
        let mut foreign = made.clone();
        foreign[3] ^= BIG_ENDIAN;
        for bad in [&foreign[..], &made[1..], &made[..20], b""] {
            assert_eq!(parts(bad), None);
        }
    }

    #[test]
    fn handles_hold_inode_numbers() {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        let number = 0x0001_0000_0002_u64.to_ne_bytes();
        let wide = |rest: usize| [&number[..], &vec![0; rest]].concat();
        for (kind, handle, ino) in [
            (0x01, words(&[7, 99]), Some(7)),
            (0x01, words(&[99, 2, 1]), Some(0x0001_0000_0002)),
            (0x81, wide(4), Some(0x0001_0000_0002)),
            (0x4d, wide(12), Some(0x0001_0000_0002)),
            (0x02, words(&[7, 99]), None),
            (0x01, words(&[7]), None),
        ] {
            assert_eq!(ino_of_handle(kind, &handle), ino, "{kind:x} {handle:?}");
        }
    }

    #[test]
    fn the_link_count_round_trips() {
        for difference in [-3, 0, 1] {
            assert_eq!(parse_nlink(&nlink_value(difference)), Some(difference));
        }
        assert_eq!(nlink_value(1), b"U+1");
        assert_eq!(parse_nlink(b"L+1"), None);
    }
}
