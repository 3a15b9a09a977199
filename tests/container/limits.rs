//! Limits: each is in force, or the runner says that it is not.

use e2e::require;
use e2e::require::skip;

use crate::fixture::Fixture;
use crate::{Who, who};

/// Whether limits can be set here; tells when not.
fn can_limit(test: &str) -> bool {
    if who() == Who::Root {
        return true;
    }
    e2e::require::say(&format!("SKIP limits::{test}: an ordinary user has no delegated cgroup here"));
    false
}

fn groups() -> Vec<String> {
    let output =
        std::process::Command::new("find").args(["/sys/fs/cgroup", "-name", "runner-*"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn memory_kills_who_takes_more() {
    require!(Fuse, UserNamespace);
    if !can_limit("memory_kills_who_takes_more") {
        return;
    }
    let fixture = Fixture::new();
    let said = fixture.run(&["--rm", "--memory", "64m"], &["/probe", "memory", "128"]);
    assert_eq!(said.code, Some(137), "{said:?}");
    let said = fixture.run(&["--rm", "--memory", "64m"], &["/probe", "memory", "16"]);
    assert_eq!(said.code, Some(0), "{said:?}");
}

#[test]
fn pids_limit_stops_a_fork_bomb() {
    require!(Fuse, UserNamespace);
    if !can_limit("pids_limit_stops_a_fork_bomb") {
        return;
    }
    let said = Fixture::new().run(&["--rm", "--pids-limit", "20"], &["/probe", "fork", "40"]);
    // The first process and the command count as well.
    assert!(said.out.contains("stopped after 18 by errno 11"), "{said:?}");
}

#[test]
fn cpus_shorten_a_busy_loop() {
    require!(Fuse, UserNamespace);
    if !can_limit("cpus_shorten_a_busy_loop") {
        return;
    }
    let said =
        Fixture::new().run(&["--rm", "--cpus", "0.5", "--cpu-shares", "512"], &["/probe", "burn", "2000"]);
    let used: u32 = said.value("used").parse().unwrap();
    // A busy machine gives less; more than the share and a period is too much.
    assert!(used <= 1200, "{said:?}");
}

#[test]
fn groups_go_with_their_container() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    let name = |id: &str| groups().into_iter().filter(|path| path.contains(id)).collect::<Vec<_>>();
    let flags: &[&str] = if who() == Who::Root { &["--memory", "64m", "--pids-limit", "50"] } else { &[] };
    fixture.run(flags, &["/probe", "exit", "0"]).ok();
    let id = fixture.runner(&["ps", "-aq", "--no-trunc"]).ok();
    assert_eq!(name(id.trim()), Vec::<String>::new());
}

#[test]
fn a_limit_that_cannot_be_enforced_is_an_error_or_a_warning() {
    require!(Fuse, UserNamespace);
    if who() == Who::Root {
        skip_if_root();
        return;
    }
    let fixture = Fixture::new();
    let said = fixture.run(&["--memory", "64m"], &["/probe", "exit", "0"]);
    if said.code == Some(0) {
        // A host that delegates: then the limit must be in force.
        assert_eq!(fixture.run(&["--memory", "64m"], &["/probe", "memory", "128"]).code, Some(137));
        return;
    }
    assert_eq!(said.code, Some(125), "{said:?}");
    assert!(said.err.contains("--memory cannot be enforced") && said.err.contains("hint:"), "{said:?}");
    let said = fixture.run(&["--memory", "64m", "--limits=best-effort"], &["/probe", "exit", "0"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.err.contains("warning: --memory is not in force"), "{said:?}");
}

fn skip_if_root() {
    if std::env::var_os("E2E_STRICT").is_none() {
        skip(
            "limits::a_limit_that_cannot_be_enforced",
            "root can enforce every limit; the runs as other users show it",
        );
    }
}
