//! The index: entries that no name leads to or that were left unfinished, and numbers of links below that of the names: with
//! such a number the entry would go before its last name does. A greater one is right where a layer hides names of a file in a
//! layer below it.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::OFlags;

use super::Report;
use super::unfinished::{self, Left};
use super::work::names;
use crate::error::{Errno, Result};
use crate::ondisk::origin;
use crate::options::MountOptions;
use crate::stack::attributes::Attributes;
use crate::stack::lower::LowerName;
use crate::stack::settle;
use crate::stack::workdir::remove_all_with;
use crate::sys;
use crate::tools::view::{Parts, View};

/// Checks the index of the workdir against all names of the union.
pub(super) fn check(
    report: &mut Report,
    options: &MountOptions,
    work: BorrowedFd<'_>,
    attributes: &Attributes,
) -> Result<()> {
    let index = match sys::open_at(work, b"index", OFlags::PATH | OFlags::DIRECTORY, 0) {
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => {
            report.leave(b"work/index", format!("cannot be looked at: {errno}"));
            return Ok(());
        }
        Ok(index) => index,
    };
    let mut entries = Vec::new();
    for name in names(index.as_fd())? {
        let path = [b"work/index/", name.as_slice()].concat();
        if origin::record_of(&name).is_none() {
            report.fault(&path, "is no entry of an index", "removed", || {
                remove_all_with(index.as_fd(), &name, attributes)
            });
            continue;
        }
        let stat = sys::stat_at(index.as_fd(), &name)?;
        // A whiteout remembers an object that is gone, a directory serves exports over NFS.
        if !stat.is_whiteout() && !stat.is_dir() {
            entries.push((name, path, stat));
        }
    }
    if entries.is_empty() {
        return Ok(());
    }
    let view = View::open(options)?;
    let Some(named) = named(report, &view)? else { return Ok(()) };
    for (name, path, stat) in entries {
        let Named { count, data } = named.get(&(stat.dev, stat.ino)).cloned().unwrap_or_default();
        if count == 0 && stat.nlink == 1 {
            report.fault(&path, "no name leads to this file any more", "removed", || {
                remove_all_with(index.as_fd(), &name, attributes)
            });
            continue;
        }
        let namespace = report.namespace;
        let mark = |mark: &str| attributes.get_at(index.as_fd(), &name, &namespace.name(mark)).ok();
        if let Some(mark) = settle::unfinished(mark) {
            let left = Left { dir: index.as_fd(), name: &name, path: &path, mark: &mark, stat: &stat };
            unfinished::settle(report, (&view.stack, attributes), &left, data.as_ref())?;
        }
        let mark = report.namespace.name("nlink");
        let told = attributes.get_at(index.as_fd(), &name, &mark).ok();
        // Relative to the lower's number, which cannot be asked.
        if told.as_deref().is_some_and(|value| value.starts_with(b"L")) {
            continue;
        }
        let told = told.as_deref().and_then(origin::parse_nlink);
        let right = count - i64::from(stat.nlink);
        if told.is_none_or(|told| told < right) {
            let what = format!("its number of links is less than {count}, that of its names");
            report.fault(&path, what, "set", || {
                let pin = sys::pin_at(index.as_fd(), &name)?;
                attributes.set(pin.as_fd(), &mark, &origin::nlink_value(right), 0)
            });
        }
    }
    Ok(())
}

/// What names lead to.
#[derive(Clone, Debug, Default)]
struct Named {
    /// How many names.
    count: i64,
    /// Where the data is, if it holds attributes only.
    data: Option<LowerName>,
}

/// Returns what all names lead to, by device and inode number; nothing if the tree cannot be read to its end.
fn named(report: &mut Report, view: &View) -> Result<Option<HashMap<(u64, u64), Named>>> {
    let mut found: HashMap<_, Named> = HashMap::new();
    let mut pending: Vec<Parts> = vec![view.root()?.parts];
    let mut unreadable = |error| {
        report.leave(b"work/index", format!("the names of its files cannot be counted: {error}"));
        Ok(None)
    };
    while let Some(parts) = pending.pop() {
        let names = match view.names(&parts) {
            Ok(names) => names,
            Err(error) => return unreadable(error),
        };
        for name in names {
            match view.find(&parts, &name) {
                Ok(Some(object)) if object.stat.is_dir() => pending.push(object.parts),
                Ok(Some(object)) => {
                    let named = found.entry(object.identity()).or_default();
                    named.count += 1;
                    named.data = object.data;
                }
                Ok(None) => {}
                Err(error) => return unreadable(error),
            }
        }
    }
    Ok(Some(found))
}
