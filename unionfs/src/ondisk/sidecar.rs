//! The record of one object in the sidecar: the attributes that its file system cannot hold.
//!
//! Magic, then the stamp that tells the object from another one with its inode number, then names and values, each with
//! its length before it, little-endian; a checksum at the end, because a torn record must not be taken for a short one.

use std::collections::BTreeMap;

/// First bytes of a record, with the version of the format.
const MAGIC: &[u8; 8] = b"ufsside1";
/// Bytes of the checksum.
const SUM: usize = 8;
/// Most bytes that one object's attributes may take.
pub const MAX: usize = 1 << 20;

/// The attributes of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// What tells the object from a later one with the same inode number; empty where nothing does.
    pub stamp: Vec<u8>,
    /// Names and values.
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Record {
    /// Returns the bytes on disk.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        put(&mut bytes, &self.stamp);
        for (name, value) in &self.attributes {
            put(&mut bytes, name);
            put(&mut bytes, value);
        }
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads the bytes on disk; `None` if they are not what [`Self::encode`] made.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(SUM)?)?;
        if checksum(body).to_le_bytes() != *sum {
            return None;
        }
        let mut rest = body.strip_prefix(MAGIC)?;
        let mut record = Self { stamp: take(&mut rest)?.to_vec(), ..Self::default() };
        while !rest.is_empty() {
            let name = take(&mut rest)?.to_vec();
            record.attributes.insert(name, take(&mut rest)?.to_vec());
        }
        Some(record)
    }
}

fn put(bytes: &mut Vec<u8>, field: &[u8]) {
    // Attributes are at most 64 KiB long, which the kernel checks.
    let len = u32::try_from(field.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(field);
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, tail) = rest.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    let (field, tail) = tail.split_at_checked(len)?;
    *rest = tail;
    Some(field)
}

/// FNV-1a: finds torn and truncated records; nobody is kept from forging one who may write the workdir.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Record {
        let attributes =
            [(&b"user.x"[..], &b""[..]), (b"overlay.redirect", b"/a/b"), (b"user.\xff", b"\0\n")];
        let attributes = attributes.map(|(name, value)| (name.to_vec(), value.to_vec()));
        Record { stamp: vec![1, 2, 3], attributes: attributes.into() }
    }

    #[test]
    fn a_record_reads_back_equal() {
        for record in [sample(), Record::default()] {
            assert_eq!(Record::decode(&record.encode()), Some(record));
        }
    }

    #[test]
    fn a_torn_record_is_no_record() {
        let bytes = sample().encode();
        for len in 0..bytes.len() {
            assert_eq!(Record::decode(&bytes[..len]), None, "{len}");
        }
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            assert_eq!(Record::decode(&wrong), None, "{at}");
        }
        assert_eq!(Record::decode(&vec![0; bytes.len()]), None);
    }
}
