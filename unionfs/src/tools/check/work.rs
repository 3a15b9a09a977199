//! The workdir: what a crash left in it.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, OFlags};

use super::Report;
use crate::error::{Errno, Error, Result};
use crate::stack::attributes::Attributes;
use crate::stack::workdir::{INCOMPAT, MERGE, VOLATILE, remove_all, remove_all_with};
use crate::sys;

/// Checks the directory of temporary objects.
pub(super) fn check(report: &mut Report, work: BorrowedFd<'_>, attributes: &Attributes) -> Result<()> {
    let dir = match sys::open_at(work, b"work", OFlags::PATH | OFlags::DIRECTORY, 0) {
        // Never mounted.
        Err(Errno::NOENT) => return Ok(()),
        Err(errno @ (Errno::NOTDIR | Errno::LOOP)) => {
            report.leave(b"work/work", "is no directory");
            tracing::debug!(%errno, "the directory of temporary objects");
            return Ok(());
        }
        result => result.map_err(|errno| Error::new(errno).during("open in the workdir", "work"))?,
    };
    for name in names(dir.as_fd())? {
        if name == INCOMPAT {
            check_volatile(report, dir.as_fd())?;
            continue;
        }
        let path = [b"work/work/", name.as_slice()].concat();
        report.fault(&path, "left by a crash", "removed", || remove_all_with(dir.as_fd(), &name, attributes));
    }
    Ok(())
}

fn check_volatile(report: &mut Report, work: BorrowedFd<'_>) -> Result<()> {
    let path = [b"work/work/", INCOMPAT, b"/", VOLATILE].concat();
    let Ok(incompat) = sys::open_at(work, INCOMPAT, OFlags::PATH | OFlags::DIRECTORY, 0) else {
        report.leave(&path, "cannot be looked at");
        return Ok(());
    };
    for name in names(incompat.as_fd())? {
        if name == VOLATILE {
            let what = "a volatile mount did not end cleanly: what it wrote last may be missing";
            report.fault(&path, what, "accepted as it is", || {
                remove_all(incompat.as_fd(), VOLATILE)?;
                match rustix::fs::unlinkat(work, INCOMPAT, AtFlags::REMOVEDIR) {
                    Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
                    Err(errno) => Err(errno.into()),
                }
            });
        } else if name == MERGE {
            let path = [b"work/work/", INCOMPAT, b"/", MERGE].concat();
            report.leave(&path, "a merge into a lower was interrupted: give the same command again");
        } else {
            let path = [b"work/work/", INCOMPAT, b"/", name.as_slice()].concat();
            report.leave(&path, "a mark of another version, which is not known here");
        }
    }
    Ok(())
}

/// Returns the names in a directory, sorted.
pub(crate) fn names(dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
    let mut names = sys::dirents::names(dir)?;
    names.sort_unstable();
    Ok(names)
}
