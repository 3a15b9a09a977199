//! The container's own terminal.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use e2e::require;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::fixture::{Fixture, kill, runner_program, wait_until};

/// A terminal with a runner on it.
struct Session {
    controller: std::fs::File,
    terminal: OwnedFd,
    child: Child,
    seen: String,
}

impl Session {
    fn start(fixture: &Fixture, command: &[&str]) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let terminal = ioctl_tiocgptpeer(&controller, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        tcsetwinsize(&controller, Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let mut line = Command::new("setsid");
        line.arg("-cw").arg(runner_program()).arg("--store").arg(fixture.store());
        line.args(["run", "-it", "--rootfs", "/", "--"]).args(command);
        let stream = || Stdio::from(terminal.try_clone().unwrap());
        let child = line.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
        rustix::io::ioctl_fionbio(&controller, true).unwrap();
        Self { controller: controller.into(), terminal, child, seen: String::new() }
    }

    /// Reads until the text shows up.
    fn expect(&mut self, text: &str) {
        wait_until(&format!("{text:?} after {:?}", self.seen), || {
            let mut buffer = [0_u8; 4096];
            if let Ok(count) = self.controller.read(&mut buffer) {
                self.seen.push_str(std::str::from_utf8(&buffer[..count]).unwrap_or("?"));
            }
            self.seen.contains(text)
        });
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.terminal).unwrap().local_modes.contains(LocalModes::ICANON)
    }
}

#[test]
fn a_terminal_is_the_containers_own_and_follows_the_size() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    let script =
        "tty; stty size; ls -l /dev/console >/dev/null && echo con; read x; stty size; echo got $x; exit 5";
    let mut session = Session::start(&fixture, &["sh", "-c", script]);
    session.expect("/dev/pts/0");
    session.expect("33 77");
    session.expect("con");
    assert!(session.is_raw());
    tcsetwinsize(&session.controller, Winsize { ws_row: 44, ws_col: 88, ws_xpixel: 0, ws_ypixel: 0 })
        .unwrap();
    // The signal about the size and the line travel on different ways.
    std::thread::sleep(std::time::Duration::from_millis(300));
    session.controller.write_all(b"word\r").unwrap();
    session.expect("44 88");
    session.expect("got word");
    assert_eq!(session.child.wait().unwrap().code(), Some(5));
    assert!(!session.is_raw());
}

#[test]
fn keys_make_signals_inside_only() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    let mut session = Session::start(
        &fixture,
        &["sh", "-c", "trap 'echo caught; exit 7' INT; echo go; while :; do sleep 0.1; done"],
    );
    session.expect("go");
    session.controller.write_all(&[3]).unwrap();
    session.expect("caught");
    assert_eq!(session.child.wait().unwrap().code(), Some(7));
}

#[test]
fn the_terminal_is_restored_when_the_runner_is_killed() {
    require!(Fuse, UserNamespace);
    let fixture = Fixture::new();
    let mut session = Session::start(&fixture, &["sh", "-c", "echo go; sleep 500"]);
    session.expect("go");
    assert!(session.is_raw());
    // setsid(1) has become the runner, or waits for it as its parent.
    let children =
        std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", session.child.id())).unwrap();
    let own = std::fs::read_link(format!("/proc/{}/exe", session.child.id())).unwrap();
    let runner = if own.ends_with("setsid") {
        children.split_whitespace().next().unwrap().parse().unwrap()
    } else {
        session.child.id()
    };
    kill(runner, rustix::process::Signal::KILL);
    session.child.wait().unwrap();
    wait_until("the terminal to be restored", || !session.is_raw());
}
