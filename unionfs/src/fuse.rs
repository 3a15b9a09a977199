//! The union as a FUSE file system: each operation decodes its request, calls [`Union`], and replies.
//!
//! Nothing is decided here that concerns layers. What is decided is what the kernel may remember, and it may
//! remember nearly everything: every change passes through the mount.
//!
//! fuser knows one number where the protocol has two: the node number of an answer is its `attr.ino`. So the shown
//! inode number is the node number here; the union makes the two equal wherever it can.

pub mod auto_unmount;
pub(crate) mod beneath;
pub mod control;
pub mod convert;
mod counters;
pub mod daemon;
pub mod handler;
pub mod mount;
mod operations;
pub mod read_ahead;
pub mod session;
mod sys;
mod tell;
mod transport;
pub mod wire;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    FopenFlags, Generation, INodeNo, InitFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};

use self::convert::file_attr;
pub use self::counters::{Counted, Counters};
use crate::error::{Errno, Result};
use crate::options::MountOptions;
use crate::request::{Attr, Entry, NodeId, Opened};
use crate::sys::process::in_user_namespace;
use crate::union::Union;

/// Node numbers are never given to another object while the kernel remembers them.
const GENERATION: Generation = Generation(0);

/// Requests that the kernel may have under way in the background, such as read-ahead. Its own default of 12 keeps
/// few of several threads busy.
const MAX_BACKGROUND: u16 = 64;

/// Background requests above which the kernel stops reading ahead.
const CONGESTION_THRESHOLD: u16 = 48;

/// What the kernel is asked for, where it offers it. Not among it: `POSIX_LOCKS` and `FLOCK_LOCKS`, because locks
/// that the kernel keeps itself are right for a single mount and cost no request; nor `ASYNC_DIO`, which leaves old pages.
const CAPABILITIES: InitFlags = InitFlags::FUSE_DO_READDIRPLUS
    .union(InitFlags::FUSE_READDIRPLUS_AUTO)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_ATOMIC_O_TRUNC)
    .union(InitFlags::FUSE_ASYNC_READ)
    .union(InitFlags::FUSE_BIG_WRITES)
    .union(InitFlags::FUSE_DONT_MASK)
    .union(InitFlags::FUSE_NO_EXPORT_SUPPORT)
    // Without it each write(2) asks for security.capability first: a round trip for every write.
    .union(InitFlags::FUSE_HANDLE_KILLPRIV_V2);

/// What the kernel may remember because nothing changes behind its back; left out when `timeout=0`.
const CACHING_CAPABILITIES: InitFlags =
    InitFlags::FUSE_CACHE_SYMLINKS.union(InitFlags::FUSE_EXPLICIT_INVAL_DATA);

/// Translates between fuser and [`Union`].
#[derive(Debug)]
pub struct FuseAdapter {
    union: Arc<Union>,
    counters: Arc<Counters>,
    /// Lifetime of what the kernel remembers; zero is nothing.
    ttl: Duration,
    capabilities: InitFlags,
    max_write: u32,
    syncs: bool,
    xattrs: bool,
    /// No caller has rights of the host.
    in_user_namespace: bool,
}

impl FuseAdapter {
    /// Makes the adapter for a mount with `options`.
    pub fn new(union: Arc<Union>, options: &MountOptions) -> Self {
        let ttl = Duration::try_from_secs_f64(options.timeout).unwrap_or(Duration::MAX);
        let mut capabilities = CAPABILITIES;
        capabilities.set(CACHING_CAPABILITIES, !ttl.is_zero());
        capabilities.set(InitFlags::FUSE_POSIX_ACL, !options.noacl && !options.noxattrs);
        capabilities.set(InitFlags::FUSE_WRITEBACK_CACHE, options.writeback && !options.is_read_only());
        Self {
            union,
            counters: Arc::default(),
            ttl,
            capabilities,
            max_write: options.max_write,
            syncs: options.fsync.syncs(),
            xattrs: !options.noxattrs,
            in_user_namespace: in_user_namespace(),
        }
    }

    /// Returns the counters, which stay readable while the adapter serves.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Runs `work` and lets no panic out: one broken request must not end the mount of a running container. An
    /// unexpected error is logged here, and only here.
    fn guarded<T>(
        &self,
        op: &'static str,
        ino: INodeNo,
        work: impl FnOnce(&Union) -> Result<T>,
    ) -> std::result::Result<T, fuser::Errno> {
        let _span = tracing::debug_span!("request", op, ino = ino.0).entered();
        let timed = self.counters.begin(wire::Opcode::named(op).map_or(0, wire::Opcode::number));
        let answer = catch_unwind(AssertUnwindSafe(|| work(&self.union)));
        self.counters.end(timed);
        let error = match answer {
            Ok(Ok(answer)) => {
                tracing::debug!("done");
                return Ok(answer);
            }
            Ok(Err(error)) => error,
            Err(panic) => {
                tracing::error!("{op} of node {}: internal error: {}", ino.0, panic_text(&*panic));
                Errno::IO.into()
            }
        };
        if convert::is_unexpected(error.errno()) {
            self.counters.fail();
            tracing::error!("{op} of node {}: {error}", ino.0);
        } else {
            tracing::debug!("{error}");
        }
        Err(convert::errno(error.errno()))
    }

    /// Runs `work` and replies: with `send` what it gave, else its error number.
    fn answer<R: Refuse, T>(
        &self,
        (op, ino): (&'static str, INodeNo),
        reply: R,
        work: impl FnOnce(&Union) -> Result<T>,
        send: impl FnOnce(R, T),
    ) {
        match self.guarded(op, ino, work) {
            Ok(answer) => send(reply, answer),
            Err(errno) => reply.refuse(errno),
        }
    }

    fn send_entry(&self, reply: ReplyEntry, entry: &Entry) {
        let attr = file_attr(entry.node, &entry.attr);
        reply.entry_with_ttls(&self.attr_ttl(&entry.attr), &self.ttl, &attr, GENERATION);
    }

    fn send_attr(&self, reply: ReplyAttr, node: NodeId, attr: &Attr) {
        reply.attr(&self.attr_ttl(attr), &file_attr(node, attr));
    }

    /// Returns how long attributes may be used. Those with set-id bits not at all: a write or truncation takes the
    /// bits away without telling the kernel so, and it would go on executing the file with them.
    fn attr_ttl(&self, attr: &Attr) -> Duration {
        if convert::may_lose_set_id(attr) { Duration::ZERO } else { self.ttl }
    }

    /// Returns the flags of an answer to open and create.
    fn open_flags(&self, opened: &Opened) -> FopenFlags {
        if opened.keep_cache && !self.ttl.is_zero() {
            FopenFlags::FOPEN_KEEP_CACHE
        } else {
            FopenFlags::empty()
        }
    }
}

/// Returns what a panic said.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// A reply that can be an error.
trait Refuse {
    /// Replies with an error.
    fn refuse(self, errno: fuser::Errno);
}

macro_rules! refuse {
    ($($reply:ty),+) => { $(impl Refuse for $reply {
        fn refuse(self, errno: fuser::Errno) {
            self.error(errno);
        }
    })+ };
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyEmpty,
    ReplyEntry,
    ReplyIoctl,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);
