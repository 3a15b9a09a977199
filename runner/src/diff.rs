//! What a container changed: its upper directory compared with the layers below.
//!
//! The upper is in the kernel's overlay format: whiteouts are character devices 0:0, empty files with an attribute,
//! or files named `.wh.NAME`; opaque directories have an attribute or hold `.wh..wh..opq`; a directory renamed from a
//! lower layer has an attribute that says from where.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::error::{During, Result, shown};

/// How a path differs from the layers below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It did not exist.
    Added,
    /// It existed, and its content or attributes were written to.
    Changed,
    /// It no longer exists.
    Deleted,
}

impl Kind {
    /// The letter that docker uses.
    pub const fn letter(self) -> &'static [u8] {
        match self {
            Self::Added => b"A",
            Self::Changed => b"C",
            Self::Deleted => b"D",
        }
    }
}

/// One changed path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// How it differs.
    pub kind: Kind,
    /// Its absolute path in the container.
    pub path: Vec<u8>,
}

/// Compares an upper directory with the layers below it, topmost first. Sorted by path.
pub fn compare(upper: &Path, lowers: &[PathBuf]) -> Result<Vec<Change>> {
    let lowers = Lowers { roots: lowers };
    let mut changes = BTreeMap::new();
    // Directories still to be compared: where in the upper, under which name in the lowers, if at all.
    let mut pending = vec![Pair { path: PathBuf::new(), origin: Some(PathBuf::new()) }];
    while let Some(pair) = pending.pop() {
        compare_directory(upper, &lowers, &pair, &mut pending, &mut changes)?;
    }
    Ok(changes.into_iter().map(|(path, kind)| Change { kind, path }).collect())
}

/// A directory of the upper and the directory of the lowers that it is merged with.
#[derive(Debug)]
struct Pair {
    path: PathBuf,
    origin: Option<PathBuf>,
}

type Changes = BTreeMap<Vec<u8>, Kind>;

fn compare_directory(
    upper: &Path,
    lowers: &Lowers<'_>,
    pair: &Pair,
    pending: &mut Vec<Pair>,
    changes: &mut Changes,
) -> Result<()> {
    let directory = upper.join(&pair.path);
    for (name, stat) in list(&directory)? {
        let Some(entry) = classify(&directory, &name, &stat)? else { continue };
        let name = OsStr::from_bytes(entry.name());
        let path = pair.path.join(name);
        let before = lowers.find(&path)?;
        if matches!(entry, Entry::Whiteout(_)) {
            // Below a moved directory a whiteout hides what was never at this path.
            if before.is_some() {
                note(changes, &path, Kind::Deleted);
            }
            continue;
        }
        note(changes, &path, if before.is_some() { Kind::Changed } else { Kind::Added });
        let merged = merged_with(&entry, pair, name, lowers)?;
        if before.is_some_and(|kind| kind.is_dir()) && merged.as_ref() != Some(&path) {
            report_hidden(upper, lowers, &path, changes)?;
        }
        if let Some(origin) = merged.as_ref().filter(|origin| **origin != path) {
            report_moved(upper, lowers, &path, origin, changes)?;
        }
        if matches!(entry, Entry::Directory { .. }) {
            pending.push(Pair { path, origin: merged });
        }
    }
    Ok(())
}

/// The directory of the lowers whose content shows through an entry of the upper.
fn merged_with(entry: &Entry, pair: &Pair, name: &OsStr, lowers: &Lowers<'_>) -> Result<Option<PathBuf>> {
    match (entry, &pair.origin) {
        (Entry::Directory { redirect: Some(redirect), .. }, origin) => {
            let parent = origin.as_deref().unwrap_or(&pair.path);
            Ok(Some(redirect_target(parent, redirect)))
        }
        (Entry::Directory { opaque: false, .. }, Some(origin)) => {
            let origin = origin.join(name);
            Ok(lowers.find(&origin)?.is_some_and(|kind| kind.is_dir()).then_some(origin))
        }
        _ => Ok(None),
    }
}

fn note(changes: &mut Changes, path: &Path, kind: Kind) {
    changes.insert([b"/", path.as_os_str().as_bytes()].concat(), kind);
}

/// A directory of the lowers stands behind something new: what it held, and is not there again, is deleted.
fn report_hidden(upper: &Path, lowers: &Lowers<'_>, path: &Path, changes: &mut Changes) -> Result<()> {
    for name in lowers.list(path)?.into_keys() {
        let child = path.join(OsStr::from_bytes(&name));
        if stat(&upper.join(&child))?.is_none() {
            note(changes, &child, Kind::Deleted);
        }
    }
    Ok(())
}

/// A directory of the lowers shows under a new name: what it holds, and the upper does not say otherwise, is added.
fn report_moved(
    upper: &Path,
    lowers: &Lowers<'_>,
    path: &Path,
    origin: &Path,
    changes: &mut Changes,
) -> Result<()> {
    let mut pending = vec![(path.to_owned(), origin.to_owned())];
    while let Some((path, origin)) = pending.pop() {
        for (name, kind) in lowers.list(&origin)? {
            let name = OsStr::from_bytes(&name);
            let marker = [b".wh.", name.as_bytes()].concat();
            let shadowed = stat(&upper.join(&path).join(name))?.is_some()
                || stat(&upper.join(&path).join(OsStr::from_bytes(&marker)))?.is_some();
            if shadowed {
                continue;
            }
            let before = lowers.find(&path.join(name))?;
            note(changes, &path.join(name), if before.is_some() { Kind::Changed } else { Kind::Added });
            if kind.is_dir() {
                pending.push((path.join(name), origin.join(name)));
            }
        }
    }
    Ok(())
}

/// Where a redirect leads: an absolute path in the union, or a new name beside the directory.
fn redirect_target(parent: &Path, redirect: &[u8]) -> PathBuf {
    let (base, target) = match redirect.strip_prefix(b"/") {
        Some(absolute) => (Path::new(""), absolute),
        None => (parent, redirect),
    };
    // A layer is somebody else's data: nothing in it leads out of it.
    let names = target.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"." | b".."));
    names.fold(base.to_owned(), |path, name| path.join(OsStr::from_bytes(name)))
}

/// What an entry of a layer means.
#[derive(Debug)]
enum Entry {
    Whiteout(Vec<u8>),
    Directory { name: Vec<u8>, opaque: bool, redirect: Option<Vec<u8>> },
    Other(Vec<u8>),
}

impl Entry {
    fn name(&self) -> &[u8] {
        match self {
            Self::Whiteout(name) | Self::Other(name) | Self::Directory { name, .. } => name,
        }
    }
}

/// Decides what an entry means; none for one that only marks its directory.
fn classify(directory: &Path, name: &[u8], stat: &Stat) -> Result<Option<Entry>> {
    if name.starts_with(b".wh..wh.") {
        return Ok(None);
    }
    if let Some(hidden) = name.strip_prefix(b".wh.") {
        return Ok((!hidden.is_empty()).then(|| Entry::Whiteout(hidden.to_vec())));
    }
    let path = directory.join(OsStr::from_bytes(name));
    let name = name.to_vec();
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind.is_char_device() && stat.st_rdev == 0 {
        return Ok(Some(Entry::Whiteout(name)));
    }
    if kind.is_file() && stat.st_size == 0 && mark(&path, "whiteout")?.is_some() {
        return Ok(Some(Entry::Whiteout(name)));
    }
    if kind.is_dir() {
        return Ok(Some(Entry::Directory {
            name,
            opaque: is_opaque(&path)?,
            redirect: mark(&path, "redirect")?,
        }));
    }
    Ok(Some(Entry::Other(name)))
}

fn is_opaque(directory: &Path) -> Result<bool> {
    Ok(mark(directory, "opaque")?.is_some_and(|value| value == b"y")
        || stat(&directory.join(".wh..wh..opq"))?.is_some())
}

/// Reads one of the union's attributes, from the name space that is in use.
fn mark(path: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    /// A redirect is a path.
    const LONGEST: usize = 4096;
    for space in ["trusted", "user"] {
        let mut value = vec![0_u8; LONGEST];
        match rustix::fs::lgetxattr(path, format!("{space}.overlay.{name}"), &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                return Ok(Some(value));
            }
            Err(Errno::NODATA | Errno::NOTSUP | Errno::PERM | Errno::NOENT) => {}
            Err(error) => return Err(error).during(format_args!("read attributes of {}", shown(path))),
        }
    }
    Ok(None)
}

fn stat(path: &Path) -> Result<Option<Stat>> {
    match rustix::fs::lstat(path) {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        result => result.map(Some).during(format_args!("look at {}", shown(path))),
    }
}

fn list(directory: &Path) -> Result<Vec<(Vec<u8>, Stat)>> {
    let cannot = || format!("list {}", shown(directory));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, directory, flags, Mode::empty()).during(cannot())?;
    let mut entries = Vec::new();
    for entry in Dir::read_from(&fd).during(cannot())? {
        let entry = entry.during(cannot())?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        match rustix::fs::statat(&fd, entry.file_name(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
            // Gone since it was listed: the container may be running.
            Err(Errno::NOENT) => {}
            result => entries.push((name.to_vec(), result.during(cannot())?)),
        }
    }
    Ok(entries)
}

/// The layers below, seen as one.
#[derive(Debug)]
struct Lowers<'a> {
    roots: &'a [PathBuf],
}

impl Lowers<'_> {
    /// The kind of object at a path, if there is one.
    fn find(&self, path: &Path) -> Result<Option<FileType>> {
        for (root, path) in self.places(path)? {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Ok(Some(FileType::Directory));
            };
            let directory = root.join(parent);
            if let Some(stat) = stat(&root.join(&path))? {
                return Ok(match classify(&directory, name.as_bytes(), &stat)? {
                    Some(Entry::Whiteout(_)) | None => None,
                    Some(_) => Some(FileType::from_raw_mode(stat.st_mode)),
                });
            }
            if stat_marker(&directory, name)? {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Names and kinds in a directory of all layers together.
    fn list(&self, path: &Path) -> Result<BTreeMap<Vec<u8>, FileType>> {
        let mut names: BTreeMap<Vec<u8>, Option<FileType>> = BTreeMap::new();
        for (root, path) in self.places(path)? {
            let directory = root.join(&path);
            match stat(&directory)? {
                Some(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {}
                Some(_) => break,
                None => continue,
            }
            for (name, stat) in list(&directory)? {
                let Some(entry) = classify(&directory, &name, &stat)? else { continue };
                let kind = match entry {
                    Entry::Whiteout(_) => None,
                    _ => Some(FileType::from_raw_mode(stat.st_mode)),
                };
                names.entry(entry.name().to_vec()).or_insert(kind);
            }
            if is_opaque(&directory)? {
                break;
            }
        }
        Ok(names.into_iter().filter_map(|(name, kind)| Some((name, kind?))).collect())
    }

    /// The layers that may hold a path, topmost first, with the path's name in each: a layer that replaces one of
    /// the directories above hides those below it, and one that moved it names another place for them. Each directory
    /// above is a real one: a link of an image is not followed.
    fn places(&self, path: &Path) -> Result<Vec<(&PathBuf, PathBuf)>> {
        let mut places = Vec::new();
        let mut path = path.to_owned();
        for root in self.roots {
            match walk(root, &path)? {
                Walk::Elsewhere(below) => path = below,
                Walk::Hidden => break,
                Walk::Here { below } => {
                    places.push((root, path));
                    let Some(below) = below else { break };
                    path = below;
                }
            }
        }
        Ok(places)
    }
}

/// What one layer says about a path.
enum Walk {
    /// It does not have the directories above; layers below may, under this name.
    Elsewhere(PathBuf),
    /// It has something else instead of a directory above.
    Hidden,
    /// It has the directories above. Layers below are asked under this name, or not at all.
    Here { below: Option<PathBuf> },
}

fn walk(root: &Path, path: &Path) -> Result<Walk> {
    let mut parts = path.components().map(|part| part.as_os_str()).peekable();
    // The same directory under its name here and under its name in the layers below.
    let (mut here, mut below) = (PathBuf::new(), PathBuf::new());
    let mut opaque = false;
    while let Some(part) = parts.next() {
        let is_last = parts.peek().is_none();
        if !is_last && stat_marker(&root.join(&here), part)? {
            return Ok(Walk::Hidden);
        }
        here.push(part);
        let directory = root.join(&here);
        let kind = stat(&directory)?.map(|stat| FileType::from_raw_mode(stat.st_mode));
        match kind {
            Some(kind) if kind.is_dir() => {
                match mark(&directory, "redirect")? {
                    Some(redirect) => below = redirect_target(&below, &redirect),
                    None => below.push(part),
                }
                // For the object itself the caller decides.
                opaque |= !is_last && is_opaque(&directory)?;
            }
            _ if is_last => below.push(part),
            Some(_) => return Ok(Walk::Hidden),
            None if opaque => return Ok(Walk::Hidden),
            None => {
                below.push(part);
                below.extend(parts);
                return Ok(Walk::Elsewhere(below));
            }
        }
    }
    Ok(Walk::Here { below: (!opaque).then_some(below) })
}

/// Whether a layer holds `.wh.NAME`.
fn stat_marker(directory: &Path, name: &OsStr) -> Result<bool> {
    let marker = [b".wh.", name.as_bytes()].concat();
    Ok(stat(&directory.join(OsStr::from_bytes(&marker)))?.is_some())
}

#[cfg(test)]
mod tests;
