//! Idmapped mounts of the union: one store shown with other owners, without a copy.

use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt, chown};
use std::path::Path;
use std::process::Command;

use e2e::idmapped::{Idmapped, Shift};
use e2e::mounted::over_fuser;
use e2e::require;
use e2e::tree::LayerTree;
use e2e::user::{Role, is_real_root, run_again};
use rustix::io::Errno;

use crate::{Fixture, errno};

/// Stored ids 0 to 1999 are shown as 10000 to 11999.
const SHIFT: Shift = Shift { stored: 0, shown: 10_000, len: 2_000 };

fn ids(path: &Path) -> (u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

/// Runs a shell command as a user and group of this number.
fn run_as(id: u32, directory: &Path, command: &str) -> bool {
    let words = [format!("--reuid={id}"), format!("--regid={id}"), "--clear-groups".into(), "--".into()];
    let mut setpriv = Command::new("setpriv");
    setpriv.args(words).args(["sh", "-c", command]).current_dir(directory).status().unwrap().success()
}

fn acl(path: &Path) -> String {
    let output = Command::new("getfacl").args(["-ncp"]).arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_idmapped_mount_shows_and_stores_shifted_owners() {
    require!(Fuse, Union);
    if rustix::process::geteuid().as_raw() != 0 || (!is_real_root() && e2e::user::owned_ids() < 12_000) {
        return e2e::require::skip("semantics::idmapped", "needs root of a namespace with 12000 ids");
    }
    for transport in ["", ",transport=dev", ",transport=uring"] {
        if transport.is_empty() && over_fuser() {
            continue;
        }
        if transport.contains("uring") && !offers_uring() {
            e2e::require::say("semantics::idmapped: io_uring is not offered here");
            continue;
        }
        shifted(transport);
    }
}

fn offers_uring() -> bool {
    let parameter = fs::read_to_string("/sys/module/fuse/parameters/enable_uring");
    parameter.is_ok_and(|text| text.trim() == "Y")
}

fn shifted(options: &str) {
    let lower = LayerTree::new().file("root", "1").file("user", "2").owner("user", 1000, 1001);
    let lower = lower.dir("shared").mode("shared", 0o1777).owner("shared", 3, 4);
    let union = Fixture::new(&[lower], options);
    let clone = union.mounted.layers().target.with_extension("clone");
    fs::create_dir(&clone).unwrap();
    let mount = Idmapped::new(&union.at(""), &clone, SHIFT).unwrap();
    assert_eq!((ids(&clone.join("root")), ids(&clone.join("user"))), ((10_000, 10_000), (11_000, 11_001)));

    // What is made belongs to who makes it, on disk by the stored id.
    let make = "umask 022 && echo x > file && mkdir dir && ln -s file link && mkfifo fifo && ln file file2";
    assert!(run_as(11_000, &clone.join("shared"), make));
    for name in ["file", "dir", "link", "fifo", "file2"] {
        let name = Path::new("shared").join(name);
        let seen = [clone.join(&name), union.at(&name), union.upper(&name)].map(|path| ids(&path));
        assert_eq!(seen, [(11_000, 11_000), (1000, 1000), (1000, 1000)], "{name:?}");
    }
    assert_eq!(ids(&union.upper("shared")), (3, 4));

    // Only its owner may remove it from the sticky directory; who has no stored id can make nothing.
    assert!(!run_as(11_005, &clone.join("shared"), "rm -f file"));
    assert!(run_as(11_005, &clone.join("shared"), "cat file"));
    assert_eq!(errno(fs::write(clone.join("shared/unmapped"), "x")), Errno::OVERFLOW.raw_os_error());
    assert!(run_as(11_000, &clone.join("shared"), "mv file moved && rm file2"));

    chown(clone.join("user"), Some(10_007), Some(10_008)).unwrap();
    assert_eq!((ids(&union.at("user")), ids(&union.upper("user"))), ((7, 8), (7, 8)));
    assert_eq!(errno(chown(clone.join("user"), Some(12), None)), Errno::OVERFLOW.raw_os_error());

    let set = Command::new("setfacl").args(["-m", "u:11000:rw,g:10050:r"]).arg(clone.join("root")).status();
    assert!(set.unwrap().success());
    fs::set_permissions(union.at("root"), std::os::unix::fs::PermissionsExt::from_mode(0o660)).unwrap();
    assert!(acl(&clone.join("root")).contains("user:11000:rw-\ngroup::r--"), "{}", acl(&clone.join("root")));
    for path in [union.at("root"), union.upper("root")] {
        assert!(acl(&path).contains("user:1000:rw-"), "{}", acl(&path));
        assert!(acl(&path).contains("group:50:r--"), "{}", acl(&path));
    }
    assert!(run_as(11_000, &clone, "cat root && echo more >> root"));
    assert!(!run_as(11_001, &clone, "cat root"));

    let listed = fs::read_dir(clone.join("shared")).unwrap();
    for entry in listed.map(Result::unwrap) {
        assert_eq!((entry.metadata().unwrap().uid(), entry.metadata().unwrap().ino()), (11_000, entry.ino()));
    }
    drop(mount);
}

#[test]
fn the_fuser_transport_has_no_idmapped_mounts() {
    require!(Fuse, Union, Root);
    let union = Fixture::new(&[LayerTree::new()], ",transport=fuser");
    let target = union.mounted.layers().target.with_extension("clone");
    fs::create_dir(&target).unwrap();
    let refused = Idmapped::new(&union.at(""), &target, SHIFT);
    assert_eq!(errno(refused), Errno::INVAL.raw_os_error());
}

#[test]
fn as_root_of_a_user_namespace_with_ranges() {
    require!(Fuse, Union, Root, Tester, UserNamespace);
    run_again(Role::Namespace, "an_idmapped_mount");
}
