//! One test for each paragraph of SEMANTICS.md that no other tier proves.

mod attributes;
mod calls;
mod durability;
mod formats;
mod idmapped;
mod kernel;
mod layers;
mod names;
mod numbers;
mod owners;
mod read_only;
mod records;
mod rights;
mod storage;
mod store;
mod upper;

use std::ffi::CString;
use std::path::{Path, PathBuf};

use e2e::mounted::{Layers, Mounted, scratch, unmount};
use e2e::require;
use e2e::tree::LayerTree;
use e2e::user::{Role, run_again};

/// Returns the names in a directory, sorted.
fn names_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A union, unmounted before its scratch directory goes.
struct Fixture {
    mounted: Mounted,
    _scratch: tempfile::TempDir,
}

impl Fixture {
    /// Mounts `lowers`, topmost first, below a fresh upper; `options` begin with a comma.
    fn new(lowers: &[LayerTree], options: &str) -> Self {
        let scratch = scratch();
        let mut layers = Layers::below(scratch.path(), lowers.len());
        layers.extra.push_str(options);
        for (tree, lower) in lowers.iter().zip(&layers.lowers) {
            tree.build(lower);
        }
        Self { mounted: Mounted::new(layers), _scratch: scratch }
    }

    /// Returns a path in the union.
    fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mounted.root().join(name)
    }

    /// Returns the same path in the upper.
    fn upper(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mounted.layers().upper.as_ref().unwrap().join(name)
    }

    /// Returns the same path in the topmost lower.
    fn lower(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mounted.layers().lowers[0].join(name)
    }
}

/// A file system in memory, for as long as the value lives.
struct InMemory(PathBuf);

impl InMemory {
    /// Mounts one of this type: a tmpfs, or a ramfs, which holds no attributes and has no file handles.
    fn new(kind: &str, at: &Path, options: &str) -> Self {
        let (flags, options) = (rustix::mount::MountFlags::empty(), CString::new(options).unwrap());
        rustix::mount::mount(kind, at, kind, flags, options.as_c_str()).unwrap();
        Self(at.to_path_buf())
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

/// Returns the error number of a result that must be an error.
#[track_caller]
fn errno<T>(result: std::io::Result<T>) -> i32 {
    match result {
        Ok(_) => panic!("no error"),
        Err(error) => error.raw_os_error().unwrap(),
    }
}

/// Returns the value of a mark of the union, in whichever namespace it is.
fn mark(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    ["trusted", "user"].iter().find_map(|space| {
        let name = format!("{space}.overlay.{name}");
        let len = rustix::fs::lgetxattr(path, name.as_str(), &mut value[..]).ok()?;
        Some(value[..len].to_vec())
    })
}

#[test]
fn as_an_ordinary_user_through_fusermount3() {
    require!(Fuse, Union, Root, Tester);
    let modules = [
        "attributes::",
        "calls::",
        "durability::",
        "formats::",
        "layers::",
        "names::",
        "numbers::",
        "read_only::",
        "storage::",
        "upper::",
    ];
    for module in modules {
        run_again(Role::Plain, module);
    }
}
