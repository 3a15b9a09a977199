//! Everything that can be seen of a tree, as a value; two of them differ in lines a person can read.
//!
//! Ignored: atime (a union never writes it back), size and link count of directories, inode numbers as such.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::random::hash;
use crate::tree::at;

/// Times from here on are "now"; trees of tests are older.
pub const RECENT: i64 = 1_500_000_000;

/// A modification time: exact if a test has set it, otherwise only that it is of this run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Seconds and nanoseconds.
    Exactly(i64, i64),
    /// Some time during the run.
    Recent,
}

impl Moment {
    /// Classifies a time.
    pub const fn of(seconds: i64, nanoseconds: i64) -> Self {
        if seconds >= RECENT { Self::Recent } else { Self::Exactly(seconds, nanoseconds) }
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(s, n) => write!(f, "{s}.{n:09}"),
            Self::Recent => f.write_str("now"),
        }
    }
}

/// What is seen of one object.
#[derive(Clone, PartialEq, Eq)]
pub struct Node {
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size, 0 for directories.
    pub size: u64,
    /// Link count, 0 for directories.
    pub nlink: u64,
    /// Device number.
    pub rdev: u64,
    /// Modification time.
    pub mtime: Moment,
    /// Target of a symbolic link, or the hash of a file's bytes as text.
    pub content: Vec<u8>,
    /// Extended attributes, ACLs included.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first other name, in order, of the same object in this tree.
    pub same_as: Option<Vec<u8>>,
}

impl Node {
    /// Returns whether all is the same but the names that the object has beside this one.
    pub fn looks_like(&self, other: &Self) -> bool {
        let alone = |node: &Self| Self { nlink: 0, same_as: None, ..node.clone() };
        alone(self) == alone(other)
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mode, uid, gid, size, nlink, rdev, mtime, content, xattrs, same_as } = self;
        write!(f, "{mode:06o} {uid}:{gid} size={size} nlink={nlink} rdev={rdev:#x} mtime={mtime:?}")?;
        write!(f, " content={}", content.escape_ascii())?;
        for (name, value) in xattrs {
            write!(f, " {}={}", name.escape_ascii(), value.escape_ascii())?;
        }
        same_as.as_ref().map_or(Ok(()), |first| write!(f, " same-as={}", first.escape_ascii()))
    }
}

/// A whole tree, by path relative to its root, which is the empty path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    nodes: BTreeMap<Vec<u8>, Node>,
    /// What contradicts itself within this tree, such as d_ino and st_ino of one name.
    pub faults: Vec<String>,
}

impl Snapshot {
    /// Reads the tree below `root`.
    pub fn take(root: &Path) -> std::io::Result<Self> {
        let mut walk = Walk { root, nodes: BTreeMap::new(), seen: BTreeMap::new(), faults: Vec::new() };
        walk.visit(b"")?;
        Ok(Self { nodes: walk.nodes, faults: walk.faults })
    }

    /// Returns the number of objects.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns whether there is nothing, not even a root.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Makes the modification times of all directories equal.
    pub fn forget_directory_times(&mut self) {
        for node in self.nodes.values_mut().filter(|node| node.mode & libc::S_IFMT == libc::S_IFDIR) {
            node.mtime = Moment::Recent;
        }
    }

    /// Makes the link counts of all objects equal, and every name an object of its own.
    pub fn forget_links(&mut self) {
        for node in self.nodes.values_mut() {
            node.nlink = 0;
            node.same_as = None;
        }
    }

    /// Forgets an extended attribute of every object, which not every program hides.
    pub fn forget_xattr(&mut self, name: &[u8]) {
        self.nodes.values_mut().for_each(|node| drop(node.xattrs.remove(name)));
    }

    /// Puts owner, group and mode in the place of those of each object for which `read` finds them.
    pub fn owners_from(&mut self, mut read: impl FnMut(&mut Node) -> Option<(u32, u32, u32)>) {
        for node in self.nodes.values_mut() {
            if let Some(found) = read(node) {
                (node.uid, node.gid, node.mode) = found;
            }
        }
    }

    /// Makes what an archive without pax headers does not hold equal: times and extended attributes.
    pub fn forget_times_and_xattrs(&mut self) {
        for node in self.nodes.values_mut() {
            node.mtime = Moment::Recent;
            node.xattrs.clear();
        }
    }

    /// Forgets the objects whose path `keep` does not want.
    pub fn retain(&mut self, keep: impl Fn(&[u8]) -> bool) {
        self.nodes.retain(|path, _| keep(path));
    }

    /// Returns all paths, sorted.
    pub fn paths(&self) -> impl Iterator<Item = &[u8]> {
        self.nodes.keys().map(Vec::as_slice)
    }

    /// Returns what is seen under a path.
    pub fn get(&self, path: &[u8]) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// Returns one line for each difference; none if the trees are equal.
    pub fn diff(&self, other: &Self, names: (&str, &str)) -> Vec<String> {
        let mut lines: Vec<String> = self.faults.iter().map(|f| format!("{}: {f}", names.0)).collect();
        lines.extend(other.faults.iter().map(|fault| format!("{}: {fault}", names.1)));
        for (path, node) in &self.nodes {
            let path_text = path.escape_ascii();
            match other.nodes.get(path) {
                None => lines.push(format!("only {}: {path_text}: {node:?}", names.0)),
                Some(theirs) if theirs != node => lines.push(format!(
                    "{path_text} differs\n    {:>8}: {node:?}\n    {:>8}: {theirs:?}",
                    names.0, names.1
                )),
                Some(_) => {}
            }
        }
        for (path, node) in &other.nodes {
            if !self.nodes.contains_key(path) {
                lines.push(format!("only {}: {}: {node:?}", names.1, path.escape_ascii()));
            }
        }
        lines
    }
}

/// Panics with the differences unless the trees below `left` and `right` are equal.
pub fn assert_same_tree(left: &Path, right: &Path) {
    let lines = Snapshot::take(left).unwrap().diff(&Snapshot::take(right).unwrap(), ("left", "right"));
    assert!(lines.is_empty(), "{} and {} differ:\n{}", left.display(), right.display(), lines.join("\n"));
}

struct Walk<'a> {
    root: &'a Path,
    nodes: BTreeMap<Vec<u8>, Node>,
    seen: BTreeMap<(u64, u64), Vec<u8>>,
    faults: Vec<String>,
}

impl Walk<'_> {
    fn visit(&mut self, path: &[u8]) -> std::io::Result<()> {
        let full = if path.is_empty() { self.root.to_path_buf() } else { at(self.root, path) };
        let meta = std::fs::symlink_metadata(&full).map_err(|e| named(&e, "lstat", path))?;
        let kind = meta.file_type();
        let directory = kind.is_dir();
        let key = (meta.dev(), meta.ino());
        let same_as = (!directory).then(|| self.seen.get(&key).cloned()).flatten();
        self.seen.entry(key).or_insert_with(|| path.to_vec());
        let content = if kind.is_symlink() {
            std::fs::read_link(&full)
                .map_err(|e| named(&e, "readlink", path))?
                .as_os_str()
                .as_bytes()
                .to_vec()
        } else if kind.is_file() {
            let denied = |e: &std::io::Error| e.kind() == std::io::ErrorKind::PermissionDenied;
            let bytes = match std::fs::read(&full) {
                Err(error) if denied(&error) => b"EACCES".to_vec(),
                other => other.map_err(|e| named(&e, "read", path))?,
            };
            if bytes.len() as u64 != meta.len() && bytes != b"EACCES" {
                self.faults.push(format!(
                    "{}: {} bytes read, st_size {}",
                    path.escape_ascii(),
                    bytes.len(),
                    meta.len()
                ));
            }
            format!("{:016x}", hash(&bytes)).into_bytes()
        } else {
            Vec::new()
        };
        let device = kind.is_char_device() || kind.is_block_device();
        let node = Node {
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            size: if directory { 0 } else { meta.size() },
            nlink: if directory { 0 } else { meta.nlink() },
            rdev: if device { meta.rdev() } else { 0 },
            mtime: Moment::of(meta.mtime(), meta.mtime_nsec()),
            content,
            xattrs: xattrs(&full).map_err(|e| named(&e, "listxattr", path))?,
            same_as,
        };
        self.nodes.insert(path.to_vec(), node);
        if directory { self.children(path, &full) } else { Ok(()) }
    }

    fn children(&mut self, path: &[u8], full: &Path) -> std::io::Result<()> {
        let mut names = Vec::new();
        // Without leave to search it, nothing below can be seen; that is the same on every side.
        let list = match rustix::fs::access(full, rustix::fs::Access::READ_OK | rustix::fs::Access::EXEC_OK) {
            Err(rustix::io::Errno::ACCESS) => return Ok(()),
            _ => std::fs::read_dir(full),
        };
        for entry in list.map_err(|e| named(&e, "opendir", path))? {
            let entry = entry.map_err(|e| named(&e, "readdir", path))?;
            let name = entry.file_name().as_bytes().to_vec();
            let number = std::os::unix::fs::DirEntryExt::ino(&entry);
            let meta = match entry.metadata() {
                // As kernel overlayfs lists whiteouts where nothing is merged.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    let text = [path, b"/", &name].concat();
                    self.faults.push(format!("{}: listed and not there", text.escape_ascii()));
                    continue;
                }
                meta => meta.map_err(|e| named(&e, "lstat of a listed name", &name))?,
            };
            if meta.ino() != number {
                let text = [path, b"/", &name].concat();
                self.faults.push(format!("{}: d_ino {number}, st_ino {}", text.escape_ascii(), meta.ino()));
            }
            names.push(name);
        }
        names.sort();
        for pair in names.windows(2).filter(|pair| pair[0] == pair[1]) {
            self.faults.push(format!("{}: listed twice: {}", path.escape_ascii(), pair[0].escape_ascii()));
        }
        names.dedup();
        names.iter().try_for_each(|name| {
            let child = if path.is_empty() { name.clone() } else { [path, b"/", name].concat() };
            self.visit(&child)
        })
    }
}

fn named(error: &std::io::Error, call: &str, path: &[u8]) -> std::io::Error {
    std::io::Error::new(error.kind(), format!("{call} {}: {error}", path.escape_ascii()))
}

/// The ACL that NFS shows of every object, a mode in other words.
const NFS_ACL: &[u8] = b"system.nfs4_acl";

/// Returns the extended attributes of an object, not following a symbolic link.
pub fn xattrs(path: &Path) -> std::io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut list = vec![0_u8; 65_536];
    let length = match rustix::fs::llistxattr(path, &mut list) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut found = BTreeMap::new();
    let names = list[..length].split(|byte| *byte == 0);
    for name in names.filter(|name| !name.is_empty() && *name != NFS_ACL) {
        let mut value = vec![0_u8; 65_536];
        let size = match rustix::fs::lgetxattr(path, name, &mut value) {
            Ok(size) => size,
            Err(rustix::io::Errno::ACCESS) => 0,
            Err(error) => return Err(error.into()),
        };
        value.truncate(size);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}
