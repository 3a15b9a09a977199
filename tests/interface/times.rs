//! Reading a lower through the union leaves its access times alone.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use e2e::mounted::scratch;
use e2e::require;
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
