//! Extended attributes of upper objects: the one door for the union's marks and for what programs store.
//!
//! Where the file system holds attributes they are its own. Where it does not they are in the sidecar, and everything
//! above knows no difference. `security.*` and `system.*` mean something to the kernel and are never in the sidecar.

use std::os::fd::BorrowedFd;

use crate::error::{Errno, Result};
use crate::stack::sidecar::{Key, Object, Sidecar};
use crate::sys;

/// The attributes of the objects of one layer.
#[derive(Debug, Default)]
pub(crate) struct Attributes {
    sidecar: Option<Sidecar>,
}

/// Those that file systems hold themselves.
pub(crate) static NATIVE: Attributes = Attributes { sidecar: None };

impl Attributes {
    /// Attributes that are kept in `sidecar`; what the file system has is read too.
    pub(crate) const fn beside(sidecar: Sidecar) -> Self {
        Self { sidecar: Some(sidecar) }
    }

    /// Returns the sidecar, if there is one.
    pub(crate) const fn sidecar(&self) -> Option<&Sidecar> {
        self.sidecar.as_ref()
    }

    /// Returns the value of attribute `name`.
    pub(crate) fn get(&self, fd: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>> {
        self.read(Object::Open(fd), name, || sys::xattr::get(fd, name))
    }

    /// Returns the value of attribute `name` of the object `file` in `dir`, a symbolic link not followed.
    pub(crate) fn get_at(&self, dir: BorrowedFd<'_>, file: &[u8], name: &[u8]) -> Result<Vec<u8>> {
        self.read(Object::At(dir, file), name, || sys::xattr::get_at(dir, file, name))
    }

    fn read(
        &self,
        object: Object<'_>,
        name: &[u8],
        native: impl FnOnce() -> std::result::Result<Vec<u8>, Errno>,
    ) -> Result<Vec<u8>> {
        let Some(sidecar) = self.for_name(name) else { return Ok(native()?) };
        match sidecar.get(object, name)? {
            Some(value) => Ok(value),
            None => native().map_err(|errno| absent(errno).into()),
        }
    }

    /// Returns the names, each ended by NUL.
    pub(crate) fn list(&self, fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
        self.names(Object::Open(fd), || sys::xattr::list(fd))
    }

    /// As [`Self::list`], of a directory that was opened for attributes only.
    pub(crate) fn list_dir(&self, dir: BorrowedFd<'_>) -> Result<Vec<u8>> {
        self.names(Object::Open(dir), || sys::xattr::list_dir(dir))
    }

    /// Returns the names of the attributes of the object `file` in `dir`, a symbolic link not followed.
    pub(crate) fn list_at(&self, dir: BorrowedFd<'_>, file: &[u8]) -> Result<Vec<u8>> {
        self.names(Object::At(dir, file), || sys::xattr::list_at(dir, file))
    }

    fn names(
        &self,
        object: Object<'_>,
        native: impl FnOnce() -> std::result::Result<Vec<u8>, Errno>,
    ) -> Result<Vec<u8>> {
        let Some(sidecar) = &self.sidecar else { return Ok(native()?) };
        let mut list = sidecar.list(object)?;
        let own = match native() {
            Err(errno) if absent(errno) == Errno::NODATA => return Ok(list),
            own => own?,
        };
        let beside = list.clone();
        for name in sys::xattr::names(&own) {
            if !sys::xattr::names(&beside).any(|known| known == name) {
                list.extend_from_slice(name);
                list.push(0);
            }
        }
        Ok(list)
    }

    /// Sets attribute `name`. `flags` are `XATTR_CREATE` and `XATTR_REPLACE`.
    pub(crate) fn set(&self, fd: BorrowedFd<'_>, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        match self.for_name(name) {
            Some(sidecar) => sidecar.set(Object::Open(fd), name, value, flags),
            None => Ok(sys::xattr::set(fd, name, value, flags)?),
        }
    }

    /// Removes attribute `name`.
    ///
    /// # Errors
    /// ENODATA if there is none.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let Some(sidecar) = self.for_name(name) else { return Ok(sys::xattr::remove(fd, name)?) };
        let removed = sidecar.remove(Object::Open(fd), name)?;
        match sys::xattr::remove(fd, name) {
            Err(errno) if removed && absent(errno) == Errno::NODATA => Ok(()),
            result => result.map_err(|errno| absent(errno).into()),
        }
    }

    /// Notes that an object was made.
    pub(crate) fn born(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.sidecar.as_ref().map_or(Ok(()), |sidecar| sidecar.born(Object::Open(fd)))
    }

    /// As [`Self::born`], for an object by its name.
    pub(crate) fn born_at(&self, dir: BorrowedFd<'_>, file: &[u8]) -> Result<()> {
        self.sidecar.as_ref().map_or(Ok(()), |sidecar| sidecar.born(Object::At(dir, file)))
    }

    /// Returns who the object `file` in `dir` is, if it has attributes outside of its file system, which must go when it
    /// goes.
    pub(crate) fn outside(&self, dir: BorrowedFd<'_>, file: &[u8]) -> Result<Option<Key>> {
        let Some(sidecar) = &self.sidecar else { return Ok(None) };
        let key = match sidecar.key(Object::At(dir, file)) {
            Err(error) if error.is(Errno::NOENT) => return Ok(None),
            key => key?,
        };
        Ok(sidecar.has(&key)?.then_some(key))
    }

    /// Removes what is kept of an object outside of its file system.
    pub(crate) fn forget(&self, key: &Key) -> Result<()> {
        self.sidecar.as_ref().map_or(Ok(()), |sidecar| sidecar.forget(key))
    }

    /// Returns the sidecar if it is where an attribute of this name is.
    fn for_name(&self, name: &[u8]) -> Option<&Sidecar> {
        let mine = name.starts_with(b"user.") || name.starts_with(b"trusted.");
        self.sidecar.as_ref().filter(|_| mine)
    }
}

/// A file system without attributes has none of any name.
const fn absent(errno: Errno) -> Errno {
    match errno {
        Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::ACCESS => Errno::NODATA,
        other => other,
    }
}
