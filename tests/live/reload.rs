//! Layers that others change, and a mount that is told so: it then is what a fresh mount of the same layers is.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::random::Random;
use e2e::require;
use e2e::require::say;
use e2e::tree::LayerTree;
use e2e::user::is_real_root;

use crate::{Stop, TRANSPORTS, number, snapshot};

fn reload(mounted: &Mounted) {
    let answer = mounted.ctl(&[OsStr::new("reload")]);
    assert_eq!(answer.unwrap_or_else(|message| panic!("{message}{}", mounted.stderr())), "");
}

/// What stat(2) says of everything below `root`, directories as merged mounts show them.
fn stats(root: &Path, with_numbers: bool) -> BTreeMap<PathBuf, [i64; 7]> {
    let mut all = BTreeMap::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let entries =
            fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        for entry in entries {
            let path = entry.unwrap().path();
            let stat =
                fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let number = if with_numbers { stat.ino().cast_signed() } else { 0 };
            let (nlink, size) = (stat.nlink().cast_signed(), stat.size().cast_signed());
            let own = [number, nlink, size, stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec()];
            all.insert(path.strip_prefix(root).unwrap().to_path_buf(), own);
            if stat.is_dir() {
                directories.push(path);
            }
        }
    }
    all
}

/// Compares a mount that was reloaded with a fresh one of its layers.
fn assert_is_fresh(mounted: &Mounted, after: &str) {
    mounted.ctl(&[OsStr::new("flush")]).unwrap();
    let layers = mounted.layers();
    let target = layers.target.with_file_name("fresh");
    fs::create_dir_all(&target).unwrap();
    let mut fresh = Mounted::new(Layers { target, ..layers.clone() });
    // That library shows node numbers, and a number may still be that of an object that is gone.
    let with_numbers = !layers.extra.contains("fuser");
    let (ours, theirs) = (stats(mounted.root(), with_numbers), stats(fresh.root(), with_numbers));
    for (path, stat) in &ours {
        assert_eq!(Some(stat), theirs.get(path), "after {after}{}: {}", layers.extra, path.display());
    }
    assert!(ours.keys().eq(theirs.keys()), "after {after}: {:?} {:?}", ours.keys(), theirs.keys());
    let lines = snapshot(mounted.root()).diff(&snapshot(fresh.root()), ("reloaded", "fresh"));
    assert!(lines.is_empty(), "after {after}{}:\n{}", layers.extra, lines.join("\n"));
    fresh.unmount();
}

/// Has the kernel remember everything, and that some names do not exist.
fn learn(root: &Path) {
    stats(root, true);
    snapshot(root);
    for name in ["new", "d/new", "d/sub/new", "moved", "e/new", "gone/x", "u/new"] {
        assert!(fs::symlink_metadata(root.join(name)).is_err(), "{name}");
    }
}

fn two_lowers(base: &Path, options: &str) -> Layers {
    let mut layers = Layers::below(base, 2);
    layers.extra.push_str(options);
    let top = LayerTree::new()
        .file("d/f", "top f")
        .file("d/sub/g", "top g")
        .file("only/top", "top")
        .file("meta", "meta");
    top.file("alink", "linked").hardlink("d/link", "alink").symlink("s", "d/f").build(&layers.lowers[0]);
    let below = LayerTree::new().file("d/f", "low f").file("d/h", "low h").file("e/deep/er/x", "x");
    below.file("d/sub/i", "low i").file("kind", "file").dir("kinds").build(&layers.lowers[1]);
    layers
}

/// Something that is done to the layers behind the union's back.
type Change = (&'static str, fn(&[PathBuf], &Path));

fn put(path: &Path, bytes: &str) {
    let beside = path.with_extension("tmp");
    fs::write(&beside, bytes).unwrap();
    fs::rename(beside, path).unwrap();
}

const CHANGES: [Change; 23] = [
    ("nothing", |_, _| {}),
    ("a file that is replaced", |lowers, _| put(&lowers[0].join("d/f"), "another f, longer")),
    ("names that are added", |lowers, _| {
        fs::write(lowers[0].join("new"), "new").unwrap();
        fs::write(lowers[1].join("d/new"), "new").unwrap();
        fs::write(lowers[1].join("d/sub/new"), "new").unwrap();
    }),
    ("a name that is removed", |lowers, _| fs::remove_file(lowers[1].join("d/h")).unwrap()),
    ("a whiteout", |lowers, _| fs::write(lowers[0].join("d/sub/.wh.i"), "").unwrap()),
    ("a whiteout that goes", |lowers, _| fs::remove_file(lowers[0].join("d/sub/.wh.i")).unwrap()),
    ("an opaque directory", |lowers, _| fs::write(lowers[0].join("d/.wh..wh..opq"), "").unwrap()),
    ("a directory that is opaque no longer", |lowers, _| {
        fs::remove_file(lowers[0].join("d/.wh..wh..opq")).unwrap();
    }),
    ("contents that are changed in place", |lowers, _| {
        let file = fs::OpenOptions::new().write(true).open(lowers[1].join("e/deep/er/x")).unwrap();
        let before = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(b"y", 0).unwrap();
        file.set_modified(before).unwrap();
    }),
    ("a directory that is renamed", |lowers, _| {
        fs::rename(lowers[1].join("e/deep"), lowers[1].join("moved")).unwrap();
    }),
    ("directories that exchange their names", |lowers, _| {
        fs::rename(lowers[0].join("d"), lowers[0].join("t")).unwrap();
        fs::rename(lowers[0].join("only"), lowers[0].join("d")).unwrap();
        fs::rename(lowers[0].join("t"), lowers[0].join("only")).unwrap();
    }),
    ("and back", |lowers, _| {
        fs::rename(lowers[0].join("d"), lowers[0].join("t")).unwrap();
        fs::rename(lowers[0].join("only"), lowers[0].join("d")).unwrap();
        fs::rename(lowers[0].join("t"), lowers[0].join("only")).unwrap();
    }),
    ("the data of a file whose attributes were changed", |lowers, _| {
        put(&lowers[0].join("meta"), "other data")
    }),
    ("another target of a link", |lowers, _| {
        fs::remove_file(lowers[0].join("s")).unwrap();
        symlink("new", lowers[0].join("s")).unwrap();
    }),
    ("objects of other kinds", |lowers, _| {
        fs::remove_file(lowers[1].join("kind")).unwrap();
        fs::create_dir(lowers[1].join("kind")).unwrap();
        fs::write(lowers[1].join("kind/inside"), "inside").unwrap();
        fs::remove_dir(lowers[1].join("kinds")).unwrap();
        fs::write(lowers[1].join("kinds"), "a file").unwrap();
    }),
    ("modes", |lowers, _| {
        fs::set_permissions(lowers[1].join("d/sub/i"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(lowers[0].join("only"), fs::Permissions::from_mode(0o700)).unwrap();
    }),
    ("a hard link more", |lowers, _| {
        fs::hard_link(lowers[0].join("alink"), lowers[0].join("only/link")).unwrap();
    }),
    ("a hard link that is another file", |lowers, _| put(&lowers[0].join("d/link"), "alone")),
    ("a file in the way of a directory", |lowers, _| put(&lowers[0].join("e"), "no directory")),
    ("which is there again", |lowers, _| fs::remove_file(lowers[0].join("e")).unwrap()),
    ("an object on the upper", |_, upper| {
        fs::write(upper.join("u/new"), "new").unwrap();
        put(&upper.join("u/kept"), "another one");
        fs::remove_file(upper.join("u/goes")).unwrap();
    }),
    ("a directory of the upper that is renamed", |_, upper| {
        fs::rename(upper.join("u"), upper.join("v")).unwrap();
    }),
    ("everything", |lowers, _| {
        for path in lowers.iter().flat_map(|lower| fs::read_dir(lower).unwrap()) {
            let path = path.unwrap().path();
            if path.ends_with("meta") {
                // The upper has a file that refers to it.
                continue;
            }
            let is_dir = path.symlink_metadata().unwrap().is_dir();
            if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        }
    }),
];

#[test]
fn a_reloaded_mount_is_what_a_fresh_mount_of_the_layers_is() {
    require!(Fuse, Union);
    for options in TRANSPORTS.into_iter().chain([",data=handles", ",index=off", ",timeout=0"]) {
        let scratch = scratch();
        let mut mounted = Mounted::new(two_lowers(scratch.path(), options));
        let (root, layers) = (mounted.root().to_path_buf(), mounted.layers().clone());
        fs::create_dir(root.join("u")).unwrap();
        fs::write(root.join("u/kept"), "kept").unwrap();
        fs::write(root.join("u/goes"), "goes").unwrap();
        fs::set_permissions(root.join("meta"), fs::Permissions::from_mode(0o640)).unwrap();
        learn(&root);
        for (what, change) in CHANGES {
            change(&layers.lowers, layers.upper.as_ref().unwrap());
            reload(&mounted);
            assert_is_fresh(&mounted, what);
        }
        mounted.unmount();
        assert!(!mounted.stderr().contains("panicked"), "{}", mounted.stderr());
    }
}

#[test]
fn a_reloaded_mount_without_an_upper_is_what_a_fresh_one_is() {
    require!(Fuse, Union);
    for options in TRANSPORTS {
        let scratch = scratch();
        let mut layers = two_lowers(scratch.path(), options);
        (layers.upper, layers.work) = (None, None);
        let mounted = Mounted::new(layers);
        stats(mounted.root(), true);
        snapshot(mounted.root());
        for (what, change) in CHANGES.iter().filter(|(what, _)| !what.contains("upper")) {
            change(&mounted.layers().lowers, Path::new(""));
            reload(&mounted);
            assert_is_fresh(&mounted, what);
        }
    }
}

/// Makes one random change below `base`, the root of a layer.
fn shake(random: &mut Random, base: &Path, round: usize) {
    const DIRS: [&str; 5] = ["", "a", "a/b", "c", "a/b/d"];
    const NAMES: [&str; 7] = ["x", "y", "a", "b", "c", "d", "z"];
    let mut path = || base.join(random.pick(&DIRS)).join(random.pick(&NAMES));
    let (from, to) = (path(), path());
    let what = random.below(9);
    // What cannot be done is not done: any tree will do.
    let done = match what {
        0 | 1 => fs::write(&from, format!("round {round}")),
        2 => fs::create_dir(&from),
        3 => fs::remove_file(&from),
        4 => fs::remove_dir_all(&from),
        5 => fs::rename(&from, &to),
        6 => fs::hard_link(&from, &to),
        7 => fs::write(to.with_file_name(format!(".wh.{}", from.file_name().unwrap().display())), ""),
        _ => fs::set_permissions(&from, fs::Permissions::from_mode(0o700 | random.below(64) as u32)),
    };
    drop(done);
}

#[test]
fn random_changes_of_all_layers_are_seen_after_a_reload() {
    require!(Fuse, Union);
    let seed = number("E2E_SEED", 1) as u64;
    for (seed, options) in (seed..).zip(TRANSPORTS) {
        let scratch = scratch();
        let mut layers = Layers::below(scratch.path(), 2);
        layers.extra.push_str(options);
        let mut random = Random::new(seed);
        let mounted = Mounted::new(layers);
        let layers = mounted.layers().clone();
        let upper = layers.upper.clone().unwrap();
        let places: Vec<&PathBuf> = layers.lowers.iter().chain([&upper]).collect();
        for round in 0..number("E2E_ROUNDS", 20) {
            // Both through the union and behind it. What the kernel remembers, it remembers.
            for step in 0..6 {
                shake(&mut random, mounted.root(), round * 100 + step);
            }
            mounted.ctl(&[OsStr::new("flush")]).unwrap();
            for step in 0..10 {
                let place = *random.pick(&places);
                shake(&mut random, place, round * 100 + step + 50);
            }
            reload(&mounted);
            assert_is_fresh(&mounted, &format!("seed {seed}, round {round}"));
        }
    }
}

#[test]
fn who_holds_an_object_open_goes_on_with_it_after_a_reload() {
    require!(Fuse, Union);
    for options in TRANSPORTS.into_iter().chain([",data=handles"]) {
        let scratch = scratch();
        let mounted = Mounted::new(two_lowers(scratch.path(), options));
        let (root, lowers) = (mounted.root().to_path_buf(), mounted.layers().lowers.clone());
        let open = |name: &str| fs::OpenOptions::new().read(true).write(true).open(root.join(name)).unwrap();
        let text = |file: &fs::File| {
            let mut bytes = vec![0; 100];
            let len = file.read_at(&mut bytes, 0).unwrap();
            String::from_utf8(bytes[..len].to_vec()).unwrap()
        };
        let lower = |name: &str| fs::File::open(root.join(name)).unwrap();
        let (replaced, same, written) = (lower("d/sub/g"), lower("d/h"), open("d/f"));
        let moved = fs::File::open(root.join("e/deep")).unwrap();
        let inside = lower("e/deep/er/x");
        let numbers = [&same, &moved, &inside].map(|file| file.metadata().unwrap().ino());
        assert_eq!(
            (text(&replaced), text(&same), text(&inside)),
            ("top g".into(), "low h".into(), "x".into())
        );
        written.write_all_at(b"TOP", 0).unwrap();
        put(&lowers[0].join("d/sub/g"), "another");
        fs::rename(lowers[1].join("e/deep"), lowers[1].join("moved")).unwrap();
        fs::remove_file(mounted.layers().upper.as_ref().unwrap().join("d/f")).unwrap();
        reload(&mounted);
        assert_eq!((text(&replaced), text(&inside)), ("top g".into(), "x".into()), "{options}");
        assert_eq!(fs::read_to_string(root.join("d/sub/g")).unwrap(), "another");
        assert_eq!(fs::read_to_string(root.join("d/f")).unwrap(), "top f");
        assert_eq!(text(&written), "TOP f");
        written.write_all_at(b"own", 0).unwrap();
        assert_eq!(text(&written), "own f");
        assert_eq!(fs::read_to_string(root.join("d/f")).unwrap(), "top f");
        // What is where it was is the same object: one page cache.
        fs::write(root.join("d/h"), "changed").unwrap();
        assert_eq!(text(&same), "changed");
        // A directory that was renamed is nowhere until it is met.
        let error = fs::read_dir(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&moved)));
        assert!(error.is_err() || error.unwrap().count() == 0);
        assert_eq!(fs::read_to_string(root.join("moved/er/x")).unwrap(), "x");
        let now = ["d/h", "moved", "moved/er/x"].map(|name| fs::metadata(root.join(name)).unwrap().ino());
        assert_eq!(numbers, now);
        assert_eq!(moved.metadata().unwrap().ino(), now[1]);
    }
}

/// Reads below `directory` until `done`. What others change may be missing or gone, and never mixed.
fn read_changing(directory: &Path, done: &AtomicBool) -> usize {
    let mut reads = 0;
    while !done.load(Ordering::Relaxed) {
        for name in ["f0", "f1", "f2", "d/f0", "d/f1"] {
            match fs::read_to_string(directory.join(name)) {
                Ok(text) => {
                    let word = text.split(' ').next().unwrap_or_default();
                    assert!(text.split_terminator(' ').all(|other| other == word), "{name}: {text}");
                    reads += 1;
                }
                Err(error) => {
                    let errno = error.raw_os_error();
                    assert!(matches!(errno, Some(libc::ENOENT | libc::ESTALE)), "{name}: {error}");
                }
            }
        }
    }
    reads
}

/// Writes files of its own below `directory` until `done`, and reads them again.
fn write_own(directory: &Path, done: &AtomicBool) -> usize {
    let mut writes = 0;
    fs::create_dir(directory).unwrap();
    while !done.load(Ordering::Relaxed) {
        let path = directory.join(format!("w{}", writes % 20));
        let text = format!("write {writes}");
        fs::write(&path, &text).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        let other = directory.join(format!("r{}", writes % 7));
        fs::rename(&path, &other).unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), text);
        if writes % 3 == 0 {
            fs::remove_file(&other).unwrap();
        }
        writes += 1;
    }
    writes
}

#[test]
fn reloads_disturb_no_reader_and_no_writer() {
    require!(Fuse, Union);
    for options in TRANSPORTS {
        let scratch = scratch();
        let mut layers = Layers::below(scratch.path(), 2);
        layers.extra.push_str(options);
        let lower = layers.lowers[0].clone();
        fs::create_dir_all(lower.join("changing/d")).unwrap();
        LayerTree::new().file("still/a", "still").file("still/b/c", "still").build(&layers.lowers[1]);
        let mounted = Mounted::new(layers);
        let root = mounted.root();
        let (done, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
        let count = |made: usize| calls.fetch_add(made, Ordering::Relaxed);
        let (count, reloads) = (&count, number("E2E_RELOADS", 150));
        std::thread::scope(|scope| {
            let done = &done;
            for _ in 0..2 {
                scope.spawn(move || count(read_changing(&root.join("changing"), done)));
            }
            for writer in 0..2 {
                scope.spawn(move || count(write_own(&root.join(format!("own{writer}")), done)));
            }
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(fs::read_to_string(root.join("still/a")).unwrap(), "still");
                    assert_eq!(fs::read_to_string(root.join("still/b/c")).unwrap(), "still");
                    assert!(fs::symlink_metadata(root.join("still/none")).is_err());
                    count(3);
                }
            });
            let stop = Stop(done);
            for round in 0..reloads {
                let name = ["f0", "f1", "f2", "d/f0", "d/f1"][round % 5];
                let path = lower.join("changing").join(name);
                if round % 4 == 3 {
                    drop(fs::remove_file(&path));
                } else {
                    put(&path, &format!("{round} ").repeat(1 + round * 40));
                }
                reload(&mounted);
                if round % 4 != 3 {
                    let seen = fs::read_to_string(root.join("changing").join(name)).unwrap();
                    assert!(seen.starts_with(&format!("{round} ")), "{seen}");
                }
            }
            drop(stop);
        });
        assert_is_fresh(&mounted, "load");
        let calls = calls.load(Ordering::Relaxed);
        say(&format!("reload: options \"{options}\": {reloads} reloads under {calls} calls"));
        assert!(!mounted.stderr().contains("panicked"), "{}", mounted.stderr());
    }
}

#[test]
fn what_is_mounted_on_the_union_stays_through_a_reload() {
    require!(Fuse, Union);
    if !is_real_root() {
        return;
    }
    let scratch = scratch();
    let mounted = Mounted::new(two_lowers(scratch.path(), ""));
    let on = mounted.root().join("d/sub");
    rustix::mount::mount_bind(scratch.path().join("work"), &on).unwrap();
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    let bound = device(&on);
    fs::write(mounted.layers().lowers[0].join("new"), "new").unwrap();
    reload(&mounted);
    assert_eq!((device(&on), fs::read_to_string(mounted.root().join("new")).unwrap()), (bound, "new".into()));
    assert_ne!(bound, device(mounted.root()));
    rustix::mount::unmount(&on, rustix::mount::UnmountFlags::empty()).unwrap();
}

#[test]
fn the_catalog_of_a_changed_layer_counts_only_if_it_was_made_anew() {
    require!(Fuse, Union);
    let scratch = scratch();
    let layers = two_lowers(scratch.path(), "");
    let make = || e2e::mounted::make_catalogs(&e2e::mounted::union_program(), &layers.lowers);
    make();
    let mounted = Mounted::new(layers.clone());
    learn(mounted.root());
    fs::write(layers.lowers[1].join("d/new"), "new").unwrap();
    reload(&mounted);
    assert_is_fresh(&mounted, "a name beside its catalog");
    fs::write(layers.lowers[1].join("d/h"), "in place, and longer").unwrap();
    make();
    reload(&mounted);
    assert_is_fresh(&mounted, "a catalog that was made anew");
    assert_eq!(fs::read_to_string(mounted.root().join("d/h")).unwrap(), "in place, and longer");
}

/// Returns how many directories of layers the server has listed so far.
fn listings_read(mounted: &Mounted) -> usize {
    let stats = mounted.ctl(&[OsStr::new("stats")]).unwrap();
    let line = stats.lines().find_map(|line| line.strip_prefix("listings_read "));
    line.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{stats}"))
}

#[test]
fn a_reload_of_many_nodes_lists_each_directory_once() {
    require!(Fuse, Union);
    let files = number("E2E_NODES", 40_000);
    let scratch = scratch();
    let mut layers = Layers::below(scratch.path(), 1);
    layers.extra.push_str(",catalog=off");
    for file in 0..files {
        let directory = layers.lowers[0].join(format!("d{}", file / 100));
        if file % 100 == 0 {
            fs::create_dir(&directory).unwrap();
        }
        fs::write(directory.join(format!("file{file}")), "").unwrap();
    }
    let mounted = Mounted::new(layers);
    let known = stats(mounted.root(), true).len();
    assert_eq!(known, files + files.div_ceil(100));
    let before = listings_read(&mounted);
    reload(&mounted);
    let listed = listings_read(&mounted) - before;
    assert_eq!(listed, files.div_ceil(100) + 1);
    assert_eq!(stats(mounted.root(), true).len(), known);
}

#[test]
fn a_name_that_was_missing_where_the_server_may_not_list_is_told_in_no_reload() {
    require!(Fuse, Union);
    if is_real_root() {
        // Who may list everything is told everything: the other tests.
        return;
    }
    let scratch = scratch();
    let layers = Layers::below(scratch.path(), 1);
    LayerTree::new().file("d/f", "1").file("open/f", "1").build(&layers.lowers[0]);
    let dir = layers.lowers[0].join("d");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o311)).unwrap();
    let mounted = Mounted::new(layers.clone());
    for name in ["d/new", "open/new"] {
        assert!(fs::symlink_metadata(mounted.root().join(name)).is_err());
    }
    for name in ["d/new", "open/new"] {
        fs::write(layers.lowers[0].join(name), "new").unwrap();
    }
    fs::remove_file(dir.join("f")).unwrap();
    reload(&mounted);
    assert!(fs::symlink_metadata(mounted.root().join("open/new")).is_ok());
    assert!(fs::symlink_metadata(mounted.root().join("d/f")).is_err(), "a name that was known is told");
    let seen = fs::symlink_metadata(mounted.root().join("d/new"));
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(seen.is_err(), "it need not stand in SEMANTICS.md any more");
    reload(&mounted);
    assert!(fs::symlink_metadata(mounted.root().join("d/new")).is_ok(), "once it may list");
}
