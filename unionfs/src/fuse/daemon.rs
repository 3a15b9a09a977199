//! The life of the serving process: it leaves its caller once the mount is usable, ends when it is told to, and
//! takes the mount with it.
//!
//! The process forks before anything is opened. The parent waits until the child serves, makes the first requests itself,
//! and leaves with success when they are answered; with the child's status when the child ends before. Callers that read
//! a pipe to its end are let go because the child by then holds no descriptor of theirs.
//!
//! Of what the caller waits for, as little as can be is done by other threads: to have one started or woken takes as long
//! as to open a layer.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;

use super::control::{Control, Live, MountId, mount_at};
use super::handler::{PRIMER_NAME_LEN, Primer};
use super::mount::{Busy, unmount};
use super::session::Server;
use super::{read_ahead, sys};
use crate::error::{Errno, Error, Result};
use crate::union::Union;

/// Signals that end the mount.
const STOP_SIGNALS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// How long programs that still use a mount may go on after the server was told to end.
const GRACE: Duration = Duration::from_secs(2);

/// What the child sends when it serves, and nothing is to be asked of it.
const SERVES: u8 = b'1';

/// What the child sends before the name of the file that is to be opened first; no name: none is.
const ASK: u8 = b'2';

/// The descriptors that the caller of this program left open for it.
#[derive(Debug)]
pub struct Inherited(sys::Inherited);

impl Inherited {
    /// Lists them. To be called before this process opens any.
    pub fn at_start() -> Self {
        Self(sys::Inherited::at_start())
    }

    /// Closes them, so that nobody waits for their other ends.
    pub fn close(self) {
        self.0.close();
    }
}

/// Which process goes on.
#[derive(Debug)]
pub enum Side {
    /// The one that was started; it only waits.
    Parent(Waiter),
    /// The one that stays.
    Daemon(Leaver),
}

/// Prepares the memory of this process for many threads. To be called before any starts.
pub fn share_heaps() {
    sys::share_heaps();
}

/// Divides the process into one that waits and one that stays.
///
/// # Errors
///
/// What pipe(2) and fork(2) answer; EDEADLK if the process has several threads.
pub fn split() -> Result<Side> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(Error::from)?;
    let child = sys::fork()
        .map_err(|errno| Error::new(Errno::from_raw_os_error(errno as i32)).during("fork", "daemon"))?;
    Ok(match child {
        Some(child) => Side::Parent(Waiter { reader: File::from(reader), child }),
        None => Side::Daemon(Leaver { writer: Some(File::from(writer)) }),
    })
}

/// Waits until the daemon's mount is usable.
#[derive(Debug)]
pub struct Waiter {
    reader: File,
    child: Pid,
}

impl Waiter {
    /// Returns success when the mount on `mountpoint` is usable; the daemon's status if it ends before. It has said why.
    pub fn wait(self, mountpoint: &Path) -> ExitCode {
        let mut told = [0; PRIMER_NAME_LEN + 1];
        let len = crate::sys::retry(|| rustix::io::read(&self.reader, &mut told));
        let asked = match len.ok().and_then(|len| told.get(..len)) {
            Some([SERVES]) => Ok(()),
            Some([ASK]) => rustix::fs::stat(mountpoint).map(drop),
            Some([ASK, name @ ..]) => Primer::open(mountpoint, name),
            _ => Err(Errno::NOTCONN),
        };
        // What else a request may be answered is nothing that keeps others from using the mount.
        if !matches!(asked, Err(Errno::NOTCONN | Errno::CONNABORTED)) {
            return ExitCode::SUCCESS;
        }
        loop {
            match waitpid(self.child, None) {
                Err(nix::errno::Errno::EINTR) => {}
                Ok(WaitStatus::Exited(_, status)) => {
                    return ExitCode::from(u8::try_from(status).unwrap_or(1).max(1));
                }
                _ => return ExitCode::FAILURE,
            }
        }
    }
}

/// Leaves the caller when the mount is usable. A server in the foreground has nobody to leave.
#[derive(Debug, Default)]
pub struct Leaver {
    writer: Option<File>,
}

impl Leaver {
    /// Gives up the session and standard streams, and lets the waiting parent make the first requests.
    ///
    /// # Errors
    ///
    /// EPIPE if nobody waits any more: the mount is then not wanted.
    fn leave(self, first: &[u8]) -> Result<()> {
        let Some(mut writer) = self.writer else {
            return Ok(());
        };
        rustix::process::setsid().map_err(|errno| Error::new(errno).during("start", "session"))?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let null = null.map_err(|errno| Error::new(errno).during("open", "/dev/null"))?;
        redirect_standard_streams(null)
            .map_err(|errno| Error::new(errno).during("redirect", "standard streams"))?;
        writer.write_all(first).map_err(|error| Error::from(error).during("report to", "parent"))
    }
}

/// Whom a process beside this one tells what goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// The one that started this one.
    OnStandardError,
    /// Nobody is there.
    ToNobody,
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
    /// Where commands come from, once that is there, if it could be had.
    control: OnceLock<Control>,
    /// Where files for this user's session are.
    runtime: Option<PathBuf>,
    /// Where the mount is; unknown if somebody else has mounted.
    target: Option<PathBuf>,
    /// What the kernel is to open first.
    primer: Option<Arc<Primer>>,
    /// Whether the server has ended. Protected by itself.
    ended: Mutex<bool>,
    end: Condvar,
}

/// Serves until the mount ends, by itself or by a signal; leaves the caller through `leaver` when commands are listened
/// for and signals are taken.
///
/// `target` is the absolute path of the mount, if this process knows it; commands to it are listened for in a directory
/// below `runtime`, or in another one.
///
/// # Errors
///
/// The connection broke, or the threads cannot be started.
pub fn run(
    server: Server,
    union: Arc<Union>,
    target: Option<PathBuf>,
    runtime: Option<PathBuf>,
    leaver: Leaver,
) -> Result<()> {
    let watched = Arc::new(Watched {
        live: server.live(Arc::clone(&union)),
        union,
        control: OnceLock::new(),
        runtime,
        target,
        primer: server.primer(),
        ended: Mutex::new(false),
        end: Condvar::new(),
    });
    let on_signal = Arc::clone(&watched);
    start("signals", move || on_signal.take_signals())?;
    watched.prepare();
    let alone = leaver.writer.is_none();
    let result = leaver.leave(&watched.first_requests()).and_then(|()| {
        let commanded = Arc::clone(&watched);
        let commands = move || {
            if alone {
                commanded.ask();
            }
            commanded.take_commands();
        };
        if let Err(error) = start("control", commands) {
            tracing::warn!("no command is answered: {error}");
        }
        server.run()
    });
    watched.stop_listening();
    *watched.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
    watched.end.notify_all();
    result
}

/// Makes the control socket of a mount. Without it the mount works all the same.
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

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    started.map(drop).map_err(|error| Error::from(error).during("start thread", name))
}

/// Makes the first requests to the mount on `target`, and waits for the answers.
///
/// In a thread of its own, without the device: a thread that waits for an answer cannot be killed, so that a killed server
/// would never close it.
fn prime(target: PathBuf, primer: Arc<Primer>) {
    let work = move || {
        sys::let_go_of_descriptors();
        if let Err(error) = Primer::open(&target, primer.name()) {
            tracing::debug!("the first opening is left to others: {error}");
        }
    };
    match std::thread::Builder::new().name("asker".to_owned()).spawn(work).map(JoinHandle::join) {
        Ok(Ok(())) => {}
        Ok(Err(_)) => tracing::error!("the thread of the first requests broke"),
        Err(error) => tracing::debug!("the first opening is left to others: {error}"),
    }
}

impl Watched {
    /// Does what concerns the mount and needs no answer of ours.
    fn prepare(&self) {
        let Some(target) = &self.target else { return };
        let mount = match mount_at(target) {
            Ok(mount) => mount,
            Err(error) => return tracing::info!("control: none: {error}"),
        };
        if let Err(error) = read_ahead::raise(mount) {
            tracing::debug!("the kernel's read-ahead stays as it is: {error}");
        }
        if let Some(control) = listen(mount, self.runtime.as_deref()) {
            self.control.get_or_init(|| control);
        }
    }

    /// Returns what the parent is to be told of the first requests.
    fn first_requests(&self) -> Vec<u8> {
        match (&self.target, &self.primer) {
            (None, _) => vec![SERVES],
            (Some(_), None) => vec![ASK],
            (Some(_), Some(primer)) => [&[ASK], primer.name()].concat(),
        }
    }

    /// Makes the first requests where there is no parent, and waits for the answers.
    fn ask(&self) {
        if let (Some(target), Some(primer)) = (&self.target, &self.primer) {
            prime(target.clone(), Arc::clone(primer));
        }
    }

    fn take_commands(&self) {
        if let Some(control) = self.control.get() {
            control.serve(&self.live);
        }
    }

    fn stop_listening(&self) {
        if let Some(control) = self.control.get() {
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
        let ended = match &self.target {
            Some(target) => self.detach(target) && self.wait_for_end(),
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
