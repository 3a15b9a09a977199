//! The log of a store: everything about its objects but the contents of files, as facts in the order in which they came to
//! be true.
//!
//! A head (magic, salt, checksum), then frames: length, facts, checksum, all little-endian. The facts of one frame came true together.
//! The checksum takes in the salt and the place, so that what another log left in the same blocks is no frame of this one.

use crate::ondisk::sidecar::checksum;
use crate::request::Timestamp;

/// First bytes of a log, with the version of the format.
const MAGIC: &[u8; 8] = b"ufsstor1";
/// Bytes of the head.
pub const HEAD: usize = 24;
/// Most bytes of facts in one frame: more than the longest attribute takes.
pub const MAX_FRAME: usize = 1 << 20;
/// Bytes around the facts of a frame: its length and its checksum.
const AROUND: usize = 12;

/// What an object shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub rdev: u64,
    /// Bytes of contents.
    pub size: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of data.
    pub mtime: Timestamp,
    /// Last change of attributes.
    pub ctime: Timestamp,
}

/// Something that became true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// No object had this number or a greater one so far.
    Next(u64),
    /// An object is there, and shows this.
    Object(u64, Shown),
    /// A symbolic link points there.
    Target(u64, Vec<u8>),
    /// A directory has an object under a name.
    Enter(u64, Vec<u8>, u64),
    /// A directory has a name no more.
    Leave(u64, Vec<u8>),
    /// An object has an attribute.
    Set(u64, Vec<u8>, Vec<u8>),
    /// An object has an attribute no more.
    Unset(u64, Vec<u8>),
    /// An object is no more.
    Gone(u64),
    /// Nothing that was written since the log said this first can have been lost: a server that found the store not closed
    /// says another one.
    Epoch([u8; 16]),
    /// Everything was said that was true when this log was begun.
    Whole,
    /// The store was closed in order.
    Closed,
}

/// Returns the head of a log.
pub fn head(salt: u64) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    let salt = salt.to_le_bytes();
    let fields = [*MAGIC, salt, checksum(&[*MAGIC, salt].concat()).to_le_bytes()];
    head.copy_from_slice(&fields.concat());
    head
}

/// Returns the frame of facts that came true together, for this place in the log with this salt.
pub fn frame(salt: u64, place: u64, facts: &[Fact]) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    for fact in facts {
        fact.encode(&mut bytes);
    }
    let len = u32::try_from(bytes.len() - 4).unwrap_or(u32::MAX).to_le_bytes();
    bytes.splice(..4, len);
    let sum = sum(salt, place, &bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

fn sum(salt: u64, place: u64, bytes: &[u8]) -> u64 {
    checksum(bytes) ^ checksum(&[salt.to_le_bytes(), place.to_le_bytes()].concat())
}

/// Reads the frames of a log.
#[derive(Debug)]
pub struct Frames<'a> {
    log: &'a [u8],
    salt: u64,
    place: usize,
}

impl<'a> Frames<'a> {
    /// Begins to read; `None` if it is no log.
    pub fn of(log: &'a [u8]) -> Option<Self> {
        let (salt, _) = log.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
        let salt = u64::from_le_bytes(*salt);
        log.starts_with(&head(salt)).then_some(Self { log, salt, place: HEAD })
    }

    /// Returns the salt of the log.
    pub const fn salt(&self) -> u64 {
        self.salt
    }

    /// Returns where the next frame begins, or is to be written.
    pub const fn place(&self) -> usize {
        self.place
    }

    /// Returns whether frames follow what cannot be read: then it is damage, and not the end that a killed server leaves.
    pub fn goes_on(&self) -> bool {
        (self.place + 1..self.log.len()).any(|place| self.at(place).is_some())
    }

    fn at(&self, place: usize) -> Option<(Vec<Fact>, usize)> {
        let (len, _) = self.log.get(place..)?.split_first_chunk::<4>()?;
        let len =
            usize::try_from(u32::from_le_bytes(*len)).ok().filter(|len| (1..=MAX_FRAME).contains(len))?;
        let end = place + 4 + len;
        let body = self.log.get(place..end)?;
        let (found, _) = self.log.get(end..)?.split_first_chunk::<8>()?;
        if sum(self.salt, place as u64, body) != u64::from_le_bytes(*found) {
            return None;
        }
        let mut rest = body.get(4..)?;
        let mut facts = Vec::new();
        while !rest.is_empty() {
            facts.push(Fact::decode(&mut rest)?);
        }
        Some((facts, len + AROUND))
    }
}

impl Iterator for Frames<'_> {
    type Item = Vec<Fact>;

    fn next(&mut self) -> Option<Vec<Fact>> {
        let (facts, len) = self.at(self.place)?;
        self.place += len;
        Some(facts)
    }
}

impl Fact {
    /// Returns about how many bytes it takes.
    pub fn weight(&self) -> usize {
        const FIXED: usize = 32;
        match self {
            Self::Object(..) => 4 * FIXED,
            Self::Target(_, text) | Self::Enter(_, text, _) | Self::Leave(_, text) | Self::Unset(_, text) => {
                FIXED + text.len()
            }
            Self::Set(_, name, value) => FIXED + name.len() + value.len(),
            Self::Next(_) | Self::Gone(_) | Self::Epoch(_) | Self::Whole | Self::Closed => FIXED,
        }
    }

    fn encode(&self, to: &mut Vec<u8>) {
        match self {
            Self::Next(id) => put(to, 1, &[*id], &[]),
            Self::Object(id, shown) => {
                put(to, 2, &[*id, shown.rdev, shown.size], &[]);
                for number in [shown.mode, shown.uid, shown.gid] {
                    to.extend_from_slice(&number.to_le_bytes());
                }
                for time in [shown.atime, shown.mtime, shown.ctime] {
                    to.extend_from_slice(&time.sec.to_le_bytes());
                    to.extend_from_slice(&time.nsec.to_le_bytes());
                }
            }
            Self::Target(id, target) => put(to, 3, &[*id], &[target]),
            Self::Enter(dir, name, id) => put(to, 4, &[*dir, *id], &[name]),
            Self::Leave(dir, name) => put(to, 5, &[*dir], &[name]),
            Self::Set(id, name, value) => put(to, 6, &[*id], &[name, value]),
            Self::Unset(id, name) => put(to, 7, &[*id], &[name]),
            Self::Gone(id) => put(to, 8, &[*id], &[]),
            Self::Epoch(epoch) => {
                to.push(11);
                to.extend_from_slice(epoch);
            }
            Self::Whole => put(to, 9, &[], &[]),
            Self::Closed => put(to, 10, &[], &[]),
        }
    }

    fn decode(from: &mut &[u8]) -> Option<Self> {
        let [kind] = take::<1>(from)?;
        Some(match kind {
            1 => Self::Next(number(from)?),
            2 => Self::Object(number(from)?, Shown::decode(from)?),
            3 => Self::Target(number(from)?, bytes(from)?),
            4 => {
                let (dir, id) = (number(from)?, number(from)?);
                Self::Enter(dir, bytes(from)?, id)
            }
            5 => Self::Leave(number(from)?, bytes(from)?),
            6 => Self::Set(number(from)?, bytes(from)?, bytes(from)?),
            7 => Self::Unset(number(from)?, bytes(from)?),
            8 => Self::Gone(number(from)?),
            9 => Self::Whole,
            10 => Self::Closed,
            11 => Self::Epoch(take(from)?),
            _ => return None,
        })
    }
}

impl Shown {
    fn decode(from: &mut &[u8]) -> Option<Self> {
        let (rdev, size) = (number(from)?, number(from)?);
        let mut short = || take::<4>(from).map(u32::from_le_bytes);
        let (mode, uid, gid) = (short()?, short()?, short()?);
        let (atime, mtime, ctime) = (time(from)?, time(from)?, time(from)?);
        Some(Self { mode, uid, gid, rdev, size, atime, mtime, ctime })
    }
}

fn put(to: &mut Vec<u8>, kind: u8, numbers: &[u64], texts: &[&[u8]]) {
    to.push(kind);
    for number in numbers {
        to.extend_from_slice(&number.to_le_bytes());
    }
    for text in texts {
        // Names, targets and values are at most 64 KiB long, which the kernel checks.
        let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
        to.extend_from_slice(&len.to_le_bytes());
        to.extend_from_slice(text);
    }
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (field, rest) = from.split_first_chunk::<N>()?;
    *from = rest;
    Some(*field)
}

fn number(from: &mut &[u8]) -> Option<u64> {
    take(from).map(u64::from_le_bytes)
}

fn time(from: &mut &[u8]) -> Option<Timestamp> {
    let sec = i64::from_le_bytes(take(from)?);
    Some(Timestamp { sec, nsec: u32::from_le_bytes(take(from)?) })
}

fn bytes(from: &mut &[u8]) -> Option<Vec<u8>> {
    let len = usize::try_from(u32::from_le_bytes(take(from)?)).ok()?;
    let (field, rest) = from.split_at_checked(len)?;
    *from = rest;
    Some(field.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Vec<Vec<Fact>> {
        let time = |sec| Timestamp { sec, nsec: 999_999_999 };
        let shown = Shown {
            mode: 0o104_755,
            uid: 1,
            gid: u32::MAX,
            rdev: 7,
            size: u64::MAX,
            atime: time(-1),
            mtime: time(2),
            ctime: time(i64::MAX),
        };
        vec![
            vec![Fact::Next(9), Fact::Object(3, shown), Fact::Target(4, b"/a".to_vec())],
            vec![Fact::Enter(1, b"\xff/\n".to_vec(), 3), Fact::Leave(1, Vec::new())],
            vec![Fact::Set(3, b"user.x".to_vec(), b"\0".to_vec()), Fact::Unset(3, b"user.y".to_vec())],
            vec![Fact::Gone(3), Fact::Epoch([7; 16]), Fact::Whole, Fact::Closed],
        ]
    }

    fn log(salt: u64) -> Vec<u8> {
        let mut log = head(salt).to_vec();
        for facts in facts() {
            let frame = frame(salt, log.len() as u64, &facts);
            log.extend_from_slice(&frame);
        }
        log
    }

    #[test]
    fn what_is_written_reads_back() {
        let log = log(5);
        let mut frames = Frames::of(&log).unwrap();
        assert_eq!(frames.by_ref().collect::<Vec<_>>(), facts());
        assert_eq!((frames.place(), frames.salt()), (log.len(), 5));
    }

    #[test]
    fn a_torn_end_is_told_from_damage() {
        let log = log(5);
        let before_last = {
            let mut frames = Frames::of(&log).unwrap();
            frames.by_ref().take(3).for_each(drop);
            frames.place()
        };
        for cut in before_last..log.len() {
            let mut frames = Frames::of(&log[..cut]).unwrap();
            assert_eq!(frames.by_ref().count(), 3, "{cut}");
            assert!(frames.place() == before_last && !frames.goes_on());
        }
        for at in HEAD..log.len() {
            let mut wrong = log.clone();
            wrong[at] ^= 1;
            let mut frames = Frames::of(&wrong).unwrap();
            let read = frames.by_ref().count();
            assert!(read < 4, "{at}");
            assert_eq!(frames.goes_on(), read < 3, "{at}");
        }
    }

    #[test]
    fn frames_of_another_log_or_place_are_none() {
        let (one, mut other) = (log(5), log(6));
        other.splice(HEAD.., one[HEAD..].iter().copied());
        assert_eq!(Frames::of(&other).unwrap().count(), 0);
        let moved = [&one[..HEAD], b"\0", &one[HEAD..]].concat();
        assert!(!Frames::of(&moved).unwrap().goes_on());
        assert!(Frames::of(b"ufsstor").is_none());
    }
}
