//! Interface flags through ioctl, which no wrapper covers.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Sets `IFF_UP` on the loopback interface of the network namespace of `socket`.
pub(crate) fn loopback_up(socket: impl AsFd) -> io::Result<()> {
    // JUSTIFICATION: ifreq has no constructor.
    // SAFETY: all fields are integers or arrays of integers, for which zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *slot = byte.cast_signed() as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // JUSTIFICATION: rustix and nix have no SIOCSIFFLAGS.
    // SAFETY: `request` is a valid ifreq that lives across the call; the kernel only reads it.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
