//! `auto_unmount`: what becomes of a mount whose server has ended, however it ended.

use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};

use e2e::mounted::{mounted_elsewhere, union_program, unmount};
use e2e::program::{mount_type, servers_of, wait_until};
use e2e::require;

use rustix::fs::{Mode, OFlags};

use super::{Place, place};

/// Returns the server of a mount and the process that watches over it.
fn server_and_watcher(place: &Place) -> (i32, i32) {
    let serves = |&pid: &i32| held_by(pid).iter().any(|held| held == "/dev/fuse");
    let all = servers_of(&place.layers.target);
    match all.iter().copied().partition::<Vec<i32>, _>(serves) {
        (servers, watchers) if (servers.len(), watchers.len()) == (1, 1) => (servers[0], watchers[0]),
        found => panic!("a server and a watcher: {found:?}"),
    }
}

fn signal(name: &str, pid: i32) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
    assert!(status.unwrap().success());
}

/// Waits until no process of a mount is left.
fn all_ended(place: &Place) {
    let ended = || servers_of(&place.layers.target).is_empty();
    assert!(wait_until(|| ended() || mounted_elsewhere(place.device.get())), "a process stays");
}

/// A server in the foreground; it does not outlive the test, which whoever runs the test waits for.
struct Foreground(Child);

impl Drop for Foreground {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Starts a server in the foreground, with a pipe of the caller's.
fn foreground(place: &Place) -> Foreground {
    let child = Command::new(union_program())
        .arg("-f")
        .arg("-o")
        .arg(format!("{},auto_unmount", place.layers.options().into_string().unwrap()))
        .arg(&place.layers.target)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let server = Foreground(child);
    assert!(wait_until(|| std::fs::read(place.layers.target.join("f0")).is_ok()), "no mount");
    server
}

/// Returns what a process has open, sorted.
fn held_by(pid: i32) -> Vec<String> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let mut held: Vec<_> = descriptors
        .filter_map(|entry| Some(std::fs::read_link(entry.path()).ok()?.display().to_string()))
        .collect();
    held.sort();
    held
}

#[test]
fn a_mount_with_auto_unmount_goes_with_its_server() {
    require!(Fuse, Union);
    for options in
        ["OPTIONS,auto_unmount", "OPTIONS,auto_unmount,data=handles", "OPTIONS,auto_unmount,transport=dev"]
    {
        let place = place(1);
        let (_mount, stderr) = place.mount(&["-o", options, "TARGET"]);
        assert_eq!(stderr, "", "it has an effect");
        let held = std::fs::File::open(&place.layers.target).unwrap();
        let (server, _) = server_and_watcher(&place);
        signal("KILL", server);
        assert!(wait_until(|| mount_type(&place.layers.target).is_none()), "{options}: a dead mount stays");
        all_ended(&place);
        // Lazily: who has it open holds a dead end, and the directory below can be used at once.
        std::fs::write(place.layers.target.join("below"), b"x").unwrap();
        drop(held);
    }
}

#[test]
fn a_watcher_ends_with_an_ordinary_unmount() {
    require!(Fuse, Union);
    for by_signal in [false, true] {
        let place = place(1);
        let (_mount, _) = place.mount(&["-o", "OPTIONS,auto_unmount", "TARGET"]);
        let (server, _) = server_and_watcher(&place);
        if by_signal {
            signal("TERM", server);
        } else {
            unmount(&place.layers.target);
        }
        assert!(wait_until(|| mount_type(&place.layers.target).is_none()), "it stays mounted");
        all_ended(&place);
    }
}

#[test]
fn a_watcher_holds_nothing_and_no_terminal_ends_it() {
    require!(Fuse, Union);
    let place = place(1);
    let mut server = foreground(&place);
    let (pid, watcher) = server_and_watcher(&place);
    assert_eq!(pid, i32::try_from(server.0.id()).unwrap());
    // The mount may be live before the watcher has run for the first time.
    let only_its_end = || {
        let held = held_by(watcher);
        held.len() == 4 && held[..3] == ["/dev/null"; 3] && held[3].starts_with("pipe:")
    };
    assert!(wait_until(only_its_end), "{:?}", held_by(watcher));
    let session = rustix::process::getsid(rustix::process::Pid::from_raw(watcher)).unwrap();
    assert_eq!(session.as_raw_nonzero().get(), watcher, "it has a session of its own");
    assert_eq!(std::fs::read_link(format!("/proc/{watcher}/cwd")).unwrap().as_os_str(), "/");
    for name in ["INT", "QUIT", "HUP", "TSTP", "TERM"] {
        signal(name, watcher);
    }
    signal("KILL", pid);
    server.0.wait().unwrap();
    assert!(wait_until(|| mount_type(&place.layers.target).is_none()), "a dead mount stays");
    all_ended(&place);
}

#[test]
fn a_mount_that_came_instead_is_left_alone() {
    require!(Fuse, Union);
    let place = place(1);
    for _ in 0..10 {
        let (mount, _) = place.mount(&["-o", "OPTIONS,auto_unmount", "TARGET"]);
        unmount(&place.layers.target);
        // At once: the watcher of the mount before may still be there.
        let (again, _) = place.mount(&["-o", "lowerdir=lower0", "TARGET"]);
        let only_one_left = || servers_of(&place.layers.target).len() == 1;
        assert!(wait_until(|| only_one_left() || mounted_elsewhere(place.device.get())), "a watcher stays");
        assert_eq!(std::fs::read(place.layers.target.join("f0")).unwrap(), b"from 0");
        drop((again, mount));
        all_ended(&place);
    }
}

#[test]
fn a_mount_that_came_on_top_is_left_alone() {
    require!(Fuse, Union, Root);
    let place = place(1);
    let (_below, _) = place.mount(&["-o", "OPTIONS,auto_unmount", "TARGET"]);
    let (server, _) = server_and_watcher(&place);
    let target = &place.layers.target;
    rustix::mount::mount("on-top", target, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    signal("KILL", server);
    // The mount stays, so that `all_ended` would not wait for the watcher.
    assert!(wait_until(|| servers_of(target).is_empty()), "a process stays");
    std::fs::write(target.join("on-top"), b"x").unwrap();
    let flags = rustix::mount::UnmountFlags::empty();
    rustix::mount::unmount(target, flags).unwrap();
    rustix::mount::unmount(target, flags).unwrap();
}

#[test]
fn a_mount_that_could_not_be_made_leaves_no_watcher() {
    require!(Fuse, Union);
    let place = place(1);
    let target = place.layers.target.display().to_string();
    let output = e2e::program::run(place.scratch.path(), &["-o", "lowerdir=nowhere,auto_unmount", &target]);
    assert!(!output.status.success());
    all_ended(&place);
}

#[test]
fn on_a_mount_that_is_handed_over_it_is_told_to_have_no_effect() {
    require!(Fuse, Union, Root);
    let place = place(1);
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR, Mode::empty()).unwrap();
    let number = device.as_raw_fd();
    let data = CString::new(format!("fd={number},rootmode=40000,user_id=0,group_id=0")).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("x", &place.layers.target, "fuse.unionfs", flags, data.as_c_str()).unwrap();
    let (_mount, stderr) = place.mount(&["-o", "OPTIONS,auto_unmount", &format!("/dev/fd/{number}")]);
    assert!(stderr.contains("auto_unmount") && stderr.contains("continuing without"), "{stderr:?}");
    drop(device);
    assert_eq!(std::fs::read(place.layers.target.join("f0")).unwrap(), b"from 0");
}
