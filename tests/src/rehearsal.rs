//! What stands under which name while a history is made up, so that its calls meet objects that exist.
//!
//! Every call is rehearsed on a plain directory. The rehearsal only aims calls; it judges no result.

use std::collections::BTreeMap;

use crate::execute::{Outcome, Session};
use crate::mounted::scratch;
use crate::operation::{Name, Op, Over, SLOTS, Step};
use crate::random::Random;
use crate::tree::{LayerTree, split};

/// A plain directory on which calls are tried, and what is known of it.
#[derive(Debug)]
pub(crate) struct Rehearsal {
    known: BTreeMap<Vec<u8>, bool>,
    open: [bool; SLOTS],
    session: Session,
    directory: tempfile::TempDir,
}

fn below(name: &[u8], path: &[u8]) -> bool {
    name.starts_with(path) && (name.len() == path.len() || name[path.len()] == b'/')
}

impl Rehearsal {
    /// Starts from a tree.
    pub(crate) fn new(start: &LayerTree) -> Self {
        let directory = scratch();
        let root = directory.path().join("plain");
        start.build(&root);
        let mut rehearsal =
            Self { known: BTreeMap::new(), open: [false; SLOTS], session: Session::new(&root), directory };
        rehearsal.look();
        rehearsal
    }

    fn look(&mut self) {
        self.known.clear();
        let root = self.directory.path().join("plain");
        let mut rest = vec![Vec::new()];
        while let Some(path) = rest.pop() {
            for entry in std::fs::read_dir(crate::tree::at(&root, &path)).into_iter().flatten().flatten() {
                let name = std::os::unix::ffi::OsStringExt::into_vec(entry.file_name());
                let child = if path.is_empty() { name } else { [path.as_slice(), b"/", &name].concat() };
                let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                self.known.insert(child.clone(), directory);
                rest.extend(directory.then_some(child));
            }
        }
    }

    /// Returns a path at which something stands, or None if there is nothing.
    pub(crate) fn existing(&self, random: &mut Random) -> Option<Name> {
        let index = random.below(self.known.len().max(1) as u64) as usize;
        self.known.keys().nth(index).map(|path| Name(path.clone()))
    }

    /// Returns a directory, or None if there is none.
    pub(crate) fn directory(&self, random: &mut Random) -> Option<Vec<u8>> {
        let directories: Vec<_> = self.known.iter().filter(|(_, directory)| **directory).collect();
        (!directories.is_empty()).then(|| random.pick(&directories).0.clone())
    }

    /// Returns a slot that holds a handle, or any.
    pub(crate) fn slot(&self, random: &mut Random) -> usize {
        let open: Vec<usize> = (0..SLOTS).filter(|slot| self.open[*slot]).collect();
        if open.is_empty() { random.below(SLOTS as u64) as usize } else { *random.pick(&open) }
    }

    /// Makes the call and learns from it.
    pub(crate) fn execute(&mut self, step: &Step) {
        if step.op == Op::Remount {
            self.session.close_all();
            self.open = [false; SLOTS];
            return;
        }
        let failed = matches!(self.session.execute(step), Outcome::Failed(_));
        match &step.op {
            Op::RemoveAll { .. } => self.look(),
            Op::Open { slot, .. } => self.open[*slot] = !failed,
            _ => {}
        }
        if !failed {
            self.learn(&step.op);
        }
    }

    fn learn(&mut self, op: &Op) {
        match op {
            Op::Create { path, .. }
            | Op::Put { path, .. }
            | Op::Symlink { path, .. }
            | Op::Mknod { path, .. }
            | Op::Open { path, .. } => {
                self.known.entry(path.0.clone()).or_insert(false);
            }
            Op::Link { to, .. } | Op::Tmpfile { to, .. } => {
                self.known.insert(to.0.clone(), false);
            }
            Op::Mkdir { path, .. } => {
                self.known.insert(path.0.clone(), true);
            }
            Op::Unlink { path } | Op::Rmdir { path } => {
                self.known.remove(&path.0);
            }
            Op::CloseHandle { slot } => self.open[*slot] = false,
            Op::Rename { from, to, over } => {
                if *over == Over::Exchange || split(&from.0).0 == to.0 {
                    self.look();
                } else {
                    self.rename(from, to);
                }
            }
            _ => {}
        }
    }

    fn rename(&mut self, from: &Name, to: &Name) {
        if from == to {
            return;
        }
        let moved: Vec<_> = self.known.iter().filter(|(name, _)| below(name, &from.0)).collect();
        let moved: Vec<_> =
            moved.into_iter().map(|(name, kind)| ([&to.0, &name[from.0.len()..]].concat(), *kind)).collect();
        self.known.retain(|name, _| !below(name, &from.0) && !below(name, &to.0));
        self.known.extend(moved);
    }
}
