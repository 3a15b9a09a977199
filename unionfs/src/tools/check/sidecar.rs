//! The sidecar: records that are damaged, or speak of nothing that is there.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::OFlags;

use super::Report;
use super::work::names;
use crate::error::{Errno, Result};
use crate::stack::lower::index::INDEX;
use crate::stack::sidecar::{Object, Sidecar, ino_of};
use crate::sys;

/// Paths, as they are told, of objects whose records are damaged.
pub(super) type Damaged = HashSet<Vec<u8>>;

/// Checks the records of a sidecar against all objects that can have one.
pub(super) fn check(
    report: &mut Report,
    sidecar: &Sidecar,
    upper: BorrowedFd<'_>,
    work: BorrowedFd<'_>,
) -> Result<Damaged> {
    let mut unused = HashSet::new();
    for name in sidecar.records()? {
        let path = told(&name);
        if ino_of(&name).is_some() {
            unused.insert(name);
        } else if name.ends_with(b".new") {
            report.fault(&path, "left by a crash", "removed", || sidecar.remove_file(&name));
        } else {
            report.fault(&path, "is no record", "removed", || sidecar.remove_file(&name));
        }
    }
    let mut walk = Walk { report, sidecar, unused, damaged: Damaged::new(), whole: true };
    walk.object(upper, b".", b"upper".to_vec());
    walk.below(upper, b"upper");
    for place in [INDEX, b"work"] {
        if let Ok(dir) = sys::open_at(work, place, OFlags::PATH | OFlags::DIRECTORY, 0) {
            walk.below(dir.as_fd(), &[b"work/", place].concat());
        }
    }
    let Walk { report, mut unused, damaged, whole, .. } = walk;
    // Whose record the others are is not known where something could not be looked at.
    for name in unused.drain().filter(|_| whole) {
        let what = "speaks of nothing that is there";
        report.fault(&told(&name), what, "removed", || sidecar.remove_file(&name));
    }
    Ok(damaged)
}

fn told(record: &[u8]) -> Vec<u8> {
    [b"work/sidecar/", record].concat()
}

struct Walk<'a> {
    report: &'a mut Report,
    sidecar: &'a Sidecar,
    /// Names of records that no object was found for.
    unused: HashSet<Vec<u8>>,
    damaged: Damaged,
    /// All objects could be looked at.
    whole: bool,
}

impl Walk<'_> {
    /// Looks at all that is in a directory.
    fn below(&mut self, dir: BorrowedFd<'_>, path: &[u8]) {
        let mut pending = vec![(Vec::new(), path.to_vec())];
        while let Some((within, path)) = pending.pop() {
            let opened = if within.is_empty() {
                sys::open_at(dir, b".", OFlags::PATH | OFlags::DIRECTORY, 0)
            } else {
                sys::open_dir_beneath(dir, &within)
            };
            let listed = opened.map_err(Into::into).and_then(|fd| names(fd.as_fd()).map(|names| (fd, names)));
            let Ok((fd, names)) = listed else {
                // The check of the upper tells it.
                self.whole = false;
                continue;
            };
            for name in names {
                let shown = [&path, b"/".as_slice(), &name].concat();
                if self.object(fd.as_fd(), &name, shown.clone()) {
                    let slash: &[u8] = if within.is_empty() { b"" } else { b"/" };
                    pending.push(([&within, slash, &name].concat(), shown));
                }
            }
        }
    }

    /// Looks for the record of an object; returns whether it is a directory.
    fn object(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: Vec<u8>) -> bool {
        let look = || -> Result<_> {
            let stat = sys::stat_at(dir, name)?;
            Ok((stat.is_dir(), self.sidecar.key(Object::At(dir, name))?))
        };
        let Ok((is_dir, key)) = look() else {
            self.whole = false;
            return false;
        };
        match self.sidecar.has(&key) {
            Ok(true) => drop(self.unused.remove(&key.name())),
            Ok(false) => {}
            Err(error) if error.is(Errno::IO) => {
                self.unused.remove(&key.name());
                self.report.leave(&path, "the record of its attributes is damaged");
                self.damaged.insert(path);
            }
            Err(error) => {
                self.whole = false;
                self.report.leave(&path, format!("the record of its attributes cannot be read: {error}"));
                self.damaged.insert(path);
            }
        }
        is_dir
    }
}
