//! One name down the stack: where is it found, and in which lower directories does it go on?
//!
//! Returns a value; knows no table and takes no lock.

mod data;
mod on_upper;

use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::error::{Errno, Error, Result};
use crate::ondisk::{self, NameClass, Redirect};
use crate::request::FileKind;
use crate::stack::LayerStack;
use crate::stack::dir_fds::DirKey;
use crate::stack::lower::{Looked, LowerDir, LowerName};
use crate::stack::marks::{self, DirAttrs, FileMarks};
use crate::sys::{self, Stat};
pub(crate) use data::{Size, attributes_only};
use data::{find_data, lower_data};
pub(crate) use on_upper::{OnUpper, on_upper};

/// A directory of the union to look a name up in.
pub(crate) struct DirView<'a> {
    /// Its part on the upper.
    pub upper: Option<BorrowedFd<'a>>,
    /// Its parts on the lowers, topmost first.
    pub lowers: &'a [Arc<LowerDir>],
    /// No object in its part on the upper has marks.
    pub unmarked: bool,
    /// Tells whether the upper holds `.wh.NAME`; asked only if the directory has lowers.
    pub upper_hides: &'a dyn Fn(&[u8]) -> Result<bool>,
    /// Tells what is known of a name on the lowers without looking.
    pub below: &'a dyn Fn(&[u8]) -> Below,
}

impl<'a> DirView<'a> {
    /// The lowers of a directory alone.
    pub(crate) fn of_lowers(lowers: &'a [Arc<LowerDir>]) -> Self {
        Self { upper: None, lowers, unmarked: false, upper_hides: &|_| Ok(false), below: &|_| Below::Unknown }
    }
}

/// What is known of a name on the lowers of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Below {
    /// Nothing.
    Unknown,
    /// They provide none of that name.
    Absent,
    /// This layer is the topmost that has it.
    From(usize),
    /// A directory: these layers have something under its name or hide it, topmost first, and no other.
    In(Vec<usize>),
}

impl Below {
    /// Returns those of `lowers` where the name may be.
    fn of(self, lowers: &[Arc<LowerDir>]) -> Cow<'_, [Arc<LowerDir>]> {
        match self {
            Self::Unknown => lowers.into(),
            Self::Absent => Cow::default(),
            Self::From(layer) => from_layer(lowers, layer).into(),
            Self::In(layers) => {
                let part =
                    |&layer: &usize| from_layer(lowers, layer).first().filter(|dir| dir.layer == layer);
                layers.iter().filter_map(part).cloned().collect()
            }
        }
    }
}

/// Returns the parts of a directory on the layer with this number and those below.
pub(crate) fn from_layer(lowers: &[Arc<LowerDir>], layer: usize) -> &[Arc<LowerDir>] {
    lowers.get(lowers.partition_point(|dir| dir.layer < layer)..).unwrap_or_default()
}

impl std::fmt::Debug for DirView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirView")
            .field("upper", &self.upper)
            .field("lowers", &self.lowers)
            .finish_non_exhaustive()
    }
}

/// An object that was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// Attributes, from the topmost layer that holds it.
    pub stat: Stat,
    /// It is on the upper; for directories with a descriptor.
    pub upper: Option<Option<OwnedFd>>,
    /// Its parts on the lowers.
    pub lower: LowerPart,
    /// The lower file that holds the data, if the object itself holds only attributes.
    pub data: Option<LowerName>,
    /// What an object that is no directory and is, or was, on an upper says of its origin.
    pub marks: FileMarks,
}

impl Found {
    /// An object without lowers.
    pub(crate) fn new(stat: Stat, upper: Option<Option<OwnedFd>>) -> Self {
        Self { stat, upper, lower: LowerPart::None, data: None, marks: FileMarks::default() }
    }
}

/// Where an object is on the lowers.
#[derive(Clone, Debug, Default)]
pub(crate) enum LowerPart {
    /// Nowhere that still counts.
    #[default]
    None,
    /// A directory's parts, topmost first.
    Dirs(Vec<Arc<LowerDir>>),
    /// A file: the directory that holds it, under the name looked up.
    File(Arc<LowerDir>),
}

/// Where the search goes on below.
enum Target<'a> {
    Name(Cow<'a, [u8]>),
    Path(Vec<Vec<u8>>),
}

impl Target<'_> {
    fn name(&self) -> &[u8] {
        match self {
            Self::Name(name) => name,
            Self::Path(path) => path.last().map(Vec::as_slice).unwrap_or_default(),
        }
    }
}

/// Finds `name` in a directory; `None` if it does not exist or is deleted.
///
/// # Errors
/// Of the layers; EINVAL, EACCES and EPERM for a redirect that may not be followed.
pub(crate) fn find(stack: &LayerStack, dir: &DirView<'_>, name: &[u8]) -> Result<Option<Found>> {
    if ondisk::classify(name) != NameClass::Plain {
        return Ok(None);
    }
    let mut target = Target::Name(name.into());
    let mut on_upper = None;
    if let Some(upper) = dir.upper {
        match stack.upper()?.stat_at(upper, name) {
            Ok(stat) if stat.is_whiteout() => return Ok(None),
            Ok(stat) if dir.unmarked => return Ok(Some(Found::new(stat, Some(None)))),
            Ok(stat) if !stat.is_dir() => return upper_file(stack, dir, (upper, name), stat),
            Ok(stat) => {
                let fd = sys::open_at(upper, name, OFlags::PATH | OFlags::DIRECTORY, 0)?;
                let attrs = marks::read_attrs(stack.attributes(), fd.as_fd(), stack.namespace, stack.follow)?;
                let cut = attrs.opaque || (!dir.lowers.is_empty() && (dir.upper_hides)(name)?);
                let found = Found::new(stat, Some(Some(fd)));
                if cut {
                    return Ok(Some(found));
                }
                target = redirected(attrs, target);
                on_upper = Some(found);
            }
            Err(Errno::NOENT) => {
                if !dir.lowers.is_empty() && (dir.upper_hides)(name)? {
                    return Ok(None);
                }
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    find_below(stack, dir, target, on_upper)
}

/// Returns the parts of a directory on the lowers where the target may be.
fn may_have<'a>(dir: &DirView<'a>, target: &Target<'_>) -> Cow<'a, [Arc<LowerDir>]> {
    match target {
        Target::Name(name) if !dir.lowers.is_empty() => (dir.below)(name).of(dir.lowers),
        _ => dir.lowers.into(),
    }
}

/// Finds out about a file that the upper has: whole, with its data on a lower, or a whiteout by attribute.
fn upper_file(
    stack: &LayerStack,
    view: &DirView<'_>,
    (dir, name): (BorrowedFd<'_>, &[u8]),
    stat: Stat,
) -> Result<Option<Found>> {
    let mut found = Found::new(stat, Some(None));
    if let Some(ino) = stack.recorded_ino(&stat) {
        found.marks.ino = ino;
        return Ok(Some(found));
    }
    let OnUpper { stat, marks, data } = on_upper(stack, (dir, name), stat, |redirect| {
        let attrs = DirAttrs { redirect, ..DirAttrs::default() };
        let target = redirected(attrs, Target::Name(name.into()));
        // A file whose data is nowhere cannot be shown with content that it never had.
        find_data(stack, &may_have(view, &target), target, 0)?.ok_or(Error::new(Errno::IO))
    })?;
    if marks.whiteout && stat.kind() == FileKind::Regular && stat.size == 0 {
        return Ok(None);
    }
    (found.stat, found.marks, found.data) = (stat, marks, data);
    Ok(Some(found))
}

/// Returns whether the lowers alone provide `name`: whether removing it needs a whiteout.
pub(crate) fn below_provides(stack: &LayerStack, lowers: &DirView<'_>, name: &[u8]) -> Result<bool> {
    Ok(!lowers.lowers.is_empty() && find(stack, lowers, name)?.is_some())
}

fn redirected(attrs: DirAttrs, unchanged: Target<'_>) -> Target<'_> {
    match (attrs.redirect, unchanged) {
        (None, unchanged) => unchanged,
        (Some(Redirect::Sibling(name)), Target::Name(_)) => Target::Name(name.into()),
        (Some(Redirect::Sibling(name)), Target::Path(mut path)) => {
            path.pop();
            path.push(name);
            Target::Path(path)
        }
        (Some(Redirect::Absolute(path)), _) => Target::Path(path),
    }
}

/// Goes on through the lowers. `above` is the directory found so far.
fn find_below(
    stack: &LayerStack,
    dir: &DirView<'_>,
    mut target: Target<'_>,
    above: Option<Found>,
) -> Result<Option<Found>> {
    let lowers = dir.lowers;
    let mut may_have = may_have(dir, &target);
    let mut found = above;
    let mut dirs = Vec::new();
    let mut next_layer = 0;
    while let Some(candidate) = next_candidate(stack, &may_have, &target, next_layer)? {
        next_layer = candidate.layer + 1;
        let more_below = !candidate.cut && next_candidate_exists(stack, lowers, &target, next_layer);
        let here = match &candidate.parent {
            Some(parent) => probe(stack, parent, target.name(), more_below)?,
            None => Probe::Missing,
        };
        let Candidate { parent, cut, next, .. } = candidate;
        if let Some(next) = next {
            target = next;
        }
        match here {
            Probe::Missing => {}
            Probe::Stop => break,
            Probe::Object(stat, ..) if !stat.is_dir() => {
                if let (None, Some(parent)) = (&found, parent) {
                    let (data, stat) = lower_data(stack, lowers, &parent, &target, stat)?;
                    let mut found = Found { data, ..Found::new(stat, None) };
                    let (layer, name) = (stack.lower(&parent)?, target.name());
                    found.marks.ino = layer.kept_ino(stack, &parent, name, stat.ino);
                    found.lower = LowerPart::File(parent);
                    return Ok(Some(found));
                }
                break;
            }
            Probe::Object(stat, dir, attrs) => {
                if found.is_none() {
                    found = Some(Found::new(stat, None));
                }
                let sealed = dir.as_ref().is_some_and(|dir| dir.sealed);
                dirs.extend(dir);
                if attrs.opaque || sealed {
                    break;
                }
                if attrs.redirect.is_some() {
                    may_have = lowers.into();
                }
                target = redirected(attrs, target);
            }
        }
        if cut {
            break;
        }
    }
    if let Some(found) = &mut found
        && !dirs.is_empty()
    {
        found.lower = LowerPart::Dirs(dirs);
    }
    Ok(found)
}

/// The next layer in which the target may be, with the directory there that would hold it.
struct Candidate {
    layer: usize,
    parent: Option<Arc<LowerDir>>,
    /// A whiteout or an opaque directory on the way of a path: nothing in the layers below counts.
    cut: bool,
    /// A directory on the way was renamed in this layer: where the path goes on in the layers below.
    next: Option<Target<'static>>,
}

fn next_candidate(
    stack: &LayerStack,
    lowers: &[Arc<LowerDir>],
    target: &Target<'_>,
    from: usize,
) -> Result<Option<Candidate>> {
    match target {
        Target::Name(_) => Ok(from_layer(lowers, from).first().map(|dir| Candidate {
            layer: dir.layer,
            parent: Some(Arc::clone(dir)),
            cut: false,
            next: None,
        })),
        Target::Path(path) => {
            let Some(root) = stack.root_from(from) else { return Ok(None) };
            walk_path(stack, root, path).map(Some)
        }
    }
}

fn next_candidate_exists(
    stack: &LayerStack,
    lowers: &[Arc<LowerDir>],
    target: &Target<'_>,
    from: usize,
) -> bool {
    match target {
        Target::Name(_) => lowers.last().is_some_and(|dir| dir.layer >= from),
        Target::Path(_) => stack.root_from(from).is_some(),
    }
}

/// Walks all but the last component of a redirect's path in one layer.
fn walk_path(stack: &LayerStack, root: &Arc<LowerDir>, path: &[Vec<u8>]) -> Result<Candidate> {
    let mut found = Candidate { layer: root.layer, parent: Some(Arc::clone(root)), cut: false, next: None };
    for (index, component) in path.iter().enumerate().take(path.len().saturating_sub(1)) {
        let Some(at) = found.parent.take() else { break };
        match probe(stack, &at, component, true)? {
            Probe::Missing => break,
            Probe::Object(_, Some(dir), attrs) => {
                found.cut |= attrs.opaque || dir.sealed;
                if let Some(redirect) = attrs.redirect {
                    found.next = Some(Target::Path(rerouted(path, index, redirect)));
                }
                found.parent = Some(dir);
            }
            Probe::Stop | Probe::Object(..) => {
                found.cut = true;
                break;
            }
        }
    }
    Ok(found)
}

/// Replaces the component at `index`, or all up to it, by a redirect that was met on the way.
fn rerouted(path: &[Vec<u8>], index: usize, redirect: Redirect) -> Vec<Vec<u8>> {
    let rest = path.get(index + 1..).unwrap_or_default();
    let mut new = match redirect {
        Redirect::Absolute(components) => components,
        Redirect::Sibling(name) => {
            let before = path.get(..index).unwrap_or_default();
            before.iter().cloned().chain([name]).collect()
        }
    };
    new.extend_from_slice(rest);
    new
}

/// What one layer says about a name.
enum Probe {
    Missing,
    /// A whiteout: nothing below counts.
    Stop,
    Object(Stat, Option<Arc<LowerDir>>, DirAttrs),
}

/// Returns whether no layer is below that of `dir`, not even one that gives contents only. If there is one, a redirect may lead there from any directory, also
/// from one that is on this layer alone.
fn is_deepest(stack: &LayerStack, dir: &LowerDir) -> bool {
    stack.root_from(dir.layer + 1).is_none() && stack.data_roots.is_empty()
}

/// Looks at one name in one lower directory. `more_below` tells whether what it hides matters.
fn probe(stack: &LayerStack, parent: &Arc<LowerDir>, name: &[u8], more_below: bool) -> Result<Probe> {
    let layer = stack.lower(parent)?;
    let hides =
        || -> Result<bool> { Ok(more_below && layer.marks(&stack.fds, parent)?.whiteouts.contains(name)) };
    let looked = match layer.look(&stack.fds, parent, name) {
        Ok(looked) => looked,
        Err(error) if error.is(Errno::NOENT) => {
            return Ok(if hides()? { Probe::Stop } else { Probe::Missing });
        }
        Err(error) => return Err(error),
    };
    let stat = looked.stat;
    if stat.is_dir() {
        let (stat, dir, mut attrs) = probe_dir(stack, parent, name, looked)?;
        attrs.opaque = attrs.opaque || hides()?;
        return Ok(Probe::Object(stat, Some(dir), attrs));
    }
    if stat.is_whiteout() || is_xattr_whiteout(stack, parent, name, &stat)? {
        return Ok(Probe::Stop);
    }
    Ok(Probe::Object(stat, None, DirAttrs::default()))
}

/// Reads what a directory says of the layers below, if it matters.
fn probe_dir(
    stack: &LayerStack,
    parent: &Arc<LowerDir>,
    name: &[u8],
    mut looked: Looked,
) -> Result<(Stat, Arc<LowerDir>, DirAttrs)> {
    let layer = stack.lower(parent)?;
    let mut dir = LowerDir::found(parent, name, &looked, false);
    if !layer.is_as_found(&stack.fds, &dir) {
        looked = layer.look_on_disk(&stack.fds, parent, name)?;
        dir = LowerDir::found(parent, name, &looked, false);
    }
    let stat = looked.stat;
    if is_deepest(stack, parent) || stat.mount_root || looked.plain {
        return Ok((stat, dir, DirAttrs::default()));
    }
    let fd =
        sys::open_at(layer.dir_fd(&stack.fds, parent)?.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY, 0)?;
    let attrs = marks::read_attrs(layer.attributes(), fd.as_fd(), stack.namespace, stack.follow)?;
    let dir = LowerDir::found(parent, name, &looked, attrs.xattr_whiteouts);
    stack.fds.put(DirKey::Lower(dir.id), Arc::new(fd));
    Ok((stat, dir, attrs))
}

/// Returns whether an empty file is a whiteout by attribute (Linux 6.7): only in directories marked for it.
fn is_xattr_whiteout(stack: &LayerStack, parent: &LowerDir, name: &[u8], stat: &Stat) -> Result<bool> {
    if !parent.xattr_whiteouts || stat.kind() != FileKind::Regular || stat.size != 0 {
        return Ok(false);
    }
    let file = stack.lower(parent)?.object(&stack.fds, parent, name)?;
    Ok(file.mark(&stack.namespace.name("whiteout")).is_ok())
}
