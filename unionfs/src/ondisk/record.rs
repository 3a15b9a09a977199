//! The record of an object's owner, mode and type beside its inode: the format of containers-storage and fuse-overlayfs.
//! Pure.
//!
//! `UID:GID:MODE[:TYPE]`, ids decimal, mode octal. fuse-overlayfs writes the mode with its type bits and no type,
//! containers-storage four digits and the type.

use rustix::fs::makedev;

use crate::ondisk::{FUSE_OVERLAYFS, OVERLAY_PREFIXES, SECURITY_FUSE_OVERLAYFS};
use crate::request::FileKind;

/// Which attribute holds the records of a layer. The one that the root of a layer has counts for all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordForm {
    /// `security.fuseoverlayfs.override_stat`.
    Security,
    /// `user.containers.override_stat`; names that an ordinary user cannot set are kept encoded beside it.
    Containers,
    /// `user.fuseoverlayfs.override_stat`, of fuse-overlayfs before 1.11.
    Legacy,
}

/// The forms, in the order in which they are looked for.
pub const FORMS: [RecordForm; 3] = [RecordForm::Security, RecordForm::Containers, RecordForm::Legacy];

/// Prefix under which an attribute is kept that cannot be set under its own name.
const ENCODED: &[u8] = b"user.containers.override_";
const SECURITY: &[u8] = b"security.";

impl RecordForm {
    /// Returns the name of the attribute.
    pub const fn name(self) -> &'static [u8] {
        match self {
            Self::Security => b"security.fuseoverlayfs.override_stat",
            Self::Containers => b"user.containers.override_stat",
            Self::Legacy => b"user.fuseoverlayfs.override_stat",
        }
    }

    /// Returns the name under which this layer keeps an attribute that it cannot keep under its own.
    pub fn encode(self, name: &[u8]) -> Option<Vec<u8>> {
        let hidden = name.starts_with(SECURITY) || is_mark(name) || name.starts_with(ENCODED);
        (self == Self::Containers && hidden).then(|| [ENCODED, name].concat())
    }

    /// Returns the name of an attribute that is kept under another.
    pub fn decode(self, stored: &[u8]) -> Option<&[u8]> {
        let name = stored.strip_prefix(ENCODED).filter(|_| self == Self::Containers)?;
        self.encode(name).map(|_| name)
    }
}

fn is_mark(name: &[u8]) -> bool {
    let prefixes = OVERLAY_PREFIXES.into_iter().chain([FUSE_OVERLAYFS, SECURITY_FUSE_OVERLAYFS]);
    prefixes.into_iter().any(|prefix| name.starts_with(prefix))
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Type and device number; none: the type of the inode.
    pub kind: Option<(FileKind, u64)>,
}

impl Record {
    /// Reads the value of the attribute; `None` if it is malformed.
    pub fn parse(value: &[u8]) -> Option<Self> {
        // C programs end it with a NUL now and then.
        let text = std::str::from_utf8(value.strip_suffix(b"\0").unwrap_or(value)).ok()?;
        let mut parts = text.splitn(4, ':');
        let (uid, gid) = (parse_id(parts.next()?)?, parse_id(parts.next()?)?);
        let mode = parts.next().filter(|text| text.bytes().all(|digit| matches!(digit, b'0'..=b'7')))?;
        let mode = u32::from_str_radix(mode, 8).ok()? & 0o7777;
        let kind = match parts.next() {
            None => None,
            Some(text) => Some(parse_kind(text)?),
        };
        Some(Self { uid, gid, mode, kind })
    }

    /// Returns the value of the attribute.
    pub fn encode(&self) -> Vec<u8> {
        let Self { uid, gid, mode, .. } = self;
        let mut text = format!("{uid}:{gid}:{mode:04o}");
        if let Some((kind, rdev)) = self.kind {
            let device = |word| format!(":{word}-{}-{}", rustix::fs::major(rdev), rustix::fs::minor(rdev));
            text += &match kind {
                FileKind::Regular => ":file".to_owned(),
                FileKind::Directory => ":dir".to_owned(),
                FileKind::Symlink => ":symlink".to_owned(),
                FileKind::Fifo => ":pipe".to_owned(),
                FileKind::Socket => ":socket".to_owned(),
                FileKind::BlockDevice => device("block"),
                FileKind::CharDevice => device("char"),
            };
        }
        text.into_bytes()
    }
}

/// Reads an id; ids from 2^31 up are written negative by fuse-overlayfs.
fn parse_id(text: &str) -> Option<u32> {
    let number: i64 = text.parse().ok()?;
    u32::try_from(number).or_else(|_| i32::try_from(number).map(i32::cast_unsigned)).ok()
}

/// Reads a type, which may go on with what a later version adds.
fn parse_kind(text: &str) -> Option<(FileKind, u64)> {
    let words = [
        ("dir", FileKind::Directory),
        ("file", FileKind::Regular),
        ("symlink", FileKind::Symlink),
        ("pipe", FileKind::Fifo),
        ("socket", FileKind::Socket),
        ("block", FileKind::BlockDevice),
        ("char", FileKind::CharDevice),
    ];
    let (rest, kind) = words.iter().find_map(|(word, kind)| Some((text.strip_prefix(word)?, *kind)))?;
    if !matches!(kind, FileKind::BlockDevice | FileKind::CharDevice) {
        return Some((kind, 0));
    }
    let mut numbers = rest.strip_prefix('-')?.split('-').filter(|part| !part.is_empty());
    let (major, minor) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
    Some((kind, makedev(major, minor)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(uid: u32, gid: u32, mode: u32, kind: Option<(FileKind, u64)>) -> Record {
        Record { uid, gid, mode, kind }
    }

    #[test]
    fn the_forms_of_both_programs_are_read() {
        let device = makedev(8, 1);
        for (text, want) in [
            ("0:0:100750", record(0, 0, 0o750, None)),
            ("0:0:40755", record(0, 0, 0o755, None)),
            ("5:6:104755", record(5, 6, 0o4755, None)),
            ("-2:4294967295:0644", record(u32::MAX - 1, u32::MAX, 0o644, None)),
            ("1:2:0644:file", record(1, 2, 0o644, Some((FileKind::Regular, 0)))),
            ("1:2:01777:dir", record(1, 2, 0o1777, Some((FileKind::Directory, 0)))),
            ("1:2:0777:symlink", record(1, 2, 0o777, Some((FileKind::Symlink, 0)))),
            ("1:2:600:pipe\0", record(1, 2, 0o600, Some((FileKind::Fifo, 0)))),
            ("1:2:600:socket", record(1, 2, 0o600, Some((FileKind::Socket, 0)))),
            ("1:2:600:block-8-1", record(1, 2, 0o600, Some((FileKind::BlockDevice, device)))),
            ("1:2:600:char--8--1-later", record(1, 2, 0o600, Some((FileKind::CharDevice, device)))),
        ] {
            assert_eq!(Record::parse(text.as_bytes()), Some(want), "{text}");
        }
    }

    #[test]
    fn what_is_malformed_is_no_record() {
        for text in [
            "",
            "0",
            "0:0",
            "a:0:644",
            "0::644",
            "0:0:",
            "0:0:8",
            "0:0:0o644",
            "0:0:-1",
            "0:0:+1",
            "0:0:644:",
            "0:0:644:door",
            "0:0:644:char",
            "0:0:644:char-8",
            "0:0:644:char1:3",
            "0:0:644:block-a-1",
            "4294967296:0:644",
            "-2147483649:0:644",
        ] {
            assert_eq!(Record::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for kind in [FileKind::Regular, FileKind::Directory, FileKind::Fifo, FileKind::Socket] {
            let written = record(1, 2, 0o4751, Some((kind, 0)));
            assert_eq!(Record::parse(&written.encode()), Some(written), "{kind:?}");
        }
        let device = record(0, 6, 0o660, Some((FileKind::BlockDevice, makedev(259, 300))));
        assert_eq!(device.encode(), b"0:6:0660:block-259-300");
        assert_eq!(Record::parse(&device.encode()), Some(device));
    }

    #[test]
    fn hidden_names_are_encoded_for_ordinary_users_only() {
        let form = RecordForm::Containers;
        for name in [
            &b"security.capability"[..],
            b"user.overlay.opaque",
            b"user.containers.override_stat",
            b"trusted.overlay.x",
        ] {
            let stored = form.encode(name).unwrap();
            assert_eq!(form.decode(&stored), Some(name));
            assert_eq!(RecordForm::Security.encode(name), None);
        }
        assert_eq!((form.encode(b"user.x"), form.encode(b"system.posix_acl_access")), (None, None));
        for plain in [&b"user.x"[..], b"user.containers.override_stat", b"user.containers.override_user.x"] {
            assert_eq!(form.decode(plain), None);
        }
    }
}
