//! Reading a lower through the union leaves its access times alone.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use e2e::disk::LoopDisk;
use e2e::mounted::scratch;
use e2e::require;
use e2e::require::skip;
use e2e::tree::LayerTree;
use e2e::user::{Role, run_again};

use crate::union;

/// Sets the access time to long before the other two, which even `relatime` then moves.
fn age(path: &Path) {
    let long_ago = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
    let keep = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let times = rustix::fs::Timestamps { last_access: long_ago, last_modification: keep };
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
}

#[test]
fn access_times_of_lowers_stay_as_they_are() {
    require!(Fuse, Union);
    let tree = LayerTree::new().file("f", vec![b'x'; 100_000]).file("copied", "1").file("d/g", "2");
    let tree = tree.symlink("s", "f").file(".wh.gone", "").file("d/.wh.gone", "");
    for options in ["", ",transport=fuser"] {
        let scratch = scratch();
        let mut mounted =
            union(scratch.path(), &[tree.clone(), LayerTree::new().file("d/gone", "")], options);
        mounted.unmount();
        let lower = mounted.layers().lowers[0].clone();
        let objects = ["f", "copied", "d", "d/g", "s", ""];
        for name in objects {
            age(&lower.join(name));
        }
        mounted.mount();
        let root = mounted.root();
        assert_eq!(fs::read(root.join("f")).unwrap().len(), 100_000);
        assert_eq!(fs::read_dir(root).unwrap().count(), 4);
        assert_eq!(fs::read_dir(root.join("d")).unwrap().count(), 1);
        assert_eq!(fs::read(root.join("s")).unwrap().len(), 100_000);
        fs::write(root.join("copied"), "changed").unwrap();
        fs::set_permissions(root.join("d/g"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(root.join("d/g"), "changed").unwrap();
        // A symbolic link cannot be read without it but through a mount that keeps none.
        let all = if e2e::user::is_real_root() { objects.len() } else { 4 };
        for name in &objects[..all] {
            let at = fs::symlink_metadata(lower.join(name)).unwrap().atime();
            assert_eq!(at, 1_000_000_000, "{name}{options}");
        }
    }
}

#[test]
fn as_an_ordinary_user() {
    require!(Fuse, Union, Root, Tester);
    run_again(Role::Plain, "times::access_times");
}

#[test]
fn as_root_of_a_user_namespace() {
    require!(Fuse, Union, Root, Tester, UserNamespace);
    run_again(Role::Namespace, "times::access_times");
}

/// Sets all times to long ago.
fn age_all(path: &Path) {
    let long_ago = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: long_ago, last_modification: long_ago };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty()).unwrap();
}

/// Returns which calls that set a size move the time of modification, on files of some lengths.
fn moved_by_sizes(root: &Path) -> Vec<String> {
    let mut seen = Vec::new();
    for (name, len) in [("empty", 0), ("some", 5), ("large", 5 << 20)] {
        for size in [0, 5, 9, 5 << 20] {
            for call in ["truncate", "ftruncate", "open"] {
                let path = root.join(format!("{name}-{size}-{call}"));
                for round in ["first", "again"] {
                    match call {
                        "truncate" => nix::unistd::truncate(&path, size).unwrap(),
                        "ftruncate" => {
                            let file = fs::File::options().write(true).open(&path).unwrap();
                            file.set_len(size.cast_unsigned()).unwrap();
                        }
                        _ => drop(fs::File::options().write(true).truncate(true).open(&path).unwrap()),
                    }
                    let meta = fs::metadata(&path).unwrap();
                    let moved = meta.mtime() != 1_000_000_000;
                    seen.push(format!("{call} of {len} to {size}, {round}: {moved}, {} bytes", meta.len()));
                    age_all(&path);
                }
            }
        }
    }
    seen
}

/// Compares the times that setting a size moves with those in a plain directory beside the upper.
fn sizes_move_times_as_below(base: &Path) {
    let mut tree = LayerTree::new();
    for (name, len) in [("empty", 0), ("some", 5), ("large", 5 << 20)] {
        for size in [0, 5, 9, 5 << 20] {
            for call in ["truncate", "ftruncate", "open"] {
                tree = tree.file(format!("{name}-{size}-{call}"), vec![b'x'; len]);
            }
        }
    }
    let plain = base.join("plain");
    fs::create_dir(&plain).unwrap();
    tree.build(&plain);
    for entry in fs::read_dir(&plain).unwrap() {
        age_all(&entry.unwrap().path());
    }
    let want = moved_by_sizes(&plain);
    for options in ["", ",transport=fuser", ",metacopy=off", ",data=handles"] {
        let base = base.join(format!("union{}", options.replace(',', "-")));
        fs::create_dir(&base).unwrap();
        let mut mounted = union(&base, &[tree.clone()], options);
        mounted.unmount();
        for entry in fs::read_dir(&mounted.layers().lowers[0]).unwrap() {
            age_all(&entry.unwrap().path());
        }
        mounted.mount();
        let seen = moved_by_sizes(mounted.root());
        // The kernel asks the same for this and for open(2) with O_TRUNC, which moves times everywhere.
        let same = |seen: &str| seen.starts_with("truncate of") && seen.ends_with(" 0 bytes");
        let differ: Vec<_> =
            want.iter().zip(&seen).filter(|(want, seen)| want != seen && !same(seen)).collect();
        assert!(differ.is_empty(), "{options}: {differ:#?}");
        mounted.unmount();
        fs::remove_dir_all(&base).unwrap();
    }
    fs::remove_dir_all(&plain).unwrap();
}

#[test]
fn setting_a_size_moves_times_as_on_the_uppers_file_system() {
    require!(Fuse, Union);
    sizes_move_times_as_below(scratch().path());
}

#[test]
fn setting_a_size_moves_times_as_on_xfs_and_ext4() {
    require!(Fuse, Union, Root);
    for kind in ["xfs", "ext4"] {
        let scratch = scratch();
        match LoopDisk::new(kind, scratch.path()) {
            Ok(disk) => sizes_move_times_as_below(disk.root()),
            Err(reason) => skip(&format!("times on {kind}"), &reason),
        }
    }
}
