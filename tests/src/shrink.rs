//! Runs one history on two sides, stops at the first difference, and finds a short history that still differs.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::execute::{Outcome, Session};
use crate::mounted::over_fuser;
use crate::operation::{Op, Step};
use crate::snapshot::Snapshot;

/// A file system under test, or what it is compared with.
pub trait Side {
    /// Returns its name in messages.
    fn name(&self) -> &str;
    /// Returns the directory to work in.
    fn root(&self) -> &Path;
    /// Unmounts and mounts again, if it is a mount.
    fn remount(&mut self);
    /// Puts an empty upper on top while everything goes on, if it can.
    fn rotate(&mut self) {}
    /// Returns whether a listing must give the inode numbers that stat gives.
    fn numbers_agree(&self) -> bool {
        true
    }
    /// Returns whether times of directories and link counts of removed open files are right.
    fn exact(&self) -> bool {
        true
    }
    /// Returns what is wrong behind the scenes at the end: a changed lower, a workdir that is not clean.
    fn faults(&mut self) -> Vec<String> {
        Vec::new()
    }
}

/// A directory that needs no mount.
#[derive(Debug)]
pub struct Plain(pub std::path::PathBuf);

impl Side for Plain {
    fn name(&self) -> &str {
        "plain"
    }
    fn root(&self) -> &Path {
        &self.0
    }
    fn remount(&mut self) {}
}

/// Where and how two sides differ.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Index of the step.
    pub step: usize,
    /// What was seen.
    pub text: String,
}

/// What may differ on purpose.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tolerance {
    /// The first side may refuse a rename with EXDEV; the second then does not do it.
    pub exdev: bool,
    /// The first side may refuse O_TMPFILE with EOPNOTSUPP; the second then does not do it.
    pub tmpfile: bool,
}

impl Tolerance {
    fn allows(self, op: &Op, outcome: &Outcome) -> bool {
        match (op, outcome) {
            (Op::Rename { .. } | Op::Link { .. }, Outcome::Failed(libc::EXDEV)) => self.exdev,
            (Op::Tmpfile { .. }, Outcome::Failed(libc::EOPNOTSUPP)) => self.tmpfile || over_fuser(),
            _ => false,
        }
    }
}

/// What to run a history on: the side under test, its oracle, and whatever must outlive them.
pub struct Pair {
    /// The side under test.
    pub ours: Box<dyn Side>,
    /// The oracle.
    pub oracle: Box<dyn Side>,
    /// Kept until the end.
    pub scratch: tempfile::TempDir,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} = {} in {}", self.ours.name(), self.oracle.name(), self.scratch.path().display())
    }
}

/// Runs `steps` on both sides; an outcome or a tree that differs ends it.
///
/// Returns how many calls succeeded.
pub fn run(pair: &mut Pair, steps: &[Step], tolerance: Tolerance) -> Result<usize, Difference> {
    let exact = pair.ours.exact() && pair.oracle.exact();
    let mut succeeded = 0;
    let mut ours = Session::new(pair.ours.root());
    let mut oracle = Session::new(pair.oracle.root());
    for (index, step) in steps.iter().enumerate() {
        let fail = |text: String| Difference { step: index, text };
        match step.op {
            Op::Compare => compare(pair).map_err(fail)?,
            Op::Remount => {
                compare(pair).map_err(|text| fail(format!("before the remount: {text}")))?;
                ours.close_all();
                oracle.close_all();
                pair.ours.remount();
                pair.oracle.remount();
                compare(pair).map_err(|text| fail(format!("after the remount: {text}")))?;
            }
            Op::Rotate => {
                pair.ours.rotate();
                pair.oracle.rotate();
                compare(pair).map_err(|text| fail(format!("after the rotation: {text}")))?;
            }
            _ => {
                let mut left = ours.execute(step);
                if tolerance.allows(&step.op, &left) {
                    continue;
                }
                let mut right = oracle.execute(step);
                if !exact {
                    left.forget_inexact(&step.op);
                    right.forget_inexact(&step.op);
                }
                succeeded += usize::from(!matches!(left, Outcome::Failed(_)));
                let broken = matches!(left, Outcome::Broken(_)) || matches!(right, Outcome::Broken(_));
                if left != right || broken {
                    let names = (pair.ours.name(), pair.oracle.name());
                    let text = format!("{step:?}\n{:>16}: {left:?}\n{:>16}: {right:?}", names.0, names.1);
                    return Err(fail(text));
                }
            }
        }
    }
    ours.close_all();
    oracle.close_all();
    let end = |text: String| Difference { step: steps.len(), text };
    compare(pair).map_err(end)?;
    let faults = pair.ours.faults();
    if faults.is_empty() { Ok(succeeded) } else { Err(end(faults.join("\n"))) }
}

fn compare(pair: &Pair) -> Result<(), String> {
    let exact = pair.ours.exact() && pair.oracle.exact();
    let take = |side: &dyn Side| {
        let mut snapshot =
            Snapshot::take(side.root()).map_err(|error| format!("{}: {error}", side.name()))?;
        if !side.numbers_agree() {
            snapshot.faults.clear();
        }
        if !exact {
            snapshot.forget_directory_times();
        }
        Ok::<_, String>(snapshot)
    };
    let lines = take(&*pair.ours)?.diff(&take(&*pair.oracle)?, (pair.ours.name(), pair.oracle.name()));
    if lines.is_empty() {
        Ok(())
    } else {
        Err(format!("trees differ:\n{}", lines[..lines.len().min(12)].join("\n")))
    }
}

/// Finds a short part of `steps` on which fresh pairs still differ, within `budget`.
pub fn shrink(
    make: &dyn Fn() -> Pair,
    steps: &[Step],
    first: Difference,
    tolerance: Tolerance,
    budget: Duration,
) -> (Vec<Step>, Difference) {
    let end = Instant::now() + budget;
    let mut best = steps[..steps.len().min(first.step + 1)].to_vec();
    let mut found = first;
    let mut chunk = (best.len() / 2).max(1);
    while Instant::now() < end {
        let mut removed = false;
        let mut start = 0;
        while start < best.len() && Instant::now() < end {
            let mut candidate = best.clone();
            candidate.drain(start..best.len().min(start + chunk));
            if let Err(difference) = run(&mut make(), &candidate, tolerance) {
                candidate.truncate(difference.step + 1);
                best = candidate;
                found = difference;
                removed = true;
            } else {
                start += chunk;
            }
        }
        if chunk == 1 && !removed {
            break;
        }
        chunk = (chunk / 2).max(1);
    }
    (best, found)
}
