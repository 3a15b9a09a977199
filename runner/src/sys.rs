//! The only unsafe code of the runner: the calls that have no safe wrapper in nix or rustix.
#![allow(unsafe_code)]
#![allow(clippy::disallowed_types)]

pub(crate) mod clone;
pub(crate) mod mount;
pub(crate) mod net;
pub(crate) mod seccomp;

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::process::Pid;

/// Which side of a fork this is.
#[derive(Debug)]
pub(crate) enum Forked {
    /// The new process.
    Child,
    /// The old process, with a descriptor that stands for the child.
    Parent(Pid),
}

/// Forks a process that has a single thread.
pub(crate) fn fork() -> io::Result<Forked> {
    // JUSTIFICATION: no safe fork exists.
    // SAFETY: the runner starts no thread before its forks (only the union server does, after its own fork), so the
    // child may use the allocator and every lock is free.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => Ok(Forked::Child),
        pid => {
            Pid::from_raw(pid).filter(|_| pid > 0).map(Forked::Parent).ok_or_else(io::Error::last_os_error)
        }
    }
}

/// Ends this process at once: no exit handlers, which belong to the process it was forked from.
pub(crate) fn exit_now(code: u8) -> ! {
    // JUSTIFICATION: std::process::exit runs the exit handlers of the parent's program.
    // SAFETY: _exit has no precondition.
    unsafe { libc::_exit(i32::from(code)) }
}

/// Runs `body` and ends the process; for the child side of a fork, which must never return to its caller.
pub(crate) fn run_and_exit(body: impl FnOnce() -> std::result::Result<Infallible, u8>) -> ! {
    match body() {
        Ok(never) => match never {},
        Err(code) => exit_now(code),
    }
}

/// Marks every descriptor from `first` on to be closed by exec.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // JUSTIFICATION: rustix and nix have no close_range.
    // SAFETY: only a flag of descriptors is changed, none is closed.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes every descriptor from 3 on but these.
///
/// Preconditions: the process was forked and never returns to the code whose descriptors are closed.
pub(crate) fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
    keep.sort_unstable();
    let mut first = 3_u32;
    for fd in keep.into_iter().chain([u32::MAX]) {
        if fd > first {
            // JUSTIFICATION: rustix and nix have no close_range.
            // SAFETY: the owners of the closed descriptors are in frames of the parent's program that this process
            // never returns to, so no descriptor is used or closed again.
            let result = unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}

/// Sets the action of every signal to the default: exec would pass on what the caller ignores.
pub(crate) fn default_signal_actions() {
    /// The kernel's `struct sigaction` of all zeros: SIG_DFL, no flags, empty mask. No architecture has a larger one.
    const DEFAULT: [u64; 8] = [0; 8];
    const SIGNALS: libc::c_int = 64;
    const MASK_SIZE: usize = 8;
    for signal in 1..=SIGNALS {
        // JUSTIFICATION: the C library's call refuses the signals that it uses itself.
        // SAFETY: the kernel reads one sigaction from DEFAULT; SIG_DFL installs no handler. KILL and STOP are refused,
        // which changes nothing.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                DEFAULT.as_ptr(),
                std::ptr::null_mut::<u64>(),
                MASK_SIZE,
            );
        }
    }
}

/// Removes one capability, by number, from the bounding set.
///
/// # Errors
/// EINVAL when the kernel has no such capability.
pub(crate) fn drop_bounding(index: u8) -> io::Result<()> {
    // JUSTIFICATION: the wrappers know only the capabilities of their own release.
    // SAFETY: prctl with PR_CAPBSET_DROP takes numbers only.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(index), 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives this process an empty session keyring of its own.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    // JUSTIFICATION: no safe wrapper exists.
    // SAFETY: a null name makes an anonymous keyring; no memory is touched.
    let result = unsafe {
        libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    };
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
