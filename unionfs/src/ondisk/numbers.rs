//! Which inode numbers upper objects are shown with that cannot hold a mark: a file of records of one length. Pure.
//!
//! A record is 56 bytes, little-endian: `ino`, the form, a byte each; the nanoseconds (4) of the object's time of birth; its
//! inode number, the seconds of its birth, the number to show, 8 bytes each; an identifier of a file system, 16; a
//! checksum, 8. A file begins with the record of the upper's root. Later records of an inode number take the place of
//! earlier ones. What is no record, torn or left by a full disk, is passed over.

use std::collections::HashMap;

use crate::ondisk::sidecar::checksum;
use crate::request::Timestamp;

/// Bytes of a record.
pub const LEN: usize = 56;
/// First bytes of a record.
const MAGIC: &[u8; 3] = b"ino";
/// Bytes before the checksum.
const BODY: usize = LEN - 8;
/// Records that are read at most; of a longer file the last.
pub const MAX: usize = 1 << 20;

/// An object, told from a later one with its inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// Inode number.
    pub ino: u64,
    /// Time of birth.
    pub birth: Timestamp,
}

/// Which number an object shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// Its own: what was said before is of another object.
    Own,
    /// This one.
    Shown(u64),
    /// That of the object with this number on the file system with this identifier.
    On([u8; 16], u64),
}

/// What a record says: of an object, its number; or, without one, whose file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of whom.
    pub object: Object,
    /// None: the object is the root of the upper that the records are of.
    pub number: Option<Number>,
}

impl Record {
    /// Returns the bytes on disk.
    pub fn encode(&self) -> [u8; LEN] {
        let (form, number, uuid) = match self.number {
            None => (b'U', 0, [0; 16]),
            Some(Number::Own) => (b'-', 0, [0; 16]),
            Some(Number::Shown(number)) => (b'=', number, [0; 16]),
            Some(Number::On(uuid, number)) => (b'@', number, uuid),
        };
        let Object { ino, birth } = self.object;
        let body = [
            &MAGIC[..],
            &[form],
            &birth.nsec.to_le_bytes(),
            &ino.to_le_bytes(),
            &birth.sec.to_le_bytes(),
            &number.to_le_bytes(),
            &uuid,
        ]
        .concat();
        let sum = checksum(&body).to_le_bytes();
        let mut bytes = [0; LEN];
        for (to, from) in bytes.iter_mut().zip(body.iter().chain(&sum)) {
            *to = *from;
        }
        bytes
    }

    /// Reads the bytes on disk; `None` if they are no record.
    pub fn decode(bytes: &[u8; LEN]) -> Option<Self> {
        let (body, sum) = bytes.split_at_checked(BODY)?;
        let rest = body.strip_prefix(MAGIC)?;
        if checksum(body).to_le_bytes() != *sum {
            return None;
        }
        let (&form, rest) = rest.split_first()?;
        let (nsec, rest) = rest.split_first_chunk::<4>()?;
        let (words, rest) = rest.split_at_checked(24)?;
        let word = |at: usize| words.get(at..)?.first_chunk::<8>().copied();
        let number = u64::from_le_bytes(word(16)?);
        let number = match form {
            b'U' => None,
            b'-' => Some(Number::Own),
            b'=' => Some(Number::Shown(number)),
            b'@' => Some(Number::On(*rest.first_chunk()?, number)),
            _ => return None,
        };
        let birth = Timestamp { sec: i64::from_le_bytes(word(8)?), nsec: u32::from_le_bytes(*nsec) };
        Some(Self { object: Object { ino: u64::from_le_bytes(word(0)?), birth }, number })
    }
}

/// The records of a file.
#[derive(Debug, Default)]
pub struct Records {
    /// Those that count, by inode number.
    pub live: HashMap<u64, Record>,
    /// How many there are.
    pub count: usize,
}

/// Reads the records of a file, if it is of the upper with this root.
pub fn read(bytes: &[u8], upper: Object) -> Option<Records> {
    let owner = bytes.first_chunk().and_then(Record::decode)?;
    if owner != (Record { object: upper, number: None }) {
        return None;
    }
    let mut records = Records::default();
    let mut at = bytes.len().saturating_sub(MAX * LEN);
    while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let Some(record) = Record::decode(chunk) else {
            at += 1;
            continue;
        };
        at += LEN;
        records.count += 1;
        match record.number {
            None => {}
            Some(Number::Own) => drop(records.live.remove(&record.object.ino)),
            Some(_) => drop(records.live.insert(record.object.ino, record)),
        }
    }
    Some(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPPER: Object = Object { ino: 2, birth: Timestamp { sec: 1, nsec: 2 } };
    const OWNER: Record = Record { object: UPPER, number: None };

    fn of(ino: u64, number: Number) -> Record {
        let birth = Timestamp { sec: -7, nsec: 999_999_999 };
        Record { object: Object { ino, birth }, number: Some(number) }
    }

    fn file(records: &[Record]) -> Vec<u8> {
        records.iter().flat_map(Record::encode).collect()
    }

    #[test]
    fn a_record_reads_back_equal() {
        for record in [
            OWNER,
            of(u64::MAX, Number::Own),
            of(1, Number::Shown(1 << 48 | 3)),
            of(1, Number::On([0xab; 16], 9)),
        ] {
            assert_eq!(Record::decode(&record.encode()), Some(record));
        }
    }

    #[test]
    fn what_is_damaged_is_no_record() {
        let bytes = of(5, Number::On([1; 16], 9)).encode();
        for at in 0..LEN {
            let mut wrong = bytes;
            wrong[at] ^= 1;
            assert_eq!(Record::decode(&wrong), None, "{at}");
        }
        assert_eq!(Record::decode(&[0; LEN]), None);
    }

    #[test]
    fn the_last_record_of_a_number_counts() {
        let records = [OWNER, of(5, Number::Shown(1)), of(6, Number::Shown(2)), of(5, Number::Shown(3))];
        let all = read(&file(&records), UPPER).unwrap();
        assert_eq!((all.live.get(&5), all.live.len(), all.count), (Some(&records[3]), 2, 4));
        let gone = [&records[..], &[of(5, Number::Own)]].concat();
        assert_eq!(read(&file(&gone), UPPER).unwrap().live.keys().collect::<Vec<_>>(), [&6]);
    }

    #[test]
    fn a_record_that_is_torn_takes_no_other_with_it() {
        let (first, last) = (of(5, Number::Shown(1)), of(6, Number::Shown(2)));
        for len in 0..LEN {
            let torn = &of(7, Number::Shown(3)).encode()[..len];
            let bytes = [&file(&[OWNER, first]), torn, &file(&[last]), torn].concat();
            let records = read(&bytes, UPPER).unwrap();
            assert_eq!((records.live.get(&5), records.live.get(&6)), (Some(&first), Some(&last)), "{len}");
        }
    }

    #[test]
    fn the_file_of_another_upper_says_nothing() {
        let bytes = file(&[OWNER, of(5, Number::Shown(1))]);
        for other in [Object { ino: 3, ..UPPER }, Object { birth: Timestamp { sec: 9, nsec: 2 }, ..UPPER }] {
            assert!(read(&bytes, other).is_none());
        }
        assert!(read(&bytes[1..], UPPER).is_none() && read(b"", UPPER).is_none());
    }
}
