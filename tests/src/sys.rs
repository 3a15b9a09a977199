//! The system calls for which neither rustix nor nix has a safe function.
#![allow(unsafe_code)]

pub mod calls;

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

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

/// The kernel's `struct iocb` (linux/aio_abi.h), of a plain write.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    descriptor: u32,
    buffer: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

/// Writes at `offset` as asynchronous I/O (io_submit(2)), and waits for its end. Returns what write(2) would.
pub fn write_async(file: impl AsFd, bytes: &[u8], offset: i64) -> Result<i64, Errno> {
    /// `IOCB_CMD_PWRITE`.
    const PWRITE: u16 = 1;
    let (mut context, mut event) = (0_u64, [0_i64; 4]);
    let mut request = Iocb {
        opcode: PWRITE,
        descriptor: file.as_fd().as_raw_fd().cast_unsigned(),
        buffer: bytes.as_ptr().addr() as u64,
        len: bytes.len() as u64,
        offset,
        ..Iocb::default()
    };
    let mut requests = [&raw mut request];
    // SAFETY: the kernel writes the context's number.
    Errno::result(unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) })?;
    // SAFETY: one request is passed; it, its bytes and the room for one event live until io_destroy has waited for its end.
    let done = unsafe {
        let submitted = libc::syscall(libc::SYS_io_submit, context, 1, requests.as_mut_ptr());
        let submitted = Errno::result(submitted);
        let null = std::ptr::null::<libc::timespec>();
        let ended = submitted.and_then(|_| {
            Errno::result(libc::syscall(libc::SYS_io_getevents, context, 1, 1, event.as_mut_ptr(), null))
        });
        libc::syscall(libc::SYS_io_destroy, context);
        ended
    };
    done.map(|_| event[2])
}

/// Asks for a lease (`F_RDLCK`, `F_WRLCK`, `F_UNLCK`) on an open file.
pub fn lease(file: impl AsFd, kind: libc::c_int) -> Result<libc::c_int, Errno> {
    // SAFETY: the call takes numbers only.
    Errno::result(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_SETLEASE, kind) })
}

/// Returns the extended inode flags (`FS_IOC_FSGETXATTR`) as the kernel's five words.
pub fn extended_flags(file: impl AsFd) -> Result<[u32; 5], Errno> {
    let mut out = [0_u32; 7];
    // SAFETY: the request's number says that 28 bytes are written, and `out` has as many.
    let done =
        unsafe { libc::ioctl(file.as_fd().as_raw_fd(), 0x801c_581f_u32 as libc::Ioctl, out.as_mut_ptr()) };
    Errno::result(done).map(|_| out[..5].try_into().unwrap())
}

/// Sets the extended inode flags (`FS_IOC_FSSETXATTR`), the other words as they are.
pub fn set_extended_flags(file: impl AsFd, flags: u32) -> Result<(), Errno> {
    let mut words = [0_u32; 7];
    words[..5].copy_from_slice(&extended_flags(&file)?);
    words[0] = flags;
    // SAFETY: the request's number says that 28 bytes are read, and `words` has as many.
    let done =
        unsafe { libc::ioctl(file.as_fd().as_raw_fd(), 0x401c_5820_u32 as libc::Ioctl, words.as_ptr()) };
    Errno::result(done).map(drop)
}

/// Returns the generation of an inode (`FS_IOC_GETVERSION`).
pub fn generation(file: impl AsFd) -> Result<u32, Errno> {
    let mut out = 0_u64;
    // SAFETY: the kernel writes an int, or as the request's number says a long; there is room for either.
    let done = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), 0x8008_7601_u32 as libc::Ioctl, &raw mut out) };
    Errno::result(done).map(|_| out as u32)
}

/// A fanotify group that hears of one directory and what is in it.
#[derive(Debug)]
pub struct Fanotify(OwnedFd);

impl Fanotify {
    /// Starts to listen for `mask`.
    pub fn on(directory: impl AsFd, mask: u64) -> Result<Self, Errno> {
        let flags = libc::FAN_CLASS_NOTIF | libc::FAN_NONBLOCK | libc::FAN_CLOEXEC;
        // SAFETY: the call takes numbers only, and what it returns is a new descriptor.
        let group = unsafe {
            let group = Errno::result(libc::fanotify_init(flags, libc::O_RDONLY as u32))?;
            OwnedFd::from_raw_fd(group)
        };
        // SAFETY: no path is given, so the directory is the descriptor itself.
        let done = unsafe {
            libc::fanotify_mark(
                group.as_raw_fd(),
                libc::FAN_MARK_ADD,
                mask | libc::FAN_EVENT_ON_CHILD,
                directory.as_fd().as_raw_fd(),
                std::ptr::null(),
            )
        };
        Errno::result(done).map(|_| Self(group))
    }

    /// Returns the masks of the events since the last call.
    pub fn events(&self) -> Vec<u64> {
        let mut masks = Vec::new();
        let mut buffer = [0_u8; 4096];
        while let Ok(len) = rustix::io::read(&self.0, &mut buffer) {
            let size = size_of::<libc::fanotify_event_metadata>();
            for event in buffer[..len].chunks_exact(size) {
                // SAFETY: the kernel wrote whole records; any bytes are a value of this type.
                let event: libc::fanotify_event_metadata =
                    unsafe { event.as_ptr().cast::<libc::fanotify_event_metadata>().read_unaligned() };
                masks.push(event.mask);
                if event.fd >= 0 {
                    // SAFETY: the kernel opened it for the reader of this record, nobody else has it.
                    drop(unsafe { OwnedFd::from_raw_fd(event.fd) });
                }
            }
        }
        masks
    }
}

/// Makes every renameat2(2) with flags of this process and its children answer EINVAL, as on file systems that have none
/// (NFS). Cannot be undone, and takes the privileges of set-id programs away.
pub fn refuse_flags_of_renames() -> Result<(), Errno> {
    let statement = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    let skip = |code, k, when_equal, otherwise| libc::sock_filter { code, jt: when_equal, jf: otherwise, k };
    // The classes and modes of linux/bpf_common.h.
    let (load, equal, answer) = (0x20, 0x15, 0x06);
    let word_of = |offset: usize| u32::try_from(offset).unwrap_or(u32::MAX);
    let number = word_of(std::mem::offset_of!(libc::seccomp_data, nr));
    let flags = word_of(std::mem::offset_of!(libc::seccomp_data, args) + 4 * size_of::<u64>());
    let renameat2 = u32::try_from(libc::SYS_renameat2).unwrap_or(u32::MAX);
    let refusal = libc::SECCOMP_RET_ERRNO | libc::EINVAL.cast_unsigned();
    let mut filter = [
        statement(load, number),
        skip(equal, renameat2, 0, 3),
        statement(load, flags),
        skip(equal, 0, 1, 0),
        statement(answer, refusal),
        statement(answer, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 6, filter: filter.as_mut_ptr() };
    // SAFETY: the second call reads the filter, which lives across it; the first one takes numbers only.
    let results = unsafe {
        [
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program),
        ]
    };
    results.into_iter().try_for_each(|result| Errno::result(result).map(drop))
}
