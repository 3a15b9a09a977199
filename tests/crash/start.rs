//! The server is killed in the first milliseconds of a mount, while it asks its own mount whether it is usable.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::mounted::{Layers, scratch, union_program, unmount};
use e2e::require;

/// How often the server is killed: before it was repaired about one in a hundred never ended.
const KILLS: u32 = 200;

/// How long the end of a killed server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until `done`, not longer than [`PATIENCE`]; returns whether it came.
fn comes(mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if done() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

#[test]
fn a_server_killed_at_its_start_ends() {
    require!(Fuse, Union);
    let scratch = scratch();
    let layers = Layers::below(scratch.path(), 1);
    let shown = format!(" {} ", layers.target.display());
    for kill in 0..KILLS {
        let mut server = Command::new(union_program())
            .arg("-fo")
            .arg(layers.options())
            .arg(&layers.target)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // By the table of mounts: to look at the mount itself would wait for the server.
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(comes(|| mounts().contains(&shown)), "no mount");
        std::thread::sleep(Duration::from_micros(100) * (kill % 40));
        server.kill().unwrap();
        let ended = comes(|| server.try_wait().unwrap().is_some());
        if !ended {
            // Ends the connection, and with it the wait.
            rustix::mount::unmount(&layers.target, rustix::mount::UnmountFlags::FORCE).ok();
        }
        unmount(&layers.target);
        assert!(ended, "kill {kill}: the server did not end");
    }
}
