//! Where a layer keeps owners, modes and types: what an object of it shows, and how that is changed.
//!
//! In the inodes, as a rule. In records beside them (`xattr_permissions`) where this process may not give files to others:
//! then an inode belongs to this process, has a mode with which it can be used, and is a regular file in the place of a device,
//! pipe or socket. Objects without a record, and of other types, show their inode.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Gid, Mode, Uid};

use crate::error::{Errno, Error, Result};
use crate::ondisk::acl::{self, Acl};
use crate::ondisk::record::{FORMS, Record, RecordForm};
use crate::ondisk::{self, capability};
use crate::options::XattrPermissions;
use crate::request::FileKind;
use crate::stack::lower::LowerLayer;
use crate::sys::{self, Stat};

/// Bits that the inode of an object with a record has in any case: it can be used by this process, and read by others as
/// images are that several users share.
const USABLE: u32 = 0o755;

/// How one layer keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owners {
    /// In the inodes.
    Inodes,
    /// In records.
    Records(RecordForm),
}

impl Owners {
    /// Finds out how a layer keeps them: by the attribute that its root has.
    pub(crate) fn of_layer(root: BorrowedFd<'_>) -> Self {
        Self::of_root_with(&sys::xattr::list(root).unwrap_or_default())
    }

    /// Tells how a layer keeps them whose root has attributes of these names, each ended by NUL.
    pub(crate) fn of_root_with(names: &[u8]) -> Self {
        let has = |form: &RecordForm| sys::xattr::names(names).any(|name| name == form.name());
        FORMS.into_iter().find(has).map_or(Self::Inodes, Self::Records)
    }

    /// Finds out how an upper keeps them, or makes it keep records if `wanted` and the root has none yet: then the root shows
    /// what the topmost lower with records says, or else its inode.
    ///
    /// # Errors
    /// The root cannot be given a record, with a hint.
    pub(crate) fn of_upper(
        root: BorrowedFd<'_>,
        wanted: XattrPermissions,
        lowers: &[LowerLayer],
    ) -> Result<Self> {
        let form = match (Self::of_layer(root), wanted) {
            (records @ Self::Records(_), _) => return Ok(records),
            (Self::Inodes, XattrPermissions::Off) => return Ok(Self::Inodes),
            (Self::Inodes, XattrPermissions::Security) => RecordForm::Security,
            (Self::Inodes, XattrPermissions::User) => RecordForm::Containers,
        };
        let record = match lowers.iter().find_map(LowerLayer::root_record) {
            Some(record) => record,
            None => record_of(&sys::stat_fd(root)?),
        };
        sys::xattr::set(root, form.name(), &record.encode(), 0).map_err(|errno| {
            Error::new(errno)
                .during("keep owners of the upper layer in the attribute", form.name())
                .hint("xattr_permissions=1 needs root of the host, 2 a file system with user attributes")
        })?;
        Ok(Self::Records(form))
    }

    /// Returns whether every object shows its inode.
    pub(crate) fn are_inodes(self) -> bool {
        self == Self::Inodes
    }

    /// Returns the form of the records that an object with this inode may have.
    fn form(self, stat: &Stat) -> Option<RecordForm> {
        match (self, FileKind::from_mode(stat.inode_mode)) {
            (Self::Records(form), FileKind::Regular | FileKind::Directory) => Some(form),
            _ => None,
        }
    }

    /// Returns whether an object with this inode is changed by its record.
    pub(crate) fn keeps_record(self, stat: &Stat) -> bool {
        self.form(stat).is_some()
    }

    /// Returns the attributes that `name` in `dir` shows.
    pub(crate) fn stat_at(self, dir: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<Stat, Errno> {
        self.show(sys::stat_at(dir, name)?, |attribute| sys::xattr::get_at(dir, name, attribute))
    }

    /// As [`Self::stat_at`], on a file system that has to be asked.
    pub(crate) fn stat_at_asking(self, dir: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<Stat, Errno> {
        self.show(sys::stat_at_asking(dir, name)?, |attribute| sys::xattr::get_at(dir, name, attribute))
    }

    /// Returns the attributes that an open object shows.
    pub(crate) fn stat_fd(self, fd: BorrowedFd<'_>) -> std::result::Result<Stat, Errno> {
        self.show(sys::stat_fd(fd)?, |attribute| sys::xattr::get(fd, attribute))
    }

    /// Returns what an object with these attributes of its inode shows; `read` reads attributes of it.
    ///
    /// # Errors
    /// EIO for a record that cannot be read: another owner or mode than the right one must not be shown.
    pub(crate) fn show(
        self,
        mut stat: Stat,
        read: impl FnOnce(&[u8]) -> std::result::Result<Vec<u8>, Errno>,
    ) -> std::result::Result<Stat, Errno> {
        let Some(form) = self.form(&stat) else { return Ok(stat) };
        let value = match read(form.name()) {
            Ok(value) => value,
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(stat),
            Err(errno) => return Err(errno),
        };
        let Some(record) = Record::parse(&value) else {
            tracing::error!(ino = stat.ino, "malformed record of an owner: \"{}\"", value.escape_ascii());
            return Err(Errno::IO);
        };
        (stat.uid, stat.gid) = (record.uid, record.gid);
        let (kind, rdev) = record.kind.unwrap_or((stat.kind(), 0));
        stat.mode = kind.mode_bits() | record.mode;
        stat.rdev = rdev;
        Ok(stat)
    }

    /// Gives an object what it shall show. Its inode becomes usable.
    ///
    /// Preconditions: the object is a regular file or directory of a layer with records.
    pub(crate) fn record(self, fd: BorrowedFd<'_>, record: &Record) -> std::result::Result<(), Errno> {
        let Self::Records(form) = self else { return Err(Errno::IO) };
        let stat = sys::stat_fd(fd)?;
        let usable = usable_mode(record.mode);
        if stat.inode_mode & 0o7777 != usable {
            change_mode(fd, usable)?;
        }
        sys::xattr::set(fd, form.name(), &record.encode(), 0)
    }

    /// Changes the mode that an open object shows.
    pub(crate) fn set_mode(self, fd: BorrowedFd<'_>, mode: u32) -> std::result::Result<(), Errno> {
        let stat = self.stat_fd(fd)?;
        if !self.keeps_record(&stat) {
            return change_mode(fd, mode);
        }
        self.record(fd, &Record { mode: mode & 0o7777, ..record_of(&stat) })
    }

    /// Changes owner and group of an open object, and takes away what chown(2) takes away.
    pub(crate) fn set_owner(
        self,
        fd: BorrowedFd<'_>,
        uid: Option<Uid>,
        gid: Option<Gid>,
    ) -> std::result::Result<(), Errno> {
        let stat = self.stat_fd(fd)?;
        if !self.keeps_record(&stat) {
            return match rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH) {
                // No record can say it, and who asks may: as fuse-overlayfs, the owner stays.
                Err(Errno::PERM | Errno::INVAL) if !self.are_inodes() => Ok(()),
                done => done,
            };
        }
        let mut record = record_of(&stat);
        record.uid = uid.map_or(record.uid, Uid::as_raw);
        record.gid = gid.map_or(record.gid, Gid::as_raw);
        if !stat.is_dir() {
            record.mode = stat.mode_without_set_id().unwrap_or(record.mode);
            self.drop_capability(fd)?;
        }
        self.record(fd, &record)
    }

    /// Returns whether a change of the data has to take something away that the layer's file system leaves: set-id bits,
    /// or capabilities under another name.
    pub(crate) fn has_privileges(self, fd: BorrowedFd<'_>, stat: &Stat) -> bool {
        let encoded = self.stored_capability(stat);
        stat.mode & (libc::S_ISUID | libc::S_ISGID) != 0
            || encoded.is_some_and(|name| sys::xattr::get(fd, &name).is_ok())
    }

    /// Takes capabilities away where the layer's file system does not, because they have another name there.
    pub(crate) fn drop_capability(self, fd: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
        let Self::Records(form) = self else { return Ok(()) };
        let Some(name) = form.encode(capability::NAME) else { return Ok(()) };
        match sys::xattr::remove(fd, &name) {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            done => done,
        }
    }

    fn stored_capability(self, stat: &Stat) -> Option<Vec<u8>> {
        self.form(stat)?.encode(capability::NAME)
    }

    /// Makes `to`, a directory of the same layer, show what `from` shows.
    pub(crate) fn copy(self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
        let stat = self.stat_fd(from)?;
        if self.keeps_record(&stat) {
            return self.record(to, &record_of(&stat));
        }
        let new = sys::stat_fd(to)?;
        if (stat.uid, stat.gid) != (new.uid, new.gid) {
            let (uid, gid) = (Uid::from_raw(stat.uid), Gid::from_raw(stat.gid));
            rustix::fs::chownat(to, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        }
        change_mode(to, stat.mode & 0o7777)
    }

    /// Returns the name that programs see of an attribute; none for what is the union's own.
    pub(crate) fn shown_name(self, stored: &[u8]) -> Option<Vec<u8>> {
        let Self::Records(form) = self else { return ondisk::unescape_xattr(stored) };
        if let Some(name) = form.decode(stored) {
            return Some(name.to_vec());
        }
        // Under its own name it is the host's.
        let own = stored == form.name() || form.encode(stored).is_some();
        if own { None } else { ondisk::unescape_xattr(stored) }
    }

    /// Returns the name under which an attribute is stored that programs name; none for what they may not have.
    pub(crate) fn stored_name(self, shown: &[u8]) -> Option<Vec<u8>> {
        if let Self::Records(form) = self
            && let Some(name) = form.encode(shown)
        {
            return Some(name);
        }
        Some(ondisk::escape_xattr(shown)).filter(|name| !ondisk::is_private_xattr(name))
    }

    /// Returns the value that programs see of an attribute: an access ACL has the permission bits that are shown.
    pub(crate) fn shown_value(
        self,
        name: &[u8],
        value: Vec<u8>,
        stat: impl FnOnce() -> Result<Stat>,
    ) -> Result<Vec<u8>> {
        if self.are_inodes() || name != acl::ACCESS {
            return Ok(value);
        }
        let stat = stat()?;
        match Acl::parse(&value) {
            Some(list) if self.keeps_record(&stat) => Ok(list.with_mode(stat.mode).encode()),
            _ => Ok(value),
        }
    }

    /// Gives an open object an access ACL; `None` takes it away.
    ///
    /// With a record its permission bits go there, and the inode stays usable.
    pub(crate) fn set_acl(self, fd: BorrowedFd<'_>, value: &[u8], flags: u32) -> Result<()> {
        let stat = self.stat_fd(fd)?;
        let Some(list) = Acl::parse(value).filter(|_| self.keeps_record(&stat)) else {
            return Ok(sys::xattr::set(fd, acl::ACCESS, value, flags)?);
        };
        let mode = stat.mode & 0o7000 | list.mode();
        if list.is_minimal() {
            match sys::xattr::remove(fd, acl::ACCESS) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(errno) => return Err(errno.into()),
            }
        } else {
            sys::xattr::set(fd, acl::ACCESS, &list.with_mode(usable_mode(mode)).encode(), flags)?;
        }
        Ok(self.record(fd, &Record { mode, ..record_of(&stat) })?)
    }
}

/// Returns the record of an object that shows `stat`.
pub(crate) fn record_of(stat: &Stat) -> Record {
    Record { uid: stat.uid, gid: stat.gid, mode: stat.mode & 0o7777, kind: Some((stat.kind(), stat.rdev)) }
}

/// Returns the mode of the inode of an object that shows `mode`: set-id bits count nowhere but in the union.
pub(crate) fn usable_mode(mode: u32) -> u32 {
    mode & 0o777 | USABLE
}

fn change_mode(fd: BorrowedFd<'_>, mode: u32) -> std::result::Result<(), Errno> {
    sys::set_mode(fd, Mode::from_raw_mode(mode & 0o7777))
}
