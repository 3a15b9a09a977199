//! How a program is run, timed and never waited for in vain.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::failure::{During, Failure, Result};

/// The end of a timed program.
#[derive(Debug)]
pub struct Finished {
    /// Wall time from before the start until the end was collected.
    pub wall: Duration,
    /// What it wrote.
    pub output: Output,
}

/// Runs `command` to its end and times it. After `limit` the process is killed and `free` is called, which must end
/// whatever the process may be waiting for in the kernel (an unanswered FUSE request ignores signals).
pub fn timed(mut command: Command, limit: Duration, free: impl FnOnce() + Send) -> Result<Finished> {
    let name = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let child = command.spawn().during(format_args!("run {name}"))?;
    let pid = child.id();
    let (done, finished) = channel::<()>();
    std::thread::scope(|scope| {
        let watchdog = scope.spawn(move || match finished.recv_timeout(limit) {
            Err(RecvTimeoutError::Timeout) => {
                kill(pid);
                free();
                true
            }
            _ => false,
        });
        let output = child.wait_with_output();
        let wall = start.elapsed();
        drop(done);
        match watchdog.join() {
            Ok(false) => Ok(Finished { wall, output: output.during(format_args!("wait for {name}"))? }),
            _ => Err(Failure::new(format!("{name} did not end within {limit:?}"))),
        }
    })
}

fn kill(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else { return };
    if let Err(e) = rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
        eprintln!("perf: cannot kill process {pid:?}: {e}");
    }
}

/// Runs `command` and fails with its stderr unless it exits with 0.
pub fn check(mut command: Command) -> Result<Output> {
    let name = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().during(format_args!("run {name}"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(Failure::new(format!("{name} failed ({}): {}", output.status, text(&output.stderr))))
}

/// Runs a shell script in `dir` and fails with its stderr unless it exits with 0.
pub fn shell(dir: &Path, script: &str) -> Result<Output> {
    let mut command = Command::new("sh");
    command.arg("-euc").arg(script).current_dir(dir);
    check(command)
}

/// Waits until `child` has ended, kills it if that takes longer than `limit`.
pub fn reap(child: &mut Child, limit: Duration) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if child.try_wait().during("wait for a server")?.is_some() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().during("kill a server that did not end")?;
    child.wait().during("wait for a killed server")?;
    Err(Failure::new(format!("server {} did not end within {limit:?} of the unmount", child.id())))
}

/// Bytes for a message: printable ASCII, the last 400 of them.
pub fn text(bytes: &[u8]) -> String {
    let tail = bytes.get(bytes.len().saturating_sub(400)..).unwrap_or(bytes);
    tail.trim_ascii().iter().map(|b| char::from(if b.is_ascii_graphic() { *b } else { b' ' })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_killed_and_named() {
        let mut command = Command::new("sleep");
        command.arg("30");
        let error = timed(command, Duration::from_millis(50), || {}).unwrap_err();
        assert!(format!("{error}").contains("sleep"), "{error}");
    }

    #[test]
    fn a_failing_script_reports_its_stderr() {
        let error = shell(Path::new("/"), "echo broken >&2; exit 3").unwrap_err();
        assert!(format!("{error}").contains("broken"), "{error}");
    }
}
