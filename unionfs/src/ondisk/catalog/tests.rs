use proptest::prelude::*;

use super::*;

fn stat(ino: u64, mode: u32) -> Stat {
    let time = |sec| Timestamp { sec, nsec: 999_999_999 };
    Stat {
        mode,
        inode_mode: mode,
        nlink: 3,
        uid: 1000,
        gid: u32::MAX - 1,
        rdev: 0,
        size: ino * 7,
        blocks: 8,
        blksize: 4096,
        atime: time(-1),
        mtime: time(1),
        ctime: time(i64::MAX),
        btime: ino.is_multiple_of(2).then_some(time(4)),
        dev: 77,
        ino,
        mount_root: false,
    }
}

fn record(ino: u64) -> Object {
    Object {
        stat: stat(ino, libc::S_IFREG | 0o644),
        plain: ino.is_multiple_of(3),
        bare: ino.is_multiple_of(5),
        block: None,
    }
}

/// What of a record is stored, printed.
fn shown(record: &Object) -> String {
    format!("{record:?}")
}

fn block(names: &[&[u8]]) -> Vec<u8> {
    let mut writer = BlockWriter::new(stat(2, libc::S_IFDIR | 0o755));
    for (index, name) in names.iter().enumerate() {
        writer.push(name, record(index as u64 + 10));
    }
    writer.finish().unwrap()
}

fn parse(bytes: &[u8]) -> Result<Block, Broken> {
    Block::parse(bytes.into(), checksum(bytes))
}

#[test]
fn what_was_written_is_found_and_nothing_else() {
    let names: Vec<Vec<u8>> = (0..3000_u32).map(|n| format!("name-{n}").into_bytes()).collect();
    let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
    let block = parse(&block(&names)).unwrap();
    assert_eq!((block.len(), block.has_dot_wh), (3000, false));
    assert_eq!(block.stamp, Stamp::of(&stat(2, libc::S_IFDIR | 0o755)));
    for (index, name) in names.iter().enumerate() {
        assert_eq!(shown(&block.find(name, 77).unwrap()), shown(&record(index as u64 + 10)));
    }
    assert!(block.find(b"name-3000", 77).is_none() && block.find(b"", 77).is_none());
    assert!(parse(&self::block(&[])).unwrap().find(b"a", 77).is_none());
    assert!(parse(&self::block(&[b".wh.a"])).unwrap().has_dot_wh);
}

#[test]
fn directories_and_devices_keep_what_only_they_have() {
    let at = BlockAt { offset: 72, len: 64, sum: 5 };
    let dir = Object { stat: stat(3, libc::S_IFDIR | 0o700), plain: true, bare: false, block: Some(at) };
    let device = Stat { rdev: 0x0103, ..stat(4, libc::S_IFCHR | 0o600) };
    let mut writer = BlockWriter::new(stat(2, libc::S_IFDIR));
    writer.push(b"dir", dir);
    writer.push(b"device", Object { stat: device, plain: true, bare: true, block: None });
    let block = parse(&writer.finish().unwrap()).unwrap();
    assert_eq!(block.find(b"dir", 77).unwrap().block, Some(at));
    assert_eq!(block.find(b"device", 77).unwrap().stat.rdev, 0x0103);
}

#[test]
fn names_that_lead_elsewhere_break_a_block() {
    for bad in [&b"a/b"[..], b"..", b".", b"", b"a\0", &[b'x'; 256]] {
        assert_eq!(parse(&block(&[b"good", bad])).unwrap_err(), Broken, "{bad:?}");
    }
}

#[test]
fn a_header_is_read_as_written_and_refused_when_any_bit_differs() {
    let root = BlockAt { offset: 72, len: 100, sum: 9 };
    let header = Header { len: 172, ids: 3, trusted: true, objects: 7, root };
    let bytes = header.encode();
    assert_eq!((bytes.len(), Header::parse(&bytes)), (HEADER, Ok(header)));
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Header::parse(&bad), Err(Broken), "bit {bit}");
    }
    for len in 0..bytes.len() {
        assert_eq!(Header::parse(&bytes[..len]), Err(Broken));
    }
    for (at, within) in [
        (root, true),
        (BlockAt { len: 101, ..root }, false),
        (BlockAt { offset: u64::MAX, ..root }, false),
        (BlockAt { len: u32::MAX, ..root }, false),
    ] {
        assert_eq!(at.is_within(172), within, "{at:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// A block with a right checksum and wrong bytes is refused or read within its bounds.
    #[test]
    fn hostile_blocks_are_refused_or_harmless(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let mut bytes = block(&[b"a", b"bc", b".wh.d", b"a-longer-name", b"e"]);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(block) = parse(&bytes) {
            for index in 0..block.len() + 2 {
                let name = block.name_at(index).unwrap_or_default();
                prop_assert!(name.is_empty() || name::check(name).is_ok());
                block.record_at(index, 0);
                block.find(name, 0);
            }
        }
    }

    #[test]
    fn any_bytes_are_no_catalog(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert_eq!(Header::parse(&bytes), Err(Broken));
        if let Ok(block) = parse(&bytes) {
            block.find(b"a", 0);
        }
    }
}
