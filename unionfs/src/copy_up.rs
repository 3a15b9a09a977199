//! How a lower object becomes an upper one.
//!
//! Built in the workdir, published by one rename: a reader sees all of it or nothing, and an error on the way drops
//! the temporary object. Callers say what they need and know nothing more. The copying holds only the object's own
//! `copy_up` lock: lookups, and reads of the object itself, go on.

mod data;
mod fill;
mod metadata;

pub(crate) use metadata::copy_all as copy_metadata;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, RenameFlags};

use crate::copy_up::data::{DataCopy, Whereabouts};
use crate::counts::add;
use crate::error::{Errno, Error, Result};
use crate::index;
use crate::inode::{Data, Indexed, Inode, Lower, LowerData, Place, State, UpperFile};
use crate::inode_table::ObjectKey;
use crate::ondisk::origin;
use crate::request::FileKind;
use crate::stack::lower::{LowerFile, LowerName};
use crate::stack::marks;
use crate::stack::settle;
use crate::stack::upper::UpperLayer;
use crate::stack::workdir::Temp;
use crate::sys::{self, Stat};
use crate::tree::{Tree, no_whiteouts};
use crate::upper_file;
use crate::verity;

/// How much of the object the caller needs on the upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// All of it. The data may come to be safe on the disk, or even be copied, a little later.
    Data,
    /// All of it, safe: the object is about to get another name, and marks count under its first one only.
    Safe,
    /// Everything but the data, which the caller throws away: an empty file.
    Truncate,
    /// Everything but the data, which stays where it is: a metacopy, where the mount makes them.
    Metadata,
}

/// Makes sure that an object, and so every directory above it, is on the upper.
///
/// # Errors
/// EROFS without an upper; what the layers answer. The union is then as it was.
pub(crate) fn ensure_upper(tree: &Tree, inode: &Arc<Inode>, need: Need) -> Result<()> {
    tree.stack.upper()?;
    while !inode.on_upper() {
        // Topmost first, and no recursion: trees may be deep.
        let mut target = Arc::clone(inode);
        while let Some(place) = target.place() {
            if place.parent.on_upper() {
                break;
            }
            target = place.parent;
        }
        let need = match need {
            _ if target.id != inode.id => Need::Data,
            Need::Metadata if !tree.policy.metacopy => Need::Data,
            need => need,
        };
        lift(tree, &target, need)?;
    }
    if need != Need::Metadata && inode.is_metacopy() {
        fill::fill(tree, inode, need)?;
    }
    if need == Need::Safe && inode.kind == FileKind::Regular {
        tree.finish(inode)?;
    }
    Ok(())
}

/// Copies one object up whose parent is on the upper.
fn lift(tree: &Tree, inode: &Arc<Inode>, need: Need) -> Result<()> {
    let _single_flight = inode.copy_up.lock();
    if inode.on_upper() {
        return Ok(());
    }
    let upper = tree.stack.upper()?;
    let name = inode.place().map(|place| place.name);
    let label = name.as_ref().map_or(&b"(unlinked)"[..], |name| name.as_bytes()).to_vec();
    let need = match need {
        // Where a digest is required of every metacopy, a file without one is copied whole.
        Need::Metadata if inode.kind == FileKind::Regular && verity::mark(tree, inode)?.is_none() => {
            Need::Data
        }
        need => need,
    };
    let job = CopyUp { tree, upper, inode, need };
    job.run().map_err(|error| error.during("copy up", label))?;
    let is_open = inode.data.read().is_some();
    if is_open {
        tree.idle.used(inode);
    }
    Ok(())
}

/// One copy-up.
struct CopyUp<'a> {
    tree: &'a Tree,
    upper: &'a UpperLayer,
    inode: &'a Arc<Inode>,
    need: Need,
}

/// The object in the workdir, with what keeps it open.
struct Built<'a> {
    temp: Temp<'a>,
    /// For reading and writing if it is a regular file, else for attributes.
    fd: Arc<OwnedFd>,
    /// Device and inode number.
    identity: (u64, u64),
    /// Where its data is.
    data: Whereabouts,
    /// Its place in the index, if the lower object has several names.
    index: Option<Box<Indexed>>,
}

impl CopyUp<'_> {
    fn run(&self) -> Result<()> {
        let (source, stat) = self.source()?;
        let mut stat = stat.map_or_else(|| source.stat(), Ok)?;
        if let Some(data) = &self.inode.state.read().lower_data {
            stat.size = data.size;
        }
        let built = self.build(&source, &stat)?;
        self.publish(built, &stat)?;
        add(&self.tree.counts.copied_up, 1);
        Ok(())
    }

    /// Returns what is copied, open for reading if its data is copied too, and its attributes, if they are known by then.
    fn source(&self) -> Result<(LowerFile, Option<Stat>)> {
        let copies = matches!(self.need, Need::Data | Need::Safe) && self.inode.kind == FileKind::Regular;
        if !copies || self.inode.is_metacopy() {
            return Ok((self.tree.lower_object(self.inode)?, None));
        }
        match upper_file::open_lower_data_and_look(self.tree, self.inode) {
            // Without data there is nothing to read.
            Err(error) if error.is(Errno::ACCESS) => Ok((self.tree.lower_object(self.inode)?, None)),
            opened => opened,
        }
    }

    fn build(&self, source: &LowerFile, stat: &Stat) -> Result<Built<'_>> {
        let temp = self.upper.workdir.temp();
        let fd = self.make(&temp, source, stat)?;
        let new = sys::stat_fd(fd.as_fd())?;
        self.upper.workdir.attributes.born(fd.as_fd())?;
        let index = self.mark_origin((fd.as_fd(), &new), stat)?;
        let has_data = stat.kind() == FileKind::Regular && stat.size > 0;
        let data = match self.need {
            Need::Data | Need::Safe if has_data => {
                let (tree, upper, inode, need) = (self.tree, self.upper, &**self.inode, self.need);
                let (linked, mode) = (index.is_some(), stat.mode);
                let job = DataCopy { tree, upper, inode, need, linked, mode };
                job.run(Some((source, stat)).filter(|_| source.is_open()), fd.as_fd())?
            }
            Need::Metadata if has_data => {
                // Set while the mode still lets an ordinary user do it.
                self.mark_metacopy(fd.as_fd())?;
                sys::retry(|| rustix::fs::ftruncate(&fd, stat.size))?;
                Whereabouts::Lower
            }
            _ => Whereabouts::Upper,
        };
        metadata::copy(self.tree, (source, stat), (fd.as_fd(), &new), self.need)?;
        if self.tree.policy.strict {
            match stat.kind() {
                FileKind::Regular => sys::retry(|| rustix::fs::fsync(&fd))?,
                FileKind::Directory => self.tree.sync_names(fd.as_fd())?,
                // Nothing else can be synced by itself; its name is.
                _ => {}
            }
        }
        Ok(Built { temp, fd: Arc::new(fd), identity: (new.dev, new.ino), data, index })
    }

    /// Stores where the object comes from: the lower's record, and the number it is shown with. Tells its place in the
    /// index if it has several names.
    fn mark_origin(&self, (fd, new): (BorrowedFd<'_>, &Stat), stat: &Stat) -> Result<Option<Box<Indexed>>> {
        let Some(namespace) = self.upper.features.namespace else { return Ok(None) };
        let (lower, lost) = {
            let state = self.inode.state.read();
            (state.lower.clone(), state.lost_links)
        };
        if let Some(numbers) = self.tree.stack.numbers_for(new) {
            numbers.born(new);
            if let (Lower::File(dir, ..), 1) = (&lower, stat.nlink) {
                self.tree.stack.note_number(numbers, new, (dir, stat), self.inode.ino())?;
            }
            // Without marks one with several names becomes another object.
            return Ok(None);
        }
        let record = match &lower {
            Lower::File(dir, name, _) => index::lower_record(&self.tree.stack, dir, name.as_bytes())?,
            Lower::Dirs(dirs) => {
                match dirs.first().and_then(|dir| dir.parent.as_ref().map(|up| (up, &dir.name))) {
                    Some((parent, name)) => index::lower_record(&self.tree.stack, parent, name)?,
                    None => None,
                }
            }
            Lower::None | Lower::Held(_) => None,
        };
        let shown = i64::from(stat.nlink) - i64::from(lost);
        let linked = !self.inode.is_dir() && stat.nlink > 1;
        // Without an index a file with several names becomes another object; kernel overlayfs drops its origin too.
        if linked && (self.tree.index.is_none() || record.is_none()) {
            return Ok(None);
        }
        let attributes = &self.upper.workdir.attributes;
        let set = |mark: &str, value: &[u8]| attributes.set(fd, &namespace.name(mark), value, 0);
        if let Some(record) = &record
            && set("origin", record).is_err()
        {
            // Attributes of this type of object need a privilege: only the number after a remount differs.
            return Ok(None);
        }
        // The number that the origin says need not be stored.
        let says = record.as_ref().and_then(|record| self.tree.stack.origin_ino(record));
        if !self.inode.is_dir() && says != Some(self.inode.ino()) {
            match set(marks::INO, self.inode.ino().to_string().as_bytes()) {
                // As above.
                Err(error) if error.is(Errno::PERM) => return Ok(None),
                result => result?,
            }
        }
        let Some(record) = record.filter(|_| linked) else { return Ok(None) };
        // The upper inode will have two links: its name and the index.
        let difference = shown - 2;
        set("nlink", &origin::nlink_value(difference))?;
        Ok(Some(Box::new(Indexed { entry: origin::index_name(&record), difference })))
    }

    fn mark_metacopy(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let namespace = self.upper.features.namespace.ok_or(Error::new(Errno::OPNOTSUPP))?;
        let value = verity::mark(self.tree, self.inode)?.unwrap_or_default();
        self.upper.workdir.attributes.set(fd, &namespace.name("metacopy"), &value, 0)
    }

    /// Makes an empty object of the right type.
    fn make(&self, temp: &Temp<'_>, source: &LowerFile, stat: &Stat) -> Result<OwnedFd> {
        let (work, name) = (self.upper.workdir.fd(), temp.name());
        let kind = match stat.kind() {
            // Records stand beside regular files and directories only.
            FileKind::Directory | FileKind::Symlink => stat.kind(),
            _ if !self.upper.owners.are_inodes() => FileKind::Regular,
            kind => kind,
        };
        match kind {
            FileKind::Regular => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
                // Of the mode what no change of the owner takes away: nobody else can reach it here.
                let mode = if self.upper.owners.are_inodes() { stat.mode & 0o777 } else { 0 };
                return Ok(sys::open_at(work, name, flags, mode | 0o600)?);
            }
            FileKind::Directory => rustix::fs::mkdirat(work, name, Mode::RWXU)?,
            FileKind::Symlink => rustix::fs::symlinkat(source.link_target()?.as_slice(), work, name)?,
            FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => {
                let kind = FileType::from_raw_mode(stat.mode);
                rustix::fs::mknodat(work, name, kind, Mode::from_raw_mode(0o600), stat.rdev)?;
            }
        }
        Ok(sys::pin_at(work, name)?)
    }

    /// Moves the object to its place and makes the node serve it: disk first, then memory.
    fn publish(&self, built: Built<'_>, stat: &Stat) -> Result<()> {
        loop {
            let Some(place) = self.inode.place() else { return self.keep_unlinked(built, stat) };
            let _names = place.parent.names.lock();
            // Renamed or unlinked while it was copied: look again.
            if !self
                .inode
                .state
                .read()
                .place
                .as_ref()
                .is_some_and(|now| now.is(&place.parent, place.name.as_bytes()))
            {
                continue;
            }
            return self.publish_at(&place, built, stat);
        }
    }

    /// Preconditions: `place.parent.names` is held.
    fn publish_at(&self, place: &Place, built: Built<'_>, stat: &Stat) -> Result<()> {
        let parent = self.tree.upper_fd(&place.parent)?;
        let before = sys::stat_fd(parent.as_fd())?;
        let (dev, ino) = built.identity;
        // Readers that began before see the old file to their end; who comes after sees the new one.
        let mut data = self.inode.data.write();
        built.data.announce(self.tree, &built.fd, ino, settle::MARKS_OF_NEW)?;
        let Built { temp, fd, data: at, index, .. } = built;
        if let Err(error) = self.publish_as(temp, index.as_deref(), parent.as_fd(), place.name.as_bytes()) {
            self.tree.unfinished.take_back(ino);
            return Err(error);
        }
        self.tree.sync_names(parent.as_fd())?;
        self.tree.mark_impure(&place.parent, parent.as_fd())?;
        // Copying an object up is no change to the directory that holds it.
        sys::set_both_times(parent.as_fd(), before.atime, before.mtime)?;
        {
            let mut state = self.inode.state.write();
            state.upper = Some(ino);
            state.index = index;
            state.lost_links = 0;
            if self.inode.is_dir() {
                state.upper_whiteouts = no_whiteouts();
            } else {
                leave_lower(&mut state, &at, stat);
            }
        }
        let stack = &self.tree.stack;
        let key = ObjectKey::new(stack.upper_number(), stack.device_index(dev), ino);
        self.tree.table.rekey(self.inode, key, Some(&place.parent));
        self.serve(&mut data, fd, &at, stat);
        Ok(())
    }

    /// The step that publishes.
    fn publish_as(
        &self,
        temp: Temp<'_>,
        indexed: Option<&Indexed>,
        parent: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<()> {
        match (&self.tree.index, indexed) {
            (Some(index), Some(indexed)) => {
                temp.publish(index.fd(), &indexed.entry, RenameFlags::empty())?;
                index.link_to(&indexed.entry, parent, name)
            }
            _ => temp.publish(parent, name, RenameFlags::NOREPLACE),
        }
    }

    /// The object lost its last name meanwhile: it goes on without one.
    fn keep_unlinked(&self, built: Built<'_>, source: &Stat) -> Result<()> {
        let stat = self.upper.owners.stat_fd(built.fd.as_fd())?;
        let pin = sys::pin_at(self.upper.workdir.fd(), built.temp.name())?;
        let mut data = self.inode.data.write();
        {
            let mut state = self.inode.state.write();
            state.upper = Some(stat.ino);
            state.pinned = Some(Arc::new(pin));
            leave_lower(&mut state, &built.data, source);
        }
        self.tree.table.unkey(self.inode);
        if matches!(built.data, Whereabouts::InParts(_)) {
            built.data.announce(self.tree, &built.fd, stat.ino, settle::MARKS_OF_NEW)?;
        }
        self.serve(&mut data, built.fd, &built.data, &stat);
        drop(built.temp);
        Ok(())
    }

    /// Switches open handles to the new file, and keeps it for the change that is about to come.
    fn serve(&self, data: &mut Option<Data>, fd: Arc<OwnedFd>, at: &Whereabouts, stat: &Stat) {
        if self.inode.kind == FileKind::Regular && !matches!(at, Whereabouts::Lower) {
            *data = Some(Data::Upper(UpperFile { parts: at.parts(), ..UpperFile::new(fd, true, stat.mode) }));
        }
    }
}

/// Takes the lower part away from a copied-up file, which looked like `was`; a metacopy keeps where its data is.
fn leave_lower(state: &mut State, at: &Whereabouts, was: &Stat) {
    let lower = std::mem::take(&mut state.lower);
    match (lower, at) {
        (Lower::File(dir, name, _), Whereabouts::Lower) => {
            let file = LowerName { dir, name };
            let (blocks, size) = (was.blocks, was.size);
            state.lower_data.get_or_insert_with(|| Box::new(LowerData { file, blocks, size }));
        }
        (_, Whereabouts::Lower) => {}
        _ => state.lower_data = None,
    }
}
