//! The file systems that a history can run on: a union by any program, kernel overlayfs, a plain directory.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::flatten::flatten;
use crate::mounted::{Layers, Mounted, elsewhere, scratch, union_program};
use crate::oracle::{KernelOverlay, copy_tree};
use crate::shrink::{Pair, Plain, Side};
use crate::snapshot::Snapshot;
use crate::tree::LayerTree;

/// Options of a union whose layers have their owners from [`STORED_FROM`] on.
pub const MAPPED: &str = ",uidmapping=1000000:0:65536,gidmapping=1000000:0:65536";
/// The id on disk that is shown as 0 with [`MAPPED`].
pub const STORED_FROM: u32 = 1_000_000;

/// What can serve as a side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// The union under test, or another program with its command line, and more mount options (a comma first).
    Program(PathBuf, &'static str),
    /// Kernel overlayfs with redirect_dir=on.
    Kernel,
    /// A plain directory with the merged tree.
    Plain,
}

impl Server {
    /// Returns the union program under test.
    pub fn ours() -> Self {
        Self::Program(union_program(), "")
    }

    /// Returns the union program under test with more options.
    pub fn ours_with(options: &'static str) -> Self {
        Self::Program(union_program(), options)
    }
}

enum Mount {
    Program(Mounted),
    Kernel(KernelOverlay),
}

/// A mounted union and what its lowers looked like at the start.
struct Union {
    name: String,
    mount: Mount,
    layers: Layers,
    lowers: Vec<Snapshot>,
}

impl Side for Union {
    fn name(&self) -> &str {
        &self.name
    }

    fn root(&self) -> &Path {
        &self.layers.target
    }

    fn remount(&mut self) {
        match &mut self.mount {
            Mount::Program(mounted) => mounted.remount(),
            Mount::Kernel(overlay) => overlay.remount(),
        }
    }

    fn rotate(&mut self) {
        if let Mount::Program(mounted) = &mut self.mount {
            mounted.rotate();
            self.layers.work.clone_from(&mounted.layers().work);
        }
    }

    fn numbers_agree(&self) -> bool {
        // Kernel overlayfs does not mark a directory impure when link(2) puts a copied-up file there.
        matches!(self.mount, Mount::Program(_))
    }

    fn exact(&self) -> bool {
        // Kernel overlayfs changes the old parent's time when a rename onto a non-empty directory fails,
        // and counts one link for an open lower file whose name is gone.
        matches!(self.mount, Mount::Program(_))
    }

    fn faults(&mut self) -> Vec<String> {
        match &mut self.mount {
            Mount::Program(mounted) => mounted.unmount(),
            Mount::Kernel(overlay) => overlay.unmount(),
        }
        let mut faults = Vec::new();
        for (lower, before) in self.layers.lowers.iter().zip(&self.lowers) {
            let after = Snapshot::take(lower).unwrap();
            faults.extend(before.diff(&after, ("lower before", "lower after")));
        }
        if let Some(work) = &self.layers.work {
            faults.extend(
                leftovers(work).iter().map(|path| format!("left in the workdir: {}", path.display())),
            );
        }
        faults
    }
}

/// Returns what stands in a workdir beside empty directories, the index, the inode numbers, and the sidecar of what is in
/// the upper beside it.
pub fn leftovers(work: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(work).into_iter().flatten().flatten() {
        let path = entry.path();
        let inner = || std::fs::read_dir(&path).into_iter().flatten().flatten().map(|inner| inner.path());
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name() != "numbers" {
                found.push(path);
            }
        } else if entry.file_name() == "sidecar" {
            let numbers = inode_numbers(&[work.with_file_name("upper"), work.join("index")]);
            let speaks_of_nothing = |path: &PathBuf| {
                path.file_name().is_some_and(|name| name != "upper" && !numbers.contains(name))
            };
            found.extend(inner().filter(speaks_of_nothing));
        } else if entry.file_name() != "index" {
            found.extend(inner());
        }
    }
    found
}

/// Returns the inode numbers of everything below some directories, as records of a sidecar are named.
fn inode_numbers(roots: &[PathBuf]) -> HashSet<OsString> {
    let mut numbers = HashSet::new();
    let mut waiting = roots.to_vec();
    while let Some(path) = waiting.pop() {
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        numbers.insert(format!("{:x}", meta.ino()).into());
        if meta.is_dir() {
            waiting
                .extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    numbers
}

/// Builds `layers` twice and mounts them (or copies their union), the first server being the one under test.
pub fn pair(layers: &[LayerTree], ours: &Server, oracle: &Server) -> Pair {
    let scratch = scratch();
    let left = side(layers, ours, &scratch.path().join("left"));
    let right = side(layers, oracle, &scratch.path().join("right"));
    Pair { ours: left, oracle: right, scratch }
}

fn side(trees: &[LayerTree], server: &Server, base: &Path) -> Box<dyn Side> {
    std::fs::create_dir_all(base).unwrap();
    if *server == Server::Plain {
        let merged = base.join("merged");
        flatten(trees).build(&merged);
        let plain = elsewhere("E2E_PLAIN_DIR", base).join("plain");
        std::fs::create_dir_all(plain.parent().unwrap()).unwrap();
        return Box::new(Plain(copy_tree(&merged, plain)));
    }
    let mut layers = Layers::below(base, trees.len());
    let empty = LayerTree::new();
    let mapped = matches!(server, Server::Program(_, options) if options.contains(MAPPED));
    for (tree, layer) in trees.iter().chain([&empty]).zip(layers.lowers.iter().chain(&layers.upper)) {
        if mapped {
            std::fs::create_dir_all(layer).unwrap();
            std::os::unix::fs::chown(layer, Some(STORED_FROM), Some(STORED_FROM)).unwrap();
            tree.clone().stored_from(STORED_FROM).build(layer);
        } else {
            tree.build(layer);
        }
    }
    let lowers = layers.lowers.iter().map(|lower| Snapshot::take(lower).unwrap()).collect();
    let (name, mount) = match server {
        Server::Program(program, options) => {
            layers.extra.push_str(options);
            let name = program.file_name().unwrap_or_default().display().to_string();
            (name, Mount::Program(Mounted::with(program, layers.clone())))
        }
        _ => {
            // Without an index the kernel does not mind that the mount before is still in use somewhere.
            let linked = trees.iter().any(LayerTree::has_links);
            layers.extra = format!(",redirect_dir=on,index={}", if linked { "on" } else { "off" });
            ("kernel overlayfs".to_owned(), Mount::Kernel(KernelOverlay::new(layers.clone())))
        }
    };
    Box::new(Union { name, mount, layers, lowers })
}
