//! `mount -o remount`.

use std::process::Command;

use e2e::program::run;
use e2e::require;

use super::place;

#[test]
fn a_remount_changes_the_flags_of_the_mount_that_is_there() {
    require!(Fuse, Union, Root);
    let place = place(1);
    let (_mount, _) = place.mount(&["-o", "OPTIONS", "TARGET"]);
    let target = place.layers.target.display().to_string();
    let file = place.layers.target.join("new");
    let mounts = || {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        text.lines().filter(|line| line.split(' ').nth(4) == Some(&target)).count()
    };
    // As mount(8) calls it, with what /proc/mounts shows.
    let shown = "noatime,user_id=0,group_id=0,default_permissions,allow_other";
    let remount = |flags: &str| {
        run(place.scratch.path(), &["none", &target, "-o", &format!("{flags},remount,{shown}")])
    };
    std::fs::write(&file, "1").unwrap();
    let output = remount("ro");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let error = std::fs::write(&file, "2").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    assert_eq!(std::fs::read(&file).unwrap(), b"1");
    assert!(remount("rw").status.success());
    std::fs::write(&file, "3").unwrap();
    assert_eq!(mounts(), 1, "nothing came on top");
    let open = std::fs::File::create(&file).unwrap();
    let output = remount("ro");
    assert!(!output.status.success(), "a file is open for writing");
    assert!(output.stderr.windows(4).any(|part| part == b"busy"), "{output:?}");
    drop(open);
    let output = remount("rw,metacopy=off");
    assert!(output.status.success() && !output.stderr.is_empty(), "told that it has no effect: {output:?}");
    let elsewhere = place.scratch.path().display().to_string();
    let output = run(place.scratch.path(), &["none", &elsewhere, "-o", "remount,ro"]);
    assert!(!output.status.success() && !output.stderr.is_empty(), "{output:?}");
    assert!(Command::new("mountpoint").args(["-q", &target]).status().unwrap().success());
}
