//! The life of the serving process: it leaves its caller once the mount is usable, ends when it is told to, and
//! takes the mount with it.
//!
//! The process forks when the layers are open, the mount is made, and the kernel's first request is read and understood; and
//! before any thread starts. By then all is told that whoever mounts can do something about, so the parent leaves at once, and
//! who uses the mount waits for the child: to sleep and be woken takes longer than to open the layers. Only where what is
//! asked for may still be refused, io_uring, does it wait until the child serves, and leaves with the child's status when that
//! ends before. Callers that read a pipe to its end are let go because the child soon holds no descriptor of theirs.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;

use super::control::{Control, Live, MountId, mount_at};
use super::mount::{Busy, unmount};
use super::session::Server;
use super::{read_ahead, sys};
use crate::error::{Errno, Error, Result};
use crate::options::MountOptions;
use crate::union::Union;

/// Signals that end the mount.
const STOP_SIGNALS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// How long programs that still use a mount may go on after the server was told to end.
const GRACE: Duration = Duration::from_secs(2);

/// What the child sends when it serves.
const SERVES: u8 = b'1';

/// A mount that this process has made.
#[derive(Clone, Debug)]
pub struct Mounted {
    target: PathBuf,
    /// None if it cannot be told.
    number: Option<MountId>,
}

impl Mounted {
    /// Looks at the mount on `target`, an absolute path.
    pub fn on(target: PathBuf) -> Self {
        let number = mount_at(&target).inspect_err(|error| tracing::info!("control: none: {error}")).ok();
        Self { target, number }
    }

    /// Returns where it is.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Has the kernel read further ahead in its files, if this process may.
    fn read_further_ahead(&self) {
        // The number goes with the mount: one that was unmounted in this moment would leave it to another.
        let Some(number) =
            self.number.filter(|number| mount_at(&self.target).is_ok_and(|now| now == *number))
        else {
            return;
        };
        if let Err(error) = read_ahead::raise(number) {
            tracing::debug!("the kernel's read-ahead stays as it is: {error}");
        }
    }

    /// Takes it away, whoever still uses it.
    pub fn take_away(&self) {
        // The caller may have gone on, unmounted it, and mounted something else there.
        if self.number.is_some() && mount_at(&self.target).ok() != self.number {
            return;
        }
        if let Err(error) = unmount(&self.target, Busy::Detached) {
            tracing::debug!("{error}");
        }
    }
}

/// What is made for a mount before anybody uses it.
#[derive(Debug)]
pub struct Prepared {
    /// Unknown if somebody else has mounted.
    mounted: Option<Mounted>,
    /// Where commands come from, if it could be had.
    control: Option<Control>,
}

impl Prepared {
    /// Makes it; commands are listened for in a directory below `runtime`, or in another one. Without that the mount works all
    /// the same.
    pub fn of(mounted: Option<Mounted>, runtime: Option<&Path>) -> Self {
        let number = mounted.as_ref().and_then(|mounted| mounted.number);
        Self { mounted, control: number.and_then(|number| listen(number, runtime)) }
    }
}

/// Makes the control socket of a mount.
fn listen(mount: MountId, runtime: Option<&Path>) -> Option<Control> {
    match Control::listen(mount, runtime) {
        Ok(control) => {
            tracing::info!("control: {}", control.path().display());
            Some(control)
        }
        Err(error) => {
            tracing::info!("control: none: {error}");
            None
        }
    }
}

/// When the process that was started ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// At once: the mount is there, and who uses it waits for the daemon.
    AtOnce,
    /// When the daemon serves, or has said why it does not.
    WhenServing,
}

/// Which process goes on.
#[derive(Debug)]
pub enum Side {
    /// The one that was started.
    Parent(Waiter),
    /// The one that stays.
    Daemon(Leaver),
}

/// Prepares the memory of this process for many threads. To be called before any starts.
pub fn share_heaps() {
    sys::share_heaps();
}

/// Divides the process into one that ends and one that stays.
///
/// # Errors
///
/// What pipe(2) and fork(2) answer; EDEADLK if the process has several threads.
pub fn split(leave: Leave) -> Result<Side> {
    let pipe = match leave {
        Leave::AtOnce => None,
        Leave::WhenServing => Some(rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(Error::from)?),
    };
    let child = sys::fork()
        .map_err(|errno| Error::new(Errno::from_raw_os_error(errno as i32)).during("fork", "daemon"))?;
    Ok(match (child, pipe) {
        (Some(_), None) => Side::Parent(Waiter(None)),
        (Some(child), Some((reader, _))) => Side::Parent(Waiter(Some((File::from(reader), child)))),
        (None, None) => {
            // Before anything else: a caller that reads to the end of a pipe waits for this.
            leave_standard_streams()?;
            leave_old_session()?;
            Side::Daemon(Leaver::Left)
        }
        (None, Some((_, writer))) => Side::Daemon(Leaver::WhenServing(File::from(writer))),
    })
}

/// Waits until the process that was started can end.
#[derive(Debug)]
pub struct Waiter(Option<(File, Pid)>);

impl Waiter {
    /// Returns 0 when the mount is there; the daemon's status if it is waited for and ends before. It has said why.
    pub fn wait(self) -> i32 {
        let Some((reader, child)) = self.0 else { return 0 };
        let mut told = [0; 1];
        if crate::sys::retry(|| rustix::io::read(&reader, &mut told)) == Ok(1) && told == [SERVES] {
            return 0;
        }
        loop {
            match waitpid(child, None) {
                Err(nix::errno::Errno::EINTR) => {}
                Ok(WaitStatus::Exited(_, status)) => return status.max(1),
                _ => return 1,
            }
        }
    }
}

/// Leaves the caller of the program.
#[derive(Debug)]
pub enum Leaver {
    /// There is nobody to leave: the server is in the foreground.
    Foreground,
    /// It was left and has gone on.
    Left,
    /// It waits for the other end of this.
    WhenServing(File),
}

impl Leaver {
    /// Gives up the session and standard streams, and tells a parent that waits for that that the mount is usable.
    ///
    /// # Errors
    ///
    /// EPIPE if nobody waits any more: the mount is then not wanted.
    fn leave(self) -> Result<()> {
        let Self::WhenServing(mut writer) = self else { return Ok(()) };
        start_session()?;
        leave_standard_streams()?;
        writer.write_all(&[SERVES]).map_err(|error| Error::from(error).during("report to", "parent"))
    }
}

fn leave_standard_streams() -> Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let null = null.map_err(|errno| Error::new(errno).during("open", "/dev/null"))?;
    redirect_standard_streams(null).map_err(|errno| Error::new(errno).during("redirect", "standard streams"))
}

fn start_session() -> Result<()> {
    rustix::process::setsid().map(drop).map_err(|errno| Error::new(errno).during("start", "session"))
}

/// Starts a session when the caller may have gone on already: if the old one has ended since, or its user has pressed a key to
/// end what is there no more, that is not for the mount.
fn leave_old_session() -> Result<()> {
    start_session()?;
    for signal in [Signal::SIGHUP, Signal::SIGINT] {
        sys::forget_pending(signal).map_err(|errno| {
            Error::new(Errno::from_raw_os_error(errno as i32)).during("forget", "signals")
        })?;
    }
    Ok(())
}

/// Whom a process beside this one tells what goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// The one that started this one.
    OnStandardError,
    /// Nobody is there.
    ToNobody,
}

impl Told {
    /// Returns who is there while a mount with these options is served.
    pub(crate) const fn under(options: &MountOptions) -> Self {
        if options.debug { Self::OnStandardError } else { Self::ToNobody }
    }
}

/// Starts a process beside this one that does `work`, which calls [`keep_only`] first, and ends with it. Signals that end a
/// mount do not end it: it goes when there is no more to do.
///
/// # Errors
///
/// What fork(2) answers; EDEADLK if the process has several threads.
pub(crate) fn beside(told: Told, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let forked = sys::fork().map_err(|errno| Error::new(Errno::from_raw_os_error(errno as i32)));
    if forked.map_err(|error| error.during("fork", "a process beside this one"))?.is_some() {
        return Ok(());
    }
    let alone = || -> Result<()> {
        hold_signals()?;
        rustix::process::setsid()?;
        rustix::process::chdir("/")?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        if told == Told::ToNobody {
            rustix::stdio::dup2_stderr(&null)?;
        }
        drop(null);
        work()
    };
    // Nothing of this process returns to what the other one does.
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(alone));
    if let Ok(Err(error)) = &done {
        tracing::error!("{error}");
    }
    std::process::exit(i32::from(!matches!(done, Ok(Ok(())))));
}

/// Closes what the process that was left had open, but for the standard streams and `kept`: nobody is to wait for it.
pub(crate) fn keep_only(kept: &[BorrowedFd<'_>]) {
    sys::keep_only(kept);
}

/// Lets the standard streams lead to `null`.
fn redirect_standard_streams(null: impl AsFd) -> std::result::Result<(), Errno> {
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)
}

/// Lets signals wait until [`run`] takes them: from here on none can end the process and leave a mount without a
/// server. To be called before mounting and before any thread starts.
///
/// # Errors
///
/// What pthread_sigmask(3) answers.
pub fn hold_signals() -> Result<()> {
    signals()
        .thread_block()
        .map_err(|errno| Error::new(Errno::from_raw_os_error(errno as i32)).during("block", "signals"))
}

fn signals() -> SigSet {
    STOP_SIGNALS.into_iter().chain([Signal::SIGUSR1]).collect()
}

/// The parts of a running mount that its watchers need.
struct Watched {
    union: Arc<Union>,
    live: Live,
    control: Option<Control>,
    mounted: Option<Mounted>,
    /// Whether the server has ended. Protected by itself.
    ended: Mutex<bool>,
    end: Condvar,
}

/// Serves until the mount ends, by itself or by a signal; leaves the caller through `leaver`, and closes what it left open for
/// this program.
///
/// # Errors
///
/// The connection broke, or the threads cannot be started.
pub fn run(server: Server, union: Arc<Union>, prepared: Prepared, leaver: Leaver) -> Result<()> {
    let Prepared { mounted, control } = prepared;
    if let Some(Mounted { target, number: Some(number) }) = &mounted {
        server.mounted_on(target, *number);
    }
    let watched = Arc::new(Watched {
        live: server.live(Arc::clone(&union)),
        union,
        control,
        mounted,
        ended: Mutex::new(false),
        end: Condvar::new(),
    });
    let watching = Arc::clone(&watched);
    let leaves = !matches!(leaver, Leaver::Foreground);
    // To close descriptors, and to start the next thread, takes longer than to answer a request, and somebody waits for the
    // first answer: so this thread does it.
    let watch = move || {
        if leaves {
            sys::close_inherited();
        }
        watching.watch();
    };
    match start("signals", watch) {
        // Whoever has mounted was told that the mount is there. It is, and can be unmounted.
        Err(error) if matches!(leaver, Leaver::Left) => {
            tracing::error!("no signal is taken: {error}");
            sys::close_inherited();
        }
        done => done?,
    }
    let result = leaver.leave().and_then(|()| server.run());
    watched.stop_listening();
    *watched.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
    watched.end.notify_all();
    result
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    started.map(drop).map_err(|error| Error::from(error).during("start thread", name))
}

impl Watched {
    /// Takes commands, in a thread of its own, and signals.
    fn watch(self: Arc<Self>) {
        let commanded = Arc::clone(&self);
        if let Err(error) = start("control", move || commanded.take_commands()) {
            tracing::warn!("no command is answered: {error}");
        }
        self.take_signals();
    }

    fn take_commands(&self) {
        if let Some(mounted) = &self.mounted {
            mounted.read_further_ahead();
        }
        if let Some(control) = &self.control {
            control.serve(&self.live);
        }
    }

    fn stop_listening(&self) {
        if let Some(control) = &self.control {
            control.close();
        }
    }

    /// Waits for signals; ends the process when one says so.
    fn take_signals(&self) {
        loop {
            match signals().wait() {
                Ok(Signal::SIGUSR1) => {
                    // The answer is asked for, so it is no matter of log levels; in a daemon nobody sees it.
                    if std::io::stderr().write_all(self.live.stats().as_bytes()).is_err() {}
                }
                Ok(signal) => {
                    tracing::info!("{signal}: unmounting");
                    self.stop();
                    std::process::exit(0);
                }
                Err(errno) => tracing::error!("cannot wait for signals: {errno}"),
            }
        }
    }

    /// Takes the mount away and waits, within limits, until everything is served and flushed.
    fn stop(&self) {
        self.stop_listening();
        let ended = match &self.mounted {
            Some(mounted) => self.detach(&mounted.target) && self.wait_for_end(),
            None => false,
        };
        if !ended {
            // Programs still use the mount. They lose it, but nothing that they have written.
            self.union.destroy();
        }
    }

    /// Takes the mount away; returns whether that could be done.
    fn detach(&self, target: &Path) -> bool {
        // Not lazily first: that way the kernel writes everything back before it returns.
        if unmount(target, Busy::Keeps).is_ok() {
            return true;
        }
        let synced =
            rustix::fs::open(target, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .and_then(rustix::fs::syncfs);
        if let Err(errno) = synced {
            tracing::warn!("cannot write back what programs have written: {errno}");
        }
        match unmount(target, Busy::Detached) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!("{error}");
                false
            }
        }
    }

    /// Waits until the server has ended; returns whether it has, in time.
    fn wait_for_end(&self) -> bool {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.end.wait_timeout_while(ended, GRACE, |ended| !*ended);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
