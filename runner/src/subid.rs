//! Which ranges of ids a user may use: the text of `/etc/subuid` and `/etc/subgid`. Pure.

/// A range of ids of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first id.
    pub start: u32,
    /// How many ids.
    pub count: u32,
}

/// Returns the ranges of a user, known by name or by number, in the order of the file.
///
/// Lines that make no sense are skipped, as newuidmap does.
pub fn parse(text: &[u8], name: Option<&[u8]>, uid: u32) -> Vec<Range> {
    let number = uid.to_string();
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b':');
            let (owner, start, count) = (fields.next()?, fields.next()?, fields.next()?);
            let ours = name == Some(owner) || owner == number.as_bytes();
            let range = Range { start: number_of(start)?, count: number_of(count)? };
            let valid =
                fields.next().is_none() && range.count > 0 && range.start.checked_add(range.count).is_some();
            (ours && valid).then_some(range)
        })
        .collect()
}

/// Parses a decimal number strictly: digits only.
pub fn number_of(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    text.iter().try_fold(0_u32, |sum, digit| sum.checked_mul(10)?.checked_add(u32::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text = b"ann:100000:65536\n1000:300000:10\nbob:1:2\nann:500000:1\n";
        let ranges = parse(text, Some(b"ann"), 1000);
        let starts: Vec<u32> = ranges.iter().map(|range| range.start).collect();
        assert_eq!(starts, [100_000, 300_000, 500_000]);
    }

    #[test]
    fn lines_without_sense_are_skipped() {
        for line in ["ann", "ann:1", "ann:x:1", "ann:1:0", "ann:1:2:3", "ann:4294967295:2", "ann:-1:5", ""] {
            assert!(parse(line.as_bytes(), Some(b"ann"), 1).is_empty(), "{line}");
        }
    }

    #[test]
    fn numbers_are_strict() {
        for (text, want) in [
            ("0", Some(0)),
            ("4294967295", Some(u32::MAX)),
            ("4294967296", None),
            ("+1", None),
            ("1x", None),
            ("", None),
        ] {
            assert_eq!(number_of(text.as_bytes()), want, "{text}");
        }
    }
}
