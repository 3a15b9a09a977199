//! Overlays on overlays: ours on ours, kernel overlayfs on ours.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::oracle::KernelOverlay;
use e2e::require;
use e2e::snapshot::Snapshot;
use e2e::tree::LayerTree;

use crate::union;

fn lowers() -> [LayerTree; 2] {
    [
        LayerTree::new().file("top", "t").file("d/x", "1").whiteout("gone").opaque("o").file("o/new", "n"),
        LayerTree::new().file("d/y", "2").file("gone", "g").file("o/old", "o").symlink("s", "d/y"),
    ]
}

/// Changes something of each kind.
fn change(root: &Path) {
    fs::write(root.join("d/x"), "changed").unwrap();
    fs::remove_file(root.join("d/y")).unwrap();
    fs::write(root.join("gone"), "again").unwrap();
    fs::remove_dir_all(root.join("o")).unwrap();
    fs::create_dir(root.join("o")).unwrap();
    fs::write(root.join("o/other"), "").unwrap();
    fs::set_permissions(root.join("top"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(root.join("s"), root.join("d/s")).unwrap();
}

/// What the changed tree must look like: the same on a plain directory.
fn expected(base: &Path) -> Snapshot {
    let plain = base.join("plain");
    e2e::flatten::flatten(&lowers()).build(&plain);
    change(&plain);
    Snapshot::take(&plain).unwrap()
}

#[track_caller]
fn assert_same_contents(one: &Snapshot, root: &Path) {
    let two = Snapshot::take(root).unwrap();
    let differences: Vec<String> = one
        .diff(&two, ("plain", "nested"))
        .into_iter()
        // Times are those of the moments when the calls were made; kernel overlayfs without xino lists the numbers of
        // layers that are on file systems of their own.
        .filter(|line| !line.contains("time") && !line.contains("d_ino"))
        .collect();
    assert!(differences.is_empty(), "{differences:#?}");
}

/// Lays a second set of directories below `base`, with `lower` as its only lower.
fn above(base: &Path, lower: &Path, upper: Option<&Path>) -> Layers {
    let mut layers = Layers::below(&base.join("above"), 0);
    layers.lowers = vec![lower.to_path_buf()];
    if let Some(upper) = upper {
        for name in ["u", "w"] {
            fs::create_dir(upper.join(name)).unwrap();
        }
        (layers.upper, layers.work) = (Some(upper.join("u")), Some(upper.join("w")));
    }
    layers
}

#[test]
fn ours_on_ours_as_lower_is_the_same_tree() {
    require!(Fuse, Union);
    let scratch = scratch();
    let below = union(scratch.path(), &lowers(), "");
    let mut mounted = Mounted::new(above(scratch.path(), below.root(), None));
    change(mounted.root());
    let expected = expected(scratch.path());
    assert_same_contents(&expected, mounted.root());
    mounted.remount();
    assert_same_contents(&expected, mounted.root());
}

#[test]
fn ours_on_ours_as_upper_is_the_same_tree() {
    require!(Fuse, Union);
    let scratch = scratch();
    let below = union(scratch.path(), &[LayerTree::new()], "");
    for (tree, lower) in lowers().iter().zip(["one", "two"]) {
        tree.build(&scratch.path().join(lower));
    }
    let mut layers = above(scratch.path(), &scratch.path().join("one"), Some(below.root()));
    layers.lowers.push(scratch.path().join("two"));
    let mut mounted = Mounted::new(layers);
    change(mounted.root());
    let expected = expected(scratch.path());
    assert_same_contents(&expected, mounted.root());
    mounted.remount();
    assert_same_contents(&expected, mounted.root());
}

/// The kernel remembers attributes of the mount below that a write has outdated.
#[test]
fn a_write_to_an_upper_on_another_union_moves_the_time() {
    require!(Fuse, Union);
    let scratch = scratch();
    let below = union(scratch.path(), &[LayerTree::new()], "");
    LayerTree::new().file("f", "1").build(&scratch.path().join("one"));
    let mut layers = above(scratch.path(), &scratch.path().join("one"), Some(below.root()));
    layers.extra.push_str(",data=handles");
    let mounted = Mounted::new(layers);
    let path = mounted.root().join("f");
    let time = || fs::metadata(&path).unwrap().modified().unwrap();
    let before = time();
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"2").unwrap();
    assert!(time() > before, "{before:?} {:?}", time());
}

#[test]
fn kernel_overlayfs_on_ours_as_lower_is_the_same_tree() {
    require!(Fuse, Union, Root, KernelOverlay);
    let scratch = scratch();
    let below = union(scratch.path(), &lowers(), "");
    let mut layers = above(scratch.path(), below.root(), None);
    layers.extra.clear();
    let mut overlay = KernelOverlay::new(layers);
    change(overlay.root());
    let expected = expected(scratch.path());
    assert_same_contents(&expected, overlay.root());
    overlay.remount();
    assert_same_contents(&expected, overlay.root());
}

#[test]
fn kernel_overlayfs_takes_no_fuse_file_system_as_upper() {
    require!(Fuse, Union, Root, KernelOverlay);
    let scratch = scratch();
    let below = union(scratch.path(), &lowers(), "");
    let layers = above(scratch.path(), &scratch.path().join("lower0"), Some(below.root()));
    let text = std::ffi::CString::new(layers.options().into_encoded_bytes()).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    let done = rustix::mount::mount("overlay", &layers.target, "overlay", flags, text.as_c_str());
    assert_eq!(done, Err(rustix::io::Errno::INVAL));
}
