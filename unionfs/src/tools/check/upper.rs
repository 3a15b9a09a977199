//! The upper: marks that are malformed, lead nowhere or hide nothing.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use super::Report;
use super::sidecar::Damaged;
use super::unfinished::{self, Left};
use super::work::names;
use crate::error::{Errno, Error, Result};
use crate::lookup::{self, DirView, LowerPart};
use crate::ondisk::{self, NameClass, Namespace, origin};
use crate::request::FileKind;
use crate::stack::LayerStack;
use crate::stack::attributes::Attributes;
use crate::stack::lower::LowerDir;
use crate::stack::marks;
use crate::stack::probe::make_whiteout;
use crate::stack::settle;
use crate::stack::workdir::{remove_all, remove_all_with};
use crate::sys::{self, Stat};
use crate::tools::view::{self, Parts};
use std::sync::Arc;

/// What the upper is looked at with.
#[derive(Clone, Copy)]
pub(super) struct Layers<'a> {
    /// The layers, the upper on top.
    pub stack: &'a LayerStack,
    /// Where the attributes of the upper are.
    pub attributes: &'a Attributes,
    /// Objects whose attributes are lost: nothing can be said of them and of what is below them.
    pub damaged: &'a Damaged,
}

/// Checks everything below the upper's root.
pub(super) fn check(
    report: &mut Report,
    root: BorrowedFd<'_>,
    layers: Layers<'_>,
    lowers_known: bool,
) -> Result<()> {
    let Layers { stack, attributes, damaged } = layers;
    let parts = lowers_known.then(|| stack.roots.clone());
    let pending = vec![Pending { path: Vec::new(), parts }];
    let mut walk = Walk { report, root, stack, attributes, damaged, pending, shown: HashMap::new() };
    while let Some(dir) = walk.pending.pop() {
        if let Err(error) = walk.directory(&dir) {
            walk.report.leave(&at(&dir.path, b""), format!("cannot be looked at: {error}"));
        }
    }
    Ok(())
}

/// A directory still to be looked at.
struct Pending {
    path: Vec<u8>,
    /// Its parts, its own the first, and those that it is merged with; none if the lowers are not known.
    parts: Option<Parts>,
}

struct Walk<'a> {
    report: &'a mut Report,
    root: BorrowedFd<'a>,
    stack: &'a LayerStack,
    attributes: &'a Attributes,
    damaged: &'a Damaged,
    pending: Vec<Pending>,
    /// Lower directories by identity, and where they show.
    shown: HashMap<(u64, u64), Vec<u8>>,
}

/// A name in a directory of the upper.
struct Place<'a> {
    dir: BorrowedFd<'a>,
    name: &'a [u8],
    path: Vec<u8>,
    parts: Option<&'a [Arc<LowerDir>]>,
}

/// Returns how a place in the upper is told.
fn at(parent: &[u8], name: &[u8]) -> Vec<u8> {
    let parts = [b"upper".as_slice(), parent, name];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(&b'/')
}

/// Returns the parts on the lowers.
fn below(parts: &[Arc<LowerDir>]) -> &[Arc<LowerDir>] {
    parts.get(1..).unwrap_or_default()
}

impl Walk<'_> {
    fn directory(&mut self, pending: &Pending) -> Result<()> {
        let fd = if pending.path.is_empty() {
            sys::open_at(self.root, b".", OFlags::PATH | OFlags::DIRECTORY, 0)?
        } else {
            sys::open_dir_beneath(self.root, &pending.path)?
        };
        let before = sys::stat_fd(fd.as_fd())?;
        let mut has_origins = false;
        for name in names(fd.as_fd())? {
            let path = at(&pending.path, &name);
            let place = Place { dir: fd.as_fd(), name: &name, path, parts: pending.parts.as_deref() };
            match self.name(&place, &pending.path) {
                Ok(origin) => has_origins |= origin,
                Err(error) => self.report.leave(&place.path, format!("cannot be looked at: {error}")),
            }
        }
        let impure = self.report.namespace.name("impure");
        let attributes = self.attributes;
        let missing = |error: Error| error.is(Errno::NODATA);
        if has_origins && attributes.get(fd.as_fd(), &impure).is_err_and(missing) {
            let what = "the mark impure is missing: kernel overlayfs may list wrong inode numbers";
            self.report
                .fault(&at(&pending.path, b""), what, "set", || attributes.set(fd.as_fd(), &impure, b"y", 0));
        }
        // Repairing a mark is no change to the directory that holds it.
        if sys::stat_fd(fd.as_fd())?.mtime != before.mtime {
            sys::set_both_times(fd.as_fd(), before.atime, before.mtime)?;
        }
        Ok(())
    }

    /// Looks at one name; returns whether it is an object with an origin.
    fn name(&mut self, place: &Place<'_>, parent: &[u8]) -> Result<bool> {
        match ondisk::classify(place.name) {
            NameClass::Plain if self.damaged.contains(&place.path) => return Ok(false),
            NameClass::Plain => {}
            NameClass::Whiteout(target) => return self.dot_wh(place, target).map(|()| false),
            NameClass::Opaque => return self.opaque_file(place).map(|()| false),
            NameClass::Reserved => {
                let attributes = self.attributes;
                self.report.fault(&place.path, "is not shown and means nothing", "removed", || {
                    remove_all_with(place.dir, place.name, attributes)
                });
                return Ok(false);
            }
        }
        let stat = sys::stat_at(place.dir, place.name)?;
        if stat.is_whiteout() {
            if self.hides_nothing(place, place.name)? {
                self.report.fault(&place.path, "a whiteout of nothing", "removed", || unlink(place));
            }
            return Ok(false);
        }
        if stat.is_dir() { self.merged(place, parent) } else { self.file(place, &stat) }
    }

    /// Returns whether it is known that nothing below provides `name`.
    fn hides_nothing(&self, place: &Place<'_>, name: &[u8]) -> Result<bool> {
        let Some(parts) = place.parts else { return Ok(false) };
        Ok(!lookup::below_provides(self.stack, &DirView::of_lowers(below(parts)), name)?)
    }

    /// A file `.wh.NAME`, which kernel overlayfs does not read.
    fn dot_wh(&mut self, place: &Place<'_>, target: &[u8]) -> Result<()> {
        if self.hides_nothing(place, target)? {
            self.report
                .fault(&place.path, "a whiteout of nothing", "removed", || remove_all(place.dir, place.name));
            return Ok(());
        }
        let what = "kernel overlayfs does not read this whiteout";
        let (namespace, attributes) = (self.report.namespace, self.attributes);
        let repair = || match sys::stat_at(place.dir, target) {
            Err(Errno::NOENT) => {
                make_whiteout(place.dir, target)?;
                if !sys::stat_at(place.dir, target)?.is_whiteout() {
                    remove_all(place.dir, target)?;
                    return Err(Errno::OPNOTSUPP.into());
                }
                unlink(place)
            }
            Ok(stat) if stat.is_dir() => {
                set_opaque(attributes, namespace, sys::pin_at(place.dir, target)?.as_fd())?;
                unlink(place)
            }
            Ok(_) => unlink(place),
            Err(errno) => Err(errno.into()),
        };
        self.convert(place, what, "a device 0:0 or a mark instead", repair)
    }

    fn opaque_file(&mut self, place: &Place<'_>) -> Result<()> {
        let (namespace, attributes) = (self.report.namespace, self.attributes);
        let repair = || {
            set_opaque(attributes, namespace, place.dir)?;
            remove_all(place.dir, place.name)
        };
        self.convert(place, "kernel overlayfs does not read this mark", "an attribute instead", repair)
    }

    /// Turns a mark into the kernel's form where the file system holds that; where not, it is the right form.
    fn convert(
        &mut self,
        place: &Place<'_>,
        what: &'static str,
        how: &'static str,
        repair: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let done =
            if self.report.faults == super::Faults::Repaired { repair() } else { Err(Errno::PERM.into()) };
        match done {
            Ok(()) => self.report.push(&place.path, what, super::Outcome::Repaired(how)),
            Err(_) => self.report.allow(&place.path, what),
        }
        Ok(())
    }

    /// A directory: what is it merged with? Returns whether it has an origin.
    fn merged(&mut self, place: &Place<'_>, parent: &[u8]) -> Result<bool> {
        let path = if parent.is_empty() { place.name.to_vec() } else { [parent, b"/", place.name].concat() };
        let pin = sys::pin_at(place.dir, place.name)?;
        let has_origin = self.origin(&place.path, pin.as_fd());
        let redirect = self.attributes.get(pin.as_fd(), &self.report.namespace.name("redirect")).ok();
        let malformed = redirect.as_deref().is_some_and(|value| ondisk::parse_redirect(value).is_err());
        let (opaque, parts) = match place.parts {
            _ if malformed => (false, Some(Vec::new())),
            Some(parts) => self.parts_of(place, parts)?,
            None => (false, None),
        };
        let found = parts.as_ref().is_some_and(|parts| !below(parts).is_empty());
        if redirect.is_some() && !opaque && parts.is_some() && !found {
            let what = if malformed { "its redirect is malformed" } else { "its redirect leads nowhere" };
            let (namespace, attributes) = (self.report.namespace, self.attributes);
            self.report.fault(&place.path, what, "shows what the upper has", || {
                set_opaque(attributes, namespace, pin.as_fd())?;
                attributes.remove(pin.as_fd(), &namespace.name("redirect"))
            });
        }
        if let Some(first) = parts.as_deref().and_then(|parts| below(parts).first())
            && let Some(other) = self.shown.insert(first.identity, place.path.clone())
        {
            let what = format!("shows the same lower directory as {}", other.escape_ascii());
            self.report.allow(&place.path, what);
        }
        self.pending.push(Pending { path, parts });
        Ok(has_origin)
    }

    /// Returns whether a directory is opaque, and its parts.
    fn parts_of(&self, place: &Place<'_>, parts: &[Arc<LowerDir>]) -> Result<(bool, Option<Parts>)> {
        let pin = sys::pin_at(place.dir, place.name)?;
        let opaque =
            marks::read_attrs(self.attributes, pin.as_fd(), self.stack.namespace, self.stack.follow)?.opaque;
        let found = lookup::find(self.stack, &view::dir_view(parts), place.name)?.map(|found| found.lower);
        Ok((opaque, Some(if let Some(LowerPart::Dirs(parts)) = found { parts } else { Vec::new() })))
    }

    /// Anything but a directory. Returns whether it has an origin.
    fn file(&mut self, place: &Place<'_>, stat: &Stat) -> Result<bool> {
        let pin = sys::pin_at(place.dir, place.name)?;
        let has_origin = self.origin(&place.path, pin.as_fd());
        let namespace = self.report.namespace;
        let is_regular = stat.kind() == FileKind::Regular;
        if !is_regular || self.attributes.get(pin.as_fd(), &namespace.name("metacopy")).is_err() {
            return Ok(has_origin);
        }
        let Some(parts) = place.parts else { return Ok(has_origin) };
        let data = match lookup::find(self.stack, &view::dir_view(parts), place.name) {
            Ok(found) => found.and_then(|found| found.data),
            Err(error) if [Errno::IO, Errno::INVAL, Errno::ACCESS].contains(&error.errno()) => None,
            Err(error) => return Err(error),
        };
        let mark = |mark: &str| self.attributes.get(pin.as_fd(), &namespace.name(mark)).ok();
        if let Some(mark) = settle::unfinished(mark) {
            let left = Left { dir: place.dir, name: place.name, path: &place.path, mark: &mark, stat };
            unfinished::settle(self.report, (self.stack, self.attributes), &left, data.as_ref())?;
            return Ok(has_origin);
        }
        let Some(data) = data else {
            self.report.leave(&place.path, "holds attributes only, and no layer below has its data");
            return Ok(has_origin);
        };
        let below = self.stack.stat_of(&data)?;
        if below.size != stat.size {
            let what =
                format!("shows {} bytes, and the file below that has its data {}", stat.size, below.size);
            self.report
                .fault(&place.path, what, "the size of that", || resize(pin.as_fd(), stat, below.size));
        }
        Ok(has_origin)
    }

    /// Checks the record of an origin; returns whether there is a good one.
    fn origin(&mut self, path: &[u8], object: BorrowedFd<'_>) -> bool {
        let name = self.report.namespace.name("origin");
        let attributes = self.attributes;
        let Ok(value) = attributes.get(object, &name) else { return false };
        let good = value.is_empty() || origin::is_record(&value);
        if !good {
            self.report.fault(path, "the record of its origin is malformed", "removed", || {
                attributes.remove(object, &name)
            });
        }
        good && !value.is_empty()
    }
}

fn unlink(place: &Place<'_>) -> Result<()> {
    Ok(rustix::fs::unlinkat(place.dir, place.name, AtFlags::empty())?)
}

fn set_opaque(attributes: &Attributes, namespace: Namespace, dir: BorrowedFd<'_>) -> Result<()> {
    attributes.set(dir, &namespace.name("opaque"), &[ondisk::OPAQUE_YES], 0)
}

/// Gives a file without data another size, and leaves its times as they are.
fn resize(pin: BorrowedFd<'_>, stat: &Stat, size: u64) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, sys::proc_path(pin), flags, Mode::empty()).map_err(Error::new)?;
    // The attributes that writing takes away are put back.
    let capability = sys::xattr::get(pin, ondisk::capability::NAME).ok();
    rustix::fs::ftruncate(&file, size)?;
    if let Some(capability) = capability {
        sys::xattr::set(pin, ondisk::capability::NAME, &capability, 0)?;
    }
    rustix::fs::chmodat(CWD, sys::proc_path(pin), Mode::from_raw_mode(stat.mode & 0o7777), AtFlags::empty())?;
    Ok(sys::set_both_times(pin, stat.atime, stat.mtime)?)
}
