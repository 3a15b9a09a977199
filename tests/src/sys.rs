//! The system calls for which neither rustix nor nix has a safe function.
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, MsFlags, ProtFlags, madvise, mmap, msync, munmap};

/// Pages of a file, shared with it.
#[derive(Debug)]
pub struct SharedMapping {
    start: std::ptr::NonNull<libc::c_void>,
    len: NonZeroUsize,
}

impl SharedMapping {
    /// Maps the first `len` bytes of `file`.
    pub fn new(file: impl AsFd, len: usize, writable: bool) -> Result<Self, Errno> {
        let len = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        let prot = if writable { ProtFlags::PROT_READ | ProtFlags::PROT_WRITE } else { ProtFlags::PROT_READ };
        // SAFETY: no address is asked for, so no existing mapping is touched.
        let start = unsafe { mmap(None, len, prot, MapFlags::MAP_SHARED, file, 0)? };
        Ok(Self { start, len })
    }

    /// Copies bytes out. The caller has made sure that the file is long enough.
    pub fn read(&self, offset: usize, buffer: &mut [u8]) {
        assert!(offset + buffer.len() <= self.len.get());
        let source = self.start.as_ptr().cast::<u8>().wrapping_add(offset);
        // SAFETY: the range lies within the mapping, checked above, and `buffer` is ours.
        unsafe { std::ptr::copy_nonoverlapping(source, buffer.as_mut_ptr(), buffer.len()) }
    }

    /// Copies bytes in, through the mapping, and asks for them to be written back.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Errno> {
        assert!(offset + bytes.len() <= self.len.get());
        let target = self.start.as_ptr().cast::<u8>().wrapping_add(offset);
        // SAFETY: the range lies within the mapping, checked above; nothing else refers to it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) }
        // SAFETY: the range is the mapping itself.
        unsafe { msync(self.start, self.len.get(), MsFlags::MS_SYNC) }
    }

    /// Forgets the pages that this process has mapped in, so that the next read asks the page cache.
    pub fn refault(&self) -> Result<(), Errno> {
        // SAFETY: a shared file mapping keeps its contents over MADV_DONTNEED.
        unsafe { madvise(self.start, self.len.get(), MmapAdvise::MADV_DONTNEED) }
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping made in `new`, and nothing refers to it any more.
        let unmapped = unsafe { munmap(self.start, self.len.get()) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Maps the ids of a detached mount by those of a user namespace (`MOUNT_ATTR_IDMAP`).
pub fn set_idmap(mount: impl AsFd, namespace: impl AsFd) -> std::io::Result<()> {
    let userns_fd = u64::try_from(namespace.as_fd().as_raw_fd()).unwrap_or(u64::MAX);
    let request =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd };
    // SAFETY: the path is an empty C string, `request` lives across the call and its size is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const request,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
