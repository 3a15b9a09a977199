//! What each request of the kernel means to the union, whichever way it came.
//!
//! One function answers for every transport of this crate: it calls [`Union`] and writes the answer into the
//! transport's buffer. It decides which errno a caller sees where the union is not asked, and lets no panic out.

mod backing;
mod prime;
mod profile;
mod snapshots;
#[cfg(test)]
mod tests;
mod weight;

use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

pub use self::backing::Register;
use self::backing::{Backings, Way, meant, told};
use self::prime::Primer;
pub use self::profile::{Config, Negotiation, Opens};
use self::snapshots::{Sink, Snapshots};
pub use self::weight::waits_for_disk;
use super::Counters;
use super::control::MountId;
use super::convert::{is_unexpected, may_lose_set_id};
use super::wire::flags::{self, OpenReply, SetattrValid};
use super::wire::reply::{self, DirWriter, Ttl, Ttls};
use super::wire::{CopyIn, Header, Request, SetattrIn};
use crate::error::{Errno, Result};
use crate::request::{Caller, Fh, NodeId, Opened, RenameMode, SetAttr, SetTime, Timestamp};
use crate::union::Union;

/// The longest copy that COPY_FILE_RANGE can tell: 32 bits, whole pages.
const MAX_COPY: u64 = 0xffff_f000;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The answer is this many bytes of the reply buffer.
    Reply(usize),
    /// The answer is an error.
    Error(Errno),
    /// The kernel expects no answer.
    Silence,
}

/// Answers the requests of one mount.
#[derive(Debug)]
pub struct Handler {
    union: Arc<Union>,
    counters: Arc<Counters>,
    config: Config,
    /// Of directories that are read without being opened.
    snapshots: Snapshots,
    /// Files that the kernel reads and writes itself.
    backings: Option<Backings>,
    /// What the kernel is to open first, where OPEN is not served.
    primer: Option<Primer>,
}

impl Handler {
    /// Makes the handler for a connection that was negotiated to `config`.
    pub fn new(
        union: Arc<Union>,
        counters: Arc<Counters>,
        config: Config,
        register: impl Register + 'static,
    ) -> Self {
        let backings = config.passthrough.then(|| Backings::new(Box::new(register)));
        let primer = (config.opens == Opens::Unserved).then(Primer::default);
        Self { union, counters, config, snapshots: Snapshots::default(), backings, primer }
    }

    /// Returns what was negotiated.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Learns where the mount is: there the kernel is taught to ask for no opening, where it need not ask.
    pub fn mounted_on(&self, target: &Path, mount: MountId) {
        if let Some(primer) = &self.primer {
            primer.mounted_on(target, mount);
        }
    }

    /// Returns whether the answer to this request waits for requests that others have to answer.
    pub fn waits_for_others(&self, request: &Request<'_>) -> bool {
        matches!(request, Request::Flush { .. }) && self.primer.as_ref().is_some_and(Primer::is_pending)
    }

    /// Rotates the upper, as [`Union::rotate`].
    ///
    /// # Errors
    /// Also EBUSY while the kernel reads and writes files of the present upper itself.
    pub fn rotate(&self, upper: &Path, work: &Path) -> Result<()> {
        match &self.backings {
            Some(backings) => backings.exchange(|| self.union.rotate(upper, work)),
            None => self.union.rotate(upper, work),
        }
    }

    /// Flushes the union: no request comes any more.
    pub fn finish(&self) {
        self.snapshots.clear();
        self.union.destroy();
    }

    /// Answers one request. A panic in the union is EIO for its caller: one broken request must not end the mount of
    /// a running container.
    pub fn dispatch(&self, header: &Header, request: &Request<'_>, out: &mut [u8]) -> Outcome {
        self.guard(header, request, || self.answer(header, request, out))
    }

    /// As [`Handler::dispatch`]; but of a READ whose data are all in one file, `take` may take them: it is called with the
    /// file, the offset and the length of the answer, and returns whether the answer is not to be put into `out`.
    pub fn dispatch_lending(
        &self,
        header: &Header,
        request: &Request<'_>,
        out: &mut [u8],
        take: impl FnOnce(BorrowedFd<'_>, u64, usize) -> bool,
    ) -> Outcome {
        self.guard(header, request, || {
            if let Request::Read { offset, size, .. } = *request {
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                let taken = self
                    .union
                    .lend_data(header.node, offset, size, |file, len| take(file, offset, len).then_some(len));
                if let Some(len) = taken {
                    return Ok(Outcome::Reply(len));
                }
            }
            self.answer(header, request, out)
        })
    }

    fn guard(
        &self,
        header: &Header,
        request: &Request<'_>,
        answer: impl FnOnce() -> Result<Outcome>,
    ) -> Outcome {
        let timed = self.counters.begin(header.opcode);
        let answer = catch_unwind(AssertUnwindSafe(answer));
        self.counters.end(timed);
        let error = match answer {
            Ok(Ok(outcome)) => return outcome,
            Ok(Err(error)) => error,
            Err(_panic) => Errno::IO.into(),
        };
        if is_unexpected(error.errno()) {
            self.counters.fail();
            tracing::error!("request {} of node {}: {error}", header.opcode, header.node.0);
        } else {
            tracing::debug!(opcode = header.opcode, ino = header.node.0, "{error}");
        }
        match request {
            Request::Forget { .. } | Request::BatchForget { .. } => Outcome::Silence,
            _ => Outcome::Error(error.errno()),
        }
    }

    fn answer(&self, header: &Header, request: &Request<'_>, out: &mut [u8]) -> Result<Outcome> {
        let node = header.node;
        match *request {
            Request::Lookup { name } => self.lookup(node, name, out),
            Request::Getattr { fh } => {
                let attr = self.union.getattr(node, self.handle(fh))?;
                fitted(reply::attributes(out, &attr, &self.config.ttls))
            }
            Request::Statx { fh, .. } => {
                let attr = self.union.getattr(node, self.handle(fh))?;
                fitted(reply::statx(out, &attr, &self.config.ttls))
            }
            Request::Setattr(ref change) => {
                let attr = self.union.setattr(&caller(header, 0), node, &self.change(change))?;
                if let Some(backings) = self.backings.as_ref().filter(|_| may_lose_set_id(&attr)) {
                    backings.reconsider(node);
                }
                fitted(reply::attributes(out, &attr, &self.config.ttls))
            }
            Request::Readlink => fitted(reply::bytes(out, &self.union.readlink(node)?)),
            Request::Statfs => fitted(reply::statfs(out, &self.union.statfs()?)),
            Request::Forget { nlookup } => {
                self.forget(node, nlookup);
                Ok(Outcome::Silence)
            }
            Request::BatchForget { list } => {
                for (node, nlookup) in list.iter() {
                    self.forget(node, nlookup);
                }
                Ok(Outcome::Silence)
            }
            // Interrupts are not acted on: no operation waits for another process. The kernel stops sending them
            // when the first is answered; and a reply to a retrieve that nobody asked for has no answer.
            Request::Interrupt { .. } | Request::NotifyReply { .. } => Ok(Outcome::Silence),
            Request::Open { .. }
            | Request::Create { .. }
            | Request::Tmpfile { .. }
            | Request::Read { .. }
            | Request::Write { .. }
            | Request::Flush { .. }
            | Request::Release { .. }
            | Request::Fsync { .. }
            | Request::Fallocate { .. }
            | Request::Lseek { .. }
            | Request::CopyFileRange(_)
            | Request::CopyFileRange64(_) => self.file(header, request, out),
            Request::Opendir { .. }
            | Request::Readdir { .. }
            | Request::Readdirplus { .. }
            | Request::Releasedir { .. }
            | Request::Fsyncdir { .. } => self.directory(node, request, out),
            Request::Setxattr { .. }
            | Request::Getxattr { .. }
            | Request::Listxattr { .. }
            | Request::Removexattr { .. } => self.xattr(header, request, out),
            Request::Symlink { .. }
            | Request::Mknod { .. }
            | Request::Mkdir { .. }
            | Request::Unlink { .. }
            | Request::Rmdir { .. }
            | Request::Rename { .. }
            | Request::Link { .. } => self.names(header, request, out),
            Request::Ioctl { cmd, data, out_size, .. } => self.ioctl(node, cmd, data, out_size, out),
            ref rest => self.unserved(rest),
        }
    }

    fn ioctl(&self, node: NodeId, cmd: u32, data: &[u8], size: u32, out: &mut [u8]) -> Result<Outcome> {
        let mut answer = self.union.ioctl(node, cmd, data)?;
        answer.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        fitted(reply::ioctl(out, &answer))
    }

    /// Answers what no layer is asked about.
    fn unserved(&self, request: &Request<'_>) -> Result<Outcome> {
        match request {
            // Sent by virtiofs only. One connection is one union: everything is flushed where its file is.
            Request::Syncfs | Request::Destroy => Ok(Outcome::Reply(0)),
            // The kernel remembers ENOSYS and does itself what it asked for: it checks permissions by mode, keeps
            // locks, takes files for always ready, and has no block map. For requests of newer kernels it falls back.
            Request::Access { .. }
            | Request::Getlk(_)
            | Request::Setlk { .. }
            | Request::Poll { .. }
            | Request::Bmap { .. }
            | Request::Setupmapping
            | Request::Removemapping
            | Request::Unknown => Err(Errno::NOSYS.into()),
            // A second INIT; nothing else reaches this.
            _ => Err(Errno::IO.into()),
        }
    }

    fn lookup(&self, parent: NodeId, name: &[u8], out: &mut [u8]) -> Result<Outcome> {
        if let Some(entry) = self.primer.as_ref().and_then(|primer| primer.find(parent, name)) {
            return fitted(reply::entry(out, &entry, &Ttls { entry: Ttl::ZERO, ..self.config.ttls }));
        }
        match self.union.lookup(parent, name) {
            Ok(entry) => fitted(reply::entry(out, &entry, &self.config.ttls)),
            // An entry without a node is a negative one: the kernel remembers that there is nothing.
            Err(error) if error.is(Errno::NOENT) && !self.config.ttls.negative.is_zero() => {
                fitted(reply::negative_entry(out, &self.config.ttls))
            }
            Err(error) => Err(error),
        }
    }

    /// Creations, removals and moves.
    fn names(&self, header: &Header, request: &Request<'_>, out: &mut [u8]) -> Result<Outcome> {
        let parent = header.node;
        let entry = match *request {
            Request::Symlink { name, target } => {
                self.union.symlink(&caller(header, 0), parent, name, target)?
            }
            Request::Mknod { name, mode, rdev, umask } => {
                let caller = caller(header, self.umask(umask));
                self.union.mknod(&caller, parent, name, mode, reply::decode_rdev(rdev))?
            }
            Request::Mkdir { name, mode, umask } => {
                self.union.mkdir(&caller(header, self.umask(umask)), parent, name, mode)?
            }
            Request::Link { node, name } => self.union.link(node, parent, name)?,
            Request::Unlink { name } => return done(self.union.unlink(parent, name)),
            Request::Rmdir { name } => return done(self.union.rmdir(parent, name)),
            Request::Rename { name, new_parent, new_name, flags } => {
                return done(self.union.rename(parent, name, new_parent, new_name, rename_mode(flags)?));
            }
            _ => return Err(Errno::IO.into()),
        };
        fitted(reply::entry(out, &entry, &self.config.ttls))
    }

    fn file(&self, header: &Header, request: &Request<'_>, out: &mut [u8]) -> Result<Outcome> {
        let node = header.node;
        match *request {
            Request::Open { .. } if self.config.opens == Opens::Unserved => {
                if let Some(primer) = &self.primer {
                    primer.asked();
                }
                Err(Errno::NOSYS.into())
            }
            Request::Open { flags, open_flags } => {
                let kill = open_flags & flags::OPEN_KILL_SUIDGID != 0;
                let opened = self.union.open_file(&caller(header, 0), node, flags, kill)?;
                let (fh, flags, backing) = self.open_reply(node, &opened);
                fitted(reply::open(out, fh, flags, backing))
            }
            Request::Create { .. } | Request::Tmpfile { .. } => self.create(header, request, out),
            Request::Read { fh, offset, size, .. } => {
                let size = usize::try_from(size).unwrap_or(usize::MAX).min(out.len());
                let buffer = out.get_mut(..size).unwrap_or_default();
                Ok(Outcome::Reply(self.union.read(node, self.handle(Some(fh)), offset, buffer)?))
            }
            Request::Write { fh, offset, data, write_flags, .. } => {
                // With WRITE_CACHE the handle is one of those open for writing; which one makes no difference.
                let kill = write_flags & flags::WRITE_KILL_SUIDGID != 0;
                let written = self.union.write(node, self.handle(Some(fh)), offset, data, kill)?;
                fitted(reply::written(out, u32::try_from(written).map_err(|_| Errno::IO)?))
            }
            Request::Flush { .. } if !self.config.flush => {
                if let Some(primer) = &self.primer {
                    primer.open();
                }
                Err(Errno::NOSYS.into())
            }
            Request::Flush { fh, .. } => done(self.union.flush(node, self.handle(Some(fh)))),
            Request::Release { fh, .. } => {
                if let Some(backings) = &self.backings {
                    backings.released(node, fh);
                }
                if let Some(fh) = self.handle(Some(fh)) {
                    self.union.release(fh);
                }
                Ok(Outcome::Reply(0))
            }
            Request::Fsync { .. } if !self.config.syncs => Err(Errno::NOSYS.into()),
            Request::Fsync { fh, fsync_flags } => {
                let datasync = fsync_flags & flags::FSYNC_DATASYNC != 0;
                done(self.union.fsync(node, self.handle(Some(fh)), datasync))
            }
            Request::Fallocate { fh, offset, length, mode } => {
                done(self.union.fallocate(node, self.handle(Some(fh)), offset, length, mode))
            }
            Request::Lseek { fh, offset, whence } => {
                // Only SEEK_DATA and SEEK_HOLE arrive, which answer ENXIO for what is not in the file.
                i64::try_from(offset).map_err(|_| Errno::NXIO)?;
                fitted(reply::number(out, self.union.lseek(node, self.handle(Some(fh)), offset, whence)?))
            }
            Request::CopyFileRange(ref copy) => {
                let copied = self.copy(node, copy, copy.len.min(MAX_COPY))?;
                fitted(reply::written(out, u32::try_from(copied).map_err(|_| Errno::IO)?))
            }
            Request::CopyFileRange64(ref copy) => {
                fitted(reply::number(out, self.copy(node, copy, copy.len)?))
            }
            _ => Err(Errno::IO.into()),
        }
    }

    fn create(&self, header: &Header, request: &Request<'_>, out: &mut [u8]) -> Result<Outcome> {
        let (entry, opened) = match *request {
            Request::Create { name, flags, mode, umask, .. } => {
                let caller = caller(header, self.umask(umask));
                self.union.create(&caller, header.node, name, mode, flags)?
            }
            Request::Tmpfile { flags, mode, umask, .. } => {
                let caller = caller(header, self.umask(umask));
                self.union.tmpfile(&caller, header.node, mode, flags)?
            }
            _ => return Err(Errno::IO.into()),
        };
        let (fh, mut flags, backing) = self.open_reply(entry.node, &opened);
        if self.primer.as_ref().is_some_and(Primer::is_pending) {
            flags.remove(OpenReply::NOFLUSH);
        }
        if self.config.opens == Opens::Unserved {
            // No RELEASE may tell when the file closes, so nothing stays open in its name for ever.
            self.union.park(opened.fh);
            return fitted(reply::create(out, &entry, &self.config.ttls, Fh(0), flags, 0));
        }
        fitted(reply::create(out, &entry, &self.config.ttls, fh, flags, backing))
    }

    fn copy(&self, source: NodeId, copy: &CopyIn, len: u64) -> Result<u64> {
        if copy.flags != 0 {
            return Err(Errno::INVAL.into());
        }
        let from = (source, self.handle(Some(copy.fh_in)), copy.off_in);
        let to = (copy.node_out, self.handle(Some(copy.fh_out)), copy.off_out);
        self.union.copy_file_range(from, to, len)
    }

    fn directory(&self, node: NodeId, request: &Request<'_>, out: &mut [u8]) -> Result<Outcome> {
        match *request {
            Request::Opendir { .. } if self.config.opendirs == Opens::Unserved => Err(Errno::NOSYS.into()),
            Request::Opendir { .. } => {
                let caching = OpenReply::CACHE_DIR | OpenReply::KEEP_CACHE;
                let flags = if self.config.caches() { caching } else { OpenReply::empty() };
                fitted(reply::open(out, self.union.opendir(node)?, flags, 0))
            }
            Request::Readdir { fh, offset, size } => {
                let mut dir = DirWriter::new(out, size);
                self.list(node, fh, offset, false, &mut |name, _| more(dir.push(&name)))?;
                Ok(Outcome::Reply(dir.len()))
            }
            Request::Readdirplus { fh, offset, size } => {
                let mut dir = DirWriter::new(out, size);
                let ttls = &self.config.ttls;
                self.list(node, fh, offset, true, &mut |name, entry| {
                    more(dir.push_plus(&name, entry.as_ref(), ttls))
                })?;
                Ok(Outcome::Reply(dir.len()))
            }
            Request::Releasedir { .. } if self.config.opendirs == Opens::Unserved => Ok(Outcome::Reply(0)),
            Request::Releasedir { fh } => {
                self.union.releasedir(fh);
                Ok(Outcome::Reply(0))
            }
            Request::Fsyncdir { .. } if !self.config.syncs => Err(Errno::NOSYS.into()),
            Request::Fsyncdir { fsync_flags, .. } => {
                done(self.union.fsyncdir(node, fsync_flags & flags::FSYNC_DATASYNC != 0))
            }
            _ => Err(Errno::IO.into()),
        }
    }

    fn list(&self, node: NodeId, fh: Fh, offset: u64, plus: bool, sink: &mut Sink<'_>) -> Result<()> {
        match (self.config.opendirs, plus) {
            (Opens::Unserved, plus) => self.snapshots.read(&self.union, node, offset, plus, sink),
            (Opens::Served, true) => self.union.readdirplus(node, fh, offset, sink),
            (Opens::Served, false) => self.union.readdir(node, fh, offset, &mut |name| sink(name, None)),
        }
    }

    fn xattr(&self, header: &Header, request: &Request<'_>, out: &mut [u8]) -> Result<Outcome> {
        let node = header.node;
        if !self.config.xattrs {
            // The kernel stops asking and tells programs ENOTSUP.
            return Err(Errno::NOSYS.into());
        }
        match *request {
            Request::Setxattr { name, value, flags, setxattr_flags } => {
                self.union.setxattr(node, name, value, flags)?;
                if setxattr_flags & flags::SETXATTR_ACL_KILL_SGID != 0 {
                    self.drop_setgid(header)?;
                }
                Ok(Outcome::Reply(0))
            }
            Request::Getxattr { name, size } => sized(out, size, &self.union.getxattr(node, name)?),
            Request::Listxattr { size } => sized(out, size, &self.union.listxattr(node)?),
            Request::Removexattr { name } => done(self.union.removexattr(node, name)),
            _ => Err(Errno::IO.into()),
        }
    }

    /// Removes the set-group-id bit: the caller changed the access ACL of a file of a group that it is not in.
    fn drop_setgid(&self, header: &Header) -> Result<()> {
        let attr = self.union.getattr(header.node, None)?;
        if attr.perm & libc::S_ISGID != 0 {
            let change = SetAttr { mode: Some(attr.perm & !libc::S_ISGID), ..SetAttr::default() };
            self.union.setattr(&caller(header, 0), header.node, &change)?;
        }
        Ok(())
    }

    fn change(&self, change: &SetattrIn) -> SetAttr {
        let has = |field| change.valid.contains(field);
        let time = |set, now, time: Timestamp| {
            has(set).then_some(if has(now) { SetTime::Now } else { SetTime::At(time) })
        };
        SetAttr {
            mode: has(SetattrValid::MODE).then_some(change.mode & 0o7777),
            uid: has(SetattrValid::UID).then_some(change.uid),
            gid: has(SetattrValid::GID).then_some(change.gid),
            size: has(SetattrValid::SIZE).then_some(change.size),
            atime: time(SetattrValid::ATIME, SetattrValid::ATIME_NOW, change.atime),
            mtime: time(SetattrValid::MTIME, SetattrValid::MTIME_NOW, change.mtime),
            through_file: has(SetattrValid::FH),
            kill_suidgid: has(SetattrValid::KILL_SUIDGID),
        }
    }

    /// Returns the handle that counts: where OPEN is not served, there are none.
    fn handle(&self, fh: Option<Fh>) -> Option<Fh> {
        match self.config.opens {
            Opens::Served => fh.map(meant),
            Opens::Unserved => None,
        }
    }

    /// Returns the umask that is left to apply.
    const fn umask(&self, umask: u32) -> u32 {
        if self.config.dont_mask { umask } else { 0 }
    }

    /// Returns what the kernel is told about an opened file: handle, flags, number of the backing file.
    fn open_reply(&self, node: NodeId, opened: &Opened) -> (Fh, OpenReply, u32) {
        let way = match &self.backings {
            Some(backings) => backings.opened(&self.union, node),
            None => Way::Cached { keep: true },
        };
        let mut flags = OpenReply::empty();
        flags.set(OpenReply::NOFLUSH, !self.config.flush);
        let backing = match way {
            Way::Cached { keep } => {
                flags.set(OpenReply::KEEP_CACHE, keep && opened.keep_cache && self.config.caches());
                0
            }
            Way::Backing(id) => {
                flags |= OpenReply::PASSTHROUGH;
                id
            }
        };
        (told(opened.fh, way), flags, backing)
    }

    fn forget(&self, node: NodeId, nlookup: u64) {
        if let Some(backings) = &self.backings {
            backings.forget(node);
        }
        for gone in self.union.forget(node, nlookup) {
            self.snapshots.lose(gone);
        }
    }
}

/// Returns who asks.
const fn caller(header: &Header, umask: u32) -> Caller {
    Caller { uid: header.uid, gid: header.gid, pid: header.pid, umask }
}

/// Returns the answer of an encoder. That it does not fit is the transport's mistake and EIO for the caller.
fn fitted(len: Option<usize>) -> Result<Outcome> {
    Ok(Outcome::Reply(len.ok_or(Errno::IO)?))
}

/// Returns the answer without content.
fn done(result: Result<()>) -> Result<Outcome> {
    result.map(|()| Outcome::Reply(0))
}

/// Answers by the size rules of getxattr(2) and listxattr(2): size 0 asks for the size.
fn sized(out: &mut [u8], size: u32, value: &[u8]) -> Result<Outcome> {
    let len = u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?;
    match size {
        0 => fitted(reply::xattr_size(out, len)),
        size if len <= size => fitted(reply::bytes(out, value)),
        _ => Err(Errno::RANGE.into()),
    }
}

/// Turns "it fitted" into the word of a listing.
const fn more(fitted: bool) -> ControlFlow<()> {
    if fitted { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

/// Returns what a rename may do: EINVAL for `RENAME_WHITEOUT`, because a program must not be able to make a whiteout,
/// and for combinations.
fn rename_mode(flags: u32) -> Result<RenameMode> {
    match flags {
        0 => Ok(RenameMode::Replace),
        libc::RENAME_NOREPLACE => Ok(RenameMode::NoReplace),
        libc::RENAME_EXCHANGE => Ok(RenameMode::Exchange),
        _ => Err(Errno::INVAL.into()),
    }
}
