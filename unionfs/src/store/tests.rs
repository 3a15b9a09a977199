//! A store as a value, killed and damaged in every way that a directory can be.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::files::{Change, Expected, Files, New, Place, Renaming, Seek};
use super::objects::ROOT;
use crate::error::Errno;

/// The directory of the upper in a fresh store.
const UPPER: u64 = ROOT + 1;

fn open(upper: &Path) -> crate::error::Result<Files> {
    let upper = OwnedFd::from(fs::File::open(upper).unwrap());
    Files::open(&upper, &crate::sys::stat_fd(upper.as_fd()).unwrap())
}

fn log(upper: &Path, number: u32) -> PathBuf {
    upper.join(format!("unionfs-store/log.{number}"))
}

fn at(dir: u64, name: &str) -> Place<'_> {
    Place { dir, name: name.as_bytes() }
}

fn file(files: &mut Files, dir: u64, name: &str) -> u64 {
    let new = New { mode: libc::S_IFREG | 0o644, owner: (1, 2), rdev: 0, target: b"" };
    files.make(at(dir, name), new).unwrap()
}

/// What a store shows, by path.
type Shown = BTreeMap<Vec<u8>, (u32, u64, u32, Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>)>;

fn shown(files: &Files) -> Shown {
    let mut shown = Shown::new();
    let mut waiting = vec![(Vec::new(), ROOT)];
    while let Some((path, id)) = waiting.pop() {
        let object = files.get(id).unwrap();
        for (name, &entry) in &object.entries {
            waiting.push(([&path[..], b"/", name].concat(), entry));
        }
        let about = &object.shown;
        let what = (about.mode, about.size, object.links(), object.target.clone(), object.attributes.clone());
        shown.insert(path, what);
    }
    shown
}

/// Makes the `number`th change of a history. That most of them are refused or not is no matter.
fn change(files: &mut Files, number: u64) {
    let draw = |salt: u64, below: u64| {
        let mixed = (number ^ salt << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33 & 0xffff_ffff & (below - 1)
    };
    let names = ["a", "A", "b", "\u{e4}:*", "c", "d", "e", "f"];
    let name = |salt| names[draw(salt, 8) as usize];
    let dirs: Vec<u64> = [None, Some("d"), Some("e")]
        .iter()
        .filter_map(|dir| {
            dir.map_or(Some(UPPER), |dir| files.get(UPPER).unwrap().entries.get(dir.as_bytes()).copied())
        })
        .filter(|&dir| files.get(dir).unwrap().is_dir())
        .collect();
    let dir = |salt: u64| dirs[(draw(salt, 64) as usize) % dirs.len()];
    let (from, to) = (at(dir(1), name(2)), at(dir(3), name(4)));
    let id = files.get(from.dir).unwrap().entries.get(from.name).copied();
    let new = |mode, target| New { mode, owner: (0, 0), rdev: 0, target };
    let done = match (draw(5, 16), id) {
        (0 | 1, _) => files.make(from, new(libc::S_IFREG | 0o600, b"")).map(drop),
        (2 | 3, _) => files.make(from, new(libc::S_IFDIR | 0o755, b"")).map(drop),
        (4, _) => files.make(from, new(libc::S_IFLNK | 0o777, b"target")).map(drop),
        (5, _) => files.remove(from, Expected::Other),
        (6, _) => files.remove(from, Expected::Directory),
        (7, _) => files.rename(from, to, Renaming::NoReplace),
        // A directory into itself is the kernel's to refuse.
        (8..=10, Some(id)) if !files.get(id).unwrap().is_dir() => {
            let how = [Renaming::Replace, Renaming::Exchange, Renaming::Whiteout][draw(6, 2) as usize];
            let met = files.get(to.dir).unwrap().entries.get(to.name).copied();
            let met_dir = met.is_some_and(|met| files.get(met).unwrap().is_dir());
            if met_dir { Ok(()) } else { files.rename(from, to, how) }
        }
        (11, Some(id)) => files.link(id, to),
        (12, Some(id)) => files.set_attribute(id, b"user.x", &number.to_le_bytes(), 0),
        (13, Some(id)) => files.remove_attribute(id, b"user.x"),
        (14, Some(id)) => files.set(id, &Change { mode: Some(draw(7, 0o1000) as u32), ..Change::default() }),
        (15, Some(id)) if files.get(id).unwrap().shown.mode & libc::S_IFMT == libc::S_IFREG => {
            files.write(id, draw(8, 4096), &[number as u8; 10])
        }
        _ => Ok(()),
    };
    if let Err(error) = done {
        let expected =
            [Errno::EXIST, Errno::NOENT, Errno::NOTDIR, Errno::ISDIR, Errno::NOTEMPTY, Errno::NODATA];
        assert!(expected.contains(&error.errno()) || error.is(Errno::PERM), "{error}");
    }
    // The kernel forgets what it was told of.
    for id in 1..files.next_id() {
        files.forget(id, u64::MAX).unwrap();
    }
}

#[test]
fn a_log_cut_anywhere_shows_what_was_before_or_after_a_change() {
    let scratch = tempfile::tempdir().unwrap();
    let mut files = open(scratch.path()).unwrap();
    let length = || fs::metadata(log(scratch.path(), 1)).unwrap().len();
    let mut states = vec![(length(), shown(&files))];
    for number in 0..600 {
        change(&mut files, number);
        states.push((length(), shown(&files)));
    }
    assert!(states.last().unwrap().1.len() > 10, "{:?}", states.last());
    let whole = fs::read(log(scratch.path(), 1)).unwrap();
    let first = states[0].0;
    for step in 0..400 {
        let cut = first + (whole.len() as u64 - first) * step / 399 - (step % 7).min(step);
        let copy = tempfile::tempdir().unwrap();
        fs::create_dir(copy.path().join("unionfs-store")).unwrap();
        fs::write(log(copy.path(), 1), &whole[..cut as usize]).unwrap();
        let found = shown(&open(copy.path()).unwrap());
        let before = states.iter().rposition(|(length, _)| *length <= cut).unwrap();
        let after = (before + 1).min(states.len() - 1);
        assert!(found == states[before].1 || found == states[after].1, "cut at {cut}");
    }
    drop(files);
    let files = open(scratch.path()).unwrap();
    assert_eq!(shown(&files), states.last().unwrap().1);
}

#[test]
fn a_log_that_has_become_long_is_written_anew_and_says_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    let mut files = open(scratch.path()).unwrap();
    for number in 0..300 {
        change(&mut files, number);
    }
    let id = file(&mut files, UPPER, "often");
    let value = vec![7; 60_000];
    for _ in 0..300 {
        files.set_attribute(id, b"user.long", &value, 0).unwrap();
    }
    let before = shown(&files);
    assert!(!log(scratch.path(), 1).exists() && log(scratch.path(), 2).exists());
    assert!(fs::metadata(log(scratch.path(), 2)).unwrap().len() < 5 << 20);
    drop(files);
    // Killed while it is written anew: the old one counts, whatever there is of the new one.
    for torn in [&b""[..], b"ufsstor1xxxxxxxx"] {
        fs::write(log(scratch.path(), 3), torn).unwrap();
        assert_eq!(shown(&open(scratch.path()).unwrap()), before);
        assert!(!log(scratch.path(), 3).exists());
    }
}

#[test]
fn a_damaged_log_is_an_error_and_stays_as_it_is() {
    let scratch = tempfile::tempdir().unwrap();
    let mut files = open(scratch.path()).unwrap();
    for number in 0..50 {
        change(&mut files, number);
    }
    drop(files);
    let whole = fs::read(log(scratch.path(), 1)).unwrap();
    for place in [0, 9, 20, 30, whole.len() / 2, whole.len() * 3 / 4] {
        let mut wrong = whole.clone();
        wrong[place] ^= 1;
        fs::write(log(scratch.path(), 1), &wrong).unwrap();
        assert!(open(scratch.path()).unwrap_err().is(Errno::UCLEAN), "{place}");
        assert_eq!(fs::read(log(scratch.path(), 1)).unwrap(), wrong);
    }
    fs::write(log(scratch.path(), 1), &whole).unwrap();
    open(scratch.path()).unwrap();
}

#[test]
fn contents_that_the_log_does_not_know_never_show() {
    let scratch = tempfile::tempdir().unwrap();
    let mut files = open(scratch.path()).unwrap();
    let id = file(&mut files, UPPER, "f");
    files.write(id, 0, b"known").unwrap();
    drop(files);
    let data = scratch.path().join("unionfs-store/data/0");
    let place = data.join(format!("{id:x}"));
    let contents = fs::OpenOptions::new().write(true).open(&place).unwrap();
    contents.write_all_at(b"unknown", 5).unwrap();
    fs::write(data.join("ff"), "of no object").unwrap();
    let mut files = open(scratch.path()).unwrap();
    assert!(!data.join("ff").exists());
    let mut buffer = [1; 20];
    assert_eq!(files.read(id, 0, &mut buffer).unwrap(), 5);
    files.set(id, &Change { size: Some(12), ..Change::default() }).unwrap();
    assert_eq!(files.read(id, 0, &mut buffer).unwrap(), 12);
    assert_eq!(&buffer[..12], b"known\0\0\0\0\0\0\0");
    // Cut and grown again: nothing of what was cut comes back.
    for size in [2, 12] {
        files.set(id, &Change { size: Some(size), ..Change::default() }).unwrap();
    }
    files.read(id, 0, &mut buffer).unwrap();
    assert_eq!(&buffer[..12], b"kn\0\0\0\0\0\0\0\0\0\0");
    assert!(fs::metadata(&place).unwrap().len() <= 12);
}

#[test]
fn nothing_was_written_behind_the_last_byte() {
    let scratch = tempfile::tempdir().unwrap();
    let mut files = open(scratch.path()).unwrap();
    let id = file(&mut files, UPPER, "f");
    let seek = |files: &mut Files, offset, what| files.seek(id, offset, what).map_err(|error| error.errno());
    assert_eq!(seek(&mut files, 0, Seek::Data), Err(Errno::NXIO));
    files.set(id, &Change { size: Some(100), ..Change::default() }).unwrap();
    assert_eq!((seek(&mut files, 0, Seek::Data), seek(&mut files, 7, Seek::Hole)), (Err(Errno::NXIO), Ok(7)));
    files.write(id, 20, b"data").unwrap();
    for (offset, data, hole) in [
        (0, Ok(0), Ok(24)),
        (23, Ok(23), Ok(24)),
        (24, Err(Errno::NXIO), Ok(24)),
        (99, Err(Errno::NXIO), Ok(99)),
    ] {
        assert_eq!(seek(&mut files, offset, Seek::Data), data, "{offset}");
        assert_eq!(seek(&mut files, offset, Seek::Hole), hole, "{offset}");
    }
    assert_eq!(seek(&mut files, 100, Seek::Hole), Err(Errno::NXIO));
}

#[test]
fn what_has_no_name_is_there_until_it_is_forgotten_and_not_after_a_kill() {
    let scratch = tempfile::tempdir().unwrap();
    let mut files = open(scratch.path()).unwrap();
    let ids = ["kept", "lost"].map(|name| {
        let id = file(&mut files, UPPER, name);
        files.write(id, 0, b"x").unwrap();
        files.remove(at(UPPER, name), Expected::Other).unwrap();
        id
    });
    let place = |id| scratch.path().join(format!("unionfs-store/data/0/{id:x}"));
    files.forget(ids[1], 1).unwrap();
    assert!(place(ids[0]).exists() && !place(ids[1]).exists());
    assert_eq!(files.get(ids[0]).unwrap().links(), 0);
    drop(files);
    let files = open(scratch.path()).unwrap();
    assert!(files.get(ids[0]).is_err() && !place(ids[0]).exists());
}

#[test]
fn the_epoch_is_another_one_unless_the_store_was_closed_in_order() {
    let scratch = tempfile::tempdir().unwrap();
    let epochs = [true, true, false, true].map(|in_order| {
        let mut files = open(scratch.path()).unwrap();
        file(&mut files, UPPER, &format!("{:?}", std::time::Instant::now()));
        if in_order {
            files.close().unwrap();
        }
        files.epoch()
    });
    assert!(epochs[0] == epochs[1] && epochs[1] == epochs[2] && epochs[2] != epochs[3]);
}

#[test]
fn a_file_that_stays_empty_has_its_times_moved_by_an_open_file_only() {
    let scratch = tempfile::tempdir().unwrap();
    let mut files = open(scratch.path()).unwrap();
    let id = file(&mut files, UPPER, "f");
    let old = crate::request::Timestamp { sec: 1, nsec: 2 };
    for (size, by_open_file, moves) in
        [(5, false, true), (5, false, true), (0, false, true), (0, false, false), (0, true, true)]
    {
        files.set(id, &Change { mtime: Some(old), ..Change::default() }).unwrap();
        files.set(id, &Change { size: Some(size), by_open_file, ..Change::default() }).unwrap();
        assert_eq!(files.get(id).unwrap().shown.mtime != old, moves, "{size} {by_open_file}");
    }
}
