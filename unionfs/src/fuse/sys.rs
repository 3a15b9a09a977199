//! The unsafe part of mounting and of becoming a daemon: descriptors that are only numbers, and fork.
#![allow(unsafe_code)]
#![allow(clippy::disallowed_types)]

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use nix::sys::signal::{SigHandler, Signal};
use nix::unistd::{ForkResult, Pid};
use rustix::io::FdFlags;

/// Highest descriptor looked at where /proc cannot tell.
const LAST_GUESSED: RawFd = 1023;

/// Lists the descriptors above standard error whose flags `wanted` accepts.
fn list_open(wanted: impl Fn(FdFlags) -> bool) -> Vec<RawFd> {
    let listed = std::fs::read_dir("/proc/self/fd").map(|entries| {
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter_map(|name| name.parse().ok()).collect::<Vec<RawFd>>()
    });
    let mut open = listed.unwrap_or_else(|_| (0..=LAST_GUESSED).collect());
    // The directory's own descriptor is on the list and closed again by now.
    open.retain(|&fd| fd > libc::STDERR_FILENO && flags(fd).is_ok_and(&wanted));
    open
}

fn flags(fd: RawFd) -> rustix::io::Result<FdFlags> {
    // JUSTIFICATION: a list of what is open has numbers.
    // SAFETY: the number is above standard error, and is borrowed for one call that fails with EBADF if it is not open.
    rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Closes the descriptors above standard error that the caller of this program left open for it: those that are not closed on
/// exec. All that this program opens are, but for the end of a socket that fusermount3 gets, which is closed before anybody
/// serves.
pub(super) fn close_inherited() {
    for fd in list_open(|flags| !flags.contains(FdFlags::CLOEXEC)) {
        // JUSTIFICATION: a caller that reads a pipe to its end waits for every copy of the writing side.
        // SAFETY: it was open before this program opened anything, so no value owns it, nor can another thread get its number.
        unsafe { rustix::io::close(fd) };
    }
}

/// Gives the calling thread a table of descriptors of its own, with the standard streams only. What other threads hold open
/// then does not stay open for this thread's sake: a server that is killed lets go of its device although one of its
/// threads waits for an answer.
///
/// To be called in a thread that holds no descriptor. Before Linux 5.11 nothing happens.
pub(super) fn let_go_of_descriptors() {
    const UNSHARE: libc::c_uint = 1 << 1;
    // JUSTIFICATION: neither rustix nor nix has close_range.
    // SAFETY: the call takes integers only. The closed table is the calling thread's own, and the caller holds none of it.
    let _done = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, UNSHARE) };
}

/// Has the threads of this process share a few heaps, one for each processor, where the C library would make one for each
/// thread: threads that start for a while would each leave a heap behind that only they could have used.
///
/// To be called before any thread starts.
#[cfg(target_env = "gnu")]
pub(super) fn share_heaps() {
    const AT_LEAST: libc::c_int = 2;
    let processors = rustix::thread::sched_getaffinity(None).map_or(0, |set| set.count());
    let heaps = libc::c_int::try_from(processors).unwrap_or(AT_LEAST).max(AT_LEAST);
    // JUSTIFICATION: no library has a wrapper.
    // SAFETY: the call takes integers only, and there is one thread.
    let _taken = unsafe { libc::mallopt(libc::M_ARENA_MAX, heaps) };
}

/// Other C libraries have one heap.
#[cfg(not(target_env = "gnu"))]
pub(super) fn share_heaps() {}

/// Closes all descriptors but the standard streams and those of `kept`.
///
/// To be called in a process that ends without returning to the owners of the others.
pub(super) fn keep_only(kept: &[BorrowedFd<'_>]) {
    // Not by close_range(2): before Linux 5.9 nothing would be closed.
    for fd in list_open(|_| true) {
        if kept.iter().all(|kept| kept.as_raw_fd() != fd) {
            // JUSTIFICATION: nobody is to wait for the other end of what this process does not use.
            // SAFETY: the owners of all but `kept` are neither used nor dropped, as the caller promises.
            unsafe { rustix::io::close(fd) };
        }
    }
}

/// Forgets a signal that waits to be taken.
///
/// # Errors
///
/// What sigaction(2) answers.
pub(super) fn forget_pending(signal: Signal) -> nix::Result<()> {
    // JUSTIFICATION: one that is ignored does not wait (POSIX), and to ignore one is not safe in nix.
    // SAFETY: no handler is set.
    let before = unsafe { nix::sys::signal::signal(signal, SigHandler::SigIgn) }?;
    // JUSTIFICATION: as above.
    // SAFETY: what was there before this function is there again.
    unsafe { nix::sys::signal::signal(signal, before) }.map(drop)
}

/// Returns the number by which another program, or the text of mount options, can name a descriptor that stays open.
pub(super) fn number(fd: impl AsFd) -> i32 {
    fd.as_fd().as_raw_fd()
}

/// Returns a new descriptor for what `fd`, a number handed over by the caller of this program, refers to.
///
/// # Errors
///
/// EBADF if it is not open.
pub(super) fn duplicate(fd: RawFd) -> std::io::Result<OwnedFd> {
    if fd < 0 {
        return Err(std::io::Error::from_raw_os_error(libc::EBADF));
    }
    // JUSTIFICATION: a descriptor handed over by exec is only a number.
    // SAFETY: it is not negative, and is borrowed for one call that fails with EBADF if it is not open.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}

/// Forks. `None` is the child.
///
/// # Errors
///
/// What fork(2) answers; EDEADLK if this process has several threads.
pub(super) fn fork() -> nix::Result<Option<Pid>> {
    // A directory for each thread, and two links of its own.
    if rustix::fs::stat("/proc/self/task").is_ok_and(|tasks| tasks.st_nlink > 3) {
        return Err(nix::errno::Errno::EDEADLK);
    }
    // JUSTIFICATION: a daemon is a child whose parent has left; there is no safe fork.
    // SAFETY: there is one thread, so no lock of another one can be held in the child.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}
