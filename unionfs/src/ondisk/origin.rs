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
    fn the_link_count_round_trips() {
        for difference in [-3, 0, 1] {
            assert_eq!(parse_nlink(&nlink_value(difference)), Some(difference));
        }
        assert_eq!(nlink_value(1), b"U+1");
        assert_eq!(parse_nlink(b"L+1"), None);
    }
}
