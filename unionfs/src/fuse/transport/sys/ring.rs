//! An io_uring as FUSE needs it: 128-byte submissions, one thread that submits and reaps, and the memory that the
//! kernel copies requests into and answers out of.
//!
//! The rings are memory of ours and not mapped from the ring's descriptor: a mapping would keep the ring, and with it
//! the connection, for as long as any thread of the process is there. A thread that waits for an answer of this very
//! connection outlives a kill, and would so wait for ever.
//!
//! Written here and not taken from a library: the FUSE commands need a field that the io-uring crate cannot set, and
//! what is left, two mapped rings and two system calls, is smaller than the dependency.
//!
//! The safety of the shared memory rests on ownership: an [`Entry`] is the right to touch one entry's memory. A
//! ring gives it out when the kernel has completed the entry's command and takes it back with the next command, which may be that
//! of another ring: the kernel knows an entry by its request, and tells the ring that it was last given by.

use std::ffi::c_void;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::last_errno;
use crate::error::Errno;

/// Size of the header buffer of an entry: three parts of 128, 128 and 32 bytes.
pub(in crate::fuse::transport) const HEADER_LEN: usize = 288;

const SQE_LEN: usize = 128;
const CQE_LEN: usize = 16;

const OP_POLL_ADD: u8 = 6;
const OP_URING_CMD: u8 = 46;
const FLAG_FIXED_FILE: u8 = 1;
const ENTER_GETEVENTS: u32 = 1;
const REGISTER_FILES: u32 = 2;
const REGISTER_ENABLE_RINGS: u32 = 12;
/// Nothing is taken until the ring is enabled, by the thread that it then belongs to.
const SETUP_R_DISABLED: u32 = 1 << 6;
const SETUP_SQE128: u32 = 1 << 10;
const SETUP_SINGLE_ISSUER: u32 = 1 << 12;
const SETUP_DEFER_TASKRUN: u32 = 1 << 13;
/// The rings' memory is given by us (Linux 6.5; FUSE needs 6.14).
const SETUP_NO_MMAP: u32 = 1 << 14;
/// Submissions are taken in the order of their slots (Linux 6.6).
const SETUP_NO_SQARRAY: u32 = 1 << 16;
/// Room for heads, tails and flags, which come before the completions.
const RING_HEAD_LEN: usize = 1024;
const CMD_REGISTER: u32 = 1;
const CMD_COMMIT_AND_FETCH: u32 = 2;
const POLL_IN: u32 = 1;

/// The `user_data` of the poll for the waker.
const WAKER: u64 = u64::MAX;

/// `struct io_sqring_offsets` and `struct io_cqring_offsets`, which have the same shape.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct RingOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    /// Submissions: flags; completions: overflow.
    fifth: u32,
    /// Submissions: dropped; completions: the entries.
    sixth: u32,
    /// Submissions: an index array, not used; completions: flags.
    seventh: u32,
    reserved: u32,
    /// Where the memory is: of the submissions themselves, or of both rings.
    user_addr: u64,
}

/// `struct io_uring_params`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    reserved: [u32; 3],
    sq: RingOffsets,
    cq: RingOffsets,
}

/// A mapping of memory, unmapped when dropped.
#[derive(Debug)]
struct Mapping {
    start: NonNull<c_void>,
    len: usize,
}

// JUSTIFICATION: a raw pointer is not Send or Sync by itself.
// SAFETY: the mapping belongs to the process, not to a thread; who may touch which part is decided by its users.
unsafe impl Send for Mapping {}
// JUSTIFICATION: as above.
// SAFETY: as above; a shared reference gives out addresses only.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(len: usize) -> Result<Self, Errno> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // JUSTIFICATION: memory that the kernel also writes has no safe type.
        // SAFETY: no address is asked for, so the mapping overlaps nothing.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(last_errno());
        }
        NonNull::new(start).map(|start| Self { start, len }).ok_or(Errno::NOMEM)
    }

    /// Returns the address for the kernel.
    fn address(&self) -> u64 {
        self.start.as_ptr().expose_provenance() as u64
    }

    /// Returns the address of byte `offset`, if `len` bytes follow it.
    fn at(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // JUSTIFICATION: an address inside a mapping.
        // SAFETY: `offset` is inside the mapping, as was just checked.
        Some(unsafe { self.start.cast::<u8>().add(offset) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // JUSTIFICATION: what was mapped by hand is unmapped by hand.
        // SAFETY: the range is the one that mmap returned, and no reference to it outlives its owner.
        let result = unsafe { libc::munmap(self.start.as_ptr(), self.len) };
        debug_assert_eq!(result, 0, "munmap of a whole mapping");
    }
}

/// The right to read a request from, and write its answer to, one entry's memory.
#[derive(Debug)]
pub(in crate::fuse::transport) struct Entry {
    index: u32,
    memory: Arc<Memory>,
}

impl Entry {
    /// Makes the entries of queue `queue`: `depth` of them, for `payload_len` bytes each.
    ///
    /// # Errors
    ///
    /// ENOMEM if there is no memory for them.
    pub(in crate::fuse::transport) fn all(
        queue: u16,
        depth: u32,
        payload_len: usize,
    ) -> Result<Vec<Self>, Errno> {
        let memory = Arc::new(Memory::new(queue, depth, payload_len)?);
        Ok((0..depth).map(|index| Self { index, memory: Arc::clone(&memory) }).collect())
    }

    /// The header buffer and the payload buffer.
    pub(in crate::fuse::transport) fn parts(&mut self) -> (&mut [u8], &mut [u8]) {
        let memory = &self.memory;
        let (header, payload) = memory.places(self.index);
        // JUSTIFICATION: memory shared with the kernel is only an address.
        // SAFETY: the 288 bytes are inside the mapping and initialised (zero or written by the kernel); the kernel
        // does not touch them until the next command of this entry; there is one `Entry` for the index, borrowed.
        let header = unsafe { std::slice::from_raw_parts_mut(header, HEADER_LEN) };
        // JUSTIFICATION: as above.
        // SAFETY: as above; the payload does not overlap the header.
        let payload = unsafe { std::slice::from_raw_parts_mut(payload, memory.payload_len) };
        (header, payload)
    }
}

/// The memory of all entries: for each two iovecs and a header, all of them close together, then the payloads.
#[derive(Debug)]
struct Memory {
    mapping: Mapping,
    queue: u16,
    payload_len: usize,
    /// Where the payloads begin.
    payloads_at: usize,
}

const PAGE: usize = 4096;
/// The header buffer's place in the head of an entry; the two iovecs are before it.
const HEADER_AT: usize = 64;
/// What an entry has beside its payload, in whole cache lines.
const HEAD_LEN: usize = (HEADER_AT + HEADER_LEN).next_multiple_of(128);

impl Memory {
    fn new(queue: u16, depth: u32, payload_len: usize) -> Result<Self, Errno> {
        let payload_len = payload_len.next_multiple_of(PAGE);
        let depth_len = usize::try_from(depth).map_err(|_| Errno::NOMEM)?;
        let payloads_at = depth_len.checked_mul(HEAD_LEN).ok_or(Errno::NOMEM)?.next_multiple_of(PAGE);
        let payloads = payload_len.checked_mul(depth_len).ok_or(Errno::NOMEM)?;
        let mapping = Mapping::new(payloads.checked_add(payloads_at).ok_or(Errno::NOMEM)?)?;
        let memory = Self { mapping, queue, payload_len, payloads_at };
        for index in 0..depth {
            let (header, payload) = memory.places(index);
            let iovecs = [
                libc::iovec { iov_base: header.cast(), iov_len: HEADER_LEN },
                libc::iovec { iov_base: payload.cast(), iov_len: payload_len },
            ];
            let place = memory.iovecs(index).cast::<[libc::iovec; 2]>();
            // JUSTIFICATION: the kernel reads the iovecs when the entry is registered.
            // SAFETY: the place is mapped, aligned, and nobody else knows it yet.
            unsafe { place.write(iovecs) };
        }
        Ok(memory)
    }

    fn iovecs(&self, index: u32) -> *mut u8 {
        self.place(0, index, HEAD_LEN)
    }

    /// The addresses of header and payload.
    fn places(&self, index: u32) -> (*mut u8, *mut u8) {
        let payload = self.place(self.payloads_at, index, self.payload_len);
        (self.iovecs(index).wrapping_add(HEADER_AT), payload)
    }

    /// The address of part `index` of those with `len` bytes each that begin at `start`.
    fn place(&self, start: usize, index: u32, len: usize) -> *mut u8 {
        let offset = usize::try_from(index).unwrap_or(usize::MAX).saturating_mul(len).saturating_add(start);
        // Indexes are below the depth that the mapping was made for.
        self.mapping.at(offset, len).map_or(std::ptr::null_mut(), NonNull::as_ptr)
    }
}

/// What the ring reports.
#[derive(Debug)]
pub(in crate::fuse::transport) enum Event {
    /// A request is in the entry.
    Request(Entry),
    /// An entry's command failed: it is of no more use.
    Lost(Errno),
    /// Somebody used the waker.
    Woken,
}

/// One thread's ring. Only the thread that has enabled it may use it.
#[derive(Debug)]
pub(in crate::fuse::transport) struct Ring {
    fd: OwnedFd,
    rings: Mapping,
    sqes: Mapping,
    params: Params,
    /// Submissions written and not yet given to the kernel.
    unsubmitted: u32,
    /// Entries that the kernel may write to, each in the slot that its completion will name.
    armed: Vec<Option<Entry>>,
}

impl Ring {
    /// Makes the ring for `entries` entries at a time, and for a waker if there is one.
    ///
    /// # Errors
    ///
    /// What io_uring_setup(2), io_uring_register(2) and mmap(2) answer: EPERM and ENOSYS where it is switched off.
    pub(in crate::fuse::transport) fn new(
        device: BorrowedFd<'_>,
        waker: Option<BorrowedFd<'_>>,
        entries: u32,
    ) -> Result<Self, Errno> {
        // One command for each entry and one poll can be under way.
        let slots = (entries + 1).next_power_of_two();
        let count = usize::try_from(slots).map_err(|_| Errno::NOMEM)?;
        // Twice as many completions as submissions is what the kernel makes.
        let rings = Mapping::new((RING_HEAD_LEN + 2 * count * CQE_LEN).next_multiple_of(PAGE))?;
        let sqes = Mapping::new((count * SQE_LEN).next_multiple_of(PAGE))?;
        let own_memory = SETUP_NO_MMAP | SETUP_NO_SQARRAY;
        let mut params = Params {
            flags: SETUP_SQE128 | SETUP_R_DISABLED | SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN | own_memory,
            ..Params::default()
        };
        params.sq.user_addr = sqes.address();
        params.cq.user_addr = rings.address();
        // If something fails below, the ring goes before its memory.
        let fd = setup(slots, &mut params)?;
        let files: Vec<i32> = [Some(device), waker].iter().flatten().map(|fd| fd.as_raw_fd()).collect();
        register(&fd, REGISTER_FILES, &files)?;
        let armed = (0..entries).map(|_| None).collect();
        Ok(Self { fd, rings, sqes, params, unsubmitted: 0, armed })
    }

    /// Makes the ring the calling thread's.
    pub(in crate::fuse::transport) fn enable(&self) -> Result<(), Errno> {
        register(&self.fd, REGISTER_ENABLE_RINGS, &[])
    }

    /// Offers `entry`, one that was never offered, to the kernel.
    ///
    /// # Errors
    ///
    /// EAGAIN if this ring has as many as it is made for; the entry is then lost.
    pub(in crate::fuse::transport) fn register(&mut self, entry: Entry) -> Result<(), Errno> {
        self.command(entry, CMD_REGISTER, 0)
    }

    /// Sends the answer in `entry` and offers the entry again. What comes next in it comes to this ring.
    ///
    /// # Errors
    ///
    /// As [`Self::register`].
    pub(in crate::fuse::transport) fn commit(&mut self, entry: Entry, commit_id: u64) -> Result<(), Errno> {
        self.command(entry, CMD_COMMIT_AND_FETCH, commit_id)
    }

    /// Returns whether the kernel may still complete an entry.
    pub(in crate::fuse::transport) fn is_armed(&self) -> bool {
        self.armed.iter().any(Option::is_some)
    }

    fn command(&mut self, entry: Entry, command: u32, commit_id: u64) -> Result<(), Errno> {
        let slot = self.armed.iter().position(Option::is_none).ok_or(Errno::AGAIN)?;
        let iovecs = entry.memory.iovecs(entry.index).expose_provenance() as u64;
        let mut sqe = [0_u8; SQE_LEN];
        put(&mut sqe, 0, &[OP_URING_CMD, FLAG_FIXED_FILE]);
        put(&mut sqe, 8, &command.to_ne_bytes());
        put(&mut sqe, 16, &iovecs.to_ne_bytes());
        // The number of iovecs: header and payload.
        put(&mut sqe, 24, &2_u32.to_ne_bytes());
        put(&mut sqe, 32, &(slot as u64).to_ne_bytes());
        put(&mut sqe, 56, &commit_id.to_ne_bytes());
        put(&mut sqe, 64, &entry.memory.queue.to_ne_bytes());
        self.push(&sqe)?;
        if let Some(place) = self.armed.get_mut(slot) {
            *place = Some(entry);
        }
        Ok(())
    }

    /// Asks for an [`Event::Woken`] when the waker is next used.
    pub(in crate::fuse::transport) fn watch_waker(&mut self) -> Result<(), Errno> {
        let mut sqe = [0_u8; SQE_LEN];
        put(&mut sqe, 0, &[OP_POLL_ADD, FLAG_FIXED_FILE]);
        // The waker is the second fixed file.
        put(&mut sqe, 4, &1_u32.to_ne_bytes());
        put(&mut sqe, 28, &POLL_IN.to_ne_bytes());
        put(&mut sqe, 32, &WAKER.to_ne_bytes());
        self.push(&sqe)
    }

    fn push(&mut self, sqe: &[u8; SQE_LEN]) -> Result<(), Errno> {
        let offsets = self.params.sq;
        let tail_word = self.word(offsets.tail).ok_or(Errno::IO)?;
        let tail = tail_word.load(Ordering::Relaxed);
        let head = self.word(offsets.head).ok_or(Errno::IO)?.load(Ordering::Acquire);
        if tail.wrapping_sub(head) >= self.params.sq_entries {
            return Err(Errno::AGAIN);
        }
        let slot = tail & (self.params.sq_entries - 1);
        let offset = usize::try_from(slot).map_err(|_| Errno::IO)?;
        let place = self.sqes.at(offset * SQE_LEN, SQE_LEN).ok_or(Errno::IO)?;
        // JUSTIFICATION: the submission queue is memory shared with the kernel.
        // SAFETY: `place` has 128 bytes in the mapping, and the kernel does not read a slot beyond the tail.
        unsafe { std::ptr::copy_nonoverlapping(sqe.as_ptr(), place.as_ptr(), SQE_LEN) };
        // Release: the kernel sees the slot before the tail.
        tail_word.store(tail.wrapping_add(1), Ordering::Release);
        self.unsubmitted += 1;
        Ok(())
    }

    /// Gives the kernel what was written and waits for at least one event.
    pub(in crate::fuse::transport) fn submit_and_wait(&mut self) -> Result<(), Errno> {
        // JUSTIFICATION: there is no wrapper for io_uring_enter(2).
        // SAFETY: no pointer is passed; the entries' memory is mapped as long as the ring.
        let done = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.fd.as_raw_fd(),
                self.unsubmitted,
                1_u32,
                ENTER_GETEVENTS,
                std::ptr::null::<c_void>(),
                0_usize,
            )
        };
        match u32::try_from(done) {
            Ok(submitted) => self.unsubmitted = self.unsubmitted.saturating_sub(submitted),
            Err(_) => return Err(last_errno()),
        }
        Ok(())
    }

    /// Takes the next event, if there is one.
    pub(in crate::fuse::transport) fn next(&mut self) -> Option<Event> {
        let offsets = self.params.cq;
        let head_word = self.word(offsets.head)?;
        let head = head_word.load(Ordering::Relaxed);
        // Acquire: the event is seen after the tail.
        if head == self.word(offsets.tail)?.load(Ordering::Acquire) {
            return None;
        }
        let slot = usize::try_from(head & (self.params.cq_entries - 1)).ok()?;
        let start = usize::try_from(offsets.sixth).ok()? + slot * CQE_LEN;
        let place = self.rings.at(start, CQE_LEN)?;
        // JUSTIFICATION: the completion queue is memory shared with the kernel.
        // SAFETY: 16 bytes in the mapping, 8-aligned; the kernel does not write a slot between head and tail.
        let [user_data, result] = unsafe { place.cast::<[u64; 2]>().read() };
        head_word.store(head.wrapping_add(1), Ordering::Release);
        Some(self.event(user_data, result))
    }

    fn event(&mut self, user_data: u64, result: u64) -> Event {
        if user_data == WAKER {
            return Event::Woken;
        }
        let entry = usize::try_from(user_data).ok().and_then(|slot| self.armed.get_mut(slot)?.take());
        // The result is the first half of the second word; its flags are the other.
        let [a, b, c, d, ..] = result.to_ne_bytes();
        let result = i32::from_ne_bytes([a, b, c, d]);
        match entry {
            Some(entry) if result >= 0 => Event::Request(entry),
            _ => Event::Lost(Errno::from_raw_os_error(result.saturating_neg().max(1))),
        }
    }

    /// Returns the 32-bit word at `offset` of the rings.
    fn word(&self, offset: u32) -> Option<&AtomicU32> {
        let place = self.rings.at(usize::try_from(offset).ok()?, size_of::<u32>())?;
        // JUSTIFICATION: heads and tails are words shared with the kernel.
        // SAFETY: the word is in the mapping, which lives as long as `self`; the kernel's offsets are 4-aligned;
        // both sides access it atomically.
        Some(unsafe { AtomicU32::from_ptr(place.cast::<u32>().as_ptr()) })
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel gives armed entries up some time after the ring is closed, not at once. Memory that it may
        // still write to must not be given to anybody else.
        self.armed.drain(..).flatten().for_each(std::mem::forget);
    }
}

fn put(sqe: &mut [u8; SQE_LEN], at: usize, bytes: &[u8]) {
    if let Some(place) = sqe.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn setup(entries: u32, params: &mut Params) -> Result<OwnedFd, Errno> {
    // JUSTIFICATION: there is no wrapper for io_uring_setup(2).
    // SAFETY: the kernel reads and writes the 120 bytes of `params`, which has its layout, and holds the pages of the
    // memory named in it for as long as the ring is there.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, &raw mut *params) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(last_errno)?;
    // JUSTIFICATION: a system call gives a number.
    // SAFETY: the descriptor is new and owned by nobody else; the kernel made it close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Changes a ring. `files` are the descriptors that the change is about.
fn register(ring: &OwnedFd, what: u32, files: &[i32]) -> Result<(), Errno> {
    // ENABLE_RINGS takes no pointer, not even to nothing.
    let first = if files.is_empty() { std::ptr::null() } else { files.as_ptr() };
    // JUSTIFICATION: there is no wrapper for io_uring_register(2).
    // SAFETY: the kernel reads as many descriptors as are told from `files`, and takes its own references.
    let result =
        unsafe { libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), what, first, files.len()) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}
