//! The directory that a layer is unpacked into: what each entry does to it.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, makedev};

use super::{ApplyOptions, Devices, Format, Owners, components, refused};
use crate::error::{Errno, Error, Result};
use crate::ondisk::record::FORMS;
use crate::ondisk::{self, NameClass, Namespace};
use crate::request::FileKind;
use crate::stack::probe::make_whiteout;
use crate::stack::workdir::remove_all;
use crate::sys;
use crate::tools::attributes::Attributes;
use crate::tools::tar::read::Reader;
use crate::tools::tar::{Kind, Member};

/// A run of zero bytes of this length, at a multiple of it, is left a hole.
const HOLE: usize = 4096;

pub(super) struct Target {
    root: Arc<OwnedFd>,
    options: ApplyOptions,
    /// What this archive brought, also without an entry of its own.
    made: HashSet<Vec<u8>>,
    /// What directories get in the end, when nothing is made in them any more.
    directories: BTreeMap<Vec<u8>, Attributes>,
    /// The directory that was used last, by path.
    last: Option<(Vec<u8>, Arc<OwnedFd>)>,
    notes: Vec<String>,
}

/// Where an entry goes.
struct Place<'a> {
    dir: Arc<OwnedFd>,
    name: &'a [u8],
    path: Vec<u8>,
}

impl Place<'_> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Target {
    pub(super) fn open(dir: &Path, options: ApplyOptions) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = sys::retry(|| rustix::fs::openat(CWD, dir, flags, Mode::empty()))
            .map_err(|e| Error::new(e).during("open the directory", dir.as_os_str().as_encoded_bytes()))?;
        let mut notes = Vec::new();
        if options.owners == Owners::Own {
            notes.push("all files belong to this process's user, set-id bits are left out".to_owned());
        }
        let (made, directories) = (HashSet::new(), BTreeMap::new());
        Ok(Self { root: Arc::new(root), options, made, directories, last: None, notes })
    }

    /// Unpacks one entry.
    pub(super) fn add<R: Read>(&mut self, reader: &mut Reader<R>, member: Member) -> Result<()> {
        let parts = components(&member.path, &member.path)?;
        let Some((name, above)) = parts.split_last() else { return self.root_entry(&member) };
        if above.iter().any(|part| part.starts_with(ondisk::RESERVED_PREFIX)) {
            return Ok(());
        }
        if above.iter().any(|part| part.starts_with(ondisk::WHITEOUT_PREFIX))
            || name == ondisk::WHITEOUT_PREFIX
        {
            return Err(refused(
                Errno::INVAL,
                &member.path,
                "a name beginning .wh. is a whiteout and holds nothing",
            ));
        }
        match ondisk::classify(name) {
            // What AUFS kept for itself.
            NameClass::Reserved => Ok(()),
            NameClass::Opaque => self.opaque(above, &member.path),
            NameClass::Whiteout(hidden) => {
                let place = self.place(above, hidden, &member.path)?;
                self.whiteout(&place)
            }
            NameClass::Plain => {
                let place = self.place(above, name, &member.path)?;
                self.object(reader, &place, member)?;
                self.made.insert(place.path);
                Ok(())
            }
        }
    }

    /// Gives directories their attributes, the deepest first, and returns what could not be kept.
    pub(super) fn finish(mut self) -> Result<Vec<String>> {
        for (path, attributes) in std::mem::take(&mut self.directories).into_iter().rev() {
            let fd = match self.open_dir(&path) {
                // Something else took its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                result => result.map_err(|e| Error::new(e).during("open the directory", &path))?,
            };
            let set = attributes.set(fd.as_fd(), false, self.options.owners);
            self.note_refused(&path, set.map_err(|error| without_id(error, &path))?);
        }
        Ok(self.notes)
    }

    fn root_entry(&mut self, member: &Member) -> Result<()> {
        if member.kind != Kind::Object(FileKind::Directory) {
            return Err(refused(Errno::NOTDIR, &member.path, "the root of a layer is a directory"));
        }
        let attributes = self.attributes(member);
        self.directories.insert(Vec::new(), attributes);
        Ok(())
    }

    fn open_dir(&self, path: &[u8]) -> std::result::Result<Arc<OwnedFd>, Errno> {
        if path.is_empty() {
            return Ok(Arc::clone(&self.root));
        }
        sys::open_dir_beneath(self.root.as_fd(), path).map(Arc::new)
    }

    /// Returns where `name` goes, and makes the directories above it that no entry brought.
    fn place<'a>(&mut self, above: &[Vec<u8>], name: &'a [u8], entry: &[u8]) -> Result<Place<'a>> {
        let parent = above.join(&b'/');
        let path = if parent.is_empty() { name.to_vec() } else { [parent.as_slice(), b"/", name].concat() };
        if let Some((last, dir)) = &self.last
            && *last == parent
        {
            return Ok(Place { dir: Arc::clone(dir), name, path });
        }
        let dir = match self.open_dir(&parent) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.make_dirs(above, entry)?,
            result => result?,
        };
        self.last = Some((parent, Arc::clone(&dir)));
        Ok(Place { dir, name, path })
    }

    fn make_dirs(&mut self, above: &[Vec<u8>], entry: &[u8]) -> Result<Arc<OwnedFd>> {
        let mut dir = Arc::clone(&self.root);
        for (depth, name) in above.iter().enumerate() {
            let replaces = match sys::stat_at(dir.as_fd(), name) {
                Ok(stat) if stat.is_dir() => None,
                Ok(stat) if stat.is_whiteout() => Some(true),
                Ok(_) => return Err(refused(Errno::NOTDIR, entry, "what stands above it is no directory")),
                Err(Errno::NOENT) => Some(false),
                Err(errno) => return Err(errno.into()),
            };
            if replaces == Some(true) {
                rustix::fs::unlinkat(&dir, name.as_slice(), AtFlags::empty())?;
            }
            if replaces.is_some() {
                rustix::fs::mkdirat(&dir, name.as_slice(), Mode::from_raw_mode(0o755))?;
                self.made.insert(above.get(..=depth).unwrap_or_default().join(&b'/'));
            }
            dir = Arc::new(sys::open_at(dir.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY, 0)?);
            if replaces == Some(true) {
                self.mark_opaque(dir.as_fd())?;
            }
        }
        Ok(dir)
    }

    fn object<R: Read>(&mut self, reader: &mut Reader<R>, place: &Place<'_>, member: Member) -> Result<()> {
        let standing = match sys::stat_at(place.fd(), place.name) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno.into()),
        };
        let Kind::Object(kind) = member.kind else { return self.hard_link(place, &member) };
        if kind == FileKind::Directory {
            return self.directory(place, &member, standing.as_ref());
        }
        if kind == FileKind::CharDevice && member.device == (0, 0) {
            return Err(refused(Errno::PERM, &member.path, "a device 0:0 would be a whiteout"));
        }
        self.clear(place)?;
        let fd = match kind {
            FileKind::Regular => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let fd = sys::open_at(place.fd(), place.name, flags, 0o600)?;
                write_data(reader, &member, fd.as_fd())?;
                fd
            }
            FileKind::Symlink => {
                rustix::fs::symlinkat(member.link.as_slice(), place.fd(), place.name)?;
                sys::pin_at(place.fd(), place.name)?
            }
            _ => {
                if !self.make_node(place, kind, &member)? {
                    return Ok(());
                }
                sys::pin_at(place.fd(), place.name)?
            }
        };
        let set = self.attributes(&member).set(fd.as_fd(), kind == FileKind::Symlink, self.options.owners);
        self.note_refused(&place.path, set.map_err(|error| without_id(error, &member.path))?);
        Ok(())
    }

    /// Makes a pipe or device; false if it is left out.
    fn make_node(&mut self, place: &Place<'_>, kind: FileKind, member: &Member) -> Result<bool> {
        let file_type = FileType::from_raw_mode(kind.mode_bits());
        let device = makedev(member.device.0, member.device.1);
        match rustix::fs::mknodat(place.fd(), place.name, file_type, Mode::from_raw_mode(0o600), device) {
            Err(Errno::PERM) if self.options.devices == Devices::Skipped => {
                self.notes.push(format!("a device is left out: {}", place.path.escape_ascii()));
                Ok(false)
            }
            Err(Errno::PERM) => Err(refused(
                Errno::PERM,
                &member.path,
                "making a device needs privilege; -o devices=skip leaves devices out",
            )),
            result => Ok(result.map(|()| true)?),
        }
    }

    fn directory(&mut self, place: &Place<'_>, member: &Member, standing: Option<&sys::Stat>) -> Result<()> {
        match standing {
            Some(stat) if stat.is_dir() => {
                if stat.mode & 0o700 != 0o700 && !rustix::process::geteuid().is_root() {
                    // Its owner has to write in it until the end.
                    let pin = sys::pin_at(place.fd(), place.name)?;
                    let mode = Mode::from_raw_mode(stat.mode & 0o7777 | 0o700);
                    rustix::fs::chmodat(CWD, sys::proc_path(pin.as_fd()), mode, AtFlags::empty())?;
                }
            }
            _ => {
                self.clear(place)?;
                rustix::fs::mkdirat(place.fd(), place.name, Mode::RWXU)?;
                // What stood here hid what the layers below have under this name.
                if standing.is_some() {
                    self.mark_opaque(sys::pin_at(place.fd(), place.name)?.as_fd())?;
                }
            }
        }
        let attributes = self.attributes(member);
        self.directories.insert(place.path.clone(), attributes);
        Ok(())
    }

    fn hard_link(&mut self, place: &Place<'_>, member: &Member) -> Result<()> {
        const MISSING: &str = "it is a hard link to what is not there, or to a directory";
        let parts = components(&member.link, &member.path)?;
        let Some((name, above)) = parts.split_last() else {
            return Err(refused(Errno::INVAL, &member.path, MISSING));
        };
        let no_target = |errno| match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => refused(errno, &member.path, MISSING),
            errno => Error::new(errno),
        };
        let dir = self.open_dir(&above.join(&b'/')).map_err(no_target)?;
        let stat = sys::stat_at(dir.as_fd(), name).map_err(no_target)?;
        if stat.is_dir() || stat.is_whiteout() || ondisk::classify(name) != NameClass::Plain {
            return Err(refused(Errno::NOENT, &member.path, MISSING));
        }
        let standing = sys::stat_at(place.fd(), place.name);
        if standing.is_ok_and(|standing| (standing.dev, standing.ino) == (stat.dev, stat.ino)) {
            return Ok(());
        }
        self.clear(place)?;
        rustix::fs::linkat(&*dir, name.as_slice(), place.fd(), place.name, AtFlags::empty())
            .map_err(no_target)
    }

    /// Removes what stands in a place.
    fn clear(&mut self, place: &Place<'_>) -> Result<()> {
        remove_all(place.fd(), place.name)?;
        self.last = None;
        Ok(())
    }

    fn whiteout(&mut self, place: &Place<'_>) -> Result<()> {
        let own = self.made.contains(&place.path);
        if !own {
            self.clear(place)?;
        }
        match self.options.format {
            Format::Plain => Ok(()),
            Format::Oci => make_empty(place.fd(), &ondisk::whiteout_name(place.name)),
            Format::Overlayfs | Format::Userxattr if own => {
                // What the layer itself has under the name hides it; a directory has to be told to.
                let pin = sys::pin_at(place.fd(), place.name)?;
                if sys::stat_fd(pin.as_fd())?.is_dir() { self.mark_opaque(pin.as_fd()) } else { Ok(()) }
            }
            Format::Overlayfs | Format::Userxattr => {
                let made = make_whiteout(place.fd(), place.name);
                if made.is_err() || !sys::stat_at(place.fd(), place.name)?.is_whiteout() {
                    return Err(Error::new(made.err().unwrap_or(Errno::OPNOTSUPP))
                        .during("make a whiteout for", &place.path)
                        .hint("the file system holds no device 0:0; give -o format=oci"));
                }
                Ok(())
            }
        }
    }

    /// Hides all that a directory has from elsewhere.
    fn opaque(&mut self, parts: &[Vec<u8>], entry: &[u8]) -> Result<()> {
        let dir = self.place(parts, b"", entry)?.dir;
        self.remove_foreign(&parts.join(&b'/'), dir.as_fd())?;
        self.mark_opaque(dir.as_fd())
    }

    /// Removes what this archive did not bring.
    fn remove_foreign(&mut self, path: &[u8], dir: BorrowedFd<'_>) -> Result<()> {
        let names = sys::dirents::names(dir)?;
        for name in names {
            let inner = if path.is_empty() { name.clone() } else { [path, b"/", name.as_slice()].concat() };
            if !self.made.contains(&inner) && ondisk::classify(&name) == NameClass::Plain {
                remove_all(dir, &name)?;
            } else if sys::stat_at(dir, &name)?.is_dir() {
                let fd = sys::open_at(dir, &name, OFlags::PATH | OFlags::DIRECTORY, 0)?;
                self.remove_foreign(&inner, fd.as_fd())?;
            }
        }
        self.last = None;
        Ok(())
    }

    fn mark_opaque(&self, dir: BorrowedFd<'_>) -> Result<()> {
        let namespace = match self.options.format {
            Format::Plain => return Ok(()),
            Format::Oci => return make_empty(dir, ondisk::OPAQUE_FILE),
            Format::Overlayfs => Namespace::Trusted,
            Format::Userxattr => Namespace::User,
        };
        sys::xattr::set(dir, &namespace.name("opaque"), &[ondisk::OPAQUE_YES], 0).map_err(|errno| {
            let name = namespace.name("opaque");
            Error::new(errno)
                .during("set on a directory the mark", name)
                .hint("give -o format=userxattr or oci")
        })
    }

    fn attributes(&mut self, member: &Member) -> Attributes {
        let mut xattrs = BTreeMap::new();
        for (name, value) in &member.xattrs {
            let stored = ondisk::escape_xattr(name);
            // A record of owners on a root would say how the whole layer is read.
            let is_record = FORMS.iter().any(|form| name == form.name());
            if is_record || ondisk::is_private_xattr(&stored) {
                self.note_refused(&member.path, vec![name.clone()]);
            } else {
                xattrs.insert(stored, value.clone());
            }
        }
        let times = Some((member.atime.unwrap_or(member.mtime), member.mtime));
        Attributes { mode: member.mode, uid: member.uid, gid: member.gid, times, xattrs }
    }

    fn note_refused(&mut self, path: &[u8], names: Vec<Vec<u8>>) {
        let notes = names
            .iter()
            .map(|name| format!("attribute {} cannot be kept: {}", name.escape_ascii(), path.escape_ascii()));
        self.notes.extend(notes);
    }
}

/// Explains why an owner could not be set.
fn without_id(error: Error, entry: &[u8]) -> Error {
    match error.errno() {
        Errno::INVAL => refused(
            Errno::INVAL,
            entry,
            "its owner has no id in this user namespace: map more, or give -o owners=own",
        ),
        _ => error.during("set the attributes of", entry),
    }
}

/// Makes a file whose name is all that it says.
fn make_empty(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    sys::open_at(dir, name, OFlags::WRONLY | OFlags::CREATE, 0o600)?;
    Ok(())
}

/// Writes the data of a member into an empty file, and gives it its size.
fn write_data<R: Read>(reader: &mut Reader<R>, member: &Member, fd: BorrowedFd<'_>) -> Result<()> {
    let whole = [(0, member.size)];
    let extents = member.extents.as_deref().unwrap_or(&whole);
    let mut buffer = vec![0; 32 * HOLE];
    for &(offset, length) in extents {
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            let part = fill(reader, buffer.get_mut(..want).ok_or(Errno::IO)?)?;
            for piece in part.chunks(HOLE) {
                if piece.iter().any(|&byte| byte != 0) {
                    sys::copy::write_all(fd, piece, at)?;
                }
                at += piece.len() as u64;
            }
        }
    }
    Ok(sys::retry(|| rustix::fs::ftruncate(fd, member.size))?)
}

/// Fills all of `buffer` from the member's data.
fn fill<'a, R: Read>(reader: &mut Reader<R>, buffer: &'a mut [u8]) -> Result<&'a [u8]> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match reader.data(rest)? {
            0 => return Err(Error::new(Errno::BADMSG)),
            got => done += got,
        }
    }
    Ok(buffer)
}
