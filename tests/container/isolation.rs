//! What the container sees of itself, and what it does not see of the host.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use e2e::require;

use crate::fixture::{DEFAULT_CAPS, Fixture};
use crate::{Who, who};

#[test]
fn the_default_is_root_with_dockers_capabilities_and_a_filter() {
    require!(Fuse, UserNamespace);
    let said = Fixture::new().run(&["--hostname", "inside"], &["/probe", "report"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    for (key, want) in [
        ("pid", "2"),
        ("Uid", "0 0 0 0"),
        ("Gid", "0 0 0 0"),
        ("CapInh", "0000000000000000"),
        ("CapPrm", DEFAULT_CAPS),
        ("CapEff", DEFAULT_CAPS),
        ("CapBnd", DEFAULT_CAPS),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("SigBlk", "0000000000000000"),
        // The probe, like every Rust program, ignores SIGPIPE by itself.
        ("SigIgn", "0000000000001000"),
        ("Umask", "0022"),
        ("hostname", "inside"),
        ("cwd", "/"),
        ("interface", "lo"),
        ("init", "runner: init"),
        ("init_exe", "0"),
        ("init_environ", "0"),
    ] {
        assert_eq!(said.value(key), want, "{key}");
    }
    // IFF_UP is the lowest bit.
    assert_eq!(u32::from_str_radix(said.value("lo_flags").trim_start_matches("0x"), 16).unwrap() & 1, 1);
    let fds: Vec<&str> = said.values("fd").iter().map(|fd| fd.split(' ').next().unwrap()).collect();
    assert_eq!(fds, ["0", "1", "2"], "{said:?}");
    // With one id the groups of the host cannot be given up.
    assert!(who() == Who::OneId || said.value("Groups") == "0", "{said:?}");
}

#[test]
fn every_namespace_is_its_own() {
    require!(Fuse, UserNamespace);
    let said = Fixture::new().run(&[], &["/probe", "report"]);
    for name in ["user", "mnt", "pid", "net", "uts", "ipc", "cgroup"] {
        let own = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(Path::new(said.value(&format!("ns_{name}"))), own, "{name}");
    }
    let map = said.value("uid_map");
    match who() {
        Who::Root => assert_eq!(map, "0 0 4294967295"),
        Who::Ranges => assert_eq!(map.split(' ').count(), 6, "{map}"),
        Who::OneId => {
            assert!(map.starts_with("0 ") && map.ends_with(" 1") && map.split(' ').count() == 3, "{map}")
        }
    }
}

#[test]
fn the_mount_table_has_what_it_should_and_nothing_of_the_host() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    let said = fixture.run(&[], &["/probe", "report"]);
    let mounts = said.values("mount");
    for want in [
        "/ fuse.",
        "/proc proc ",
        "/sys sysfs ro",
        "/dev tmpfs ",
        "/dev/null ",
        "/dev/pts devpts ",
        "/dev/shm tmpfs ",
        "/dev/mqueue mqueue ",
        "/etc/hosts ",
        "/etc/hostname ",
        "/etc/resolv.conf ",
        "/proc/sys proc ro",
    ] {
        assert!(mounts.iter().any(|mount| mount.starts_with(want)), "{want} in {mounts:#?}");
    }
    for mount in &mounts {
        let place = mount.split(' ').next().unwrap();
        let known =
            ["/proc", "/sys", "/dev", "/etc"].iter().any(|base| place.starts_with(base)) || place == "/";
        assert!(known, "{mount}");
    }
    assert_eq!(
        fixture.run(&[], &["/probe", "ls", "/dev"]).ok().split_whitespace().collect::<Vec<_>>(),
        [
            "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
            "stdout", "tty", "urandom", "zero"
        ]
    );
}

#[test]
fn what_tells_about_or_changes_the_host_is_closed() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    for (words, want) in [
        (["write", "/proc/sys/kernel/hostname", "x"], "errno 30"),
        (["write", "/sys/class/net/lo/mtu", "1"], "errno 30"),
        (["write", "/proc/sys/kernel/core_pattern", "x"], "errno 30"),
    ] {
        let said = fixture.run(&[], &[&["/probe"], &words[..]].concat());
        assert_eq!(said.out.trim(), want, "{words:?} {said:?}");
    }
    assert_eq!(fixture.run(&[], &["/probe", "cat", "/proc/timer_list"]).ok(), "");
    assert_eq!(fixture.run(&[], &["/probe", "ls", "/sys/firmware"]).ok(), "");
}

#[test]
fn forbidden_calls_answer_eperm_and_unknown_ones_enosys() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    for (name, want) in [
        ("getpid", 0),
        ("mount", 1),
        ("unshare", 1),
        ("clone", 1),
        ("clone3", 38),
        ("keyctl", 1),
        ("add_key", 1),
        ("bpf", 1),
        ("swapon", 1),
        ("socket", 1),
        ("personality", 1),
        ("unknown", 38),
        ("chroot", 14),
    ] {
        let said = fixture.run(&[], &["/probe", "syscall", name]);
        assert_eq!(said.out.trim(), format!("errno {want}"), "{name} {said:?}");
    }
    let said = fixture.run(&["--security-opt", "seccomp=unconfined"], &["/probe", "report"]);
    assert_eq!(said.value("Seccomp"), "0");
    let said = fixture.run(&["--security-opt", "seccomp=unconfined"], &["/probe", "syscall", "personality"]);
    assert_eq!(said.out.trim(), "errno 0");
}

#[test]
fn capabilities_are_added_and_dropped() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    for (flags, want) in [
        (&["--cap-drop", "ALL"][..], "0000000000000000"),
        (&["--cap-drop", "all", "--cap-add", "net_bind_service"], "0000000000000400"),
        (&["--cap-add", "CAP_SYS_ADMIN"], "00000000a82425fb"),
        (&["--cap-drop", "mknod"], "00000000a00425fb"),
    ] {
        let said = fixture.run(flags, &["/probe", "report"]);
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(said.value(set), want, "{set} {flags:?}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(said.value(set), "0000000000000000", "{set} {flags:?}");
        }
    }
    let said = fixture.run(&["--cap-add", "nonsense"], &["/probe", "report"]);
    assert_eq!(said.code, Some(125), "{said:?}");
}

#[test]
fn another_user_has_no_effective_capability() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    let said = fixture.run(&["--user", "ann"], &["/probe", "report"]);
    if who() == Who::OneId {
        assert_eq!(said.code, Some(125));
        assert!(said.err.contains("user id 7 does not exist in this container"), "{said:?}");
        return;
    }
    for (key, want) in [
        ("Uid", "7 7 7 7"),
        ("Gid", "8 8 8 8"),
        ("Groups", "8 29"),
        ("CapEff", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("CapBnd", DEFAULT_CAPS),
    ] {
        assert_eq!(said.value(key), want, "{key}");
    }
    assert!(said.values("env").contains(&"HOME=/home/ann"), "{said:?}");
    let said = fixture.run(&["-u", "12345:54"], &["/probe", "report"]);
    assert_eq!((said.value("Uid"), said.value("Gid")), ("12345 12345 12345 12345", "54 54 54 54"));
    for bad in ["bob", "1x", "-1", "4294967296", ":5"] {
        let said = fixture.run(&[&format!("--user={bad}")], &["/probe", "report"]);
        assert_eq!(said.code, Some(125), "{bad} {said:?}");
    }
}

#[test]
fn links_of_an_image_do_not_lead_to_the_host() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    let outside = fixture.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    for (name, target) in
        [("etc/hosts", outside.join("hosts")), ("etc/resolv.conf", "../../../../up/resolv".into())]
    {
        symlink(target, fixture.root().join(name)).unwrap();
    }
    let said = fixture.run(&["--name", "links"], &["/probe", "cat", "/etc/hosts"]);
    assert!(said.out.contains("localhost"), "{said:?}");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert!(fixture.diff("links").iter().any(|line| line == "A /up/resolv"));
    // A /dev that is a link would put the devices where it points to.
    std::fs::remove_dir(fixture.root().join("dev")).unwrap();
    symlink(&outside, fixture.root().join("dev")).unwrap();
    let said = fixture.run(&[], &["/probe", "report"]);
    assert_eq!(said.code, Some(125), "{said:?}");
    assert!(said.err.contains("cannot use /dev of the root: it is not a directory"), "{said:?}");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn a_covered_proc_of_the_host_is_bound_and_that_is_said() {
    require!(Root, Fuse, UserNamespace);
    let fixture = Fixture::new();
    let mut line = std::process::Command::new("unshare");
    line.args(["-m", "sh", "-c", "mount --bind /dev/null /proc/uptime && exec \"$@\"", "sh"]);
    line.arg(crate::fixture::runner_program()).arg("--store").arg(fixture.store());
    line.args(["run", "--rootfs"]).arg(fixture.root()).args(["--", "/probe", "cat", "/proc/self/comm"]);
    let said = crate::fixture::said(&line.output().unwrap());
    assert_eq!((said.code, said.out.as_str()), (Some(0), "probe\n"), "{said:?}");
    assert!(said.err.contains("warning: /proc is the host's"), "{said:?}");
}

#[test]
fn devices_can_be_used_and_the_hosts_nodes_not_be_changed() {
    require!(Fuse, UserNamespace);
    let before = std::fs::metadata("/dev/null").unwrap();
    let script = "chmod 600 /dev/null; chown 1 /dev/null; touch -d @0 /dev/zero; chmod 600 /proc/timer_list; \
                  echo x > /dev/null && echo x >> /dev/null && head -c 4 /dev/zero | wc -c && head -c 4 /dev/urandom | wc -c";
    let said = Fixture::new().run_on(Path::new("/"), &[], &["sh", "-c", script]);
    assert_eq!(
        (said.code, said.out.split_whitespace().collect::<Vec<_>>()),
        (Some(0), vec!["4", "4"]),
        "{said:?}"
    );
    let after = std::fs::metadata("/dev/null").unwrap();
    assert_eq!((before.mode(), before.uid(), before.gid()), (after.mode(), after.uid(), after.gid()));
}
