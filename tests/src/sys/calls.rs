//! System calls of one thread, and of those that it starts, that another one answers (seccomp's user notification).

use std::mem::{offset_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// Receives the calls. Is at its end when the threads are gone.
#[derive(Debug)]
pub struct Listener(OwnedFd);

/// A call that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    id: u64,
    /// Its number.
    pub number: libc::c_long,
    /// What it was given.
    pub args: [u64; 6],
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The kernel makes it.
    Made,
    /// It is not made, and returns 0.
    Done,
    /// It is not made, and fails.
    Failed(Errno),
}

/// Has the calls of these numbers, by this thread and those that it starts, wait for an answer. Cannot be undone, and takes the
/// privileges of set-id programs away.
pub fn listen(numbers: &[libc::c_long]) -> Result<Listener, Errno> {
    let statement = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    // The classes and modes of linux/bpf_common.h.
    let (load, equal, answer) = (0x20, 0x15, 0x06);
    let word = |number: usize| u32::try_from(number).map_err(|_| Errno::EINVAL);
    let mut filter = vec![statement(load, word(offset_of!(libc::seccomp_data, nr))?)];
    for number in numbers {
        let k = u32::try_from(*number).map_err(|_| Errno::EINVAL)?;
        filter.push(libc::sock_filter { code: equal, jt: 0, jf: 1, k });
        filter.push(statement(answer, libc::SECCOMP_RET_USER_NOTIF));
    }
    filter.push(statement(answer, libc::SECCOMP_RET_ALLOW));
    let len = u16::try_from(filter.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    // SAFETY: the call takes numbers only.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    let (set, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: the call reads the filter, which lives across it.
    let listener = unsafe { libc::syscall(libc::SYS_seccomp, set, flags, &raw const program) };
    let listener = i32::try_from(Errno::result(listener)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the call returned a new descriptor.
    Ok(Listener(unsafe { OwnedFd::from_raw_fd(listener) }))
}

impl Listener {
    /// Waits for the next call; `None` if there will be none.
    pub fn next(&self) -> Result<Option<Call>, Errno> {
        loop {
            let mut poll = [libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
            // SAFETY: the kernel reads and writes the one entry.
            Errno::result(unsafe { libc::poll(poll.as_mut_ptr(), 1, -1) })?;
            if poll[0].revents & libc::POLLIN == 0 {
                return Ok(None);
            }
            // SAFETY: plain numbers, of which 0 is a value; the kernel wants them to be.
            let mut call: libc::seccomp_notif = unsafe { zeroed() };
            let receive = libc::SECCOMP_IOCTL_NOTIF_RECV;
            // SAFETY: the kernel writes one structure of this type.
            let received = unsafe { libc::ioctl(self.0.as_raw_fd(), receive, &raw mut call) };
            match Errno::result(received) {
                Ok(_) => {}
                // The thread was interrupted meanwhile.
                Err(Errno::ENOENT | Errno::EINTR) => continue,
                Err(errno) => return Err(errno),
            }
            return Ok(Some(Call { id: call.id, number: call.data.nr.into(), args: call.data.args }));
        }
    }

    /// Lets a call go on.
    pub fn answer(&self, call: Call, answer: Answer) -> Result<(), Errno> {
        let (error, flags) = match answer {
            Answer::Made => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
            Answer::Done => (0, 0),
            Answer::Failed(errno) => (-(errno as i32), 0),
        };
        let response = libc::seccomp_notif_resp { id: call.id, val: 0, error, flags };
        let send = libc::SECCOMP_IOCTL_NOTIF_SEND;
        // SAFETY: the kernel reads one structure of this type.
        let sent = unsafe { libc::ioctl(self.0.as_raw_fd(), send, &raw const response) };
        match Errno::result(sent) {
            Ok(_) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// Returns what statfs(2) writes for a path, with `kind` in the place of the type.
pub fn statfs_of_kind(path: &std::ffi::CStr, kind: i64) -> Result<Vec<u8>, Errno> {
    // SAFETY: plain numbers, of which 0 is a value.
    let mut found: libc::statfs = unsafe { zeroed() };
    // SAFETY: the path ends with a 0, and the kernel writes one structure of this type.
    Errno::result(unsafe { libc::statfs(path.as_ptr(), &raw mut found) })?;
    found.f_type = kind;
    let start = (&raw const found).cast::<u8>();
    // SAFETY: the kernel has written all of the structure, which has no gaps.
    Ok(unsafe { std::slice::from_raw_parts(start, size_of::<libc::statfs>()) }.to_vec())
}
