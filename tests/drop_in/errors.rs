//! What cannot be mounted: a non-zero exit, one clear message, nothing left behind.

use e2e::mounted::scratch;
use e2e::program::{Unmount, mount_type, run};
use e2e::require;

/// Runs with options in a directory that has `l`, `l2`, `u`, `w`, `m` and the file `f`; returns exit code and message.
fn refused(options: &str) -> (Option<i32>, String) {
    let scratch = scratch();
    for name in ["l", "l2", "u", "w", "m", "u/inside"] {
        std::fs::create_dir(scratch.path().join(name)).unwrap();
    }
    std::fs::write(scratch.path().join("f"), b"").unwrap();
    let _unmount = Unmount(scratch.path().join("m"));
    let output = run(scratch.path(), &["-o", options, "m"]);
    let live = mount_type(&scratch.path().join("m"));
    assert!(output.status.success() || live.is_none(), "{options}: failed, but left a mount");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn what_cannot_be_mounted_is_refused_with_a_line_that_names_it() {
    require!(Fuse, Union);
    for (options, named) in [
        ("lowerdir=nowhere,upperdir=u,workdir=w", "nowhere"),
        ("lowerdir=l,upperdir=nowhere,workdir=w", "nowhere"),
        ("lowerdir=l,upperdir=u,workdir=nowhere", "nowhere"),
        ("lowerdir=l,upperdir=u", "workdir not specified"),
        ("lowerdir=f,upperdir=u,workdir=w", "f"),
        ("upperdir=u,workdir=w", "lowerdir"),
        ("lowerdir=l,upperdir=u,workdir=u", "workdir"),
        ("lowerdir=l,upperdir=u,workdir=u/inside", "workdir"),
        ("lowerdir=l,upperdir=u,workdir=/dev/shm", "workdir"),
        ("lowerdir=l,upperdir=u,workdir=w,uidmapping=0:1", "uidmapping"),
        ("lowerdir=l,upperdir=u,workdir=w,timeout=abc", "timeout"),
        ("lowerdir=//nobody/data/path,upperdir=u,workdir=w", "nobody"),
    ] {
        let (code, message) = refused(options);
        assert!(code.is_some_and(|code| code != 0 && code != 124), "{options}: exit {code:?}: {message}");
        assert!(message.contains(named), "{options}: the message does not name {named:?}: {message}");
        assert!(!message.contains("panicked"), "{options}: {message}");
        assert!(message.lines().count() <= 3, "{options}: too many lines: {message}");
    }
}

#[test]
fn a_missing_mount_point_is_named() {
    require!(Fuse, Union);
    let scratch = scratch();
    std::fs::create_dir(scratch.path().join("l")).unwrap();
    let output = run(scratch.path(), &["-o", "lowerdir=l", "nowhere"]);
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("nowhere"));
}

#[test]
fn version_and_help_exit_0() {
    require!(Union);
    let scratch = scratch();
    for flag in ["--version", "-V"] {
        let output = run(scratch.path(), &[flag]);
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with("unionfs: version "), "{text}");
        assert!(text.contains("FUSE"), "{text}");
    }
    for flag in ["--help", "-h"] {
        let output = run(scratch.path(), &[flag]);
        assert!(output.status.success(), "{flag}");
        assert!(output.stdout.len() > 200, "{flag}");
    }
}

#[test]
fn no_arguments_is_an_error() {
    require!(Union);
    let output = run(scratch().path(), &[] as &[&str]);
    assert!(!output.status.success());
    assert!(!output.stderr.is_empty());
}
