//! The same histories where upper and workdir lie on other kinds of file systems.

use std::ffi::CString;
use std::path::Path;
use std::process::Command;

use e2e::mounted::{Layers, Mounted, built, scratch, unmount};
use e2e::require;
use e2e::stick::{Kind, Stick};

/// Runs a history of this binary again with a setting of the harness.
fn again(test: &str, settings: &[(&str, &Path)], without: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .envs(settings.iter().copied())
        .env("E2E_WITHOUT", without)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = said.escape_ascii().to_string().replace("\\n", "\n");
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn an_upper_on_another_union() {
    require!(Fuse, Union);
    let scratch = scratch();
    let outer = Mounted::new(Layers::below(scratch.path(), 1));
    let test = "random::random_histories_equal_a_plain_directory_on_three_lowers";
    again(test, &[("E2E_UPPER_DIR", outer.root())], "");
}

/// What a store has not: ACLs, files without a name from the start, room that is allocated.
const NOT_IN_STORES: &str = "Allocate,Acl,Tmpfile";

#[test]
fn an_upper_as_a_store() {
    require!(Fuse, Union);
    for lowers in ["one_lower", "three_lowers"] {
        let test = format!("random::random_histories_equal_a_plain_directory_on_{lowers}");
        again(&test, &[("E2E_OPTIONS", Path::new(",sidecar=store"))], NOT_IN_STORES);
    }
}

/// The upper is a store there.
#[test]
fn an_upper_on_exfat_and_vfat() {
    require!(Fuse, Union, Root, Exfat);
    for kind in Kind::here() {
        let scratch = scratch();
        let stick = Stick::new(kind, scratch.path());
        for lowers in ["one_lower", "three_lowers"] {
            let test = format!("random::random_histories_equal_a_plain_directory_on_{lowers}");
            again(&test, &[("E2E_UPPER_DIR", &stick.root)], NOT_IN_STORES);
        }
    }
}

/// ramfs has no attributes, no ACLs, no file handles, no exchange with a whiteout, and cannot allocate.
#[test]
fn an_upper_without_attributes() {
    require!(Fuse, Union, Root);
    let scratch = scratch();
    let ramfs = scratch.path().join("ramfs");
    std::fs::create_dir(&ramfs).unwrap();
    let (flags, data) = (rustix::mount::MountFlags::empty(), CString::default());
    rustix::mount::mount("ramfs", &ramfs, "ramfs", flags, data.as_c_str()).unwrap();
    let run = std::panic::catch_unwind(|| {
        for lowers in ["one_lower", "three_lowers"] {
            let test = format!("random::random_histories_equal_a_plain_directory_on_{lowers}");
            again(&test, &[("E2E_UPPER_DIR", &ramfs)], "Allocate,Acl");
        }
    });
    unmount(&ramfs);
    run.unwrap();
}

/// As over NFS, which neither exchanges two names nor leaves a whiteout.
#[test]
fn an_upper_that_knows_no_flags_for_rename() {
    require!(Fuse, Union, Root);
    let program = built("unionfs-without-rename-flags");
    for lowers in ["one_lower", "three_lowers"] {
        let test = format!("random::random_histories_equal_a_plain_directory_on_{lowers}");
        again(&test, &[("E2E_UNION", &program)], "Exchange");
    }
}
