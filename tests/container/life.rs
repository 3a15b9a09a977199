//! Start and end: exit codes, signals, kills, and what is left.

use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use e2e::require;
use rustix::process::Signal;

use crate::fixture::{Fixture, Started, kill, wait_gone, wait_until};

#[test]
fn exit_codes_are_dockers() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    for (command, want) in [
        (&["/probe", "exit", "0"][..], 0),
        (&["/probe", "exit", "3"], 3),
        (&["/probe", "exit", "255"], 255),
        (&["/missing"], 127),
        (&["missing"], 127),
        (&["/etc/passwd"], 126),
        (&["/etc"], 126),
    ] {
        let said = fixture.run(&["--rm"], command);
        assert_eq!(said.code, Some(want), "{command:?} {said:?}");
    }
    for usage in
        [&["run"][..], &["run", "--nonsense", "--rootfs", "/", "x"], &["run", "--rootfs", "/missing", "x"]]
    {
        assert_eq!(fixture.runner(usage).code, Some(125), "{usage:?}");
    }
    assert_eq!(fixture.runner(&["rm", "nobody-has-this"]).code, Some(1));
    assert_eq!(fixture.runner(&["diff", "nobody-has-this"]).code, Some(1));
    // What never ran is not kept.
    assert_eq!(fixture.runner(&["ps", "-aq"]).ok(), "");
}

#[test]
fn a_command_killed_by_a_signal_gives_128_and_the_signal() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    for (signal, want) in [("KILL", 137), ("TERM", 143), ("SEGV", 139)] {
        let said = fixture.run_on(Path::new("/"), &["--rm"], &["sh", "-c", &format!("kill -{signal} $$")]);
        assert_eq!(said.code, Some(want), "{signal} {said:?}");
    }
}

#[test]
fn signals_reach_the_command() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    for (signal, want) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129), (Signal::USR1, 138)] {
        let mut started = fixture.start(&[], &["/probe", "tree"]);
        assert!(started.first_line.starts_with("ready"), "{started:?}");
        kill(started.child.id(), signal);
        let status = started.child.wait().unwrap();
        assert_eq!(status.code(), Some(want), "{signal:?} {started:?}");
    }
}

#[test]
fn the_first_process_reaps_and_ends_with_the_command() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    // Orphans that end while the command runs must not stay as zombies; one that goes on must not hold the end up.
    let script =
        "(sleep 0.05 &) ; (sleep 0.05 &) ; (sleep 500 &) ; sleep 0.5; cat /proc/[0-9]*/stat | grep -c ' Z '";
    let said = fixture.run_on(Path::new("/"), &["--rm"], &["sh", "-c", script]);
    assert_eq!(said.out.trim(), "0", "{said:?}");
}

#[test]
fn stdin_is_open_only_on_request() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    for (flags, want) in [(&["-i"][..], "from outside"), (&[], "")] {
        let mut line = fixture.command(["run", "--rm", "--rootfs", "/"]);
        line.args(flags).args(["--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = line.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        // Without -i nobody reads: the pipe may break.
        let written = std::io::Write::write_all(&mut input, b"from outside");
        drop((input, written));
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), want, "{flags:?}");
    }
}

/// What must hold after every end, however violent.
fn assert_nothing_left(fixture: &Fixture, processes: &[u32]) {
    for pid in processes {
        wait_gone(*pid);
    }
    let merged = fixture.store().display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&merged), "{mounts}");
    let running = fixture.runner(&["ps", "-q"]).ok();
    assert_eq!(running, "");
}

fn started(fixture: &Fixture, flags: &[&str]) -> (Started, Vec<u32>) {
    let started = fixture.start(flags, &["/probe", "tree"]);
    assert!(started.first_line.starts_with("ready"), "{started:?}");
    // Runner, server, first process, command and its child.
    let mut processes = Vec::new();
    wait_until("all processes", || {
        processes = started.processes();
        processes.len() == 5
    });
    (started, processes)
}

#[test]
fn nothing_stays_when_any_of_its_processes_is_killed() {
    require!(Fuse, UserNamespace);
    for victim in ["runner", "runner-server", "init"] {
        let fixture = Fixture::new();
        let (mut container, processes) = started(&fixture, &["--name", "victim"]);
        let pid = if victim == "runner" { container.child.id() } else { container.child_named(victim) };
        kill(pid, Signal::KILL);
        let status = container.child.wait().unwrap();
        let mut err = String::new();
        container.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        match victim {
            "runner" => assert_eq!(status.code(), None),
            "init" => assert_eq!(status.code(), Some(137), "{err}"),
            _ => {
                assert_eq!(status.code(), Some(125));
                assert!(err.contains("file server ended before the container"), "{err}");
            }
        }
        assert_nothing_left(&fixture, &processes);
        // Its changes are still there to be looked at.
        assert!(fixture.diff("victim").iter().any(|line| line == "C /etc"), "{victim}");
        assert_eq!(fixture.runner(&["rm", "victim"]).ok(), "victim\n");
    }
}

#[test]
fn a_container_to_be_removed_is_removed_even_when_its_runner_is_killed() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    let (mut container, processes) = started(&fixture, &["--rm", "--name", "gone"]);
    kill(container.child.id(), Signal::KILL);
    container.child.wait().unwrap();
    assert_nothing_left(&fixture, &processes);
    assert_eq!(std::fs::read_dir(fixture.store().join("containers")).unwrap().count(), 0);
    fixture.run(&["--rm", "--name", "gone"], &["/probe", "exit", "0"]).ok();
}

#[test]
fn containers_are_listed_and_removed() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    fixture.run(&["--name", "first"], &["/probe", "exit", "3"]);
    let said = fixture.run(&["--name", "first"], &["/probe", "exit", "0"]);
    assert_eq!(said.code, Some(125));
    assert!(said.err.contains("the name \"first\" is taken"), "{said:?}");
    let (mut container, processes) = started(&fixture, &["--name", "second"]);
    let listed = fixture.runner(&["ps"]).ok();
    assert!(listed.contains("second") && listed.contains("running") && !listed.contains("first"), "{listed}");
    let listed = fixture.runner(&["ps", "-a"]).ok();
    assert!(listed.contains("exited (3)"), "{listed}");
    let said = fixture.runner(&["rm", "second", "first"]);
    assert_eq!((said.code, said.out.as_str()), (Some(1), "first\n"), "{said:?}");
    assert!(said.err.contains("is running"), "{said:?}");
    assert_eq!(fixture.runner(&["rm", "-f", "second"]).ok(), "second\n");
    assert_eq!(container.child.wait().unwrap().code(), Some(137));
    assert_nothing_left(&fixture, &processes);
    assert_eq!(fixture.runner(&["ps", "-aq"]).ok(), "");
}

#[test]
fn many_start_at_once() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    let children: Vec<_> = (0..16)
        .map(|number: u8| {
            let mut line = fixture.command(["run", "--rm", "--rootfs"]);
            line.arg(fixture.root()).args(["--", "/probe", "exit", &number.to_string()]);
            (number, line.stdin(Stdio::null()).spawn().unwrap())
        })
        .collect();
    for (number, mut child) in children {
        assert_eq!(child.wait().unwrap().code(), Some(i32::from(number)));
    }
    assert_eq!(std::fs::read_dir(fixture.store().join("containers")).unwrap().count(), 0);
}
