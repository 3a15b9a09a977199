//! Files that a killed server left unfinished: each is finished, or made again what it was before.

use std::os::fd::BorrowedFd;

use super::Report;
use crate::error::{Errno, Result};
use crate::stack::LayerStack;
use crate::stack::attributes::Attributes;
use crate::stack::lower::LowerName;
use crate::stack::settle::{self, Durability};
use crate::sys::Stat;

/// An unfinished file.
pub(super) struct Left<'a> {
    /// The directory that has it: one of the upper, or its index.
    pub dir: BorrowedFd<'a>,
    pub name: &'a [u8],
    /// How it is told.
    pub path: &'a [u8],
    /// Its mark.
    pub mark: &'a [u8],
    pub stat: &'a Stat,
}

/// Settles it. `data` is what has the data on the layers below.
pub(super) fn settle(
    report: &mut Report,
    (stack, attributes): (&LayerStack, &Attributes),
    left: &Left<'_>,
    data: Option<&LowerName>,
) -> Result<()> {
    let reader = stack.lowers.first().ok_or(Errno::IO)?.reader();
    let whole = settle::is_whole(left.mark, reader);
    let below = match data {
        Some(data) => stack.stat_of(data)?,
        None if whole => *left.stat,
        None => {
            report.leave(left.path, "was left unfinished, and no layer below has its data");
            return Ok(());
        }
    };
    let how = if whole { "finished" } else { "the file below again" };
    let namespace = report.namespace;
    report.fault(left.path, "was left unfinished by a killed server", how, || {
        let how = (attributes, namespace, Durability::of(left.dir)?);
        settle::settle(left.dir, left.name, how, whole, &below)
    });
    Ok(())
}
