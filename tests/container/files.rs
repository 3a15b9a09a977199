//! The root, its changes, and what is mounted on it.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use e2e::require;

use crate::fixture::Fixture;
use crate::{Who, who};

#[test]
fn the_own_system_is_an_image_and_stays_as_it_is() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    let before = std::fs::read("/etc/passwd").unwrap();
    let script = "id -u; hostname; echo changed > /etc/passwd; cat /etc/passwd";
    let said = fixture.run_on(Path::new("/"), &["--name", "own", "--hostname", "box"], &["sh", "-c", script]);
    assert_eq!((said.code, said.out.as_str()), (Some(0), "0\nbox\nchanged\n"), "{said:?}");
    assert_eq!(std::fs::read("/etc/passwd").unwrap(), before);
    assert_eq!(fixture.diff("own"), ["C /etc", "C /etc/passwd"]);
    // The store lies in the root, and must not show there.
    let store = fixture.store();
    let said = fixture.run_on(Path::new("/"), &[], &["ls", &store.display().to_string()]);
    assert_ne!(said.code, Some(0), "{said:?}");
    let listing = fixture.run_on(Path::new("/"), &[], &["ls", &fixture.path().display().to_string()]).ok();
    assert_eq!(listing.split_whitespace().collect::<Vec<_>>(), ["root"]);
}

#[test]
fn changes_are_named() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    std::fs::write(fixture.root().join("old"), "x").unwrap();
    std::fs::write(fixture.root().join("gone"), "x").unwrap();
    // The places that the generated files of /etc are mounted on were made in it, and taken away again.
    fixture.run(&["--name", "t1"], &["/probe", "write", "/old", "new"]).ok();
    assert_eq!(fixture.diff("t1"), ["C /etc", "C /old"]);
    fixture.run(&["--name", "t2"], &["/probe", "rm", "/gone"]).ok();
    assert_eq!(fixture.diff("t2"), ["C /etc", "D /gone"]);
    fixture.run(&["--name", "t3"], &["/probe", "mkdir", "/new"]).ok();
    assert_eq!(fixture.diff("t3"), ["C /etc", "A /new"]);
}

#[test]
fn several_layers_make_one_root() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    let top = fixture.path().join("top");
    std::fs::create_dir_all(top.join("etc")).unwrap();
    std::fs::write(top.join("etc/motd"), "top").unwrap();
    std::fs::write(top.join("etc/.wh.group"), "").unwrap();
    let layers = format!("{}:{}", top.display(), fixture.root().display());
    let said = fixture.run_on(Path::new(&layers), &["--name", "two"], &["/probe", "ls", "/etc"]);
    assert_eq!(
        said.ok().split_whitespace().collect::<Vec<_>>(),
        ["hostname", "hosts", "motd", "passwd", "resolv.conf"]
    );
    assert!(!top.join("etc/hosts").exists());
}

#[test]
fn volumes_show_the_host_and_honour_ro() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    let shared = fixture.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("file"), "content").unwrap();
    let rw = format!("{}:/data/deep", shared.display());
    fixture.run(&["-v", &rw], &["/probe", "write", "/data/deep/out", "hello"]).ok();
    assert_eq!(std::fs::read_to_string(shared.join("out")).unwrap(), "hello");
    let own = rustix::process::geteuid().as_raw();
    assert_eq!(std::fs::metadata(shared.join("out")).unwrap().uid(), own);
    let said = fixture.run(&["-v", &format!("{rw}:ro")], &["/probe", "write", "/data/deep/out", "no"]);
    assert_eq!(said.out.trim(), "errno 30");
    let file = format!("{}/file:/etc/one:ro", shared.display());
    assert_eq!(fixture.run(&["-v", &file], &["/probe", "cat", "/etc/one"]).ok(), "content");
    for (volume, why) in [
        (format!("{}:/", shared.display()), "it is the root of the container"),
        (format!("{}:/proc/sys", shared.display()), "it lies in /proc"),
        (format!("{}/missing:/x", shared.display()), "No such file or directory"),
        (format!("{}/file:/etc", shared.display()), "it is a directory"),
    ] {
        let said = fixture.run(&["-v", &volume], &["/probe", "report"]);
        assert_eq!(said.code, Some(125), "{volume}");
        assert!(said.err.contains(why), "{volume} {said:?}");
    }
}

#[test]
fn tmpfs_and_a_read_only_root() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    let flags = ["--read-only", "--tmpfs", "/scratch:size=1m,mode=700"];
    let said = fixture.run(&flags, &["/probe", "write", "/etc/x", "no"]);
    assert_eq!(said.out.trim(), "errno 30", "{said:?}");
    fixture.run(&flags, &["/probe", "write", "/scratch/x", "yes"]).ok();
    fixture.run(&flags, &["/probe", "write", "/dev/shm/x", "yes"]).ok();
}

#[test]
fn variables_and_the_working_directory_arrive() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    let mut line = fixture.command(["run", "--rootfs"]);
    line.arg(fixture.root()).args([
        "-e",
        "A=1",
        "-e",
        "COPIED",
        "-e",
        "MISSING",
        "-w",
        "/work/dir",
        "--",
        "/probe",
        "report",
    ]);
    line.env("COPIED", "from outside").env("SECRET", "x").env_remove("MISSING");
    let said = crate::fixture::said(&line.output().unwrap());
    assert_eq!(said.value("cwd"), "/work/dir", "{said:?}");
    let env = said.values("env");
    for want in ["A=1", "COPIED=from outside", "HOME=/root"] {
        assert!(env.contains(&want), "{want} {env:?}");
    }
    assert!(!env.iter().any(|entry| entry.starts_with("SECRET") || entry.starts_with("MISSING")), "{env:?}");
    for bad in ["relative", "/proc/self/fd/3", "/proc/1/root"] {
        let said = fixture.run(&["-w", bad], &["/probe", "report"]);
        assert_eq!(said.code, Some(125), "{bad} {said:?}");
    }
}

#[test]
fn files_of_other_ids_can_be_made_and_removed() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    let script = ["/probe", "chown", "/etc", "33"];
    let said = fixture.run(&["--name", "ids"], &script);
    if who() == Who::OneId {
        assert_eq!(said.out.trim(), "errno 22", "{said:?}");
    } else {
        said.ok();
    }
    assert_eq!(fixture.runner(&["rm", "ids"]).ok(), "ids\n");
    assert_eq!(std::fs::read_dir(fixture.store().join("containers")).unwrap().count(), 0);
}

#[test]
fn the_users_own_etc_files_win() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    let own = fixture.path().join("own-hosts");
    std::fs::write(&own, "mine\n").unwrap();
    let volume = format!("{}:/etc/hosts:ro", own.display());
    assert_eq!(fixture.run(&["-v", &volume], &["/probe", "cat", "/etc/hosts"]).ok(), "mine\n");
    let etc = fixture.path().join("own-etc");
    std::fs::create_dir(&etc).unwrap();
    fixture.run(&["-v", &format!("{}:/etc", etc.display())], &["/probe", "exit", "0"]).ok();
    assert_eq!(std::fs::read_dir(&etc).unwrap().count(), 0);
}

#[test]
fn the_callers_mask_does_not_reach_the_container() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    let mut line = std::process::Command::new("sh");
    line.args(["-c", "umask 077; exec \"$@\"", "sh"]).arg(crate::fixture::runner_program());
    line.arg("--store")
        .arg(fixture.store())
        .args(["run", "-v"])
        .arg(format!("{}:/made/dir", fixture.path().display()));
    line.args([
        "--rootfs",
        "/",
        "--",
        "stat",
        "-c",
        "%a",
        "/",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/made",
        "/etc/hosts",
    ]);
    let said = crate::fixture::said(&line.output().unwrap());
    assert_eq!(
        said.out.split_whitespace().collect::<Vec<_>>(),
        ["755", "755", "755", "1777", "755", "644"],
        "{said:?}"
    );
}

#[test]
fn home_is_a_directory_that_can_be_used() {
    require!(Fuse, UserNamespace);
    let script = "echo $HOME; touch $HOME/made && echo ok";
    let said = Fixture::new().run_on(Path::new("/"), &[], &["sh", "-c", script]);
    // That of the host's root is mostly closed to others.
    let enters =
        who() == Who::Root || std::fs::metadata("/root").unwrap().permissions().mode() & 0o005 == 0o005;
    let home = if enters { "/root" } else { "/" };
    assert_eq!(said.out, format!("{home}\nok\n"), "{said:?}");
}
