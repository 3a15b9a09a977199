//! Owners that are shown otherwise than they are stored: mappings and squashing.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use e2e::require;
use e2e::tree::LayerTree;
use rustix::io::Errno;

use crate::{Fixture, errno};

/// Ids on disk from 100000 on are shown from 0 on.
const MAP: &str = ",uidmapping=:100000:0:65536,gidmapping=:100000:0:65536";

fn ids(path: &Path) -> (u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let len = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(len);
    Some(value)
}

fn run(program: &str, words: &[&str], path: &Path) -> String {
    let output = Command::new(program).args(words).arg(path).output().unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn ids_are_mapped_in_owners_acls_and_capabilities() {
    require!(Fuse, Union, Root);
    let lower = LayerTree::new().file("mine", "1").owner("mine", 101_000, 100_050).file("outside", "2");
    let mut union = Fixture::new(&[lower], MAP);
    let mine = union.at("mine");
    assert_eq!((ids(&mine), ids(&union.at("outside"))), ((1000, 50), (65534, 65534)));
    chown(&mine, Some(7), Some(8)).unwrap();
    assert_eq!(ids(&union.upper("mine")), (100_007, 100_008));
    assert_eq!(errno(chown(&mine, Some(65_536), None)), Errno::INVAL.raw_os_error());

    run("setfacl", &["-m", "u:1000:rw,g:50:r"], &mine);
    let (shown, stored) = (run("getfacl", &["-ncp"], &mine), run("getfacl", &["-ncp"], &union.upper("mine")));
    assert!(shown.contains("user:1000:rw-") && shown.contains("group:50:r--"), "{shown}");
    assert!(stored.contains("user:101000:rw-") && stored.contains("group:100050:r--"), "{stored}");
    let set = Command::new("setfacl").args(["-m", "u:65536:r"]).arg(&mine).status().unwrap();
    assert!(!set.success());

    // Capabilities count for the user namespace of the root that is stored; here that is another.
    run("setcap", &["cap_net_raw=ep"], &mine);
    let (shown, stored) =
        (xattr(&mine, "security.capability"), xattr(&union.upper("mine"), "security.capability"));
    assert_eq!(shown.unwrap().len(), 20);
    assert_eq!(stored.unwrap()[20..], 100_000_u32.to_le_bytes());

    fs::write(union.at("made"), "x").unwrap();
    assert_eq!((ids(&union.at("made")), ids(&union.upper("made"))), ((0, 0), (100_000, 100_000)));
    union.mounted.remount();
    assert_eq!((ids(&mine), ids(&union.at("outside"))), ((7, 8), (65534, 65534)));
    assert!(run("getfacl", &["-ncp"], &mine).contains("user:1000:rw-"));
}

#[test]
fn who_has_no_place_in_the_mapping_makes_files_of_the_servers_user() {
    require!(Fuse, Union, Root);
    let union =
        Fixture::new(&[LayerTree::new().dir("d").mode("d", 0o777)], ",uidmapping=5:5:5,gidmapping=5:5:5");
    fs::write(union.at("d/f"), "x").unwrap();
    assert_eq!((ids(&union.at("d/f")), ids(&union.upper("d/f"))), ((65534, 65534), (0, 0)));
}

#[test]
fn a_write_by_root_to_a_set_id_file_with_capabilities_takes_both() {
    require!(Fuse, Union, Root);
    let lower =
        LayerTree::new().file("both", "1").mode("both", 0o4755).file("bits", "2").mode("bits", 0o4755);
    let union = Fixture::new(&[lower], "");
    run("setcap", &["cap_net_raw=ep"], &union.at("both"));
    for (file, mode) in [("both", 0o755), ("bits", 0o4755)] {
        let mut opened = fs::OpenOptions::new().append(true).open(union.at(file)).unwrap();
        std::io::Write::write_all(&mut opened, b"x").unwrap();
        assert_eq!(fs::metadata(union.at(file)).unwrap().mode() & 0o7777, mode, "{file}");
        assert_eq!(xattr(&union.at(file), "security.capability"), None);
    }
}

#[test]
fn squashed_owners_are_fixed_and_chown_changes_nothing() {
    require!(Fuse, Union, Root);
    for (options, want) in [
        (",squash_to_root", (0, 0)),
        (",squash_to_uid=7,squash_to_gid=8", (7, 8)),
        (",squash_to_root,squash_to_uid=7", (7, 0)),
        (",squash_to_uid=7,uidmapping=0:5:1", (7, 42)),
    ] {
        let lower = LayerTree::new().file("f", "1").owner("f", 41, 42).mode("f", 0o4755);
        let mut union = Fixture::new(&[lower], options);
        assert_eq!(ids(&union.at("f")), want, "{options}");
        let gid = if options.contains("mapping") { None } else { Some(99) };
        chown(union.at("f"), Some(98), gid).unwrap();
        assert_eq!((ids(&union.at("f")), ids(&union.upper("f"))), (want, (41, 42)), "{options}");
        // It still takes the set-id bits away.
        assert_eq!(fs::metadata(union.at("f")).unwrap().permissions().mode() & 0o7777, 0o755, "{options}");
        fs::write(union.at("new"), "x").unwrap();
        assert_eq!(ids(&union.upper("new")), (0, 0), "{options}");
        union.mounted.remount();
        assert_eq!(ids(&union.at("f")), want, "{options}");
    }
}
