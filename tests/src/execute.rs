//! Makes the calls of a history on a directory, and tells what came back in a form that can be compared.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, SeekFrom, Stat, XattrFlags};

use crate::operation::{How, Name, Op, Over, SLOTS, Slot, Space, Special, Step, USER};
use crate::random::{data, hash};
use crate::snapshot::Moment;
use crate::sys::SharedMapping;
use crate::tree::at;

/// What a call gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing but success.
    Done,
    /// A number.
    Number(u64),
    /// Bytes, by length, hash and the first few.
    Bytes(usize, u64, Name),
    /// Attributes.
    Seen(Seen),
    /// A sorted listing.
    Names(Vec<(Name, u8)>),
    /// Attributes of another kind, sorted.
    Pairs(Vec<(Name, Name)>),
    /// An error number.
    Failed(i32),
    /// The file system contradicts itself: a failure whatever the other side says.
    Broken(String),
}

impl Outcome {
    /// Makes the time of a directory, and the link count seen through a handle, equal to any other.
    pub fn forget_inexact(&mut self, op: &Op) {
        let Self::Seen(seen) = self else { return };
        if seen.mode & libc::S_IFMT == libc::S_IFDIR {
            seen.mtime = Moment::Recent;
        }
        if matches!(op, Op::StatHandle { .. }) {
            seen.nlink = 0;
        }
    }
}

/// The attributes of an object that are the same on every file system.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields of stat(2)")]
pub struct Seen {
    pub mode: u32,
    pub owner: (u32, u32),
    pub size: u64,
    pub nlink: u64,
    pub rdev: u64,
    pub mtime: Moment,
}

impl Seen {
    fn of(stat: &Stat) -> Self {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let directory = kind == FileType::Directory;
        let device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        Self {
            mode: stat.st_mode,
            owner: (stat.st_uid, stat.st_gid),
            size: if directory { 0 } else { stat.st_size.cast_unsigned() },
            nlink: if directory { 0 } else { stat.st_nlink },
            rdev: if device { stat.st_rdev } else { 0 },
            mtime: Moment::of(stat.st_mtime, stat.st_mtime_nsec.cast_signed()),
        }
    }
}

/// A directory under test and the handles held open in it.
#[derive(Debug)]
pub struct Session {
    root: PathBuf,
    slots: [Option<File>; SLOTS],
}

impl Session {
    /// Starts with no handle open.
    pub fn new(root: &Path) -> Self {
        rustix::process::umask(Mode::from(0o022));
        Self { root: root.to_path_buf(), slots: [const { None }; SLOTS] }
    }

    /// Closes every held handle, so that the file system can be unmounted.
    pub fn close_all(&mut self) {
        self.slots = [const { None }; SLOTS];
    }

    /// Makes one call.
    pub fn execute(&mut self, step: &Step) -> Outcome {
        if step.as_user {
            setfsgid(Gid::from_raw(USER));
            setfsuid(Uid::from_raw(USER));
        }
        let result = self.call(&step.op);
        if step.as_user {
            setfsuid(Uid::from_raw(0));
            setfsgid(Gid::from_raw(0));
        }
        match result {
            Ok(outcome) => outcome,
            Err(error) => {
                error.raw_os_error().map_or_else(|| Outcome::Broken(error.to_string()), Outcome::Failed)
            }
        }
    }

    fn call(&mut self, op: &Op) -> Result<Outcome> {
        match op {
            Op::Create { .. }
            | Op::Put { .. }
            | Op::Write { .. }
            | Op::Append { .. }
            | Op::Truncate { .. }
            | Op::Read { .. }
            | Op::Allocate { .. }
            | Op::Holes { .. }
            | Op::CopyRange { .. }
            | Op::MapWrite { .. }
            | Op::MapRead { .. }
            | Op::Tmpfile { .. } => self.data_call(op),
            Op::Unlink { .. }
            | Op::Mkdir { .. }
            | Op::Rmdir { .. }
            | Op::Rename { .. }
            | Op::Link { .. }
            | Op::Symlink { .. }
            | Op::Mknod { .. }
            | Op::RemoveAll { .. } => self.name_call(op),
            Op::Open { .. }
            | Op::ReadHandle { .. }
            | Op::WriteHandle { .. }
            | Op::TruncateHandle { .. }
            | Op::StatHandle { .. }
            | Op::ChmodHandle { .. }
            | Op::SyncHandle { .. }
            | Op::CloseHandle { .. } => self.handle_call(op),
            _ => self.attribute_call(op),
        }
    }

    fn at(&self, path: &Name) -> PathBuf {
        at(&self.root, &path.0)
    }

    fn open(&self, path: &Name, flags: OFlags, mode: u32) -> Result<File> {
        let full = self.at(path);
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
        fs::openat(CWD, &full, flags, Mode::from(mode)).map(File::from).map_err(|error| {
            // Whether a device may be opened depends on nodev, which mounts differ in on purpose.
            let device = fs::stat(&full)
                .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::CharacterDevice);
            if device { Error::from_raw_os_error(libc::ENXIO) } else { error.into() }
        })
    }

    fn data_call(&mut self, op: &Op) -> Result<Outcome> {
        match op {
            Op::Create { path, mode } => {
                self.open(path, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY, *mode)?;
                Ok(Outcome::Done)
            }
            Op::Put { path, len, seed } => {
                let file = self.open(path, OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY, 0o644)?;
                write(&file, 0, *len, *seed)
            }
            Op::Write { path, offset, len, seed } => {
                write(&self.open(path, OFlags::WRONLY, 0)?, *offset, *len, *seed)
            }
            Op::Append { path, len, seed } => {
                write(&self.open(path, OFlags::WRONLY | OFlags::APPEND, 0)?, 0, *len, *seed)
            }
            Op::Truncate { path, size } => {
                nix::unistd::truncate(&self.at(path), size.cast_signed())?;
                Ok(Outcome::Done)
            }
            Op::Read { path, offset, len } => read(&self.open(path, OFlags::RDONLY, 0)?, *offset, *len),
            Op::Allocate { path, space, offset, len } => self.allocate(path, *space, *offset, *len),
            Op::Holes { path } => holes(&self.open(path, OFlags::RDONLY, 0)?),
            Op::CopyRange { from, to, source, target, len } => {
                let input = self.open(from, OFlags::RDONLY, 0)?;
                let output = self.open(to, OFlags::WRONLY, 0)?;
                let (mut source, mut target) = (*source, *target);
                let copied =
                    fs::copy_file_range(&input, Some(&mut source), &output, Some(&mut target), *len)?;
                Ok(Outcome::Number(copied as u64))
            }
            Op::MapWrite { path, offset, len, seed } => self.map_write(path, *offset, *len, *seed),
            Op::MapRead { path, offset, len } => self.map_read(path, *offset, *len),
            Op::Tmpfile { directory, to, len, seed } => self.tmpfile(directory, to, *len, *seed),
            _ => Ok(Outcome::Done),
        }
    }

    fn allocate(&self, path: &Name, space: Space, offset: u64, len: u64) -> Result<Outcome> {
        use rustix::fs::FallocateFlags as F;
        let flags = match space {
            Space::Grow => F::empty(),
            Space::Keep => F::KEEP_SIZE,
            Space::Punch => F::PUNCH_HOLE | F::KEEP_SIZE,
            Space::Zero => F::ZERO_RANGE,
        };
        fs::fallocate(self.open(path, OFlags::WRONLY, 0)?, flags, offset, len)?;
        Ok(Outcome::Done)
    }

    fn map_write(&self, path: &Name, offset: usize, len: usize, seed: u64) -> Result<Outcome> {
        let file = self.open(path, OFlags::RDWR, 0)?;
        let size = file.metadata()?.len() as usize;
        let len = len.min(size.saturating_sub(offset));
        if len == 0 || !file.metadata()?.is_file() {
            return Ok(Outcome::Number(0));
        }
        SharedMapping::new(&file, size, true)?.write(offset, &data(seed, len))?;
        Ok(Outcome::Number(len as u64))
    }

    fn map_read(&self, path: &Name, offset: usize, len: usize) -> Result<Outcome> {
        let file = self.open(path, OFlags::RDONLY, 0)?;
        let size = file.metadata()?.len() as usize;
        let len = len.min(size.saturating_sub(offset));
        if len == 0 || !file.metadata()?.is_file() {
            return Ok(Outcome::Number(0));
        }
        let mut bytes = vec![0; len];
        SharedMapping::new(&file, size, false)?.read(offset, &mut bytes);
        Ok(bytes_outcome(&bytes))
    }

    fn tmpfile(&self, directory: &Name, to: &Name, len: usize, seed: u64) -> Result<Outcome> {
        let file = self.open(directory, OFlags::TMPFILE | OFlags::RDWR, 0o640)?;
        write(&file, 0, len, seed)?;
        let source = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        fs::linkat(CWD, source.as_str(), CWD, self.at(to), AtFlags::SYMLINK_FOLLOW)?;
        Ok(Outcome::Done)
    }

    fn name_call(&mut self, op: &Op) -> Result<Outcome> {
        match op {
            Op::Unlink { path } => fs::unlinkat(CWD, self.at(path), AtFlags::empty())?,
            Op::Mkdir { path, mode } => fs::mkdirat(CWD, self.at(path), Mode::from(*mode))?,
            Op::Rmdir { path } => fs::unlinkat(CWD, self.at(path), AtFlags::REMOVEDIR)?,
            Op::Rename { from, to, over } => {
                let flags = match over {
                    Over::Replace => RenameFlags::empty(),
                    Over::NoReplace => RenameFlags::NOREPLACE,
                    Over::Exchange => RenameFlags::EXCHANGE,
                };
                fs::renameat_with(CWD, self.at(from), CWD, self.at(to), flags)?;
            }
            Op::Link { from, to } => fs::linkat(CWD, self.at(from), CWD, self.at(to), AtFlags::empty())?,
            Op::Symlink { path, target } => fs::symlinkat(target.0.as_slice(), CWD, self.at(path))?,
            Op::Mknod { path, special, mode } => {
                let (kind, device) = match special {
                    Special::Fifo => (FileType::Fifo, 0),
                    Special::Socket => (FileType::Socket, 0),
                    Special::Device => (FileType::CharacterDevice, fs::makedev(240, 7)),
                    Special::File => (FileType::RegularFile, 0),
                };
                fs::mknodat(CWD, self.at(path), kind, Mode::from(*mode), device)?;
            }
            Op::RemoveAll { path } => remove_all(&self.at(path))?,
            _ => {}
        }
        Ok(Outcome::Done)
    }

    fn attribute_call(&mut self, op: &Op) -> Result<Outcome> {
        match op {
            Op::Readlink { path } => {
                let target = fs::readlinkat(CWD, self.at(path), Vec::new())?;
                return Ok(bytes_outcome(target.as_bytes()));
            }
            Op::Chmod { path, mode } => fs::chmodat(CWD, self.at(path), Mode::from(*mode), AtFlags::empty())?,
            Op::Chown { path, uid, gid } => std::os::unix::fs::lchown(self.at(path), *uid, *gid)?,
            Op::Times { path, seconds } => self.times(path, *seconds)?,
            Op::SetXattr { path, name, value, flag } => {
                let flags = match flag {
                    Over::Replace => XattrFlags::empty(),
                    Over::NoReplace => XattrFlags::CREATE,
                    Over::Exchange => XattrFlags::REPLACE,
                };
                fs::lsetxattr(self.at(path), name.0.as_slice(), &value.0, flags)?;
            }
            Op::RemoveXattr { path, name } => match fs::lremovexattr(self.at(path), name.0.as_slice()) {
                // Removing an ACL that is not there succeeds on ext4 and tmpfs, and not on kernel overlayfs.
                Err(rustix::io::Errno::NODATA) if name.0.starts_with(b"system.") => {}
                other => other?,
            },
            Op::Xattrs { path } => {
                let found = crate::snapshot::xattrs(&self.at(path))?;
                return Ok(Outcome::Pairs(found.into_iter().map(|(n, v)| (Name(n), Name(v))).collect()));
            }
            Op::Stat { path } => return Ok(Outcome::Seen(Seen::of(&fs::lstat(self.at(path))?))),
            Op::Access { path, bits } => {
                let access = fs::Access::from_bits_truncate(*bits);
                fs::accessat(CWD, self.at(path), access, AtFlags::EACCESS)?;
            }
            Op::List { path } => return self.list(path),
            _ => {}
        }
        Ok(Outcome::Done)
    }

    fn times(&self, path: &Name, seconds: Option<i64>) -> Result<()> {
        let time = match seconds {
            Some(seconds) => fs::Timespec { tv_sec: seconds, tv_nsec: 5 },
            None => fs::Timespec { tv_sec: 0, tv_nsec: fs::UTIME_NOW },
        };
        let times = fs::Timestamps { last_access: time, last_modification: time };
        Ok(fs::utimensat(CWD, self.at(path), &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn list(&self, path: &Name) -> Result<Outcome> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = fs::openat(CWD, self.at(path), flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(directory)? {
            let entry = entry?;
            names.push((Name(entry.file_name().to_bytes().to_vec()), kind_number(entry.file_type())));
        }
        names.sort();
        Ok(Outcome::Names(names))
    }

    fn handle_call(&mut self, op: &Op) -> Result<Outcome> {
        if let Op::Open { slot, path, how } = op {
            let flags = match how {
                How::Read => OFlags::RDONLY,
                How::Write => OFlags::WRONLY,
                How::Both => OFlags::RDWR,
                How::Truncate => OFlags::RDWR | OFlags::TRUNC,
                How::Append => OFlags::WRONLY | OFlags::APPEND,
                How::Create => OFlags::RDWR | OFlags::CREATE,
            };
            self.slots[*slot] = None;
            self.slots[*slot] = Some(self.open(path, flags, 0o664)?);
            return Ok(Outcome::Done);
        }
        match op {
            Op::ReadHandle { slot, offset, len } => read(self.slot(*slot)?, *offset, *len),
            Op::WriteHandle { slot, offset, len, seed } => write(self.slot(*slot)?, *offset, *len, *seed),
            Op::TruncateHandle { slot, size } => {
                fs::ftruncate(self.slot(*slot)?, *size)?;
                Ok(Outcome::Done)
            }
            Op::StatHandle { slot } => Ok(Outcome::Seen(Seen::of(&fs::fstat(self.slot(*slot)?)?))),
            Op::ChmodHandle { slot, mode } => {
                fs::fchmod(self.slot(*slot)?, Mode::from(*mode))?;
                Ok(Outcome::Done)
            }
            Op::SyncHandle { slot } => {
                fs::fsync(self.slot(*slot)?)?;
                Ok(Outcome::Done)
            }
            Op::CloseHandle { slot } => {
                self.slots[*slot] = None;
                Ok(Outcome::Done)
            }
            _ => Ok(Outcome::Done),
        }
    }

    fn slot(&self, slot: Slot) -> Result<&File> {
        self.slots[slot].as_ref().ok_or_else(|| Error::from_raw_os_error(libc::EBADF))
    }
}

fn kind_number(kind: FileType) -> u8 {
    (kind.as_raw_mode() >> 12) as u8
}

fn bytes_outcome(bytes: &[u8]) -> Outcome {
    Outcome::Bytes(bytes.len(), hash(bytes), Name(bytes[..bytes.len().min(16)].to_vec()))
}

fn write(file: &File, offset: u64, len: usize, seed: u64) -> Result<Outcome> {
    Ok(Outcome::Number(file.write_at(&data(seed, len), offset)? as u64))
}

fn read(file: &File, offset: u64, len: usize) -> Result<Outcome> {
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut bytes[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(bytes_outcome(&bytes[..filled]))
}

/// Checks that nothing but zeros lies where the file says it has a hole. Where holes are is the layer's affair, and it may change
/// its mind: reserved blocks count as data while they are in the page cache, which may let go of them at any time.
fn holes(file: &File) -> Result<Outcome> {
    const ATTEMPTS: usize = 3;
    let is_broken = |error: &Error| error.kind() == ErrorKind::InvalidData;
    for _ in 1..ATTEMPTS {
        let result = holes_at_once(file);
        if !result.as_ref().is_err_and(is_broken) {
            return result;
        }
    }
    holes_at_once(file)
}

fn holes_at_once(file: &File) -> Result<Outcome> {
    if !file.metadata()?.is_file() {
        return Ok(Outcome::Done);
    }
    let size = file.metadata()?.len();
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, 0)?;
    let mut offset = 0;
    while offset < size {
        let data_at = match fs::seek(file, SeekFrom::Data(offset)) {
            Ok(found) => found,
            Err(rustix::io::Errno::NXIO) => size,
            Err(error) => return Err(error.into()),
        };
        if data_at < offset || data_at > size {
            return Err(broken(format!("SEEK_DATA from {offset} gives {data_at}, size {size}")));
        }
        if let Some(place) = bytes[offset as usize..data_at as usize].iter().position(|byte| *byte != 0) {
            return Err(broken(format!(
                "data at {} in a hole of {offset}..{data_at}",
                offset + place as u64
            )));
        }
        if data_at == size {
            break;
        }
        offset = fs::seek(file, SeekFrom::Hole(data_at))?;
        if offset <= data_at || offset > size {
            return Err(broken(format!("SEEK_HOLE from {data_at} gives {offset}, size {size}")));
        }
    }
    Ok(Outcome::Number(size))
}

fn broken(text: String) -> Error {
    Error::new(ErrorKind::InvalidData, text)
}

/// Removes a tree in the order of names, so that the same errors come at the same places on every side.
fn remove_all(path: &Path) -> Result<()> {
    if !std::fs::symlink_metadata(path)?.is_dir() {
        return std::fs::remove_file(path);
    }
    let mut children: Vec<PathBuf> =
        std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    children.sort();
    children.iter().try_for_each(|child| remove_all(child))?;
    std::fs::remove_dir(path)
}
