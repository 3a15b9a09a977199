//! Inode numbers of what can hold no mark of an ordinary user: symbolic links, pipes, sockets, devices.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::require;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, makedev};

/// Makes one object of each type; devices where this process may.
fn make_objects(dir: &Path, prefix: &str) {
    let path = |name: &str| dir.join(format!("{prefix}{name}"));
    symlink("target", path("link")).unwrap();
    let make =
        |name, kind, device| rustix::fs::mknodat(CWD, path(name), kind, Mode::from_raw_mode(0o644), device);
    make("pipe", FileType::Fifo, 0).unwrap();
    drop(UnixListener::bind(path("socket")).unwrap());
    if make("char", FileType::CharacterDevice, makedev(1, 3)).is_ok() {
        make("block", FileType::BlockDevice, makedev(7, 0)).unwrap();
    }
}

/// A union with marks in `user.overlay.*` over objects that cannot hold one.
fn union(base: &Path) -> Mounted {
    let mut layers = Layers::below(base, 1);
    layers.extra.push_str(",userxattr");
    let dir = layers.lowers[0].join("d");
    fs::create_dir(&dir).unwrap();
    for prefix in ["owner-", "times-", "renamed-"] {
        make_objects(&dir, prefix);
    }
    Mounted::new(layers)
}

/// Returns the inode numbers of the names in a directory, which stat and the listing agree on.
#[track_caller]
fn numbers(dir: &Path) -> BTreeMap<String, u64> {
    let numbered = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        let number = entry.metadata().unwrap().ino();
        assert_eq!(entry.ino(), number, "{entry:?}");
        (entry.file_name().into_string().unwrap(), number)
    };
    fs::read_dir(dir).unwrap().map(numbered).collect()
}

/// Copies an object up by a change that changes nothing else.
fn chown_to_its_owner(path: &Path) {
    lchown(path, Some(fs::symlink_metadata(path).unwrap().uid()), None).unwrap();
}

/// Has each object copied up, by one call or another.
fn change(dir: &Path) {
    let names: Vec<String> = numbers(dir).into_keys().collect();
    for name in names {
        let path = dir.join(&name);
        match name.split_once('-').unwrap() {
            ("owner", _) => chown_to_its_owner(&path),
            ("times", _) => {
                let time = Timespec { tv_sec: 7, tv_nsec: 0 };
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            }
            (_, kind) => fs::rename(&path, dir.join(format!("moved-{kind}"))).unwrap(),
        }
    }
}

/// Returns the numbers under the names that [`change`] gives.
fn as_changed(before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let renamed = |name: &String| name.replace("renamed-", "moved-");
    before.iter().map(|(name, number)| (renamed(name), *number)).collect()
}

/// Returns a union of which all of that was changed, its directory, and the numbers that are to show there.
fn changed_union(base: &Path) -> (Mounted, PathBuf, BTreeMap<String, u64>) {
    let mounted = union(base);
    let dir = mounted.root().join("d");
    let want = as_changed(&numbers(&dir));
    change(&dir);
    (mounted, dir, want)
}

fn work(mounted: &Mounted) -> PathBuf {
    mounted.layers().work.clone().unwrap()
}

#[test]
fn what_can_hold_no_mark_keeps_its_inode_number() {
    require!(Fuse, Union);
    let scratch = scratch();
    let mut mounted = union(scratch.path());
    let dir = mounted.root().join("d");
    let before = numbers(&dir);
    assert_eq!(before, numbers(&mounted.layers().lowers[0].join("d")));
    change(&dir);
    let want = as_changed(&before);
    assert_eq!(numbers(&dir), want);
    let on_upper = own_numbers(&mounted.layers().upper.as_ref().unwrap().join("d"));
    assert!(want.iter().all(|(name, number)| on_upper[name] != *number), "{on_upper:?}");
    let records = fs::metadata(work(&mounted).join("numbers")).unwrap().len();
    assert_eq!(records, 56 * (1 + want.len() as u64), "a record for each, and one of whose they are");
    mounted.remount();
    assert_eq!(numbers(&dir), want);
    // Read only, and named by others.
    mounted.unmount();
    let mut layers = mounted.layers().clone();
    layers.extra.push_str(",ro");
    drop_after(Mounted::new(layers), |mounted| assert_eq!(numbers(&mounted.root().join("d")), want));
    mounted.mount();
    assert_eq!(numbers(&dir), want);
}

fn drop_after(mut mounted: Mounted, use_it: impl FnOnce(&Mounted)) {
    use_it(&mounted);
    mounted.unmount();
}

#[test]
fn a_number_outlives_what_the_kernel_remembers() {
    require!(Fuse, Union, Root);
    let scratch = scratch();
    let (mounted, dir, want) = changed_union(scratch.path());
    // Setting the flags of a mounted file system drops all names of it that are not in use.
    let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
    rustix::mount::mount_remount(mounted.root(), flags, c"").unwrap();
    assert_eq!(numbers(&dir), want);
}

#[test]
fn an_object_with_a_number_that_was_used_before_shows_its_own() {
    require!(Fuse, Union);
    let scratch = scratch();
    let mut layers = Layers::below(scratch.path(), 1);
    layers.extra.push_str(",userxattr");
    for n in 0..64 {
        symlink("old", layers.lowers[0].join(format!("old{n}"))).unwrap();
    }
    let mut mounted = Mounted::new(layers);
    let root = mounted.root().to_path_buf();
    for n in 0..64 {
        let old = root.join(format!("old{n}"));
        chown_to_its_owner(&old);
        fs::remove_file(&old).unwrap();
        // Born in the same moment as the other, as far as the clock of the file system can tell.
        symlink("new", root.join(format!("new{n}"))).unwrap();
    }
    let before = numbers(&root);
    assert_eq!(before, own_numbers(mounted.layers().upper.as_ref().unwrap()));
    mounted.remount();
    assert_eq!(numbers(&root), before);
}

/// Returns the inode numbers in a directory of the upper, without those of whiteouts.
fn own_numbers(dir: &Path) -> BTreeMap<String, u64> {
    let is_hidden = |name: &str| ["renamed-", "old", ".wh."].iter().any(|prefix| name.starts_with(prefix));
    numbers(dir).into_iter().filter(|(name, _)| !is_hidden(name)).collect()
}

#[test]
fn numbers_of_a_copied_upper_and_damaged_ones_do_not_count() {
    require!(Fuse, Union);
    let scratch = scratch();
    let (mut mounted, dir, want) = changed_union(scratch.path());
    mounted.unmount();
    // A copy has inode numbers of its own, and shows those.
    let mut copy = mounted.layers().clone();
    for place in [&mut copy.upper, &mut copy.work] {
        let from = place.take().unwrap();
        let to = from.with_extension("copy");
        assert!(Command::new("cp").arg("-a").arg(&from).arg(&to).status().unwrap().success());
        *place = Some(to);
    }
    let (upper, file) = (copy.upper.clone().unwrap(), copy.work.clone().unwrap().join("numbers"));
    drop_after(Mounted::new(copy), |mounted| {
        assert_eq!(numbers(&mounted.root().join("d")), own_numbers(&upper.join("d")));
    });
    assert!(!file.exists());
    // A record that was cut, and one that never reached the disk.
    let file = work(&mounted).join("numbers");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, [&whole[..], &whole[56..90], &[0; 56], b"x"].concat()).unwrap();
    mounted.mount();
    assert_eq!(numbers(&dir), want);
    mounted.unmount();
    fs::write(&file, &whole[1..]).unwrap();
    mounted.mount();
    assert_eq!(numbers(&dir), own_numbers(&mounted.layers().upper.as_ref().unwrap().join("d")));
}

#[test]
fn a_change_does_not_fail_because_no_number_can_be_kept() {
    require!(Fuse, Union);
    let scratch = scratch();
    let mut mounted = union(scratch.path());
    mounted.unmount();
    // Nothing can be appended to a directory.
    fs::create_dir(work(&mounted).join("numbers")).unwrap();
    mounted.mount();
    let dir = mounted.root().join("d");
    let want = as_changed(&numbers(&dir));
    change(&dir);
    assert_eq!(numbers(&dir), want);
    mounted.remount();
    assert_eq!(numbers(&dir), own_numbers(&mounted.layers().upper.as_ref().unwrap().join("d")));
}

#[test]
fn a_rotated_mount_keeps_the_numbers_of_what_can_hold_no_mark() {
    require!(Fuse, Union);
    let scratch = scratch();
    let (mut mounted, dir, want) = changed_union(scratch.path());
    let first = work(&mounted);
    for _ in 0..2 {
        mounted.rotate();
        assert!(!first.join("numbers").exists(), "the workdir can be used for another upper");
        assert_eq!(numbers(&dir), want);
        mounted.remount();
        assert_eq!(numbers(&dir), want);
        chown_to_its_owner(&dir.join("owner-link"));
        mounted.remount();
        assert_eq!(numbers(&dir), want);
    }
}
