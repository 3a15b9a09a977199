use std::collections::BTreeMap;

use super::read::Reader;
use super::write::Writer;
use super::{Kind, Member, pax};
use crate::request::{FileKind, Timestamp};

fn member(path: &[u8], size: u64) -> Member {
    Member {
        path: path.to_vec(),
        kind: Kind::Object(FileKind::Regular),
        link: Vec::new(),
        mode: 0o4755,
        uid: 1000,
        gid: 1000,
        size,
        mtime: Timestamp { sec: 1_000_000_000, nsec: 0 },
        atime: None,
        device: (0, 0),
        xattrs: BTreeMap::new(),
        extents: None,
    }
}

/// Returns the archive of members, their data being zeros.
fn archive(members: &[Member]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out);
    for member in members {
        writer.member(member).unwrap();
        if member.kind == Kind::Object(FileKind::Regular) {
            writer.data(&vec![0; usize::try_from(member.size).unwrap()]).unwrap();
        }
    }
    writer.finish().unwrap();
    out
}

#[test]
fn what_is_written_reads_back() {
    let mut odd = member(&[b"d/".as_slice(), &[0xff; 200]].concat(), 700);
    odd.uid = u32::MAX;
    odd.gid = 1 << 21;
    odd.mtime = Timestamp { sec: -2, nsec: 500_000_001 };
    odd.xattrs.insert(b"security.capability".to_vec(), b"\0\n=1 \xff".to_vec());
    let mut link = member(b"h", 0);
    (link.kind, link.link) = (Kind::HardLink, odd.path.clone());
    let mut device = member(b"dev", 0);
    (device.kind, device.device) = (Kind::Object(FileKind::BlockDevice), (259, 1_048_575));
    let mut directory = member(b"d/", 0);
    directory.kind = Kind::Object(FileKind::Directory);
    directory.mtime = Timestamp { sec: 1 << 40, nsec: 0 };
    let members = [directory, odd, link, device, member(b"last", 512)];
    let bytes = archive(&members);
    let mut reader = Reader::new(bytes.as_slice());
    for want in &members {
        assert_eq!(reader.next().unwrap().as_ref(), Some(want));
    }
    assert_eq!(reader.next().unwrap(), None);
}

#[test]
fn sizes_beyond_the_header_field_stand_in_a_record() {
    let mut out = Vec::new();
    let huge = member(b"huge", 1 << 40);
    Writer::new(&mut out).member(&huge).unwrap();
    let mut reader = Reader::new(out.as_slice());
    assert_eq!(reader.next().unwrap(), Some(huge));
    assert!(reader.next().unwrap_err().to_string().contains("truncated"));
}

#[test]
fn times_are_written_as_short_as_they_are_exact() {
    for (sec, nsec, text) in [
        (0, 0, "0"),
        (1, 500_000_000, "1.5"),
        (-1, 0, "-1"),
        (-2, 500_000_000, "-1.5"),
        (-1, 999_999_999, "-0.000000001"),
        (i64::MAX, 999_999_999, "9223372036854775807.999999999"),
    ] {
        let time = Timestamp { sec, nsec };
        assert_eq!(pax::time_text(time), text);
        assert_eq!(pax::parse_time(text.as_bytes()), Some(time));
    }
    for bad in ["", "-", "1.x", "x", "1e3", "+1"] {
        assert_eq!(pax::parse_time(bad.as_bytes()), None, "{bad}");
    }
    assert_eq!(pax::parse_time(b"1.0000000019"), Some(Timestamp { sec: 1, nsec: 1 }));
}

#[test]
fn a_record_counts_its_own_length() {
    for len in 0..1200 {
        let mut records = Vec::new();
        pax::push(&mut records, b"key", &vec![b'v'; len]);
        let text: Vec<u8> = records.iter().copied().take_while(u8::is_ascii_digit).collect();
        assert_eq!(pax::number(&text), Some(records.len() as u64));
        assert_eq!(pax::parse(&records).unwrap(), [(&b"key"[..], vec![b'v'; len].as_slice())]);
    }
    for bad in [&b"5 a=b\n"[..], b"99 a=b\n", b"x", b"6 a=bc", b"0 ", b"3 \n", b"18446744073709551616 a=b\n"]
    {
        assert_eq!(pax::parse(bad), None, "{}", bad.escape_ascii());
    }
}

proptest::proptest! {
    /// Whatever the bytes, reading ends with a member, an end or an error.
    #[test]
    fn damaged_archives_never_panic(
        changes in proptest::collection::vec((0_usize..4096, proptest::prelude::any::<u8>()), 0..12),
        fix in proptest::prelude::any::<bool>(),
    ) {
        let mut odd = member(&[b'x'; 300], 700);
        odd.xattrs.insert(b"user.one".to_vec(), vec![1; 40]);
        let mut bytes = archive(&[odd, member(b"plain", 100)]);
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if fix {
            for block in bytes.chunks_exact_mut(512) {
                if block[257..262] == *b"ustar" {
                    let header: &[u8; 512] = (&*block).try_into().unwrap();
                    let sum = format!("{:06o}\0 ", super::checksum(header));
                    block[148..156].copy_from_slice(sum.as_bytes());
                }
            }
        }
        let mut reader = Reader::new(bytes.as_slice());
        let mut count = 0;
        while let Ok(Some(_)) = reader.next() {
            count += 1;
            proptest::prop_assert!(count < 100);
        }
    }
}
