//! Owners, modes and types in records beside the inodes (`xattr_permissions`).

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use e2e::require;
use e2e::tree::LayerTree;
use e2e::user::{Role, run_again};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat};
use rustix::io::Errno;

use crate::{Fixture, errno};

const USER: &str = "user.containers.override_stat";
const OLD: &str = "user.fuseoverlayfs.override_stat";
const SECURITY: &str = "security.fuseoverlayfs.override_stat";

fn xattr(path: &Path, name: &str) -> Option<String> {
    let mut value = vec![0; 256];
    let len = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    Some(value[..len].escape_ascii().to_string())
}

fn set(path: &Path, name: &str, value: &[u8]) -> std::io::Result<()> {
    Ok(rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())?)
}

/// Returns owner, group, mode and device number.
fn shown(path: &Path) -> (u32, u32, u32, u64) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid(), meta.mode(), meta.rdev())
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn names(path: &Path) -> Vec<String> {
    let mut list = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let names = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| name.escape_ascii().to_string()).collect()
}

#[test]
fn owners_modes_and_types_are_kept_in_records() {
    require!(Fuse, Union);
    if !rustix::process::geteuid().is_root() {
        return e2e::require::skip("semantics::records", "chown through the mount needs root of a namespace");
    }
    for (option, name) in [("2", USER), ("1", SECURITY)] {
        if option == "1" && !e2e::user::is_real_root() {
            continue;
        }
        let lower = LayerTree::new().file("lower", "1").mode("lower", 0o640).dir("d").mode("d", 0o2775);
        let mut union = Fixture::new(&[lower], &format!(",xattr_permissions={option}"));
        fs::write(union.at("file"), "x").unwrap();
        chmod(&union.at("file"), 0o4711);
        chown(union.at("d"), Some(0), Some(0)).unwrap();
        chmod(&union.at("d"), 0o2771);
        fs::create_dir(union.at("d/dir")).unwrap();
        for (file, kind) in [("fifo", FileType::Fifo), ("socket", FileType::Socket)] {
            mknodat(CWD, union.at(file), kind, Mode::from(0o600), 0).unwrap();
        }
        symlink("target", union.at("link")).unwrap();
        chmod(&union.at("lower"), 0o600);
        let root = (0, 0);
        let want = [
            ("file", 0o104_711, "0:0:4711:file", 0o755),
            ("d", 0o042_771, "0:0:2771:dir", 0o775),
            ("d/dir", 0o042_755, "0:0:2755:dir", 0o755),
            ("fifo", 0o010_600, "0:0:0600:pipe", 0o755),
            ("socket", 0o140_600, "0:0:0600:socket", 0o755),
            ("lower", 0o100_600, "0:0:0600:file", 0o755),
        ];
        for again in [false, true] {
            for (path, mode, record, inode) in want {
                let (uid, gid, shown_mode, _) = shown(&union.at(path));
                assert_eq!(((uid, gid), shown_mode), (root, mode), "{path} {option} {again}");
                assert_eq!(xattr(&union.upper(path), name).as_deref(), Some(record), "{path} {option}");
                assert_eq!(shown(&union.upper(path)).2 & 0o7755, inode & 0o7755, "{path} {option}");
            }
            assert_eq!(fs::read_link(union.at("link")).unwrap(), Path::new("target"));
            for entry in fs::read_dir(union.at("")).unwrap().map(Result::unwrap) {
                let kind = entry.file_type().unwrap();
                let name = entry.file_name();
                assert_eq!(
                    (kind.is_fifo(), kind.is_socket()),
                    (name == "fifo", name == "socket"),
                    "{name:?}"
                );
            }
            union.mounted.remount();
        }
    }
}

#[test]
fn devices_and_foreign_owners_need_no_privilege_on_disk() {
    require!(Fuse, Union, Root);
    let mut union = Fixture::new(&[LayerTree::new().file("f", "1")], ",xattr_permissions=2");
    for (file, kind, record) in [
        ("char", FileType::CharacterDevice, "0:0:0640:char-1-3"),
        ("block", FileType::BlockDevice, "0:0:0640:block-1-3"),
    ] {
        mknodat(CWD, union.at(file), kind, Mode::from(0o640), makedev(1, 3)).unwrap();
        assert_eq!(xattr(&union.upper(file), USER).as_deref(), Some(record));
        assert!(fs::metadata(union.upper(file)).unwrap().is_file());
    }
    chown(union.at("char"), Some(5), Some(6)).unwrap();
    chown(union.at("f"), Some(1000), Some(1001)).unwrap();
    union.mounted.remount();
    assert_eq!(shown(&union.at("char")), (5, 6, 0o020_640, makedev(1, 3)));
    assert_eq!(shown(&union.at("block")), (0, 0, 0o060_640, makedev(1, 3)));
    assert_eq!(shown(&union.at("f")), (1000, 1001, 0o100_644, 0));
    assert_eq!((shown(&union.upper("f")).0, shown(&union.upper("f")).1), (0, 0));
    // Whiteouts stay what they are, and no record makes one.
    fs::remove_file(union.at("f")).unwrap();
    assert!(fs::symlink_metadata(union.upper("f")).unwrap().file_type().is_char_device());
    assert_eq!(mknodat(CWD, union.at("w"), FileType::CharacterDevice, Mode::empty(), 0), Err(Errno::PERM));
}

#[test]
fn a_layer_with_records_is_read_without_the_option() {
    require!(Fuse, Union, Root);
    for name in [USER, OLD, SECURITY] {
        let tree = LayerTree::new().file("plain", "1").mode("plain", 0o600);
        let records = [
            ("suid", "5:6:104755", (5, 6, 0o104_755, 0)),
            ("typed", "7:8:0640:file", (7, 8, 0o100_640, 0)),
            ("char", "0:5:0620:char-4-64", (0, 5, 0o020_620, makedev(4, 64))),
            ("block", "0:6:0660:block-8-1", (0, 6, 0o060_660, makedev(8, 1))),
            ("pipe", "1:1:0600:pipe", (1, 1, 0o010_600, 0)),
            ("socket", "1:1:0600:socket", (1, 1, 0o140_600, 0)),
            ("zero", "1:1:0600:char-0-0", (1, 1, 0o020_600, 0)),
            ("link", "2:3:0777:symlink", (2, 3, 0o120_777, 0)),
        ];
        let tree = records.iter().fold(tree, |tree, (file, record, _)| {
            tree.file(file, if *file == "link" { "where" } else { "" }).xattr(file, name, record)
        });
        let tree = tree.dir("dir").xattr("dir", name, "9:9:41777");
        let mut union = Fixture::new(&[tree], "");
        union.mounted.unmount();
        set(&union.lower(""), name, b"0:0:0751:dir").unwrap();
        union.mounted.mount();
        let directory = ("dir", "", (9, 9, 0o041_777, 0));
        for (file, _, want) in records.into_iter().chain([directory]) {
            assert_eq!(shown(&union.at(file)), want, "{name} {file}");
        }
        assert_eq!(shown(&union.at("plain")), (0, 0, 0o100_600, 0));
        assert_eq!(fs::read_link(union.at("link")).unwrap(), Path::new("where"));
        for entry in fs::read_dir(union.at("")).unwrap().map(Result::unwrap) {
            let own = fs::symlink_metadata(entry.path()).unwrap().file_type();
            assert_eq!(entry.file_type().unwrap(), own, "{name} {:?}", entry.file_name());
        }
        for file in ["suid", "dir", "typed"] {
            assert_eq!(names(&union.at(file)), Vec::<String>::new(), "{name} {file}");
        }
        // The upper keeps no records: what is copied up is what was shown.
        for file in ["suid", "char", "pipe", "link", "dir"] {
            let before = shown(&union.at(file));
            fs::rename(union.at(file), union.at("moved")).unwrap();
            fs::rename(union.at("moved"), union.at(file)).unwrap();
            assert_eq!(
                (shown(&union.at(file)), shown(&union.upper(file))),
                (before, before),
                "{name} {file}"
            );
        }
    }
}

#[test]
fn an_upper_with_records_goes_on_with_them() {
    require!(Fuse, Union, Root);
    let mut union = Fixture::new(&[LayerTree::new()], "");
    union.mounted.unmount();
    set(&union.upper(""), OLD, b"3:4:40711").unwrap();
    union.mounted.mount();
    assert_eq!(shown(&union.at("")), (3, 4, 0o040_711, 0));
    fs::write(union.at("f"), "x").unwrap();
    assert_eq!(xattr(&union.upper("f"), OLD).as_deref(), Some("0:0:0644:file"));
}

#[test]
fn a_malformed_record_is_an_error_for_its_object_only() {
    require!(Fuse, Union, Root);
    let tree = LayerTree::new()
        .file("bad", "1")
        .xattr("bad", USER, "0:0")
        .file("good", "2")
        .xattr("good", USER, "1:2:600");
    let mut union = Fixture::new(&[tree], "");
    union.mounted.unmount();
    set(&union.lower(""), USER, b"0:0:0755:dir").unwrap();
    union.mounted.mount();
    assert_eq!(errno(fs::metadata(union.at("bad"))), Errno::IO.raw_os_error());
    assert_eq!(shown(&union.at("good")), (1, 2, 0o100_600, 0));
    let mut listed: Vec<_> =
        fs::read_dir(union.at("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    listed.sort();
    assert_eq!(listed, ["bad", "good"]);
    assert!(
        union.mounted.stderr().contains("malformed record of an owner: \"0:0\""),
        "{}",
        union.mounted.stderr()
    );
}

#[test]
fn attributes_that_an_ordinary_user_cannot_set_are_kept_encoded() {
    require!(Fuse, Union, Root);
    let lower = LayerTree::new().file("lower", "1").file("f", "2");
    let mut union = Fixture::new(&[lower], ",xattr_permissions=2");
    let capability = "security.capability";
    let encoded = "user.containers.override_security.capability";
    for file in ["f", "lower"] {
        let set = Command::new("setcap").arg("cap_net_raw=ep").arg(union.at(file)).status().unwrap();
        assert!(set.success());
    }
    set(&union.at("f"), USER, b"0:0:4755").unwrap();
    set(&union.at("f"), "user.overlay.opaque", b"y").unwrap();
    union.mounted.remount();
    assert_eq!(xattr(&union.at("f"), capability), xattr(&union.upper("f"), encoded));
    assert_eq!(xattr(&union.upper("f"), capability), None);
    assert_eq!(xattr(&union.at("f"), USER).as_deref(), Some("0:0:4755"));
    assert_eq!(shown(&union.at("f")).2, 0o100_644);
    let mut listed = names(&union.at("f"));
    listed.sort();
    assert_eq!(listed, [capability, USER, "user.overlay.opaque"]);
    // As everywhere, changing the data or the owner takes capabilities away.
    fs::OpenOptions::new().append(true).open(union.at("f")).unwrap().set_len(5).unwrap();
    chown(union.at("lower"), Some(7), None).unwrap();
    for file in ["f", "lower"] {
        assert_eq!(xattr(&union.at(file), capability), None, "{file}");
    }
}

#[test]
fn programs_cannot_make_a_layer_be_read_by_records() {
    require!(Fuse, Union, Root);
    let union = Fixture::new(&[LayerTree::new().file("f", "1")], "");
    for (file, name, want) in [
        ("", USER, false),
        ("", OLD, false),
        ("", SECURITY, false),
        ("f", USER, true),
        ("f", SECURITY, false),
    ] {
        let done = set(&union.at(file), name, b"0:0:0755");
        assert_eq!(
            done.map_err(|e| e.raw_os_error()),
            if want { Ok(()) } else { Err(Some(Errno::PERM.raw_os_error())) },
            "{file} {name}"
        );
    }
}

#[test]
fn an_acl_has_the_permission_bits_of_the_record() {
    require!(Fuse, Union, Root);
    let mut union = Fixture::new(&[LayerTree::new().file("f", "1").dir("d")], ",xattr_permissions=2");
    let run = |program: &str, words: &[&str], path: &Path| {
        let output = Command::new(program).args(words).arg(path).output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    run("setfacl", &["-m", "u::r,g::rw,u:1000:rwx,m::rx,o::-"], &union.at("f"));
    let want =
        "user::r--\nuser:1000:rwx\t#effective:r-x\ngroup::rw-\t#effective:r--\nmask::r-x\nother::---\n\n";
    for _ in 0..2 {
        assert_eq!(
            run("getfacl", &["-ncp"], &union.at("f")).replace("\t\t", "\t").replace("\t\t", "\t"),
            want
        );
        assert_eq!(shown(&union.at("f")).2 & 0o7777, 0o450);
        union.mounted.remount();
    }
    // The server can use the file whatever the list says.
    assert_eq!(shown(&union.upper("f")).2 & 0o700, 0o700);
    chmod(&union.at("f"), 0o642);
    let changed = run("getfacl", &["-ncp", "--omit-header", "-e"], &union.at("f"));
    assert!(
        changed.contains("user::rw-") && changed.contains("mask::r--") && changed.contains("other::-w-"),
        "{changed}"
    );
    run("setfacl", &["-b"], &union.at("f"));
    assert_eq!(names(&union.at("f")), Vec::<String>::new());
    assert_eq!(shown(&union.at("f")).2 & 0o7777, 0o642);

    run("setfacl", &["-dm", "u::rwx,g::rx,o::-,u:1000:rwx,m::rwx"], &union.at("d"));
    fs::write(union.at("d/f"), "x").unwrap();
    assert_eq!(shown(&union.at("d/f")).2 & 0o7777, 0o660);
    assert!(run("getfacl", &["-ncp"], &union.at("d/f")).contains("user:1000:rwx"));
}

#[test]
fn as_root_of_a_user_namespace() {
    require!(Fuse, Union, Root, Tester, UserNamespace);
    run_again(Role::Namespace, "owners_modes_and_types");
    run_again(Role::SingleId, "owners_modes_and_types");
}
