//! The runner's side: it makes the other processes, waits, forwards signals and gives the exit code.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use rustix::time::Timespec;

use super::channel::{Channel, Message};
use super::{Launch, child, server, stdio};
use crate::cgroup::Cgroups;
use crate::error::{During, Error, Result, best_effort};
use crate::idmap::Kind;
use crate::spec::Network;
use crate::sys::{self, clone::Cloned};

/// Signals that are not the container's business: they cannot be forwarded, or are about the runner itself.
const KEPT: [Signal; 13] = [
    Signal::SIGKILL,
    Signal::SIGSTOP,
    Signal::SIGCHLD,
    Signal::SIGURG,
    Signal::SIGPIPE,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGABRT,
    Signal::SIGTRAP,
];

/// How long the server may take to flush and clean up after the container.
const SERVER_PATIENCE: Duration = Duration::from_secs(60);

/// How long the first process may live on after its union has been unmounted in good order.
const FIRST_PATIENCE: Duration = Duration::from_secs(5);

/// Added to the number of the signal that ended the first process.
const SIGNALLED: i32 = 128;

/// Exit code of a first process that was killed.
const KILLED: u8 = 137;

/// A process of the container, by descriptor.
#[derive(Debug)]
struct Peer {
    pid: Pid,
    pidfd: OwnedFd,
    channel: Option<Channel>,
}

/// A container that has been started.
#[derive(Debug)]
pub(crate) struct Running {
    first: Peer,
    server: Peer,
    signals: SignalFd,
    terminal: bool,
    interactive: bool,
    relay: Option<stdio::Relay>,
    failure: Option<Error>,
    server_failure: Option<Error>,
    server_ended: bool,
    /// Whether the runner itself has killed the first process.
    killed: bool,
    warnings: Vec<String>,
}

/// How a container ended.
#[derive(Debug)]
pub(crate) struct End {
    /// The exit code, or why the command could not be started, or what broke the container.
    pub(crate) outcome: Result<u8>,
    /// Whether the command ran at all.
    pub(crate) started: bool,
}

/// Starts the processes of a container.
///
/// Preconditions: this process has one thread. `lock` is the lock on the container's directory.
pub(crate) fn start(launch: &Launch, lock: &OwnedFd, cgroups: &Cgroups) -> Result<Running> {
    let signals = block_signals()?;
    let (to_first, first_to_runner) = Channel::pair()?;
    let (to_server, server_to_runner) = Channel::pair()?;
    let (server_to_first, first_to_server) = Channel::pair()?;
    // First the server, so that it opens the layers while the container's mounts are made.
    let ends = server::Ends {
        runner: server_to_runner,
        first: server_to_first,
        lock: lock.try_clone().during("duplicate the lock")?,
        terminal: if launch.spec.terminal { stdio::own_terminal() } else { None },
    };
    let server = match sys::fork().during("fork the server")? {
        sys::Forked::Child => sys::run_and_exit(|| server::run(launch, ends)),
        sys::Forked::Parent(pid) => pid,
    };
    drop(ends);
    let server_pidfd = pidfd_open(server, PidfdFlags::empty()).during("open a descriptor of the server")?;
    let server = Peer { pid: server, pidfd: server_pidfd, channel: Some(to_server) };
    let ends = child::Ends { runner: first_to_runner, server: first_to_server };
    let (pid, pidfd, in_cgroup) = match clone_first(launch, cgroups) {
        Ok((Cloned::Child, _)) => sys::run_and_exit(|| child::run(launch, ends)),
        Ok((Cloned::Parent(pid, pidfd), in_cgroup)) => (pid, pidfd, in_cgroup),
        Err(error) => {
            abandon(server);
            return Err(error);
        }
    };
    drop(ends);
    let first = Peer { pid, pidfd, channel: Some(to_first) };
    let running = Running {
        first,
        server,
        signals,
        terminal: launch.spec.terminal,
        interactive: launch.spec.interactive,
        relay: None,
        failure: None,
        server_failure: None,
        server_ended: false,
        killed: false,
        warnings: Vec::new(),
    };
    match running.release(launch, cgroups, in_cgroup) {
        Ok(()) => Ok(running),
        Err(error) => {
            running.abandon();
            Err(error)
        }
    }
}

/// Blocks what is to be forwarded and gives a descriptor that reads it.
fn block_signals() -> Result<SignalFd> {
    let mut forwarded = SigSet::all();
    for signal in KEPT {
        forwarded.remove(signal);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None).during("block signals")?;
    SignalFd::with_flags(&forwarded, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .during("make a signal descriptor")
}

/// Clones the first process into all its namespaces, and into its v2 cgroup where there is one.
fn clone_first(launch: &Launch, cgroups: &Cgroups) -> Result<(Cloned, bool)> {
    let mut flags = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC;
    if launch.spec.network == Network::None {
        flags |= libc::CLONE_NEWNET;
    }
    if let Some(group) = cgroups.open_v2() {
        match sys::clone::clone_into(flags, Some(group.as_fd())) {
            Ok(cloned) => return Ok((cloned, true)),
            // Not allowed here; writing its number into the group may still be.
            Err(error) => tracing::debug!(%error, "the kernel does not clone into the cgroup"),
        }
    }
    match sys::clone::clone_into(flags, None) {
        Ok(cloned) => Ok((cloned, false)),
        Err(error) => Err(no_namespaces(&error)),
    }
}

/// Says why there are no namespaces, in the words of the setting that forbids them.
fn no_namespaces(error: &std::io::Error) -> Error {
    let said = Error::setup(format!("cannot make the container's namespaces: {error}"));
    let hint = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EUSERS) => {
            "user.max_user_namespaces (or another user.max_*_namespaces) is too small; an administrator can raise it \
             with sysctl"
        }
        Some(libc::EPERM) => {
            "this host forbids user namespaces to this user: look at kernel.unprivileged_userns_clone, and inside \
             another container at its seccomp profile"
        }
        Some(libc::ENOSYS) => {
            "clone3 is missing: the kernel is older than 5.3, or a seccomp profile hides it"
        }
        _ => return said,
    };
    said.hint(hint)
}

/// Ends a server that was never needed.
fn abandon(mut server: Peer) {
    // Its channel closes: it leaves without having served.
    server.channel = None;
    best_effort(waitid(WaitId::PidFd(server.pidfd.as_fd()), WaitIdOptions::EXITED), "it is a child of ours");
}

impl Running {
    /// The first process's number on the host.
    pub(crate) fn first_pid(&self) -> i32 {
        self.first.pid.as_raw_nonzero().get()
    }

    /// Gives ids and limits to the first process, and lets both processes go on.
    fn release(&self, launch: &Launch, cgroups: &Cgroups, in_cgroup: bool) -> Result<()> {
        launch.ids.apply(self.first.pid)?;
        cgroups.add(self.first.pid, in_cgroup)?;
        let (Some(first), Some(server)) = (&self.first.channel, &self.server.channel) else {
            return Err(Error::setup("the container ended before it started"));
        };
        if launch.ids.kind == Kind::Identity {
            server.send(&Message::Proceed, None).map_err(|_| lost_early())?;
        } else {
            let path = format!("/proc/{}/ns/user", self.first.pid.as_raw_nonzero());
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
            let namespace = rustix::fs::open(path, flags, rustix::fs::Mode::empty())
                .during("open the container's user namespace")?;
            server.send(&Message::UserNamespace, Some(namespace.as_fd())).map_err(|_| lost_early())?;
        }
        first.send(&Message::Proceed, None).map_err(|_| lost_early())
    }

    /// Ends both processes of a container that could not be started.
    fn abandon(mut self) {
        self.kill();
        best_effort(
            waitid(WaitId::PidFd(self.first.pidfd.as_fd()), WaitIdOptions::EXITED),
            "it is a child of ours",
        );
        abandon(Peer { pid: self.server.pid, pidfd: self.server.pidfd, channel: self.server.channel.take() });
    }

    fn kill(&mut self) {
        self.killed = true;
        best_effort(pidfd_send_signal(&self.first.pidfd, rustix::process::Signal::KILL), "it has just ended");
    }

    /// Waits for the end of the container. `warn` is told what is not as asked.
    ///
    /// # Errors
    /// The runner itself could not wait.
    pub(crate) fn wait(mut self, warn: &mut dyn FnMut(&str)) -> Result<End> {
        let code = loop {
            for warning in self.warnings.drain(..) {
                warn(&warning);
            }
            match self.step() {
                Ok(Some(code)) => break code,
                Ok(None) => {}
                Err(error) => {
                    self.failure = self.failure.take().or(Some(error));
                    self.kill();
                    break self.exit_code()?;
                }
            }
        };
        // What the first process sent just before its end.
        while self.first.channel.is_some()
            && self.ready(|running| running.first.channel.as_ref().map(AsFd::as_fd))
        {
            self.hear_first()?;
        }
        for warning in self.warnings.drain(..) {
            warn(&warning);
        }
        if let Some(relay) = self.relay.take() {
            relay.finish();
        }
        self.finish_server();
        // The command was started when its end of the channel closed with nothing bad said.
        let started = self.first.channel.is_none() && self.failure.is_none();
        let failure = match (self.failure.take(), self.server_failure.take()) {
            // Somebody else killed the first process; what the server says about it is no news.
            (None, _) if code == KILLED && !self.killed => None,
            (first, server) => server.or(first),
        };
        Ok(End { outcome: failure.map_or(Ok(code), Err), started })
    }

    /// Waits for one round of events; the exit code once the first process has ended.
    fn step(&mut self) -> Result<Option<u8>> {
        let events = self.poll_all()?;
        if events.signals {
            self.forward_signals()?;
        }
        if events.first_channel {
            self.hear_first()?;
        }
        if events.server_channel {
            self.hear_server()?;
        }
        if let Some(relay) = &mut self.relay {
            if events.input {
                relay.take_input();
            }
            if !events.controller.is_empty() {
                relay.serve_controller(events.controller);
            }
        }
        if events.server_ended && !events.first_ended {
            self.meet_server_end();
        }
        if events.first_ended { self.exit_code().map(Some) } else { Ok(None) }
    }

    /// The server has ended and the first process has not. In the usual end the union goes a moment before it.
    fn meet_server_end(&mut self) {
        self.server_ended = true;
        let status =
            waitid(WaitId::PidFd(self.server.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        let well = status.ok().flatten().is_some_and(|status| status.exit_status() == Some(0));
        if well && wait_until_readable(&self.first.pidfd, FIRST_PATIENCE) {
            return;
        }
        if self.server_failure.is_none() {
            self.server_failure = Some(server_lost());
        }
        self.kill();
    }

    fn poll_all(&self) -> Result<Events> {
        let input = self.relay.as_ref().and_then(stdio::Relay::input_interest);
        let controller = self.relay.as_ref().and_then(stdio::Relay::controller_interest);
        let server_alive = !self.server_ended && self.server_failure.is_none();
        let wanted: [Option<(BorrowedFd<'_>, PollFlags)>; 7] = [
            Some((self.signals.as_fd(), PollFlags::IN)),
            Some((self.first.pidfd.as_fd(), PollFlags::IN)),
            server_alive.then_some((self.server.pidfd.as_fd(), PollFlags::IN)),
            self.first.channel.as_ref().map(|channel| (channel.as_fd(), PollFlags::IN)),
            self.server
                .channel
                .as_ref()
                .filter(|_| server_alive)
                .map(|channel| (channel.as_fd(), PollFlags::IN)),
            input.map(|fd| (fd, PollFlags::IN)),
            controller,
        ];
        let mut fds: Vec<PollFd<'_>> =
            wanted.iter().flatten().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        loop {
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => {}
                result => {
                    result.during("wait for the container")?;
                    break;
                }
            }
        }
        let mut results = fds.iter().map(PollFd::revents);
        let mut seen = wanted.iter().map(|slot| {
            if slot.is_some() { results.next().unwrap_or(PollFlags::empty()) } else { PollFlags::empty() }
        });
        let mut next = || seen.next().unwrap_or(PollFlags::empty());
        Ok(Events {
            signals: !next().is_empty(),
            first_ended: !next().is_empty(),
            server_ended: !next().is_empty(),
            first_channel: !next().is_empty(),
            server_channel: !next().is_empty(),
            input: !next().is_empty(),
            controller: next(),
        })
    }

    fn forward_signals(&self) -> Result<()> {
        while let Some(info) = self.signals.read_signal().during("read signals")? {
            let number = info.ssi_signo.cast_signed();
            if number == libc::SIGWINCH
                && let Some(relay) = &self.relay
            {
                relay.resize();
                continue;
            }
            if let Some(signal) = rustix::process::Signal::from_named_raw(number) {
                best_effort(pidfd_send_signal(&self.first.pidfd, signal), "the container has just ended");
            }
        }
        Ok(())
    }

    fn hear_first(&mut self) -> Result<()> {
        let Some(channel) = &self.first.channel else { return Ok(()) };
        match channel.receive()? {
            None => self.first.channel = None,
            Some((Message::Terminal, Some(controller))) => {
                let own = if self.terminal { stdio::own_terminal() } else { None };
                self.relay = Some(stdio::Relay::start(controller, own, self.interactive)?);
            }
            Some((Message::Warning(text), _)) => self.warnings.push(text),
            Some((Message::Failed(error), _)) => self.failure = Some(error),
            Some(_) => {}
        }
        Ok(())
    }

    fn hear_server(&mut self) -> Result<()> {
        let Some(channel) = &self.server.channel else { return Ok(()) };
        match channel.receive()? {
            None => self.server.channel = None,
            Some((Message::Failed(error), _)) => {
                self.server_failure = Some(error);
                self.kill();
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Whether a descriptor has something to read now.
    fn ready(&self, fd: impl Fn(&Self) -> Option<BorrowedFd<'_>>) -> bool {
        let Some(fd) = fd(self) else { return false };
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..))
    }

    fn exit_code(&self) -> Result<u8> {
        let status = waitid(WaitId::PidFd(self.first.pidfd.as_fd()), WaitIdOptions::EXITED)
            .during("wait for the container")?;
        let raw = status.and_then(|status| {
            status.exit_status().or_else(|| status.terminating_signal().map(|signal| SIGNALLED + signal))
        });
        Ok(raw.and_then(|raw| u8::try_from(raw).ok()).unwrap_or(u8::MAX))
    }

    /// Waits until the server has cleaned up, so that the store is complete when the runner ends.
    fn finish_server(&mut self) {
        if let Some(channel) = &self.server.channel {
            best_effort(channel.send(&Message::Finished, None), "the server has ended");
        }
        if !wait_until_readable(&self.server.pidfd, SERVER_PATIENCE) {
            best_effort(
                pidfd_send_signal(&self.server.pidfd, rustix::process::Signal::KILL),
                "it has just ended",
            );
            self.server_failure =
                Some(Error::setup("the container's file server did not end in time and was killed"));
        }
        while self.server.channel.is_some()
            && self.ready(|running| running.server.channel.as_ref().map(AsFd::as_fd))
        {
            if let Err(error) = self.hear_server() {
                tracing::debug!(%error, "the server's last words are lost");
                break;
            }
        }
        let status = waitid(WaitId::PidFd(self.server.pidfd.as_fd()), WaitIdOptions::EXITED);
        let was_killed = status.ok().flatten().is_some_and(|status| status.terminating_signal().is_some());
        // The first process then says how its files failed, which is not the cause.
        if was_killed && self.failure.is_some() && self.server_failure.is_none() {
            self.server_failure = Some(server_lost());
        }
    }
}

/// A process that waits for its first message does not close its end by itself.
fn lost_early() -> Error {
    Error::setup("a process of the container was killed while it started")
}

fn server_lost() -> Error {
    Error::setup("the container's file server ended before the container")
}

/// Waits for the end of a process; false when it takes longer than `patience`.
fn wait_until_readable(pidfd: &OwnedFd, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(1),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) => return false,
            _ => return true,
        }
    }
}

/// What happened in one round.
#[derive(Debug)]
struct Events {
    signals: bool,
    first_ended: bool,
    server_ended: bool,
    first_channel: bool,
    server_channel: bool,
    input: bool,
    controller: PollFlags,
}
