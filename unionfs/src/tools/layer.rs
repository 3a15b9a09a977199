//! Differences written down as an OCI layer: a tar archive with whiteouts.
//!
//! A layer knows neither redirects nor files without data: what a directory that was renamed holds is written in full under
//! its new name, and a file of which only attributes changed with the data that it shows. The order and the headers
//! depend on nothing but the trees, so that the same trees give the same bytes.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;

use rustix::fs::{major, minor};

use crate::error::{Errno, Error, Result};
use crate::ondisk;
use crate::request::{FileKind, Timestamp};
use crate::tools::diff::Entry;
use crate::tools::tar::write::Writer;
use crate::tools::tar::{Kind, Member};
use crate::tools::view::{Object, View};

/// The label of this host, which says nothing elsewhere.
const LABEL: &[u8] = b"security.selinux";
/// Bytes of data copied at a time.
const CHUNK: usize = 1 << 20;

/// Writes a layer. Returns what it cannot hold, a line each.
pub(crate) fn write<'a>(
    view: &View,
    entries: impl Iterator<Item = &'a Entry>,
    out: &mut dyn Write,
) -> Result<Vec<String>> {
    let mut layer = Layer { view, writer: Writer::new(out), names: HashMap::new(), notes: Vec::new() };
    for entry in entries.filter(|entry| entry.in_layer) {
        layer.add(entry).map_err(|error| error.during("write into the layer", &entry.path))?;
    }
    layer.writer.finish().map_err(|error| Error::from(error).during("write the end of", "the layer"))?;
    Ok(layer.notes)
}

struct Layer<'a> {
    view: &'a View,
    writer: Writer<'a>,
    /// The first name of each file that has several.
    names: HashMap<(u64, u64), Vec<u8>>,
    notes: Vec<String>,
}

impl Layer<'_> {
    fn add(&mut self, entry: &Entry) -> Result<()> {
        let Some(object) = &entry.object else {
            let at = entry.path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
            let (parent, name) = entry.path.split_at(at);
            return self.mark([parent, &ondisk::whiteout_name(name)].concat());
        };
        if object.stat.kind() == FileKind::Socket {
            self.notes.push(format!("a socket is not written: {}", entry.path.escape_ascii()));
            return Ok(());
        }
        let mut member = self.member(&entry.path, object)?;
        if object.stat.nlink > 1 && !object.stat.is_dir() {
            if let Some(first) = self.names.get(&object.identity()) {
                member.kind = Kind::HardLink;
                member.link.clone_from(first);
                member.xattrs.clear();
            } else {
                self.names.insert(object.identity(), entry.path.clone());
            }
        }
        self.writer.member(&member)?;
        if member.kind == Kind::Object(FileKind::Regular) {
            self.copy_data(object)?;
        }
        if entry.opaque {
            let slash = if entry.path.is_empty() { &b""[..] } else { b"/" };
            self.mark([&entry.path, slash, ondisk::OPAQUE_FILE].concat())?;
        }
        Ok(())
    }

    fn member(&self, path: &[u8], object: &Object) -> Result<Member> {
        let stat = &object.stat;
        let mut xattrs = self.view.xattrs(object)?;
        xattrs.remove(LABEL);
        let is_link = stat.kind() == FileKind::Symlink;
        Ok(Member {
            path: if path.is_empty() { b".".to_vec() } else { path.to_vec() },
            kind: Kind::Object(stat.kind()),
            link: if is_link { self.view.link_target(object)? } else { Vec::new() },
            mode: stat.mode & 0o7777,
            uid: stat.uid,
            gid: stat.gid,
            size: if stat.kind() == FileKind::Regular { stat.size } else { 0 },
            mtime: stat.mtime,
            atime: None,
            device: (major(stat.rdev), minor(stat.rdev)),
            xattrs,
            extents: None,
        })
    }

    fn copy_data(&mut self, object: &Object) -> Result<()> {
        let mut left = object.stat.size;
        if left == 0 {
            return Ok(());
        }
        let file = self.view.open_data(object)?;
        let mut buffer = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(CHUNK).min(buffer.len());
            let part = buffer.get_mut(..want).ok_or(Errno::IO)?;
            let got = file.read_at(part, object.stat.size - left)?;
            if got == 0 {
                // Shorter than it says: it changes under our hands.
                return Err(Error::new(Errno::IO));
            }
            self.writer.data(part.get(..got).ok_or(Errno::IO)?)?;
            left -= got as u64;
        }
        Ok(())
    }

    /// Writes an empty file whose name is all that it says.
    fn mark(&mut self, path: Vec<u8>) -> Result<()> {
        let member = Member {
            path,
            kind: Kind::Object(FileKind::Regular),
            link: Vec::new(),
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: Timestamp::default(),
            atime: None,
            device: (0, 0),
            xattrs: BTreeMap::new(),
            extents: None,
        };
        Ok(self.writer.member(&member)?)
    }
}
