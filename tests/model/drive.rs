//! Makes each call on the union and on the model, as the kernel would: what the kernel itself refuses after its
//! lookups never reaches the union.

use std::ops::ControlFlow;
use std::path::Path;

use e2e::history::layers;
use e2e::random::data;
use e2e::tree::{Kind, LayerTree};
use unionfs::request::{Caller, Entry, Fh, FileKind, NodeId, RenameMode, SetAttr};
use unionfs::{MountOptions, Union};

use crate::memory::{Answer, Body, Id, Memory, Over};

/// One call. Paths are lists of names.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each variant is the call of its name")]
pub enum Call {
    Create(Vec<String>, u32),
    Write(Vec<String>, u64, usize, u64),
    Truncate(Vec<String>, u64),
    Read(Vec<String>),
    Unlink(Vec<String>),
    Mkdir(Vec<String>),
    Rmdir(Vec<String>),
    Rename(Vec<String>, Vec<String>, Over),
    Link(Vec<String>, Vec<String>),
    Symlink(Vec<String>, String),
    Chmod(Vec<String>, u32),
    SetXattr(Vec<String>, Vec<u8>),
    RemoveXattr(Vec<String>),
    List(Vec<String>, usize),
    Hold(Vec<String>),
    WriteHeld(u64, usize, u64),
    ReadHeld,
    Forget,
    Compare,
    Reopen,
    Rotate,
}

type Outcome = Result<(), String>;

const XATTR: &str = "user.model";

/// The union, the model, and the file that is held open.
pub struct Driver {
    union: Option<Union>,
    model: Memory,
    options: MountOptions,
    known: Vec<NodeId>,
    held: Option<(NodeId, Fh, Id)>,
    /// Files stay open, as where the kernel sends no OPEN.
    parks: bool,
    directory: tempfile::TempDir,
}

fn caller() -> Caller {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Caller { uid, gid, pid: 0, umask: 0 }
}

fn number(error: &unionfs::Error) -> i32 {
    error.errno().raw_os_error()
}

/// Returns the tree without what the model does not know: fifos, owners, non-ASCII names.
fn known_to_the_model(tree: &LayerTree) -> LayerTree {
    let mut kept = tree.clone();
    kept.retain(|_, kind| !matches!(kind, Kind::Fifo));
    kept
}

impl Driver {
    /// Builds layers from a seed, opens the union on them, and fills the model with their merged tree.
    pub fn new(seed: u64) -> Self {
        Self::below(e2e::mounted::scratch(), seed)
    }

    /// As [`Self::new`], with the layers in a directory.
    pub fn below(directory: tempfile::TempDir, seed: u64) -> Self {
        let count = 1 + (seed % 3) as usize;
        let trees: Vec<LayerTree> = layers(seed, count).iter().map(known_to_the_model).collect();
        let mounts = e2e::mounted::Layers::below(directory.path(), count);
        trees.iter().zip(&mounts.lowers).for_each(|(tree, lower)| tree.build(lower));
        let mut options = MountOptions::default();
        options.lowerdir.clone_from(&mounts.lowers);
        options.upperdir.clone_from(&mounts.upper);
        options.workdir.clone_from(&mounts.work);
        let model = fill(&e2e::flatten::flatten(&trees));
        let union = Some(Union::open(&options).unwrap());
        Self { union, model, options, known: Vec::new(), held: None, parks: seed % 2 == 1, directory }
    }

    fn union(&self) -> &Union {
        self.union.as_ref().unwrap()
    }

    fn close_file(&self, fh: Fh) {
        if self.parks { self.union().park(fh) } else { self.union().release(fh) }
    }

    fn keep(&mut self, entry: Entry) -> Entry {
        self.known.push(entry.node);
        entry
    }

    fn lookup(&mut self, path: &[String]) -> Answer<NodeId> {
        let mut at = NodeId::ROOT;
        for name in path {
            let entry = self.union().lookup(at, name.as_bytes()).map_err(|error| number(&error))?;
            at = self.keep(entry).node;
        }
        Ok(at)
    }

    /// Looks a path up on both sides and returns it if both have it, or None if both do not.
    fn both(&mut self, path: &[String]) -> Result<Option<(NodeId, Id)>, String> {
        // The kernel does not ask for a name in something that is no directory.
        for depth in 0..path.len() {
            let found = self.model.find(&path[..depth]);
            if !found.is_ok_and(|id| matches!(self.model.object(id).body, Body::Directory(_))) {
                return Ok(None);
            }
        }
        match (self.lookup(path), self.model.find(path)) {
            (Ok(node), Ok(id)) => Ok(Some((node, id))),
            (Err(ours), Err(theirs)) if ours == theirs => Ok(None),
            (ours, theirs) => Err(format!("lookup {path:?}: union {ours:?}, model {theirs:?}")),
        }
    }

    fn same<T: std::fmt::Debug>(ours: unionfs::Result<T>, model: Answer<()>) -> Result<Option<T>, String> {
        match (ours, model) {
            (Ok(value), Ok(())) => Ok(Some(value)),
            (Err(error), Err(errno)) if number(&error) == errno => Ok(None),
            (ours, model) => Err(format!("union {ours:?}, model {model:?}")),
        }
    }

    /// Makes one call on both sides.
    pub fn apply(&mut self, call: &Call) -> Outcome {
        match call {
            Call::Create(path, mode) => self.make(path, Body::File(Vec::new()), *mode),
            Call::Mkdir(path) => self.make(path, Body::Directory(std::collections::BTreeMap::new()), 0o755),
            Call::Symlink(path, target) => self.make(path, Body::Symlink(target.clone()), 0o777),
            Call::Write(..) | Call::Truncate(..) | Call::Read(_) => self.data(call),
            Call::Unlink(path) | Call::Rmdir(path) => self.remove(path, matches!(call, Call::Rmdir(_))),
            Call::Rename(from, to, over) => self.rename(from, to, *over),
            Call::Link(from, to) => self.link(from, to),
            Call::Chmod(..) | Call::SetXattr(..) | Call::RemoveXattr(_) => self.attributes(call),
            Call::List(path, chunk) => self.list(path, *chunk),
            Call::Hold(path) => self.hold(path),
            Call::WriteHeld(..) | Call::ReadHeld => self.held(call),
            Call::Forget => {
                self.forget();
                Ok(())
            }
            Call::Compare => self.compare(),
            Call::Reopen => self.reopen(),
            Call::Rotate => self.rotate(),
        }
    }

    fn make(&mut self, path: &[String], body: Body, mode: u32) -> Outcome {
        let (name, parent) = path.split_last().unwrap();
        let Some((parent, id)) = self.both(parent)? else { return Ok(()) };
        if !matches!(self.model.object(id).body, Body::Directory(_)) || self.both(path)?.is_some() {
            return Ok(());
        }
        let model = self.model.make(path, body.clone(), mode).map(|_| ());
        let (union, name) = (self.union(), name.as_bytes());
        let ours = match &body {
            Body::File(_) => {
                let flags = (libc::O_RDWR | libc::O_EXCL).cast_unsigned();
                union.create(&caller(), parent, name, mode, flags).map(|(entry, opened)| {
                    self.close_file(opened.fh);
                    entry
                })
            }
            Body::Directory(_) => union.mkdir(&caller(), parent, name, mode),
            Body::Symlink(target) => union.symlink(&caller(), parent, name, target.as_bytes()),
        };
        if let Some(entry) = Self::same(ours, model)? {
            self.keep(entry);
        }
        Ok(())
    }

    fn remove(&mut self, path: &[String], directory: bool) -> Outcome {
        let Some((_, id)) = self.both(path)? else { return Ok(()) };
        if matches!(self.model.object(id).body, Body::Directory(_)) != directory {
            return Ok(());
        }
        let (name, parent) = path.split_last().unwrap();
        let parent = self.lookup(parent).map_err(|errno| errno.to_string())?;
        if directory {
            let ours = self.union().rmdir(parent, name.as_bytes());
            Self::same(ours, self.model.rmdir(path)).map(|_| ())
        } else {
            let ours = self.union().unlink(parent, name.as_bytes());
            Self::same(ours, self.model.unlink(path)).map(|_| ())
        }
    }

    fn rename(&mut self, from: &[String], to: &[String], over: Over) -> Outcome {
        let (name, parent) = from.split_last().unwrap();
        let (new_name, new_parent) = to.split_last().unwrap();
        let mut after = self.model.clone();
        let expected = after.rename(from, to, over);
        let seen_by_kernel = [libc::ENOENT, libc::EINVAL, libc::ENOTDIR, libc::EISDIR, libc::EBUSY];
        // The kernel does nothing when both names are one object.
        let one = self.model.find(from) == self.model.find(to);
        if expected.is_err_and(|errno| seen_by_kernel.contains(&errno)) || one || from.starts_with(to) {
            return Ok(());
        }
        let (Some(_), _) = (self.both(from)?, self.both(to)?) else { return Ok(()) };
        let parent = self.lookup(parent).map_err(|errno| errno.to_string())?;
        let new_parent = self.lookup(new_parent).map_err(|errno| errno.to_string())?;
        let mode = match over {
            Over::Replace => RenameMode::Replace,
            Over::NoReplace => RenameMode::NoReplace,
            Over::Exchange => RenameMode::Exchange,
        };
        let ours = self.union().rename(parent, name.as_bytes(), new_parent, new_name.as_bytes(), mode);
        if ours.as_ref().is_err_and(|error| number(error) == libc::EXDEV) {
            return Err("EXDEV: a directory rename without redirect".to_owned());
        }
        Self::same(ours, expected)?;
        self.model = after;
        Ok(())
    }

    fn link(&mut self, from: &[String], to: &[String]) -> Outcome {
        let mut after = self.model.clone();
        let expected = after.link(from, to);
        let (Some((node, _)), true) = (self.both(from)?, expected.is_ok()) else { return Ok(()) };
        self.both(to)?;
        let (name, parent) = to.split_last().unwrap();
        let parent = self.lookup(parent).map_err(|errno| errno.to_string())?;
        let ours = self.union().link(node, parent, name.as_bytes());
        if let Some(entry) = Self::same(ours, expected)? {
            self.keep(entry);
        }
        self.model = after;
        Ok(())
    }

    fn data(&mut self, call: &Call) -> Outcome {
        let (Call::Write(path, ..) | Call::Truncate(path, _) | Call::Read(path)) = call else {
            return Ok(());
        };
        let Some((node, id)) = self.both(path)? else { return Ok(()) };
        let Body::File(bytes) = &mut self.model.object_mut(id).body else { return Ok(()) };
        let show = |error: unionfs::Error| format!("{error}");
        match call {
            Call::Write(_, offset, len, seed) => {
                let new = data(*seed, *len);
                put(bytes, *offset as usize, &new);
                let flags = libc::O_WRONLY.cast_unsigned();
                let opened = self.union().open_file(&caller(), node, flags, false).map_err(show)?;
                let count = self.union().write(node, Some(opened.fh), *offset, &new, false).map_err(show)?;
                self.close_file(opened.fh);
                if count == new.len() { Ok(()) } else { Err(format!("{count} of {len} bytes written")) }
            }
            Call::Truncate(_, size) => {
                bytes.resize(*size as usize, 0);
                let change = SetAttr { size: Some(*size), ..SetAttr::default() };
                self.union().setattr(&caller(), node, &change).map(|_| ()).map_err(show)
            }
            _ => self.check_bytes(node, id),
        }
    }

    fn check_bytes(&self, node: NodeId, id: Id) -> Outcome {
        let Body::File(want) = &self.model.object(id).body else { return Ok(()) };
        let show = |error: unionfs::Error| format!("{error}");
        let opened =
            self.union().open_file(&caller(), node, libc::O_RDONLY.cast_unsigned(), false).map_err(show)?;
        let mut bytes = vec![0; want.len() + 10];
        let count = self.union().read(node, Some(opened.fh), 0, &mut bytes).map_err(show)?;
        self.close_file(opened.fh);
        bytes.truncate(count);
        if bytes == *want { Ok(()) } else { Err(format!("{count} bytes differ from {}", want.len())) }
    }

    fn attributes(&mut self, call: &Call) -> Outcome {
        let (Call::Chmod(path, _) | Call::SetXattr(path, _) | Call::RemoveXattr(path)) = call else {
            return Ok(());
        };
        let Some((node, id)) = self.both(path)? else { return Ok(()) };
        if matches!(self.model.object(id).body, Body::Symlink(_)) {
            return Ok(());
        }
        match call {
            Call::Chmod(_, mode) => {
                self.model.object_mut(id).mode = *mode;
                let change = SetAttr { mode: Some(*mode), ..SetAttr::default() };
                Self::same(self.union().setattr(&caller(), node, &change), Ok(())).map(|_| ())
            }
            Call::SetXattr(_, value) => {
                self.model.object_mut(id).xattrs.insert(XATTR.to_owned(), value.clone());
                Self::same(self.union().setxattr(node, XATTR.as_bytes(), value, 0), Ok(())).map(|_| ())
            }
            _ => {
                let removed = self.model.object_mut(id).xattrs.remove(XATTR);
                let model = removed.map(|_| ()).ok_or(libc::ENODATA);
                Self::same(self.union().removexattr(node, XATTR.as_bytes()), model).map(|_| ())
            }
        }
    }

    /// Reads a directory `chunk` entries at a time.
    fn names(&self, node: NodeId, chunk: usize) -> Result<Vec<String>, String> {
        let show = |error: unionfs::Error| format!("{error}");
        let fh = self.union().opendir(node).map_err(show)?;
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let (from, mut taken) = (offset, 0);
            let mut sink = |entry: unionfs::request::DirEntry<'_>| {
                if taken == chunk {
                    return ControlFlow::Break(());
                }
                taken += 1;
                offset = entry.next_offset;
                names.push(entry.name.escape_ascii().to_string());
                ControlFlow::Continue(())
            };
            self.union().readdir(node, fh, from, &mut sink).map_err(show)?;
            if taken == 0 {
                break;
            }
        }
        self.union().releasedir(fh);
        names.retain(|name| name != "." && name != "..");
        Ok(names)
    }

    fn list(&mut self, path: &[String], chunk: usize) -> Outcome {
        let Some((node, id)) = self.both(path)? else { return Ok(()) };
        let Body::Directory(want) = self.model.object(id).body.clone() else { return Ok(()) };
        let mut names = self.names(node, chunk)?;
        names.sort();
        let want: Vec<String> = want.into_keys().collect();
        if names == want { Ok(()) } else { Err(format!("listed {names:?}, model {want:?}")) }
    }

    fn hold(&mut self, path: &[String]) -> Outcome {
        let Some((node, id)) = self.both(path)? else { return Ok(()) };
        if !matches!(self.model.object(id).body, Body::File(_)) {
            return Ok(());
        }
        self.let_go();
        let flags = libc::O_RDWR.cast_unsigned();
        let opened =
            self.union().open_file(&caller(), node, flags, false).map_err(|error| format!("{error}"))?;
        // A reference of its own, so that `Forget` does not take it.
        self.lookup(path).map_err(|errno| errno.to_string())?;
        self.known.pop();
        self.held = Some((node, opened.fh, id));
        Ok(())
    }

    fn held(&mut self, call: &Call) -> Outcome {
        let Some((node, fh, id)) = self.held else { return Ok(()) };
        let Body::File(bytes) = &mut self.model.object_mut(id).body else { return Ok(()) };
        let show = |error: unionfs::Error| format!("held: {error}");
        if let Call::WriteHeld(offset, len, seed) = call {
            let new = data(*seed, *len);
            put(bytes, *offset as usize, &new);
            self.union().write(node, Some(fh), *offset, &new, false).map_err(show)?;
        }
        let Body::File(want) = &self.model.object(id).body else { return Ok(()) };
        let mut bytes = vec![0; want.len() + 10];
        let count = self.union().read(node, Some(fh), 0, &mut bytes).map_err(show)?;
        bytes.truncate(count);
        let size = self.union().getattr(node, Some(fh)).map_err(show)?.size;
        if bytes == *want && size == count as u64 {
            Ok(())
        } else {
            Err("held bytes or size differ".to_owned())
        }
    }

    fn let_go(&mut self) {
        if let Some((node, fh, _)) = self.held.take() {
            self.close_file(fh);
            self.union().forget(node, 1);
        }
    }

    fn forget(&mut self) {
        for node in std::mem::take(&mut self.known) {
            self.union().forget(node, 1);
        }
    }

    fn compare(&mut self) -> Outcome {
        let mut found = Vec::new();
        self.visit(NodeId::ROOT, "", &mut found)?;
        let want = self.model.tree();
        let only = |left: &[(String, String)], right: &[(String, String)]| {
            left.iter().filter(|item| !right.contains(item)).cloned().collect::<Vec<_>>()
        };
        let (extra, lacking) = (only(&found, &want), only(&want, &found));
        if extra.is_empty() && lacking.is_empty() {
            return Ok(());
        }
        Err(format!("trees differ: union {extra:#?} model {lacking:#?}"))
    }

    fn visit(&mut self, node: NodeId, path: &str, found: &mut Vec<(String, String)>) -> Outcome {
        let show = |error: unionfs::Error| format!("{path}: {error}");
        let attr = self.union().getattr(node, None).map_err(show)?;
        let body = match attr.kind {
            FileKind::Directory => "directory".to_owned(),
            FileKind::Symlink => {
                let target = self.union().readlink(node).map_err(show)?;
                format!("symlink {} x{}", target.escape_ascii(), attr.nlink)
            }
            _ => {
                let mut bytes = vec![0; attr.size as usize + 1];
                let opened = self
                    .union()
                    .open_file(&caller(), node, libc::O_RDONLY.cast_unsigned(), false)
                    .map_err(show)?;
                let count = self.union().read(node, Some(opened.fh), 0, &mut bytes).map_err(show)?;
                self.close_file(opened.fh);
                bytes.truncate(count);
                format!("file {} {:x} x{}", attr.size, e2e::random::hash(&bytes), attr.nlink)
            }
        };
        let mut xattrs = std::collections::BTreeMap::new();
        let list = self.union().listxattr(node).map_err(show)?;
        for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let value = self.union().getxattr(node, name).map_err(show)?;
            xattrs.insert(name.escape_ascii().to_string(), value);
        }
        found.push((path.to_owned(), format!("{body} {:o} {xattrs:?}", attr.perm)));
        if attr.kind == FileKind::Directory {
            for name in self.names(node, 2)? {
                let entry = self.union().lookup(node, name.as_bytes()).map_err(show)?;
                self.keep(entry);
                self.visit(entry.node, &format!("{path}/{name}"), found)?;
            }
        }
        Ok(())
    }

    fn reopen(&mut self) -> Outcome {
        self.compare()?;
        self.close()?;
        self.union = Some(Union::open(&self.options).map_err(|error| format!("{error}"))?);
        self.compare()
    }

    /// Puts an empty upper on top. What is held and known stays so.
    fn rotate(&mut self) -> Outcome {
        let count = self.options.lowerdir.len();
        let [upper, work] =
            ["upper", "work"].map(|name| self.directory.path().join(format!("{name}{count}")));
        std::fs::create_dir(&upper).unwrap();
        std::fs::create_dir(&work).unwrap();
        self.union().rotate(&upper, &work).map_err(|error| format!("rotate: {error}"))?;
        let old = self.options.workdir.replace(work).unwrap();
        let mut left = e2e::sides::leftovers(&old);
        left.retain(|path| !e2e::nfs::is_kept(path));
        assert!(left.is_empty(), "left in the workdir before: {left:?}");
        let old = self.options.upperdir.replace(upper).unwrap();
        self.options.lowerdir.insert(0, old);
        self.compare()
    }

    /// Gives everything back and checks that the union has forgotten all but its root.
    fn close(&mut self) -> Outcome {
        self.let_go();
        self.forget();
        let left = self.union().inodes();
        self.union().destroy();
        self.union = None;
        if left <= 1 { Ok(()) } else { Err(format!("{left} inodes left after every one was forgotten")) }
    }

    /// Compares the trees a last time; the workdir must hold nothing.
    pub fn finish(&mut self) -> Outcome {
        self.reopen()?;
        self.close()?;
        let left = e2e::sides::leftovers(Path::new(self.options.workdir.as_ref().unwrap()));
        assert!(self.directory.path().exists());
        if left.is_empty() { Ok(()) } else { Err(format!("left in the workdir: {left:?}")) }
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, new: &[u8]) {
    if new.is_empty() {
        return;
    }
    let end = offset + new.len();
    bytes.resize(bytes.len().max(end), 0);
    bytes[offset..end].copy_from_slice(new);
}

/// Turns a tree into the model.
fn fill(tree: &LayerTree) -> Memory {
    let mut memory = Memory::new();
    let names =
        |path: &[u8]| path.split(|b| *b == b'/').map(|name| name.escape_ascii().to_string()).collect();
    for (path, kind, mode, xattrs) in tree.objects() {
        let path: Vec<String> = names(path);
        if let Kind::HardLink(first) = kind {
            let first: Vec<String> = names(first);
            memory.link(&first, &path).unwrap();
            continue;
        }
        let body = match kind {
            Kind::File(bytes) => Body::File(bytes.clone()),
            Kind::Sparse(size, pieces) => {
                let mut bytes = vec![0; *size as usize];
                pieces.iter().for_each(|(offset, piece)| put(&mut bytes, *offset as usize, piece));
                Body::File(bytes)
            }
            Kind::Symlink(target) => Body::Symlink(target.escape_ascii().to_string()),
            _ => Body::Directory(std::collections::BTreeMap::new()),
        };
        let id = memory.make(&path, body, mode).unwrap();
        for (name, value) in xattrs {
            memory.object_mut(id).xattrs.insert(name.escape_ascii().to_string(), value.clone());
        }
    }
    memory
}
