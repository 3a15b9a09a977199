use super::*;
use crate::fuse::wire::flags::InitFlags;
use crate::fuse::wire::{InitIn, Opcode};
use crate::options::{DataMode, MountOptions};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A kernel that takes no backing file.
#[derive(Debug)]
struct Nobody;

impl Register for Nobody {
    fn open(&self, _file: BorrowedFd<'_>) -> std::result::Result<u32, Errno> {
        Err(Errno::PERM)
    }

    fn close(&self, _id: u32) {}
}

/// A kernel that takes every backing file.
#[derive(Debug)]
struct Everybody;

impl Register for Everybody {
    fn open(&self, _file: BorrowedFd<'_>) -> std::result::Result<u32, Errno> {
        Ok(7)
    }

    fn close(&self, id: u32) {
        assert_eq!(id, 7);
    }
}

/// A handler over a lower with files `f0..f<count>` and an empty upper.
fn handler(base: &Path, count: usize, data: DataMode) -> Handler {
    handler_with(base, count, data, Nobody)
}

fn handler_with(base: &Path, count: usize, data: DataMode, kernel: impl Register + 'static) -> Handler {
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| base.join(name));
    for dir in [&lower, &upper, &work] {
        std::fs::create_dir(dir).unwrap();
    }
    for number in 0..count {
        std::fs::write(lower.join(format!("f{number}")), format!("content {number}")).unwrap();
    }
    let options = MountOptions {
        lowerdir: vec![lower],
        upperdir: Some(upper),
        workdir: Some(work),
        data,
        ..MountOptions::default()
    };
    handler_of(&options, kernel)
}

fn handler_of(options: &MountOptions, kernel: impl Register + 'static) -> Handler {
    let offer = InitIn { major: 7, minor: 45, max_readahead: 0, flags: InitFlags::all() };
    let config = Negotiation::choose(options, &offer, false).unwrap().config;
    Handler::new(Arc::new(Union::open(options).unwrap()), Arc::default(), config, kernel)
}

fn ask(handler: &Handler, node: u64, request: &Request<'_>, out: &mut [u8]) -> Outcome {
    handler.dispatch(&Header { node: NodeId(node), ..header() }, request, out)
}

fn header() -> Header {
    Header {
        len: 0,
        opcode: Opcode::Lookup.number(),
        unique: 2,
        node: NodeId::ROOT,
        uid: 0,
        gid: 0,
        pid: 1,
        extensions_len: 0,
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(*bytes[at..].first_chunk().unwrap())
}

/// Names and positions of a READDIR answer.
fn names(mut listing: &[u8]) -> Vec<(String, u64)> {
    let mut names = Vec::new();
    while listing.len() >= 24 {
        let len = usize::try_from(u32::from_ne_bytes(*listing[16..].first_chunk().unwrap())).unwrap();
        let name = std::str::from_utf8(&listing[24..24 + len]).unwrap().to_owned();
        names.push((name, u64_at(listing, 8)));
        listing = &listing[(24 + len).next_multiple_of(8)..];
    }
    names
}

fn list(handler: &Handler, offset: u64, size: u32) -> Vec<(String, u64)> {
    let mut out = vec![0; 1 << 16];
    let request = Request::Readdir { fh: Fh(0), offset, size };
    let Outcome::Reply(len) = ask(handler, 1, &request, &mut out) else { panic!("no listing") };
    names(&out[..len])
}

#[test]
fn an_absent_name_is_an_answer_that_can_be_remembered() {
    let base = tempfile::tempdir().unwrap();
    let handler = handler(base.path(), 1, DataMode::Handles);
    let mut out = [0xaa; 4096];
    assert_eq!(ask(&handler, 1, &Request::Lookup { name: b"none" }, &mut out), Outcome::Reply(128));
    assert_eq!(u64_at(&out, 0), 0, "no node");
    assert_eq!(ask(&handler, 1, &Request::Lookup { name: b"f0" }, &mut out), Outcome::Reply(128));
    assert_ne!(u64_at(&out, 0), 0);
}

#[test]
fn what_is_not_served_has_its_own_errno() {
    let base = tempfile::tempdir().unwrap();
    let handler = handler(base.path(), 1, DataMode::Cached);
    let mut out = [0; 4096];
    let ioctl = Request::Ioctl { fh: Fh(0), flags: 0, cmd: 1, arg: 0, data: b"", out_size: 0 };
    let whiteout =
        Request::Rename { name: b"f0", new_parent: NodeId(1), new_name: b"x", flags: libc::RENAME_WHITEOUT };
    for (request, want) in [
        (ioctl, Errno::NOTTY),
        (whiteout, Errno::INVAL),
        (Request::Unknown, Errno::NOSYS),
        (Request::Access { mask: 4 }, Errno::NOSYS),
        (Request::Open { flags: 0, open_flags: 0 }, Errno::NOSYS),
        (Request::Opendir { flags: 0 }, Errno::NOSYS),
        (Request::Flush { fh: Fh(0), lock_owner: 0 }, Errno::NOSYS),
        (Request::Getxattr { name: b"user.none", size: 0 }, Errno::NODATA),
    ] {
        assert_eq!(ask(&handler, 1, &request, &mut out), Outcome::Error(want), "{request:?}");
    }
    assert_eq!(ask(&handler, 1, &Request::Forget { nlookup: 0 }, &mut out), Outcome::Silence);
    assert_eq!(ask(&handler, 77, &Request::Getattr { fh: None }, &mut out), Outcome::Error(Errno::STALE));
}

#[test]
fn files_are_read_and_written_without_being_opened() {
    let base = tempfile::tempdir().unwrap();
    let handler = handler(base.path(), 1, DataMode::Cached);
    let mut out = [0; 4096];
    assert_eq!(ask(&handler, 1, &Request::Lookup { name: b"f0" }, &mut out), Outcome::Reply(128));
    let node = u64_at(&out, 0);
    let write =
        Request::Write { fh: Fh(0), offset: 0, data: b"CON", write_flags: 0, lock_owner: 0, flags: 0 };
    assert_eq!(ask(&handler, node, &write, &mut out), Outcome::Reply(8));
    let read = Request::Read { fh: Fh(0), offset: 0, size: 100, read_flags: 0, lock_owner: 0, flags: 0 };
    assert_eq!(ask(&handler, node, &read, &mut out), Outcome::Reply(9));
    assert_eq!(out[..9], *b"CONtent 0");
    assert_eq!(std::fs::read(base.path().join("lower/f0")).unwrap(), b"content 0");
    handler.finish();
}

/// Two readers of a directory that changes each get every name that stays exactly once.
#[test]
fn listings_without_handles_do_not_disturb_each_other() {
    let base = tempfile::tempdir().unwrap();
    let handler = handler(base.path(), 100, DataMode::Cached);
    let mut out = [0; 4096];
    let mut all = Vec::new();
    let mut offset = 0;
    let mut removed = 0;
    loop {
        let part = list(&handler, offset, 200);
        let Some((_, next)) = part.last() else { break };
        offset = *next;
        all.extend(part.into_iter().map(|(name, _)| name));
        // Another reader begins anew, after a change.
        let name = format!("f{removed}");
        assert_eq!(ask(&handler, 1, &Request::Unlink { name: name.as_bytes() }, &mut out), Outcome::Reply(0));
        removed += 1;
        assert!(list(&handler, 0, 4096).iter().all(|(listed, _)| *listed != name));
    }
    for number in removed..100 {
        let name = format!("f{number}");
        assert_eq!(all.iter().filter(|listed| **listed == name).count(), 1, "{name}");
    }
    handler.finish();
}

/// The kernel read a listing to its end and keeps it. When it drops that while a program removes what it reads, it asks
/// for the rest by the positions it had, maybe long after and after many other listings.
#[test]
fn a_listing_that_was_read_to_its_end_goes_on_in_the_middle_of_a_changed_directory() {
    let base = tempfile::tempdir().unwrap();
    let handler = handler(base.path(), 1000, DataMode::Cached);
    let mut out = [0; 4096];
    let mut all = list(&handler, 0, 1 << 16);
    while let Some((_, next)) = all.last() {
        let part = list(&handler, *next, 1 << 16);
        if part.is_empty() {
            break;
        }
        all.extend(part);
    }
    assert_eq!(all.len(), 1002);
    for (name, _) in &all[2..502] {
        assert_eq!(ask(&handler, 1, &Request::Unlink { name: name.as_bytes() }, &mut out), Outcome::Reply(0));
    }
    for _ in 0..100 {
        assert!(list(&handler, 0, 4096).len() > 2);
    }
    let mut rest = all[..502].to_vec();
    while let Some((_, next)) = rest.last() {
        let part = list(&handler, *next, 1 << 12);
        if part.is_empty() {
            break;
        }
        rest.extend(part);
    }
    assert_eq!(rest, all, "the same names at the same positions");
    handler.finish();
}

/// Names that are read with their entries are what they are now, not what they were when the listing was begun.
#[test]
fn a_listing_that_is_read_on_does_not_bring_back_what_was_removed_since() {
    let base = tempfile::tempdir().unwrap();
    let handler = handler(base.path(), 10, DataMode::Cached);
    let mut out = [0; 1 << 14];
    let begun = list(&handler, 0, 100);
    let (_, next) = begun.last().unwrap();
    for number in 0..10 {
        let name = format!("f{number}");
        assert_eq!(ask(&handler, 1, &Request::Unlink { name: name.as_bytes() }, &mut out), Outcome::Reply(0));
    }
    let request = Request::Readdirplus { fh: Fh(0), offset: *next, size: 1 << 14 };
    assert_eq!(ask(&handler, 1, &request, &mut out), Outcome::Reply(0));
    handler.finish();
}

#[test]
fn a_refused_backing_file_leaves_the_file_readable() {
    let base = tempfile::tempdir().unwrap();
    let handler = handler(base.path(), 1, DataMode::Passthrough);
    let mut out = [0; 4096];
    let create = Request::Create {
        name: b"new",
        flags: (libc::O_RDWR | libc::O_CREAT).cast_unsigned(),
        mode: 0o644,
        umask: 0,
        open_flags: 0,
    };
    assert_eq!(ask(&handler, 1, &create, &mut out), Outcome::Reply(144));
    let flags = u32::from_ne_bytes(*out[136..].first_chunk().unwrap());
    assert_eq!(flags & OpenReply::PASSTHROUGH.bits(), 0);
    assert_ne!(u64_at(&out, 128), 0, "the handle");
}

/// The flags of an answer to OPEN, which begins at `at`, and the handle.
fn opened(out: &[u8], at: usize) -> (OpenReply, Fh) {
    let flags = u32::from_ne_bytes(*out[at + 8..].first_chunk().unwrap());
    (OpenReply::from_bits_retain(flags), Fh(u64_at(out, at)))
}

#[test]
fn lower_files_are_handed_over_where_nothing_can_be_copied_up() {
    let base = tempfile::tempdir().unwrap();
    let lower = base.path().join("lower");
    std::fs::create_dir(&lower).unwrap();
    std::fs::write(lower.join("plain"), b"data").unwrap();
    std::fs::write(lower.join("set-id"), b"data").unwrap();
    std::fs::set_permissions(lower.join("set-id"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    let options =
        MountOptions { lowerdir: vec![lower], data: DataMode::Passthrough, ..MountOptions::default() };
    let handler = handler_of(&options, Everybody);
    let mut out = [0; 4096];
    for (name, handed_over) in [(b"plain".as_slice(), true), (b"set-id", false)] {
        ask(&handler, 1, &Request::Lookup { name }, &mut out);
        let node = u64_at(&out, 0);
        let open = |flags: i32| Request::Open { flags: flags.cast_unsigned(), open_flags: 0 };
        assert_eq!(ask(&handler, node, &open(libc::O_RDONLY), &mut out), Outcome::Reply(16));
        assert_eq!(opened(&out, 0).0.contains(OpenReply::PASSTHROUGH), handed_over);
        assert_eq!(ask(&handler, node, &open(libc::O_RDWR), &mut out), Outcome::Error(Errno::ROFS));
    }
}

#[test]
fn only_upper_files_without_set_id_bits_are_handed_over() {
    let base = tempfile::tempdir().unwrap();
    let handler = handler_with(base.path(), 1, DataMode::Passthrough, Everybody);
    let mut out = [0; 4096];
    ask(&handler, 1, &Request::Lookup { name: b"f0" }, &mut out);
    let node = u64_at(&out, 0);
    let open = |flags: i32| Request::Open { flags: flags.cast_unsigned(), open_flags: 0 };
    let release = |fh| Request::Release { fh, flags: 0, release_flags: 0, lock_owner: 0 };

    assert_eq!(ask(&handler, node, &open(libc::O_RDONLY), &mut out), Outcome::Reply(16));
    let (flags, reader) = opened(&out, 0);
    assert!(!flags.contains(OpenReply::PASSTHROUGH), "a lower file");
    assert_eq!(ask(&handler, node, &open(libc::O_RDWR), &mut out), Outcome::Reply(16));
    let (flags, writer) = opened(&out, 0);
    assert!(!flags.contains(OpenReply::PASSTHROUGH), "another open goes through the page cache");
    ask(&handler, node, &release(reader), &mut out);
    ask(&handler, node, &release(writer), &mut out);

    ask(&handler, node, &open(libc::O_RDWR), &mut out);
    let (flags, writer) = opened(&out, 0);
    assert!(flags.contains(OpenReply::PASSTHROUGH), "now it is an upper file");
    ask(&handler, node, &release(writer), &mut out);

    let header = Header {
        len: 0,
        opcode: Opcode::Setattr.number(),
        unique: 2,
        node: NodeId(node),
        uid: 0,
        gid: 0,
        pid: 1,
        extensions_len: 0,
    };
    let none = Timestamp::default();
    let change = SetattrIn {
        valid: SetattrValid::MODE,
        fh: Fh(0),
        size: 0,
        lock_owner: 0,
        atime: none,
        mtime: none,
        ctime: none,
        mode: 0o104_755,
        uid: 0,
        gid: 0,
    };
    assert_eq!(handler.dispatch(&header, &Request::Setattr(change), &mut out), Outcome::Reply(104));
    ask(&handler, node, &open(libc::O_RDWR), &mut out);
    let (flags, writer) = opened(&out, 0);
    assert!(!flags.contains(OpenReply::PASSTHROUGH), "who writes decides about the bits");
    assert!(!flags.contains(OpenReply::KEEP_CACHE), "the page cache has not seen what was written");
    ask(&handler, node, &release(writer), &mut out);
}

#[test]
fn only_large_files_make_a_copy_or_an_ioctl_long() {
    let dir = tempfile::tempdir().unwrap();
    let handler = handler(dir.path(), 1, DataMode::Cached);
    let large = std::fs::File::create(dir.path().join("lower/large")).unwrap();
    large.set_len((128 << 10) + 1).unwrap();
    let [small, large] =
        ["f0", "large"].map(|name| handler.union.lookup(NodeId::ROOT, name.as_bytes()).unwrap().node);
    let is_long = |node: NodeId, request: &Request<'_>, careful| {
        let header = Header { node, ..header() };
        handler.may_take_long(&header, request, careful)
    };
    let copy = |node_out| {
        let copy =
            CopyIn { fh_in: Fh(0), off_in: 0, node_out, fh_out: Fh(0), off_out: 0, len: u64::MAX, flags: 0 };
        Request::CopyFileRange64(copy)
    };
    assert!(!is_long(small, &copy(small), false));
    assert!(is_long(small, &copy(large), false));
    assert!(is_long(large, &copy(small), false));
    assert!(is_long(small, &copy(small), true), "others waited for a disk");
    let ioctl = Request::Ioctl { fh: Fh(0), flags: 0, cmd: 0x5401, arg: 0, data: &[], out_size: 0 };
    assert!(!is_long(small, &ioctl, false));
    assert!(!is_long(large, &ioctl, false), "attributes copy no data");
    assert!(is_long(small, &ioctl, true));
}
