//! The first process of the container: it forwards signals to the command, reaps what dies, and ends with it.

use nix::sys::signal::{SigSet, Signal};
use rustix::process::{Pid, WaitOptions, kill_process, wait};

use crate::error::best_effort;

/// Added to the number of the signal that ended the command.
const SIGNALLED: i32 = 128;

/// Waits until the command has ended, and returns its exit code.
///
/// Preconditions: all signals are blocked. The kernel shows a first process no signal without handler, but one that
/// is blocked waits until it is asked for.
pub(crate) fn run(command: Pid) -> u8 {
    let signals = SigSet::all();
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(code) = reap(command) {
                    return code;
                }
            }
            Ok(signal) => forward(command, signal),
            // Interrupted by a stop, or by a real-time signal that this type has no name for.
            Err(_) => {}
        }
    }
}

fn forward(command: Pid, signal: Signal) {
    if let Some(signal) = rustix::process::Signal::from_named_raw(signal as i32) {
        best_effort(kill_process(command, signal), "the command has just ended");
    }
}

/// Reaps everything that has died; gives the exit code when the command is among it.
fn reap(command: Pid) -> Option<u8> {
    let mut code = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid != command {
            continue;
        }
        let raw =
            status.exit_status().or_else(|| status.terminating_signal().map(|signal| SIGNALLED + signal));
        code = raw.and_then(|raw| u8::try_from(raw).ok()).or(code);
    }
    code
}
