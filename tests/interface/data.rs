//! Data: direct, appended, allocated, punched, copied, mapped.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use e2e::random::data;
use e2e::require;
use e2e::sys::SharedMapping;
use e2e::tree::{Kind, LayerTree};
use rustix::fs::FallocateFlags;

use crate::{Seen, same};

fn lowers() -> [LayerTree; 1] {
    let sparse = Kind::Sparse(300_000, vec![(100_000, data(3, 4096)), (200_000, data(4, 10_000))]);
    [LayerTree::new().file("f", data(1, 20_000)).with("sparse", sparse, 0o644)]
}

fn both(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

/// Notes size and contents of a file.
fn note_file(seen: &mut Seen, path: &Path) {
    let bytes = fs::read(path).unwrap();
    seen.note("contents", (bytes.len(), sum(&bytes), fs::metadata(path).unwrap().size()));
}

#[test]
fn appending_writes_go_to_the_end_wherever_they_say() {
    require!(Fuse, Union);
    same(&lowers(), |root, seen| {
        for name in ["f", "new"] {
            let append = |path: &Path| OpenOptions::new().append(true).create(true).open(path).unwrap();
            let (mut one, mut two) = (append(&root.join(name)), append(&root.join(name)));
            let plain = both(&root.join(name));
            one.write_all(b"one").unwrap();
            two.write_all(b"two").unwrap();
            plain.write_at(b"P", 1).unwrap();
            // pwrite(2) on an appending descriptor appends all the same.
            seen.note("pwrite", one.write_at(b"three", 0));
            seen.note("position", (one.stream_position().unwrap(), two.stream_position().unwrap()));
            seen.note("read", one.read(&mut [0; 4]).map_err(|error| error.raw_os_error()));
            note_file(seen, &root.join(name));
        }
    });
}

#[test]
fn large_reads_hold_what_the_file_does_up_to_its_end() {
    require!(Fuse, Union);
    const LEN: usize = 1_300_077;
    let lowers = ["large", "changed", "first", "second"].into_iter().zip(5..);
    let lowers = lowers.fold(LayerTree::new(), |tree, (name, seed)| tree.file(name, data(seed, LEN)));
    same(&[lowers], |root, seen| {
        // Served from both files at first.
        both(&root.join("changed")).write_at(b"written", 600_000).unwrap();
        fs::write(root.join("new"), data(9, LEN)).unwrap();
        let mut room = vec![0_u8; (1 << 20) + 4096];
        let start = room.as_ptr().align_offset(4096);
        for name in ["large", "changed", "new"] {
            let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(root.join(name));
            let file = file.unwrap();
            for (kib, len_kib) in
                [(0, 64), (4, 512), (512, 516), (0, 1024), (1024, 512), (1212, 64), (1276, 64)]
            {
                let place = &mut room[start..start + len_kib * 1024];
                let got = file.read_at(place, kib * 1024).unwrap();
                seen.note("direct", (kib, len_kib, got, sum(&place[..got])));
            }
            note_file(seen, &root.join(name));
        }
        // Several at once, and small requests between them.
        std::thread::scope(|scope| {
            let names = ["first", "second", "first"];
            let readers = names.map(|name| scope.spawn(move || sum(&fs::read(root.join(name)).unwrap())));
            for count in 0..50 {
                fs::write(root.join(format!("small{count}")), b"small").unwrap();
            }
            seen.note("sums", readers.map(|reader| reader.join().unwrap()));
        });
    });
}

#[test]
fn direct_reads_and_writes_are_of_the_same_bytes() {
    require!(Fuse, Union);
    same(&lowers(), |root, seen| {
        let direct = |name: &str| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .custom_flags(libc::O_DIRECT)
                .open(root.join(name))
        };
        // A place in memory that every block size allows.
        let mut room = vec![0_u8; 3 * 4096];
        let start = room.as_ptr().align_offset(4096);
        for name in ["f", "sparse", "new"] {
            let file = direct(name).unwrap();
            let block = &mut room[start..start + 8192];
            let got = file.read_at(block, 8192).unwrap();
            seen.note("read", (got, block[..got].iter().map(|byte| u64::from(*byte)).sum::<u64>()));
            block.fill(b'd');
            seen.note("write", file.write_at(block, 4096));
            note_file(seen, &root.join(name));
            // What goes around the cache is seen through it.
            fs::File::open(root.join(name)).unwrap().read_exact_at(&mut block[..4096], 4096).unwrap();
            assert!(block[..4096].iter().all(|byte| *byte == b'd'));
        }
    });
}

#[test]
fn what_was_written_around_the_cache_is_read_through_it_at_once() {
    require!(Fuse, Union);
    const LEN: usize = 640 << 10;
    same(&lowers(), |root, seen| {
        let path = root.join("busy");
        let file =
            OpenOptions::new().write(true).create(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
        file.set_len(LEN as u64).unwrap();
        let mut room = vec![0_u8; LEN + 4096];
        let start = room.as_ptr().align_offset(4096);
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|threads| {
            for _ in 0..2 {
                // Who reads meanwhile must not put back what was there before.
                threads.spawn(|| {
                    while !over.load(std::sync::atomic::Ordering::Relaxed) {
                        fs::read(&path).unwrap();
                    }
                });
            }
            let mut stale = 0;
            for round in 1..=30_u8 {
                let block = &mut room[start..start + LEN];
                block.fill(round);
                assert_eq!(e2e::sys::write_async(&file, block, 0), Ok(LEN as i64));
                stale += usize::from(fs::read(&path).unwrap().iter().any(|byte| *byte != round));
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            seen.note("stale", stale);
        });
    });
}

#[test]
fn space_is_allocated_punched_and_zeroed_as_asked() {
    require!(Fuse, Union);
    let (keep, punch, zero) =
        (FallocateFlags::KEEP_SIZE, FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE);
    same(&lowers(), |root, seen| {
        for name in ["f", "sparse", "new"] {
            for (flags, offset, len) in [
                (FallocateFlags::empty(), 0, 30_000),
                (keep, 10_000, 90_000),
                (punch | keep, 3_000, 9_000),
                (punch, 0, 4096),
                (zero, 5_000, 40_000),
                (zero | keep, 100, 200_000),
                (FallocateFlags::empty(), 0, 0),
            ] {
                let done = rustix::fs::fallocate(both(&root.join(name)), flags, offset, len);
                seen.note("fallocate", (flags, done));
                note_file(seen, &root.join(name));
            }
        }
    });
}

#[test]
fn ranges_are_neither_collapsed_nor_inserted() {
    require!(Fuse, Union);
    let scratch = e2e::mounted::scratch();
    let mounted = crate::union(scratch.path(), &lowers(), "");
    for flags in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE, FallocateFlags::UNSHARE_RANGE]
    {
        let file = both(&mounted.root().join("f"));
        assert_eq!(rustix::fs::fallocate(&file, flags, 0, 4096), Err(rustix::io::Errno::OPNOTSUPP));
    }
    assert_eq!(fs::read(mounted.root().join("f")).unwrap(), data(1, 20_000));
}

/// Returns where data and holes are.
fn extents(file: &File) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Ok(begin) = rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        at = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(begin)).unwrap();
        found.push((begin, at));
    }
    found
}

#[test]
fn data_and_holes_are_found_where_they_are() {
    require!(Fuse, Union);
    same(&lowers(), |root, seen| {
        for name in ["f", "sparse", "new"] {
            let file = both(&root.join(name));
            seen.note("before", extents(&file));
            seen.note("beyond", rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(1 << 40)));
            file.write_at(b"x", 250_000).unwrap();
            seen.note("after a write", extents(&file));
            file.set_len(500_000).unwrap();
            seen.note("after growing", extents(&file));
        }
    });
}

#[test]
fn ranges_are_copied_between_and_within_files() {
    require!(Fuse, Union);
    same(&lowers(), |root, seen| {
        let copy = |from: &str, at: u64, to: &str, to_at: u64, len: usize| {
            let (source, target) = (File::open(root.join(from)).unwrap(), both(&root.join(to)));
            let (mut at, mut to_at) = (at, to_at);
            rustix::fs::copy_file_range(&source, Some(&mut at), &target, Some(&mut to_at), len)
        };
        for (from, at, to, to_at, len) in [
            ("f", 0, "new", 0, 20_000),
            ("f", 19_000, "new", 100, 20_000),
            ("f", 50_000, "new", 0, 10),
            ("sparse", 90_000, "f", 5, 50_000),
            ("f", 0, "f", 40_000, 1_000),
            ("f", 0, "f", 500, 1_000),
            ("new", 0, "sparse", 1 << 20, 5_000),
        ] {
            seen.note("copy", (from, to, copy(from, at, to, to_at, len)));
            note_file(seen, &root.join(to));
        }
    });
}

#[test]
fn mappings_show_what_is_written_and_write_what_is_read() {
    require!(Fuse, Union);
    same(&lowers(), |root, seen| {
        for name in ["f", "sparse"] {
            let path = root.join(name);
            let reader = SharedMapping::new(File::open(&path).unwrap(), 20_000, false).unwrap();
            let mut got = [0; 8];
            reader.read(4_000, &mut got);
            seen.note("mapped", got);
            let writer = SharedMapping::new(both(&path), 20_000, true).unwrap();
            writer.write(4_000, b"by map!!").unwrap();
            reader.read(4_000, &mut got);
            seen.note("after a mapped write", got);
            both(&path).write_at(b"by call!", 4_000).unwrap();
            reader.read(4_000, &mut got);
            seen.note("after a write", got);
            writer.read(4_000, &mut got);
            seen.note("and in the other", got);
            both(&path).set_len(12_000).unwrap();
            note_file(seen, &path);
        }
    });
}

#[test]
fn files_without_a_name_go_on() {
    require!(Fuse, Union);
    same(&lowers(), |root, seen| {
        for name in ["f", "sparse", "new"] {
            let mut file = both(&root.join(name));
            fs::remove_file(root.join(name)).unwrap();
            seen.note("links", file.metadata().unwrap().nlink());
            seen.note("size", file.metadata().unwrap().size());
            file.write_all(b"still written").unwrap();
            file.set_len(9_000).unwrap();
            let mut got = vec![0; 13];
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_exact(&mut got).unwrap();
            seen.note("read", got);
            seen.note("chmod", rustix::fs::fchmod(&file, 0o600.into()));
            seen.note("state", (file.metadata().unwrap().mode(), file.metadata().unwrap().size()));
            // Its last name is gone: ENOENT, as without O_TMPFILE.
            let magic = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
            let (cwd, follow) = (rustix::fs::CWD, rustix::fs::AtFlags::SYMLINK_FOLLOW);
            seen.note("link back", rustix::fs::linkat(cwd, magic, cwd, root.join("again"), follow));
            seen.note("name", root.join(name).exists());
        }
        // With another name left it can be linked back.
        fs::write(root.join("a"), "1").unwrap();
        fs::hard_link(root.join("a"), root.join("b")).unwrap();
        let file = File::open(root.join("a")).unwrap();
        fs::remove_file(root.join("a")).unwrap();
        let magic = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let (cwd, follow) = (rustix::fs::CWD, rustix::fs::AtFlags::SYMLINK_FOLLOW);
        seen.note("link back", rustix::fs::linkat(cwd, magic, cwd, root.join("c"), follow));
        seen.note("links", file.metadata().unwrap().nlink());
    });
}
