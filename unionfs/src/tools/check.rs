//! What is wrong in an upper and its workdir, and its repair.
//!
//! Lowers are only read. A repair makes reachable what a bad mark hides, and removes only what no name leads to; where data is
//! missing nothing is invented. Each is one step that leaves a valid tree, so that the next run goes on where one was
//! interrupted.

mod links;
mod sidecar;
mod unfinished;
mod upper;
pub(crate) mod work;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use crate::error::{Errno, Error, Result};
use crate::ondisk::Namespace;
use crate::options::MountOptions;
use crate::stack::LayerStack;
use crate::stack::attributes::Attributes;
use crate::stack::probe;
use crate::stack::sidecar::Sidecar;
use crate::stack::workdir;
use crate::sys;

/// What is done about faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    /// They are told.
    Told,
    /// They are told and repaired.
    Repaired,
}

/// What was done about a finding.
#[derive(Debug)]
pub enum Outcome {
    /// It is allowed, and worth knowing.
    Allowed,
    /// It would be repaired so.
    Repairable(&'static str),
    /// It was repaired so.
    Repaired(&'static str),
    /// It cannot be repaired.
    Left,
    /// The repair failed.
    Failed(Error),
}

/// Something that was found.
#[derive(Debug)]
pub struct Finding {
    /// Where: `upper/PATH` or `work/PATH`.
    pub path: Vec<u8>,
    /// What it is.
    pub what: String,
    /// What was done about it.
    pub outcome: Outcome,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.escape_ascii(), self.what)?;
        match &self.outcome {
            Outcome::Allowed => Ok(()),
            Outcome::Repairable(how) => write!(f, "; repair: {how}"),
            Outcome::Repaired(how) => write!(f, "; repaired: {how}"),
            Outcome::Left => f.write_str("; no repair"),
            Outcome::Failed(error) => write!(f, "; repair failed: {error}"),
        }
    }
}

/// Returns the exit status that fsck(8) gives: 0 clean, 1 all repaired, 4 something is left.
pub fn status(findings: &[Finding]) -> u8 {
    let worst = findings.iter().map(|finding| match finding.outcome {
        Outcome::Allowed => 0,
        Outcome::Repaired(_) => 1,
        Outcome::Repairable(_) | Outcome::Left | Outcome::Failed(_) => 4,
    });
    worst.max().unwrap_or(0)
}

/// Checks the upper and workdir of `options`. What points to the layers below is checked if `lowerdir` names them.
///
/// # Errors
/// EBUSY if a mount uses them; what is wrong with a directory that `options` name.
pub fn check(options: &MountOptions, faults: Faults) -> Result<Vec<Finding>> {
    let (Some(work_fd), Some(upper)) = (hold(options)?, &options.upperdir) else {
        return Err(Error::new(Errno::INVAL).during("check without", "upperdir and workdir"));
    };
    let namespace = probe::namespace_without_upper(options.userxattr);
    let mut report = Report { faults, namespace, findings: Vec::new() };
    let upper_fd = open_dir(upper)?;
    let (attributes, foreign) = attributes(work_fd.as_fd(), upper_fd.as_fd(), namespace)?;
    if foreign {
        report.leave(b"work/sidecar", "holds the attributes of another upper");
        return Ok(report.findings);
    }
    work::check(&mut report, work_fd.as_fd(), &attributes)?;
    let damaged = match attributes.sidecar() {
        Some(sidecar) => sidecar::check(&mut report, sidecar, upper_fd.as_fd(), work_fd.as_fd())?,
        None => sidecar::Damaged::new(),
    };
    // The upper is looked at as the topmost of the layers that are only read.
    let mut layers = options.clone();
    layers.flags.read_only = true;
    if !damaged.contains(b"upper".as_slice()) {
        let (stack, _) = LayerStack::open(&layers)?;
        let layers = upper::Layers { stack: &stack, attributes: &attributes, damaged: &damaged };
        upper::check(&mut report, upper_fd.as_fd(), layers, !options.lowerdir.is_empty())?;
        if !options.lowerdir.is_empty() {
            links::check(&mut report, options, work_fd.as_fd(), &attributes)?;
        }
    }
    if faults == Faults::Repaired {
        rustix::fs::syncfs(&upper_fd)?;
    }
    Ok(report.findings)
}

/// What was found so far.
struct Report {
    faults: Faults,
    /// Where marks are.
    namespace: Namespace,
    findings: Vec<Finding>,
}

impl Report {
    /// Tells what is allowed.
    fn allow(&mut self, path: &[u8], what: impl Into<String>) {
        self.push(path, what, Outcome::Allowed);
    }

    /// Tells what cannot be repaired.
    fn leave(&mut self, path: &[u8], what: impl Into<String>) {
        self.push(path, what, Outcome::Left);
    }

    /// Tells what can be repaired, and does so if that is wanted.
    fn fault(
        &mut self,
        path: &[u8],
        what: impl Into<String>,
        how: &'static str,
        repair: impl FnOnce() -> Result<()>,
    ) {
        let outcome = match self.faults {
            Faults::Told => Outcome::Repairable(how),
            Faults::Repaired => match repair() {
                Ok(()) => Outcome::Repaired(how),
                Err(error) => Outcome::Failed(error),
            },
        };
        self.push(path, what, outcome);
    }

    fn push(&mut self, path: &[u8], what: impl Into<String>, outcome: Outcome) {
        self.findings.push(Finding { path: path.to_vec(), what: what.into(), outcome });
    }
}

/// Keeps mounts from the upper of `options`, if it names one, until the descriptor is closed.
///
/// # Errors
/// EBUSY if it is mounted, EINVAL if no workdir is named.
pub(crate) fn hold(options: &MountOptions) -> Result<Option<OwnedFd>> {
    let Some(upper) = &options.upperdir else { return Ok(None) };
    let work = options.workdir.as_ref().ok_or(Errno::INVAL).map_err(|errno| {
        let error = Error::new(errno).during("use the upper", upper.as_os_str().as_encoded_bytes());
        error.hint("workdir not specified")
    })?;
    let work_fd = open_dir(work)?;
    refuse_live(upper, work, &work_fd)?;
    Ok(Some(work_fd))
}

pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    sys::retry(|| rustix::fs::openat(CWD, path, flags, Mode::empty()))
        .map_err(|e| Error::new(e).during("open the directory", path.as_os_str().as_encoded_bytes()))
}

/// Returns where the attributes of the upper are, and whether that is a sidecar of another upper.
fn attributes(
    work: BorrowedFd<'_>,
    upper: BorrowedFd<'_>,
    namespace: Namespace,
) -> Result<(Attributes, bool)> {
    let Some(sidecar) = Sidecar::open(work, namespace, true)? else {
        return Ok((Attributes::default(), false));
    };
    match sidecar.check(upper) {
        Ok(()) => Ok((Attributes::beside(sidecar), false)),
        // One that was never used belongs to nobody.
        Err(error) if error.is(Errno::STALE) => Ok((Attributes::default(), sidecar.is_used()?)),
        Err(error) => Err(error),
    }
}

/// Refuses an upper that is mounted: by a server, which holds a lock on the workdir, or by kernel overlayfs. The lock is held
/// as long as `work_fd` is open.
fn refuse_live(upper: &Path, work: &Path, work_fd: &OwnedFd) -> Result<()> {
    let busy = |hint| {
        let shown = upper.as_os_str().as_encoded_bytes();
        Err(Error::new(Errno::BUSY).during("work on the upper", shown).hint(hint))
    };
    if workdir::lock(work_fd.as_fd()) {
        return busy("a mount uses its workdir: unmount it first");
    }
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let absolute = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let (upper, work) = (absolute(upper), absolute(work));
    let uses = |line: &[u8]| {
        let mut options =
            line.split(|&byte| byte == b' ').next_back().unwrap_or_default().split(|&b| b == b',');
        let is = |word: &[u8], key: &[u8], path: &Path| {
            word.strip_prefix(key).is_some_and(|value| value == path.as_os_str().as_encoded_bytes())
        };
        options.any(|word| is(word, b"upperdir=", &upper) || is(word, b"workdir=", &work))
    };
    if mounts.split(|&byte| byte == b'\n').any(uses) {
        return busy("kernel overlayfs has it mounted: unmount it first");
    }
    Ok(())
}
