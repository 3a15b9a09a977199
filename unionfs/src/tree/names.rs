//! The names of a directory of the union: all of them, and what is known of one without looking at each layer.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Tree;
use crate::counts::add;
use crate::dir_cache::LowerNames;
use crate::error::Result;
use crate::inode::Inode;
use crate::lookup::{self, Below, DirView};
use crate::merge::{self, EmptyFiles, Listing};
use crate::request::FileKind;
use crate::stack::lower::LowerDir;

/// Names of lowers that are read at most for the sake of lookups.
const NAMES_FOR_LOOKUPS: usize = 20_000;

impl Tree {
    /// Returns the merged listing of a directory as it is now.
    pub(crate) fn listing(&self, dir: &Inode) -> Result<Arc<Listing>> {
        let version = dir.version.load(Ordering::Acquire);
        let remembers = self.policy.caches_names;
        if let Some(listing) = self.listings.get(dir.serial, version).filter(|_| remembers) {
            add(&self.counts.listings_known, 1);
            return Ok(listing);
        }
        add(&self.counts.listings_read, 1);
        let hold = self.hold(dir)?;
        let known = hold.lowers.first().filter(|_| remembers);
        let lowers = match known.and_then(|top| self.listings.lowers(dir.serial, top.id)) {
            Some(lowers) => lowers,
            None => self.read_lowers(dir, &hold.lowers, usize::MAX)?.unwrap_or_default(),
        };
        let listing = match &hold.upper {
            Some(upper) => {
                let marked = !lowers.is_empty() && self.may_hold_xattr_whiteouts(dir)?;
                Arc::new(merge::list(&self.stack, upper.as_fd(), EmptyFiles::of(marked), &lowers)?)
            }
            None => lowers,
        };
        self.listings.put(dir.serial, version, &listing);
        Ok(listing)
    }

    /// Reads the names that the lowers of a directory hold; `None` if there are more than `limit`.
    fn read_lowers(
        &self,
        dir: &Inode,
        lowers: &[Arc<LowerDir>],
        limit: usize,
    ) -> Result<Option<Arc<Listing>>> {
        // A directory that was removed has no lowers any more.
        let Some(top) = lowers.first() else { return Ok(Some(Arc::default())) };
        let listing = merge::list_lowers(&self.stack, lowers, limit)?.map(Arc::new);
        self.listings.put_lowers(dir.serial, top.id, listing.as_ref());
        Ok(listing)
    }

    /// Returns what is known of a name on the lowers of a directory. Where there are several, their names are read
    /// before many were asked: from then on only those are that have the name.
    pub(crate) fn known_below(&self, dir: &Inode, lowers: &[Arc<LowerDir>], name: &[u8]) -> Below {
        let Some(top) = lowers.first().map(|top| top.id) else { return Below::Absent };
        if !self.policy.caches_names {
            return Below::Unknown;
        }
        let asked = match self.listings.lowers(dir.serial, top) {
            Some(names) => LowerNames::Names(names),
            None if lowers.len() == 1 => LowerNames::Unknown,
            None => self.listings.ask_lowers(dir.serial, top, lowers.len()),
        };
        let names = match asked {
            LowerNames::Names(names) => Some(names),
            LowerNames::Unknown => None,
            // A directory that may be searched but not read answers lookups all the same.
            LowerNames::Read => self.read_lowers(dir, lowers, NAMES_FOR_LOOKUPS).unwrap_or_else(|error| {
                tracing::debug!(%error, "the names of the lowers stay unknown");
                self.listings.put_lowers(dir.serial, top, None);
                None
            }),
        };
        let Some(names) = names else { return Below::Unknown };
        let found = names.find(name).and_then(|index| Some((index, names.get(index)?)));
        match found {
            None => Below::Absent,
            Some((index, entry)) if entry.kind == FileKind::Directory => {
                Below::In(std::iter::once(entry.layer).chain(names.deeper(index)).map(usize::from).collect())
            }
            Some((_, entry)) => Below::From(usize::from(entry.layer)),
        }
    }

    /// Returns whether the lowers alone provide a name: whether removing it needs a whiteout.
    pub(crate) fn below_provides(&self, dir: &Inode, name: &[u8]) -> Result<bool> {
        let lowers = dir.lower_dirs();
        let below = |name: &[u8]| self.known_below(dir, &lowers, name);
        lookup::below_provides(&self.stack, &DirView { below: &below, ..DirView::of_lowers(&lowers) }, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Errno;
    use crate::options::MountOptions;
    use crate::request::NodeId;

    struct Layers {
        scratch: tempfile::TempDir,
        tree: Tree,
        root: Arc<Inode>,
    }

    fn layers(lowers: usize, make: impl Fn(&std::path::Path)) -> Layers {
        let scratch = tempfile::tempdir().unwrap();
        let name = |what: &str| scratch.path().join(what);
        let mut options = MountOptions { upperdir: Some(name("upper")), ..MountOptions::default() };
        options.workdir = Some(name("work"));
        options.lowerdir = (0..lowers).map(|number| name(&format!("lower{number}"))).collect();
        for path in options.lowerdir.iter().chain(&options.upperdir).chain(&options.workdir) {
            std::fs::create_dir(path).unwrap();
        }
        make(scratch.path());
        let (tree, _) = Tree::open(&options).unwrap();
        let root = tree.table.get(NodeId::ROOT).unwrap();
        Layers { scratch, tree, root }
    }

    fn lookup(layers: &Layers, name: &str) -> Option<u64> {
        match layers.tree.lookup(&layers.root, name.as_bytes()) {
            Ok((_, stat)) => Some(stat.size),
            Err(error) if error.is(Errno::NOENT) => None,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn after_a_few_lookups_only_the_layer_that_has_a_name_is_asked() {
        let layers = layers(3, |at| {
            std::fs::write(at.join("lower2/a"), "abc").unwrap();
            std::fs::write(at.join("lower2/whited"), "abc").unwrap();
            std::fs::write(at.join("lower1/.wh.whited"), "").unwrap();
            std::fs::write(at.join("lower1/b"), "b").unwrap();
        });
        for name in ["x1", "whited", "x2", "x3"] {
            assert_eq!(lookup(&layers, name), None);
        }
        assert_eq!(
            layers.tree.known_below(&layers.root, &layers.root.lower_dirs(), b"b"),
            Below::From(layers.tree.stack.top + 1)
        );
        assert_eq!(layers.tree.known_below(&layers.root, &layers.root.lower_dirs(), b"x"), Below::Absent);
        // Behind the union's back, which nobody may do: it shows where a lookup looks.
        std::fs::write(layers.scratch.path().join("lower0/a"), "").unwrap();
        std::fs::write(layers.scratch.path().join("lower0/late"), "").unwrap();
        assert_eq!((lookup(&layers, "a"), lookup(&layers, "b")), (Some(3), Some(1)));
        assert_eq!((lookup(&layers, "late"), lookup(&layers, "whited")), (None, None));
        std::fs::write(layers.scratch.path().join("upper/late"), "up").unwrap();
        assert_eq!(lookup(&layers, "late"), Some(2), "the upper is asked");
        assert!(!layers.tree.below_provides(&layers.root, b"late").unwrap());
    }

    #[test]
    fn a_directory_is_looked_for_only_in_the_layers_that_speak_of_it() {
        let layers = layers(20, |at| {
            for dir in ["lower3/d", "lower7/d", "lower17/d", "lower19/d", "lower5/e", "lower9/e"] {
                std::fs::create_dir(at.join(dir)).unwrap();
            }
            std::fs::write(at.join("lower9/.wh.d"), "").unwrap();
            std::fs::write(at.join("lower2/.wh.e"), "").unwrap();
        });
        let in_layers = |numbers: &[usize]| {
            Below::In(numbers.iter().map(|number| layers.tree.stack.top + number).collect())
        };
        let below = |name: &[u8]| layers.tree.known_below(&layers.root, &layers.root.lower_dirs(), name);
        assert_eq!(below(b"d"), in_layers(&[3, 7, 9, 17, 19]), "at the first lookup");
        assert_eq!(below(b"e"), Below::Absent);
        let (node, _) = layers.tree.lookup(&layers.root, b"d").unwrap();
        let parts: Vec<usize> =
            layers.tree.whole(node).unwrap().lower_dirs().iter().map(|part| part.layer).collect();
        assert_eq!(Below::In(parts), in_layers(&[3, 7]), "the whiteout ends it");
    }

    #[test]
    fn a_directory_that_is_only_passed_through_is_not_read() {
        let layers = layers(2, |at| std::fs::write(at.join("lower1/a"), "abc").unwrap());
        assert_eq!(lookup(&layers, "a"), Some(3));
        assert_eq!(layers.tree.known_below(&layers.root, &layers.root.lower_dirs(), b"x"), Below::Unknown);
    }
}
