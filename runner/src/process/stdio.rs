//! Standard streams and terminals: the container's own terminal, and the relay between it and the runner's.

use std::os::fd::OwnedFd;

use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use super::child::open_null;
use crate::error::{During, Error, Result, best_effort};

/// `DEVPTS_SUPER_MAGIC`.
const DEVPTS_MAGIC: u64 = 0x1cd1;

/// Device number of `ptmx`.
const PTMX: (u32, u32) = (5, 2);

/// Bytes moved at once.
const CHUNK: usize = 16 * 1024;

/// What a terminal reads as the end of input.
const END_OF_INPUT: u8 = 4;

/// Opens a terminal of the container: its controlling side and itself.
pub(crate) fn open_terminal(pts: &OwnedFd) -> Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let controller = rustix::fs::openat(pts, "ptmx", flags, Mode::empty()).during("open /dev/pts/ptmx")?;
    let magic = rustix::fs::fstatfs(&controller).during("look at /dev/pts/ptmx")?.f_type;
    let stat = rustix::fs::fstat(&controller).during("look at /dev/pts/ptmx")?;
    let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    if u64::try_from(magic).ok() != Some(DEVPTS_MAGIC)
        || number != PTMX
        || !FileType::from_raw_mode(stat.st_mode).is_char_device()
    {
        return Err(Error::setup("/dev/pts/ptmx of the container is not what it should be"));
    }
    unlockpt(&controller).during("unlock the terminal")?;
    // By descriptor, not by the name of the terminal: nothing can be put in its place.
    let terminal =
        ioctl_tiocgptpeer(&controller, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .during("open the terminal")?;
    Ok((controller, terminal))
}

/// Connects the command's standard streams: to its terminal, or to the runner's, without input unless asked for.
pub(crate) fn connect(terminal: Option<OwnedFd>, interactive: bool) -> Result<()> {
    if let Some(terminal) = terminal {
        rustix::process::ioctl_tiocsctty(&terminal).during("take the terminal as controlling terminal")?;
        dup2_stdin(&terminal).during("connect stdin")?;
        dup2_stdout(&terminal).during("connect stdout")?;
        return dup2_stderr(&terminal).during("connect stderr");
    }
    if !interactive {
        dup2_stdin(open_null()?).during("connect stdin")?;
    }
    Ok(())
}

/// Lets go of the standard streams.
pub(crate) fn let_go() -> Result<()> {
    let null = open_null()?;
    dup2_stdin(&null).during("let go of stdin")?;
    dup2_stdout(&null).during("let go of stdout")?;
    dup2_stderr(&null).during("let go of stderr")
}

/// The runner's terminal in raw mode; put back when dropped.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

/// Looks at the runner's terminal, when stdin is one.
pub(crate) fn own_terminal() -> Option<(OwnedFd, Termios)> {
    let stdin = rustix::stdio::stdin();
    if !isatty(stdin) {
        return None;
    }
    Some((stdin.try_clone_to_owned().ok()?, tcgetattr(stdin).ok()?))
}

impl RawTerminal {
    /// Makes the terminal raw: every key goes to the container.
    pub(crate) fn enter(terminal: OwnedFd, before: Termios) -> Result<Self> {
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &raw).during("make the terminal raw")?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        best_effort(tcsetattr(&self.terminal, OptionalActions::Drain, &self.before), "the terminal is gone");
    }
}

/// Moves bytes between the runner's streams and the container's terminal.
#[derive(Debug)]
pub(crate) struct Relay {
    controller: OwnedFd,
    own: Option<OwnedFd>,
    raw: Option<RawTerminal>,
    /// Input that the container has not taken yet.
    pending: Vec<u8>,
    reads_input: bool,
    open: bool,
}

impl Relay {
    /// Starts to relay.
    pub(crate) fn start(
        controller: OwnedFd,
        own: Option<(OwnedFd, Termios)>,
        interactive: bool,
    ) -> Result<Self> {
        rustix::io::ioctl_fionbio(&controller, true).during("set up the terminal")?;
        let size_source = own.as_ref().and_then(|(terminal, _)| terminal.try_clone().ok());
        let raw = match own {
            Some((terminal, before)) if interactive => Some(RawTerminal::enter(terminal, before)?),
            _ => None,
        };
        let relay = Self {
            controller,
            own: size_source,
            raw,
            pending: Vec::new(),
            reads_input: interactive,
            open: true,
        };
        relay.resize();
        Ok(relay)
    }

    /// Gives the container's terminal the size of the runner's.
    pub(crate) fn resize(&self) {
        if let Some(size) = self.own.as_ref().and_then(|own| tcgetwinsize(own).ok()) {
            best_effort(tcsetwinsize(&self.controller, size), "the terminal is gone");
        }
    }

    /// What to wait for on the container's side.
    pub(crate) fn controller_interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let mut flags = PollFlags::IN;
        if !self.pending.is_empty() {
            flags |= PollFlags::OUT;
        }
        self.open.then_some((self.controller.as_fd(), flags))
    }

    /// What to wait for on the runner's side: input, as long as the container takes what came before.
    pub(crate) fn input_interest(&self) -> Option<BorrowedFd<'static>> {
        (self.reads_input && self.open && self.pending.is_empty()).then(rustix::stdio::stdin)
    }

    /// Takes input from the runner's stdin.
    pub(crate) fn take_input(&mut self) {
        let mut buffer = [0_u8; CHUNK];
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
            Ok(0) => {
                self.reads_input = false;
                self.pending.push(END_OF_INPUT);
            }
            Ok(count) => self.pending.extend(buffer.iter().take(count)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.reads_input = false,
        }
        self.give_input();
    }

    /// Gives pending input to the container.
    fn give_input(&mut self) {
        match rustix::io::write(&self.controller, &self.pending) {
            Ok(count) => {
                self.pending.drain(..count);
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.pending.clear(),
        }
    }

    /// Serves the container's side once.
    pub(crate) fn serve_controller(&mut self, events: PollFlags) {
        if events.contains(PollFlags::OUT) && !self.pending.is_empty() {
            self.give_input();
        }
        if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.take_output();
        }
    }

    /// Copies output once; false when there is none for now.
    fn take_output(&mut self) -> bool {
        let mut buffer = [0_u8; CHUNK];
        match rustix::io::read(&self.controller, &mut buffer) {
            Ok(count) if count > 0 => {
                write_all(rustix::stdio::stdout(), buffer.get(..count).unwrap_or_default());
                true
            }
            Err(Errno::INTR) => true,
            Err(Errno::AGAIN) => false,
            // EIO: every process has closed the terminal.
            _ => {
                self.open = false;
                false
            }
        }
    }

    /// Copies what the container wrote before it ended, and puts the runner's terminal back.
    pub(crate) fn finish(mut self) {
        while self.open && self.take_output() {}
        drop(self.raw.take());
    }
}

fn write_all(out: BorrowedFd<'_>, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rustix::io::write(out, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut fds = [rustix::event::PollFd::new(&out, PollFlags::OUT)];
                if rustix::event::poll(&mut fds, None).is_err() {
                    return;
                }
            }
            // Nobody reads any more.
            Err(_) => return,
        }
    }
}
