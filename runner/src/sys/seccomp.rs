//! Installing a seccomp filter.

use std::io;

/// Installs a filter for this thread and all that come from it. `no_new_privs` must be set.
pub(crate) fn install(program: &[libc::sock_filter]) -> io::Result<()> {
    let len = libc::c_ushort::try_from(program.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "seccomp filter is too long"))?;
    let request = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // JUSTIFICATION: no safe wrapper exists.
    // SAFETY: `request` points to `len` instructions that live across the call; the kernel copies and only reads them.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
