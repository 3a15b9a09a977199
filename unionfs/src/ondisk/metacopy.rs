//! The value of a `metacopy` mark: empty, or the fs-verity digest that the file with the data must have.

/// First byte of a header.
const VERSION: u8 = 0;
/// Bytes before the digest: version, length, flags, algorithm.
const FIXED: usize = 4;
/// The algorithm of a header without a digest.
const NO_DIGEST: u8 = 0;

/// An fs-verity digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// The hash algorithm, as fs-verity numbers them.
    pub algorithm: u8,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Reads the value of a mark: the digest that it demands, if any.
///
/// # Errors
/// The value is none that the kernel accepts.
pub fn parse(value: &[u8]) -> Result<Option<Digest>, Malformed> {
    if value.is_empty() {
        return Ok(None);
    }
    match *value {
        [VERSION, len, _, algorithm, ref digest @ ..] if usize::from(len) == value.len() => {
            Ok((algorithm != NO_DIGEST).then(|| Digest { algorithm, bytes: digest.to_vec() }))
        }
        _ => Err(Malformed),
    }
}

/// A value that is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Makes the value of a mark that demands a digest; empty for one that the format cannot hold.
pub fn header(digest: &Digest) -> Vec<u8> {
    let Ok(len) = u8::try_from(FIXED + digest.bytes.len()) else { return Vec::new() };
    [&[VERSION, len, 0, digest.algorithm], digest.bytes.as_slice()].concat()
}

/// Makes the value of a mark that demands no digest and has a note where that would be, which the kernel does not look at.
pub fn with_note(note: &[u8]) -> Vec<u8> {
    header(&Digest { algorithm: NO_DIGEST, bytes: note.to_vec() })
}

/// Returns the note in the value of a mark, if it has one.
pub fn note(value: &[u8]) -> Option<&[u8]> {
    match *value {
        [VERSION, len, _, NO_DIGEST, ref note @ ..] if usize::from(len) == value.len() => {
            Some(note).filter(|note| !note.is_empty())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_reads_back_and_demands_no_digest() {
        let value = with_note(b"text");
        assert_eq!(value, b"\0\x08\0\0text");
        assert_eq!((note(&value), parse(&value)), (Some(&b"text"[..]), Ok(None)));
        let digest = header(&Digest { algorithm: 1, bytes: vec![7; 32] });
        for other in [&b""[..], b"y", b"\0\x04\0\0", b"\0\x09\0\0text", b"\x01\x08\0\0text", &digest] {
            assert_eq!(note(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_header_reads_back() {
        let digest = Digest { algorithm: 1, bytes: vec![7; 32] };
        let value = header(&digest);
        assert_eq!(value[..5], [0, 36, 0, 1, 7]);
        assert_eq!(parse(&value), Ok(Some(digest)));
    }

    #[test]
    fn values_are_accepted_and_refused_as_by_the_kernel() {
        for (value, want) in [
            (&b""[..], Ok(None)),
            (b"\0\x04\0\0", Ok(None)),
            (b"\0\x03\0", Err(Malformed)),
            (b"\x01\x04\0\0", Err(Malformed)),
            (b"\0\x05\0\0", Err(Malformed)),
            (b"y", Err(Malformed)),
        ] {
            assert_eq!(parse(value), want, "{value:?}");
        }
    }
}
