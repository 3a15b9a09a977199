//! clone3(2) in the form of a fork that starts in new namespaces and, on cgroup v2, in its cgroup.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::Pid;

/// Which side of the clone this is.
#[derive(Debug)]
pub(crate) enum Cloned {
    /// The new process, inside the new namespaces.
    Child,
    /// The old process.
    Parent(Pid, OwnedFd),
}

/// Clones this single-threaded process into new namespaces.
///
/// # Errors
/// ENOSPC, EPERM and EUSERS when user namespaces are limited or forbidden.
pub(crate) fn clone_into(flags: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    // JUSTIFICATION: clone_args has no constructor.
    // SAFETY: all fields are integers, for which zero is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(flags.cast_unsigned()) | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // JUSTIFICATION: no wrapper has clone3 with namespaces, pidfd and cgroup in one call.
    // SAFETY: without CLONE_VM the child works on its own copy of this memory, like fork; `args` lives across the
    // call and its size is passed; the process has one thread, so no lock is held by another.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match i32::try_from(pid) {
        Ok(0) => Ok(Cloned::Child),
        Ok(pid) if pid > 0 => {
            // JUSTIFICATION: the kernel gives a number.
            // SAFETY: clone3 succeeded with CLONE_PIDFD, so it stored a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Pid::from_raw(pid).map(|pid| Cloned::Parent(pid, pidfd)).ok_or_else(io::Error::last_os_error)
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// `CLONE_INTO_CGROUP`, which does not fit the type that libc gives it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
