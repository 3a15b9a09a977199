use proptest::collection::vec;
use proptest::prelude::*;

use super::bytes::Writer;
use super::flags::{InitFlags, OpenReply, SetattrValid};
use super::notify::{Invalidate, Notification};
use super::reply::{DirWriter, Ttl, Ttls};
use super::*;
use crate::request::{Attr, DirEntry, Entry, Fh, FileKind, NodeId, Timestamp};

/// Builds a message as the kernel would.
fn message(opcode: u32, node: u64, fixed: &[u8], data: &[u8], extensions: &[u8]) -> Vec<u8> {
    let len = IN_HEADER_LEN + fixed.len() + data.len() + extensions.len();
    let mut out = vec![0; IN_HEADER_LEN];
    let mut w = Writer::new(&mut out);
    w.u32(u32::try_from(len).unwrap()).u32(opcode).u64(77).u64(node).u32(1000).u32(100).u32(4242);
    w.u16(u16::try_from(extensions.len() / 8).unwrap()).u16(0);
    assert_eq!(w.finish(), Some(IN_HEADER_LEN));
    out.extend_from_slice(fixed);
    out.extend_from_slice(data);
    out.extend_from_slice(extensions);
    out
}

fn fixed(fill: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut out = vec![0; 256];
    let mut w = Writer::new(&mut out);
    fill(&mut w);
    let len = w.finish().unwrap();
    out.truncate(len);
    out
}

fn nul(parts: &[&[u8]]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.iter().copied().chain([0])).collect()
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>().prop_filter("no slash, no NUL", |byte| *byte != 0 && *byte != b'/'), 1..=NAME_MAX)
}

/// Both ways of delivery must read the same request.
fn check(opcode: Opcode, arg: &[u8], data: &[u8], want: Request<'_>) {
    assert_eq!(arg.len(), opcode.fixed_len(true), "{opcode:?}");
    let whole = message(opcode.number(), 5, arg, data, &[]);
    let (header, request) = parse(&whole, true).unwrap();
    assert_eq!(request, want);
    assert_eq!(header.node, NodeId(5));
    assert_eq!((header.unique, header.uid, header.gid, header.pid), (77, 1000, 100, 4242));
    let mut padded = arg.to_vec();
    padded.resize(128, 0xff);
    assert_eq!(parse_parts(&header, true, &padded, data).unwrap(), want);
    let extended = message(opcode.number(), 5, arg, data, &[9; 16]);
    assert_eq!(parse(&extended, true).unwrap().1, want, "extensions are not data");
}

proptest! {
    #[test]
    fn names_travel_unchanged(a in name(), b in name(), x: u32, y: u32, z: u32, w4: u32, n: u64) {
        let one = nul(&[&a]);
        let two = nul(&[&a, &b]);
        let (name, new_name) = (&a[..], &b[..]);
        check(Opcode::Lookup, &[], &one, Request::Lookup { name });
        check(Opcode::Unlink, &[], &one, Request::Unlink { name });
        check(Opcode::Rmdir, &[], &one, Request::Rmdir { name });
        check(Opcode::Symlink, &[], &two, Request::Symlink { name, target: new_name });
        check(Opcode::Mknod, &fixed(|w| { w.u32(x).u32(y).u32(z).u32(0); }), &one,
            Request::Mknod { name, mode: x, rdev: y, umask: z });
        check(Opcode::Mkdir, &fixed(|w| { w.u32(x).u32(y); }), &one, Request::Mkdir { name, mode: x, umask: y });
        check(Opcode::Rename, &fixed(|w| { w.u64(n); }), &two,
            Request::Rename { name, new_parent: NodeId(n), new_name, flags: 0 });
        check(Opcode::Rename2, &fixed(|w| { w.u64(n).u32(x).u32(0); }), &two,
            Request::Rename { name, new_parent: NodeId(n), new_name, flags: x });
        check(Opcode::Link, &fixed(|w| { w.u64(n); }), &one, Request::Link { node: NodeId(n), name });
        check(Opcode::Create, &fixed(|w| { w.u32(x).u32(y).u32(z).u32(w4); }), &one,
            Request::Create { name, flags: x, mode: y, umask: z, open_flags: w4 });
        check(Opcode::Tmpfile, &fixed(|w| { w.u32(x).u32(y).u32(z).u32(w4); }), &one,
            Request::Tmpfile { flags: x, mode: y, umask: z, open_flags: w4 });
        check(Opcode::Removexattr, &[], &one, Request::Removexattr { name });
        check(Opcode::Getxattr, &fixed(|w| { w.u32(x).u32(0); }), &one, Request::Getxattr { name, size: x });
    }

    #[test]
    fn file_requests_travel_unchanged(
        fh: u64, offset: u64, x: u32, y: u32, z: u32, owner: u64, data in vec(any::<u8>(), 0..5000),
    ) {
        let handle = Fh(fh);
        let size = u32::try_from(data.len()).unwrap();
        let read = fixed(|w| { w.u64(fh).u64(offset).u32(x).u32(y).u64(owner).u32(z).u32(0); });
        check(Opcode::Read, &read, &[],
            Request::Read { fh: handle, offset, size: x, read_flags: y, lock_owner: owner, flags: z });
        check(Opcode::Readdir, &read, &[], Request::Readdir { fh: handle, offset, size: x });
        check(Opcode::Readdirplus, &read, &[], Request::Readdirplus { fh: handle, offset, size: x });
        check(Opcode::Write,
            &fixed(|w| { w.u64(fh).u64(offset).u32(size).u32(y).u64(owner).u32(z).u32(0); }), &data,
            Request::Write { fh: handle, offset, data: &data, write_flags: y, lock_owner: owner, flags: z });
        check(Opcode::Open, &fixed(|w| { w.u32(x).u32(y); }), &[], Request::Open { flags: x, open_flags: y });
        check(Opcode::Opendir, &fixed(|w| { w.u32(x).u32(y); }), &[], Request::Opendir { flags: x });
        let release = fixed(|w| { w.u64(fh).u32(x).u32(y).u64(owner); });
        check(Opcode::Release, &release, &[],
            Request::Release { fh: handle, flags: x, release_flags: y, lock_owner: owner });
        check(Opcode::Releasedir, &release, &[], Request::Releasedir { fh: handle });
        check(Opcode::Flush, &release, &[], Request::Flush { fh: handle, lock_owner: owner });
        let fsync = fixed(|w| { w.u64(fh).u32(x).u32(0); });
        check(Opcode::Fsync, &fsync, &[], Request::Fsync { fh: handle, fsync_flags: x });
        check(Opcode::Fsyncdir, &fsync, &[], Request::Fsyncdir { fh: handle, fsync_flags: x });
        check(Opcode::Fallocate, &fixed(|w| { w.u64(fh).u64(offset).u64(owner).u32(x).u32(0); }), &[],
            Request::Fallocate { fh: handle, offset, length: owner, mode: x });
        check(Opcode::Lseek, &fixed(|w| { w.u64(fh).u64(offset).u32(x).u32(0); }), &[],
            Request::Lseek { fh: handle, offset, whence: x });
        check(Opcode::Ioctl, &fixed(|w| { w.u64(fh).u32(x).u32(y).u64(owner).u32(size).u32(z); }), &data,
            Request::Ioctl { fh: handle, flags: x, cmd: y, arg: owner, data: &data, out_size: z });
        check(Opcode::Poll, &fixed(|w| { w.u64(fh).u64(owner).u32(x).u32(y); }), &[],
            Request::Poll { fh: handle, kh: owner, flags: x, events: y });
        check(Opcode::NotifyReply, &fixed(|w| { w.u64(0).u64(offset).u32(size).u32(0).u64(0).u64(0); }), &data,
            Request::NotifyReply { offset, data: &data });
        check(Opcode::Setxattr, &fixed(|w| { w.u32(size).u32(x).u32(y).u32(0); }),
            &[b"user.x\0", &data[..]].concat(),
            Request::Setxattr { name: b"user.x", value: &data, flags: x, setxattr_flags: y });
    }

    #[test]
    fn attribute_requests_travel_unchanged(v: u32, fh: u64, a: u64, b: u64, c: u64, x: u32, y: u32, z: u32) {
        let arg = fixed(|w| {
            w.u32(v).u32(0).u64(fh).u64(a).u64(b).u64(a).u64(b).u64(c);
            w.u32(x).u32(y).u32(z).u32(x).u32(0).u32(y).u32(z).u32(0);
        });
        let time = |sec: u64, nsec| Timestamp { sec: sec.cast_signed(), nsec };
        check(Opcode::Setattr, &arg, &[], Request::Setattr(SetattrIn {
            valid: SetattrValid::from_bits_retain(v), fh: Fh(fh), size: a, lock_owner: b,
            atime: time(a, x), mtime: time(b, y), ctime: time(c, z), mode: x, uid: y, gid: z,
        }));
        let want = (v & flags::GETATTR_FH != 0).then_some(Fh(fh));
        check(Opcode::Getattr, &fixed(|w| { w.u32(v).u32(0).u64(fh); }), &[], Request::Getattr { fh: want });
        check(Opcode::Statx, &fixed(|w| { w.u32(v).u32(0).u64(fh).u32(x).u32(y); }), &[],
            Request::Statx { fh: want, flags: x, mask: y });
        check(Opcode::Interrupt, &fixed(|w| { w.u64(a); }), &[], Request::Interrupt { unique: a });
        check(Opcode::Forget, &fixed(|w| { w.u64(a); }), &[], Request::Forget { nlookup: a });
        let copy = CopyIn {
            fh_in: Fh(fh), off_in: a, node_out: NodeId(b), fh_out: Fh(c), off_out: a, len: b, flags: c,
        };
        let arg = fixed(|w| { w.u64(fh).u64(a).u64(b).u64(c).u64(a).u64(b).u64(c); });
        check(Opcode::CopyFileRange, &arg, &[], Request::CopyFileRange(copy));
        check(Opcode::CopyFileRange64, &arg, &[], Request::CopyFileRange64(copy));
        let lock = LockIn { fh: Fh(fh), owner: a, start: b, end: c, kind: x, pid: y, lk_flags: z };
        let arg = fixed(|w| { w.u64(fh).u64(a).u64(b).u64(c).u32(x).u32(y).u32(z).u32(0); });
        check(Opcode::Getlk, &arg, &[], Request::Getlk(lock));
        check(Opcode::Setlk, &arg, &[], Request::Setlk { lock, wait: false });
        check(Opcode::Setlkw, &arg, &[], Request::Setlk { lock, wait: true });
    }

    #[test]
    fn batch_forget_lists_every_pair(pairs in vec((any::<u64>(), any::<u64>()), 0..50)) {
        let arg = fixed(|w| { w.u32(u32::try_from(pairs.len()).unwrap()).u32(0); });
        let data: Vec<u8> = pairs.iter().flat_map(|(a, b)| [a.to_ne_bytes(), b.to_ne_bytes()].concat()).collect();
        let whole = message(Opcode::BatchForget.number(), 0, &arg, &data, &[]);
        let (_, Request::BatchForget { list }) = parse(&whole, true).unwrap() else { panic!("not a batch") };
        let got: Vec<(u64, u64)> = list.iter().map(|(node, count)| (node.0, count)).collect();
        prop_assert_eq!(got, pairs);
    }

    /// Whatever the bytes, the answer is a request or an error, and what it borrows lies inside the message.
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in vec(any::<u8>(), 0..600), ext: bool) {
        exercise(&bytes, ext);
    }

    #[test]
    fn no_mutation_of_a_message_makes_the_parser_panic(
        opcode in 0u32..60, body in vec(any::<u8>(), 0..300), place: prop::sample::Index, value: u8,
        extensions in 0u8..4, ext: bool,
    ) {
        let mut bytes = message(opcode, 1, &[], &body, &vec![0; usize::from(extensions) * 8]);
        exercise(&bytes, ext);
        let at = place.index(bytes.len());
        bytes[at] = value;
        exercise(&bytes, ext);
        bytes.truncate(at);
        exercise(&bytes, ext);
        let honest = u32::try_from(at).unwrap().to_ne_bytes();
        if at >= 4 {
            bytes[..4].copy_from_slice(&honest);
            exercise(&bytes, ext);
        }
    }
}

fn exercise(bytes: &[u8], ext: bool) {
    if let Ok((header, request)) = parse(bytes, ext) {
        assert_eq!(usize::try_from(header.len).unwrap(), bytes.len());
        if let Request::BatchForget { list } = request {
            assert!(list.iter().count() * 16 <= bytes.len());
        }
        if let Request::Lookup { name } | Request::Mkdir { name, .. } | Request::Create { name, .. } = request
        {
            assert!(
                !name.is_empty() && name.len() <= NAME_MAX && !name.contains(&0) && !name.contains(&b'/')
            );
        }
    }
    if let (Ok(header), Some(rest)) = (Header::parse(bytes), bytes.get(IN_HEADER_LEN..)) {
        let (fixed, data) = rest.split_at(rest.len().min(128));
        if let Ok(Request::Write { data: written, .. }) = parse_parts(&header, ext, fixed, data) {
            assert!(written.len() <= data.len());
        }
    }
}

#[test]
fn impossible_names_are_refused_with_their_errno() {
    let long = [b'a'; NAME_MAX + 1];
    for (name, want) in
        [(&b""[..], WireError::Name), (b"a/b", WireError::Name), (&long[..], WireError::NameTooLong)]
    {
        let whole = message(Opcode::Lookup.number(), 1, &[], &nul(&[name]), &[]);
        assert_eq!(parse(&whole, true).unwrap_err(), want);
    }
    assert_eq!(WireError::NameTooLong.errno(), crate::error::Errno::NAMETOOLONG);
    let unended = message(Opcode::Lookup.number(), 1, &[], b"abc", &[]);
    assert_eq!(parse(&unended, true).unwrap_err(), WireError::Truncated);
}

#[test]
fn a_request_of_a_newer_kernel_is_named_unknown() {
    let whole = message(4000, 1, &[], b"whatever", &[]);
    assert_eq!(parse(&whole, true).unwrap().1, Request::Unknown);
    for number in 0..5000 {
        if let Some(opcode) = Opcode::from_number(number) {
            assert_eq!(opcode.number(), number);
            assert!(Opcode::ALL.contains(&opcode));
        }
    }
}

#[test]
fn old_kernels_send_no_second_flag_word() {
    let old = fixed(|w| {
        w.u32(7).u32(31).u32(131_072).u32(0x8000_0001);
    });
    let whole = message(Opcode::Init.number(), 0, &[], &old, &[]);
    let (_, Request::Init(init)) = parse(&whole, false).unwrap() else { panic!("not INIT") };
    assert_eq!((init.major, init.minor, init.max_readahead), (7, 31, 131_072));
    assert_eq!(init.flags.bits(), 0x8000_0001);

    let new = fixed(|w| {
        w.u32(7).u32(45).u32(0).u32(1 << 30).u32(1 << 9).zeros(44);
    });
    let whole = message(Opcode::Init.number(), 0, &[], &new, &[]);
    let (_, Request::Init(init)) = parse(&whole, false).unwrap() else { panic!("not INIT") };
    assert_eq!(init.flags, InitFlags::INIT_EXT | InitFlags::OVER_IO_URING);

    let foreign = fixed(|w| {
        w.u32(8).u32(0);
    });
    let whole = message(Opcode::Init.number(), 0, &[], &foreign, &[]);
    let (_, Request::Init(init)) = parse(&whole, false).unwrap() else { panic!("not INIT") };
    assert_eq!(init.major, 8);
}

fn attr() -> Attr {
    let time = |sec| Timestamp { sec, nsec: 5 };
    Attr {
        ino: 0x1111,
        kind: FileKind::CharDevice,
        perm: 0o4755,
        nlink: 3,
        uid: 1,
        gid: 2,
        rdev: libc::makedev(259, 0x12345),
        size: 10,
        blocks: 8,
        blksize: 4096,
        atime: time(-1),
        mtime: time(2),
        ctime: time(3),
        btime: Some(time(4)),
    }
}

fn ttls() -> Ttls {
    Ttls { entry: Ttl::from_secs(1.5), attr: Ttl::from_secs(f64::INFINITY), negative: Ttl::from_secs(-3.0) }
}

#[test]
fn answers_have_the_sizes_and_places_of_the_abi() {
    let mut out = [0xaa; 512];
    let entry = Entry { node: NodeId(0x2222), attr: attr() };
    assert_eq!(reply::entry(&mut out, &entry, &ttls()), Some(128));
    assert_eq!(out[..8], 0x2222_u64.to_ne_bytes(), "the node number");
    assert_eq!(out[40..48], 0x1111_u64.to_ne_bytes(), "the inode number, apart from it");
    assert_eq!(out[16..24], 1_u64.to_ne_bytes());
    assert_eq!(out[24..32], 1_000_000_000_u64.to_ne_bytes(), "for ever is bounded");
    assert_eq!(out[32..36], 500_000_000_u32.to_ne_bytes());
    assert_eq!(out[64..72], (-1_i64).to_ne_bytes(), "times before 1970");
    assert_eq!(out[100..104], 0o024_755_u32.to_ne_bytes(), "mode with type bits");

    assert_eq!(reply::negative_entry(&mut out, &ttls()), Some(128));
    assert!(ttls().negative.is_zero());
    assert_eq!(out[..8], [0; 8]);
    assert_eq!(reply::attributes(&mut out, &attr(), &ttls()), Some(104));
    assert_eq!(reply::statx(&mut out, &attr(), &ttls()), Some(288));
    assert_eq!(reply::open(&mut out, Fh(9), OpenReply::KEEP_CACHE, 0), Some(16));
    assert_eq!(reply::create(&mut out, &entry, &ttls(), Fh(9), OpenReply::empty(), 0), Some(144));
    assert_eq!(reply::written(&mut out, 3), Some(8));
    assert_eq!(reply::number(&mut out, 3), Some(8));
    assert_eq!(reply::out_header(&mut out, 7, 2, 100), Some(16));
    assert_eq!(
        out[..16],
        [&116_u32.to_ne_bytes()[..], &(-2_i32).to_ne_bytes(), &7_u64.to_ne_bytes()].concat()
    );
    let mut short = [0; 127];
    assert_eq!(reply::entry(&mut short, &entry, &ttls()), None, "an answer that does not fit is an error");
}

#[test]
fn device_numbers_keep_their_value_in_the_kernels_form() {
    for (major, minor) in [(0, 0), (1, 3), (259, 0x12345), (0xfff, 0xf_ffff), (8, 256)] {
        let dev = libc::makedev(major, minor);
        assert_eq!(reply::decode_rdev(reply::encode_rdev(dev)), dev, "{major}:{minor}");
    }
}

#[test]
fn a_listing_stops_at_the_name_that_does_not_fit_and_pads_with_zeros() {
    let mut out = [0xaa; 200];
    let mut dir = DirWriter::new(&mut out, 70);
    let name = |name, next_offset| DirEntry { name, ino: 3, kind: FileKind::Directory, next_offset };
    assert!(dir.push(&name(b"abc", 1)));
    assert!(dir.push(&name(b"defgh", 2)));
    assert!(!dir.push(&name(b"i", 3)), "70 bytes hold two names of 32");
    assert_eq!(dir.len(), 64);
    assert_eq!(out[16..20], 3_u32.to_ne_bytes());
    assert_eq!(out[20..24], u32::from(libc::DT_DIR).to_ne_bytes());
    assert_eq!(out[24..32], *b"abc\0\0\0\0\0");
    assert_eq!(out[64], 0xaa);

    let mut dir = DirWriter::new(&mut out, 1000);
    assert!(dir.push_plus(&name(b"abc", 1), None, &ttls()), "a larger size than the buffer is cut to it");
    assert_eq!(dir.len(), 160);
    assert!(!dir.push_plus(&name(b"abc", 1), None, &ttls()));
    assert_eq!(out[..128], [0; 128], "no entry: node 0, the kernel learns the name only");
}

#[test]
fn init_answers_in_64_bytes_with_both_flag_words() {
    let mut out = [0xaa; 80];
    let answer = InitOut {
        minor: 45,
        max_readahead: 1 << 20,
        flags: InitFlags::ASYNC_READ | InitFlags::INIT_EXT | InitFlags::OVER_IO_URING,
        max_background: 64,
        congestion_threshold: 48,
        max_write: 1 << 20,
        time_gran: 1,
        max_pages: 256,
        max_stack_depth: 1,
        request_timeout: 0,
    };
    assert_eq!(answer.encode(&mut out), Some(64));
    assert_eq!(out[12..16], ((1 << 30) | 1_u32).to_ne_bytes());
    assert_eq!(out[28..30], 256_u16.to_ne_bytes());
    assert_eq!(out[32..36], (1_u32 << 9).to_ne_bytes());
    assert_eq!(out[36..40], 1_u32.to_ne_bytes());
    assert_eq!(encode_version(&mut out), Some(64));
}

#[test]
fn notifications_have_unique_zero_their_code_and_their_own_length() {
    let (node, parent) = (NodeId(7), NodeId(1));
    let nodes = [NodeId(1), NodeId(2)];
    for (notification, code, len) in [
        (Notification::Poll { kh: 4 }, 1, 24),
        (Notification::InvalInode { node, offset: 0, len: 0 }, 2, 40),
        (Notification::InvalEntry { parent, name: b"ab", how: Invalidate::Expire }, 3, 35),
        (Notification::Store { node, offset: 0, data: b"hello" }, 4, 45),
        (Notification::Retrieve { unique: 1, node, offset: 0, size: 9 }, 5, 48),
        (Notification::Delete { parent, child: node, name: b"ab" }, 6, 43),
        (Notification::Resend, 7, 16),
        (Notification::IncEpoch, 8, 16),
        (Notification::Prune { nodes: &nodes }, 9, 48),
    ] {
        let mut out = [0xaa; 128];
        assert_eq!(notification.encode(&mut out), Some(len), "{notification:?}");
        assert_eq!(notification.len(), len);
        assert_eq!(out[..4], u32::try_from(len).unwrap().to_ne_bytes());
        assert_eq!(out[4..8], i32::to_ne_bytes(code));
        assert_eq!(out[8..16], [0; 8]);
        assert_eq!(notification.encode(&mut out[..len - 1]), None);
    }
    let mut out = [0; 64];
    Notification::InvalEntry { parent, name: b"ab", how: Invalidate::Expire }.encode(&mut out).unwrap();
    assert_eq!(out[28..32], 1_u32.to_ne_bytes(), "expire only");
}
