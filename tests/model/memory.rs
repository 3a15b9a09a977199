//! A file system as a value: what the union must be indistinguishable from.

use std::collections::BTreeMap;

/// An error number.
pub type Errno = i32;

/// What a call gives.
pub type Answer<T> = Result<T, Errno>;

/// The number of an object.
pub type Id = usize;

/// What an object holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Bytes.
    File(Vec<u8>),
    /// Names.
    Directory(BTreeMap<String, Id>),
    /// A target.
    Symlink(String),
}

/// An object.
#[derive(Clone, Debug)]
pub struct Object {
    /// What it holds.
    pub body: Body,
    /// Permission bits.
    pub mode: u32,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Names of it.
    pub nlink: u32,
}

/// What may be asked of rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Replace the target.
    Replace,
    /// Fail if there is a target.
    NoReplace,
    /// Swap.
    Exchange,
}

/// The file system.
#[derive(Clone, Debug)]
pub struct Memory {
    objects: Vec<Object>,
}

impl Memory {
    /// Returns an empty file system; its root is number 0.
    pub fn new() -> Self {
        let mut memory = Self { objects: Vec::new() };
        memory.add(Body::Directory(BTreeMap::new()), 0o755);
        memory
    }

    fn add(&mut self, body: Body, mode: u32) -> Id {
        self.objects.push(Object { body, mode, xattrs: BTreeMap::new(), nlink: 1 });
        self.objects.len() - 1
    }

    /// Returns an object.
    pub fn object(&self, id: Id) -> &Object {
        &self.objects[id]
    }

    /// Returns an object to change.
    pub fn object_mut(&mut self, id: Id) -> &mut Object {
        &mut self.objects[id]
    }

    fn names(&self, id: Id) -> Answer<&BTreeMap<String, Id>> {
        match &self.objects[id].body {
            Body::Directory(names) => Ok(names),
            _ => Err(libc::ENOTDIR),
        }
    }

    fn names_mut(&mut self, id: Id) -> Answer<&mut BTreeMap<String, Id>> {
        match &mut self.objects[id].body {
            Body::Directory(names) => Ok(names),
            _ => Err(libc::ENOTDIR),
        }
    }

    /// Finds an object by path; the empty path is the root.
    pub fn find(&self, path: &[String]) -> Answer<Id> {
        path.iter().try_fold(0, |at, name| self.names(at)?.get(name).copied().ok_or(libc::ENOENT))
    }

    fn parent<'a>(&self, path: &'a [String]) -> Answer<(Id, &'a str)> {
        let (name, parent) = path.split_last().ok_or(libc::EBUSY)?;
        let parent = self.find(parent)?;
        self.names(parent)?;
        Ok((parent, name))
    }

    /// Makes an object under a name that does not exist.
    pub fn make(&mut self, path: &[String], body: Body, mode: u32) -> Answer<Id> {
        let (parent, name) = self.parent(path)?;
        if self.names(parent)?.contains_key(name) {
            return Err(libc::EEXIST);
        }
        let id = self.add(body, mode);
        self.names_mut(parent)?.insert(name.to_owned(), id);
        Ok(id)
    }

    /// Removes the name of anything but a directory.
    pub fn unlink(&mut self, path: &[String]) -> Answer<()> {
        let id = self.find(path)?;
        if self.names(id).is_ok() {
            return Err(libc::EISDIR);
        }
        self.drop_name(path)
    }

    /// Removes an empty directory.
    pub fn rmdir(&mut self, path: &[String]) -> Answer<()> {
        if !self.names(self.find(path)?)?.is_empty() {
            return Err(libc::ENOTEMPTY);
        }
        self.drop_name(path)
    }

    fn drop_name(&mut self, path: &[String]) -> Answer<()> {
        let (parent, name) = self.parent(path)?;
        let id = self.names_mut(parent)?.remove(name).ok_or(libc::ENOENT)?;
        self.objects[id].nlink -= 1;
        Ok(())
    }

    /// Gives an object another name.
    pub fn link(&mut self, from: &[String], to: &[String]) -> Answer<()> {
        let id = self.find(from)?;
        if self.names(id).is_ok() {
            return Err(libc::EPERM);
        }
        let (parent, name) = self.parent(to)?;
        if self.names(parent)?.contains_key(name) {
            return Err(libc::EEXIST);
        }
        self.names_mut(parent)?.insert(name.to_owned(), id);
        self.objects[id].nlink += 1;
        Ok(())
    }

    /// Moves or swaps names.
    pub fn rename(&mut self, from: &[String], to: &[String], over: Over) -> Answer<()> {
        let (old_parent, old_name) = self.parent(from)?;
        let (new_parent, new_name) = self.parent(to)?;
        let moved = *self.names(old_parent)?.get(old_name).ok_or(libc::ENOENT)?;
        let target = self.names(new_parent)?.get(new_name).copied();
        if to.starts_with(from) && to != from || over == Over::Exchange && from.starts_with(to) && to != from
        {
            return Err(libc::EINVAL);
        }
        match (over, target) {
            (Over::NoReplace, Some(_)) => return Err(libc::EEXIST),
            (Over::Exchange, None) => return Err(libc::ENOENT),
            (_, Some(target)) if target == moved => return Ok(()),
            (Over::Exchange, Some(target)) => {
                self.names_mut(old_parent)?.insert(old_name.to_owned(), target);
                self.names_mut(new_parent)?.insert(new_name.to_owned(), moved);
                return Ok(());
            }
            (Over::Replace, Some(target)) => match (self.names(moved).is_ok(), self.names(target)) {
                (true, Err(_)) => return Err(libc::ENOTDIR),
                (false, Ok(_)) => return Err(libc::EISDIR),
                (true, Ok(names)) if !names.is_empty() => return Err(libc::ENOTEMPTY),
                _ if from.starts_with(to) => return Err(libc::ENOTEMPTY),
                _ => self.objects[target].nlink -= 1,
            },
            (_, None) => {}
        }
        self.names_mut(old_parent)?.remove(old_name);
        self.names_mut(new_parent)?.insert(new_name.to_owned(), moved);
        Ok(())
    }

    /// Returns the whole tree, by path, with everything that can be seen.
    pub fn tree(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        self.visit(0, "", &mut found);
        found
    }

    fn visit(&self, id: Id, path: &str, found: &mut Vec<(String, String)>) {
        let object = &self.objects[id];
        let body = match &object.body {
            Body::File(bytes) => {
                format!("file {} {:x} x{}", bytes.len(), e2e::random::hash(bytes), object.nlink)
            }
            Body::Directory(_) => "directory".to_owned(),
            Body::Symlink(target) => format!("symlink {target} x{}", object.nlink),
        };
        let mode = if matches!(object.body, Body::Symlink(_)) { 0o777 } else { object.mode };
        found.push((path.to_owned(), format!("{body} {mode:o} {:?}", object.xattrs)));
        if let Body::Directory(names) = &object.body {
            for (name, child) in names {
                self.visit(*child, &format!("{path}/{name}"), found);
            }
        }
    }
}
