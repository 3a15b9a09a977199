//! Several layers made one: what their union shows, written down as a layer.
//!
//! Without layers below, the result is the whole tree and holds no mark. Above others (`onto`) it is what the two unions
//! differ in, with whiteouts where those below have a name that is gone. Redirects and files without data are resolved. It
//! is built beside its place and appears by one rename. Data shares blocks with the layers where the file system can.

mod replace;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};

use crate::error::{Errno, Error, Result};
use crate::ondisk::{self, Namespace};
use crate::options::MountOptions;
use crate::request::FileKind;
use crate::stack::probe::{self, make_whiteout};
use crate::stack::workdir::remove_all;
use crate::sys;
use crate::tools::attributes::{Attributes, Owners};
use crate::tools::check;
use crate::tools::diff::{Comparison, Entry};
use crate::tools::view::{Object, View};
pub use replace::{Replaced, replace};

/// Writes the union of the layers of `options`, as a layer above those of `onto`, into the new directory `into`.
/// Returns what could not be kept, a line each.
///
/// # Errors
/// EBUSY if the upper is mounted, EEXIST if `into` exists; what is wrong with which object. Nothing is left then.
pub fn merge(options: &MountOptions, onto: &[PathBuf], into: &Path) -> Result<Vec<String>> {
    let _lock = check::hold(options)?;
    let comparison = Comparison::onto(options, onto)?;
    let (Some(parent), Some(name)) = (into.parent(), into.file_name()) else {
        return Err(Error::new(Errno::INVAL).during("make", into.as_os_str().as_encoded_bytes()));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let parent = check::open_dir(parent)?;
    let name = name.as_encoded_bytes();
    if sys::stat_at(parent.as_fd(), name).is_ok() {
        return Err(Error::new(Errno::EXIST).during("make", into.as_os_str().as_encoded_bytes()));
    }
    let partial = [b".", name, b".partial"].concat();
    // What an interrupted run left.
    remove_all(parent.as_fd(), &partial)?;
    let built = build(&comparison, options.userxattr, parent.as_fd(), &partial);
    let published = built.and_then(|notes| {
        rustix::fs::renameat_with(&parent, partial.as_slice(), &parent, name, RenameFlags::NOREPLACE)
            .map_err(|errno| Error::new(errno).during("publish", into.as_os_str().as_encoded_bytes()))?;
        Ok(notes)
    });
    if published.is_err() {
        remove_all(parent.as_fd(), &partial)?;
    }
    published
}

fn build(
    comparison: &Comparison,
    userxattr: bool,
    parent: BorrowedFd<'_>,
    partial: &[u8],
) -> Result<Vec<String>> {
    rustix::fs::mkdirat(parent, partial, Mode::RWXU).map_err(|e| Error::new(e).during("make", partial))?;
    let root = sys::open_at(parent, partial, OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
    let mut layer = Layer {
        view: &comparison.new,
        namespace: probe::namespace_without_upper(userxattr),
        root,
        names: HashMap::new(),
        directories: BTreeMap::new(),
        no_reflink: AtomicBool::new(false),
        notes: Vec::new(),
    };
    let top = comparison.new.root()?;
    let attributes = layer.attributes(&top)?;
    layer.directories.insert(Vec::new(), attributes);
    for entry in comparison.entries.values().filter(|entry| entry.in_layer) {
        layer.add(entry).map_err(|error| error.during("write into the layer", &entry.path))?;
    }
    layer.finish()
}

struct Layer<'a> {
    view: &'a View,
    namespace: Namespace,
    root: OwnedFd,
    /// The first name of each file that has several.
    names: HashMap<(u64, u64), Vec<u8>>,
    /// What directories get in the end.
    directories: BTreeMap<Vec<u8>, Attributes>,
    no_reflink: AtomicBool,
    notes: Vec<String>,
}

impl Layer<'_> {
    fn add(&mut self, entry: &Entry) -> Result<()> {
        if entry.path.is_empty() {
            return if entry.opaque { self.mark_opaque(b"") } else { Ok(()) };
        }
        let at = entry.path.iter().rposition(|&byte| byte == b'/');
        let (above, name) = match at {
            Some(at) => {
                (entry.path.get(..at).unwrap_or_default(), entry.path.get(at + 1..).unwrap_or_default())
            }
            None => (&b""[..], entry.path.as_slice()),
        };
        let dir = self.open(above)?;
        let Some(object) = &entry.object else {
            return make_whiteout(dir.as_fd(), name).map_err(|errno| {
                let error = Error::new(errno).during("make a whiteout for", &entry.path);
                error.hint("the file system holds no device 0:0")
            });
        };
        if object.stat.is_dir() {
            rustix::fs::mkdirat(&dir, name, Mode::RWXU)?;
            let attributes = self.attributes(object)?;
            self.directories.insert(entry.path.clone(), attributes);
            return if entry.opaque { self.mark_opaque(&entry.path) } else { Ok(()) };
        }
        if object.stat.nlink > 1 {
            if let Some(first) = self.names.get(&object.identity()) {
                return self.link_to(first, dir.as_fd(), name);
            }
            self.names.insert(object.identity(), entry.path.clone());
        }
        self.make(object, dir.as_fd(), name, &entry.path)
    }

    /// Makes anything but a directory.
    fn make(&mut self, object: &Object, dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()> {
        let kind = object.stat.kind();
        let fd = match kind {
            FileKind::Regular => {
                let fd = sys::open_at(dir, name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, 0o600)?;
                if object.stat.size > 0 {
                    let data = self.view.open_data(object)?;
                    if !data.share_data_with(fd.as_fd(), &self.no_reflink)? {
                        data.copy_data_to(fd.as_fd(), &data.stat()?)?;
                    }
                }
                fd
            }
            FileKind::Symlink => {
                rustix::fs::symlinkat(self.view.link_target(object)?.as_slice(), dir, name)?;
                sys::pin_at(dir, name)?
            }
            _ => {
                let file_type = FileType::from_raw_mode(kind.mode_bits());
                rustix::fs::mknodat(dir, name, file_type, Mode::from_raw_mode(0o600), object.stat.rdev)?;
                sys::pin_at(dir, name)?
            }
        };
        let attributes = self.attributes(object)?;
        let refused = attributes.set(fd.as_fd(), kind == FileKind::Symlink, Owners::Keep)?;
        self.note_refused(path, &refused);
        Ok(())
    }

    fn link_to(&self, first: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let at = first.iter().rposition(|&byte| byte == b'/');
        let (above, base) = match at {
            Some(at) => (first.get(..at).unwrap_or_default(), first.get(at + 1..).unwrap_or_default()),
            None => (&b""[..], first),
        };
        Ok(rustix::fs::linkat(self.open(above)?, base, dir, name, AtFlags::empty())?)
    }

    fn open(&self, path: &[u8]) -> Result<OwnedFd> {
        if path.is_empty() {
            return Ok(sys::open_at(self.root.as_fd(), b".", OFlags::PATH | OFlags::DIRECTORY, 0)?);
        }
        Ok(sys::open_dir_beneath(self.root.as_fd(), path)?)
    }

    fn mark_opaque(&self, path: &[u8]) -> Result<()> {
        let name = self.namespace.name("opaque");
        Ok(sys::xattr::set(self.open(path)?.as_fd(), &name, &[ondisk::OPAQUE_YES], 0)?)
    }

    fn attributes(&self, object: &Object) -> Result<Attributes> {
        let stat = &object.stat;
        let xattrs = self.view.xattrs(object)?;
        let stored = xattrs.into_iter().map(|(name, value)| (ondisk::escape_xattr(&name), value));
        Ok(Attributes {
            mode: stat.mode & 0o7777,
            uid: stat.uid,
            gid: stat.gid,
            times: Some((stat.atime, stat.mtime)),
            xattrs: stored.collect(),
        })
    }

    fn note_refused(&mut self, path: &[u8], names: &[Vec<u8>]) {
        let notes = names
            .iter()
            .map(|name| format!("attribute {} cannot be kept: {}", name.escape_ascii(), path.escape_ascii()));
        self.notes.extend(notes);
    }

    /// Gives directories their attributes, the deepest first, and brings everything to the disk.
    fn finish(mut self) -> Result<Vec<String>> {
        for (path, attributes) in std::mem::take(&mut self.directories).into_iter().rev() {
            let fd = self.open(&path)?;
            let set = attributes.set(fd.as_fd(), false, Owners::Keep);
            let refused = set.map_err(|error| error.during("set the attributes of", &path))?;
            self.note_refused(&path, &refused);
        }
        rustix::fs::syncfs(&self.root)?;
        Ok(self.notes)
    }
}
