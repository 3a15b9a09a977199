//! Where the data of a file is that holds only attributes.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use super::{Candidate, Probe, Target, is_deepest, next_candidate, next_candidate_exists, probe, redirected};
use crate::error::{Errno, Error, Result};
use crate::name::FileName;
use crate::request::FileKind;
use crate::stack::LayerStack;
use crate::stack::lower::{LowerDir, LowerName};
use crate::stack::marks::{self, DirAttrs};
use crate::stack::settle;
use crate::sys::Stat;

/// What a file on a lower says about where its data is.
enum Whereabouts {
    /// In itself.
    Here,
    /// Below; it holds only attributes (metacopy).
    Below(Target<'static>),
    /// Below, because a server left it unfinished: its size says nothing.
    BelowAsBefore(Target<'static>),
}

/// Whose size a file shows that holds only attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// Its own.
    Own,
    /// That of the file that holds the data.
    OfData,
}

/// Returns whether a file on a lower holds only attributes, and whose size it then shows.
pub(crate) fn attributes_only(
    stack: &LayerStack,
    parent: &LowerDir,
    name: &[u8],
    stat: &Stat,
) -> Result<Option<Size>> {
    Ok(match whereabouts(stack, parent, name, stat)? {
        Whereabouts::Here => None,
        Whereabouts::Below(_) => Some(Size::Own),
        Whereabouts::BelowAsBefore(_) => Some(Size::OfData),
    })
}

fn whereabouts(stack: &LayerStack, parent: &LowerDir, name: &[u8], stat: &Stat) -> Result<Whereabouts> {
    let layer = stack.lower(parent)?;
    if stat.kind() != FileKind::Regular || layer.is_plain(&stack.fds, parent, name) {
        return Ok(Whereabouts::Here);
    }
    let fd = layer.dir_fd(&stack.fds, parent)?;
    let dir = fd.as_fd();
    let attributes = layer.attributes();
    let read_marks = || marks::read_file_marks(attributes, dir, name, stack.namespace, stack.follow);
    if !has_mark(attributes.get_at(dir, name, &stack.namespace.name("metacopy")))? {
        return Ok(Whereabouts::Here);
    }
    let mut marks = read_marks()?;
    if marks.metacopy && marks.unfinished.is_some() {
        // The mount that had this layer as its upper may have gone a moment ago.
        layer.wait_for_finisher();
        marks = read_marks()?;
    }
    let unfinished = marks.unfinished.as_deref();
    // An empty file needs no data, unless it is empty because a server was killed.
    if stat.size == 0 && unfinished.is_none() {
        return Ok(Whereabouts::Here);
    }
    if !marks.metacopy || unfinished.is_some_and(|mark| settle::is_whole(mark, layer.reader())) {
        return Ok(Whereabouts::Here);
    }
    let attrs = DirAttrs { redirect: marks.redirect, ..DirAttrs::default() };
    let target = redirected(attrs, Target::Name(name.to_vec().into()));
    Ok(if unfinished.is_some() { Whereabouts::BelowAsBefore(target) } else { Whereabouts::Below(target) })
}

/// Judges an attribute that is asked for because it may be a mark.
fn has_mark(value: Result<Vec<u8>>) -> Result<bool> {
    match value.map_err(|error| error.errno()) {
        Ok(_) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Returns where the data of a file on a lower is, if it holds only attributes, and the attributes to show.
pub(super) fn lower_data(
    stack: &LayerStack,
    lowers: &[Arc<LowerDir>],
    parent: &LowerDir,
    target: &Target<'_>,
    mut stat: Stat,
) -> Result<(Option<LowerName>, Stat)> {
    if is_deepest(stack, parent) {
        return Ok((None, stat));
    }
    let below = |next| find_data(stack, lowers, next, parent.layer + 1)?.ok_or(Error::new(Errno::IO));
    match whereabouts(stack, parent, target.name(), &stat)? {
        Whereabouts::Here => Ok((None, stat)),
        Whereabouts::Below(next) => Ok((Some(below(next)?), stat)),
        Whereabouts::BelowAsBefore(next) => {
            let data = below(next)?;
            stat.size = stack.stat_of(&data)?.size;
            Ok((Some(data), stat))
        }
    }
}

/// Finds the first whole regular file below, from layer `from` on.
pub(super) fn find_data(
    stack: &LayerStack,
    lowers: &[Arc<LowerDir>],
    mut target: Target<'_>,
    from: usize,
) -> Result<Option<LowerName>> {
    let mut next_layer = from;
    // Set where a metacopy names a path: only such a path leads there.
    let mut in_data_layers = matches!(target, Target::Path(_));
    while let Some(candidate) = next_candidate(stack, lowers, &target, next_layer)? {
        next_layer = candidate.layer + 1;
        let more_below = !candidate.cut && next_candidate_exists(stack, lowers, &target, next_layer);
        let name = target.name().to_vec();
        let Candidate { parent, cut, next, .. } = candidate;
        if let Some(next) = next {
            target = next;
        }
        let Some(parent) = parent else {
            if cut {
                return Ok(None);
            }
            continue;
        };
        match probe(stack, &parent, &name, more_below)? {
            Probe::Missing => {}
            Probe::Object(stat, ..) if stat.kind() == FileKind::Regular => {
                let deeper = if is_deepest(stack, &parent) {
                    Whereabouts::Here
                } else {
                    whereabouts(stack, &parent, &name, &stat)?
                };
                match deeper {
                    Whereabouts::Here => {
                        return Ok(Some(LowerName { dir: Arc::clone(&parent), name: FileName::new(&name)? }));
                    }
                    Whereabouts::Below(deeper) | Whereabouts::BelowAsBefore(deeper) => target = deeper,
                }
                in_data_layers = true;
            }
            Probe::Stop | Probe::Object(..) => return Ok(None),
        }
        if cut {
            return Ok(None);
        }
    }
    match target {
        Target::Path(path) if in_data_layers => find_in_data_layers(stack, &path),
        _ => Ok(None),
    }
}

/// Finds a path in the layers that give contents only: the first regular file. No mark counts there.
fn find_in_data_layers(stack: &LayerStack, path: &[Vec<u8>]) -> Result<Option<LowerName>> {
    let Some((name, parents)) = path.split_last() else { return Ok(None) };
    for root in &stack.data_roots {
        let layer = stack.lower(root)?;
        let mut at = Some(Arc::clone(root));
        for component in parents {
            let Some(dir) = at.take() else { break };
            let stat = optional(layer.stat(&stack.fds, &dir, component))?;
            at = stat
                .filter(Stat::is_dir)
                .map(|stat| LowerDir::new(root.layer, Some(dir), component, &stat, false));
        }
        let Some(dir) = at else { continue };
        let stat = optional(layer.stat(&stack.fds, &dir, name))?;
        if stat.is_some_and(|stat| stat.kind() == FileKind::Regular) {
            return Ok(Some(LowerName { dir, name: FileName::new(name)? }));
        }
    }
    Ok(None)
}

fn optional(stat: Result<Stat>) -> Result<Option<Stat>> {
    match stat {
        Ok(stat) => Ok(Some(stat)),
        Err(error) if error.is(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}
