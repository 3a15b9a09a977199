//! A mount with `ro` of an upper and its workdir: the same tree, and nothing is written.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use e2e::execute::Session;
use e2e::flatten::flatten;
use e2e::history::{Flavour, Generator, layers};
use e2e::mounted::{Layers, Mounted, scratch};
use e2e::oracle::KernelOverlay;
use e2e::require;
use e2e::snapshot::{Snapshot, xattrs};
use e2e::tree::LayerTree;

use crate::Fixture;

/// Operations of one history.
const OPERATIONS: usize = 400;

/// Calls `each` for every object below `root`.
fn walk(root: &Path, each: &mut impl FnMut(&Path, &fs::Metadata)) {
    let meta = fs::symlink_metadata(root).unwrap();
    if meta.is_dir() {
        for entry in fs::read_dir(root).unwrap() {
            walk(&entry.unwrap().path(), each);
        }
    }
    each(root, &meta);
}

/// Returns all that a write could change in some directories: times of change, contents, attributes.
fn everything(roots: &[&Path]) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for root in roots {
        walk(root, &mut |path, meta| {
            let bytes = if meta.is_file() { fs::read(path).unwrap() } else { Vec::new() };
            let times = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
            let numbers = (meta.ino(), meta.mode(), meta.nlink(), meta.uid(), meta.gid(), meta.size());
            let attributes = xattrs(path).unwrap_or_default();
            let shown = format!("{times:?} {numbers:?} {attributes:?} {}", bytes.escape_ascii());
            found.insert(path.to_path_buf(), shown);
        });
    }
    found
}

/// Returns the tree, and the inode number of each name.
fn seen(root: &Path) -> (Snapshot, BTreeMap<PathBuf, u64>) {
    let mut numbers = BTreeMap::new();
    walk(root, &mut |path, meta| {
        numbers.insert(path.strip_prefix(root).unwrap().into(), meta.ino());
    });
    (Snapshot::take(root).unwrap(), numbers)
}

/// Compares what a mount of `layers` with `ro` shows with `before`, and checks that nothing was written.
fn same_read_only(layers: &Layers, before: &(Snapshot, BTreeMap<PathBuf, u64>), what: &str) {
    let written = [layers.upper.as_deref().unwrap(), layers.work.as_deref().unwrap()];
    let on_disk = everything(&written);
    let mut read_only = layers.clone();
    read_only.extra.push_str(",ro");
    let mut mounted = Mounted::new(read_only);
    for _ in 0..2 {
        let now = seen(mounted.root());
        let lines = before.0.diff(&now.0, ("writable", "read-only"));
        assert!(lines.is_empty(), "{what}:\n{}", lines.join("\n"));
        assert_eq!(now.0.faults, before.0.faults, "{what}");
        assert_eq!(now.1, before.1, "{what}: inode numbers");
        mounted.remount();
    }
    mounted.unmount();
    assert!(everything(&written) == on_disk, "{what}: something was written");
}

#[test]
fn a_read_only_mount_of_an_upper_follows_its_index() {
    require!(Fuse, Union);
    let tree =
        LayerTree::new().file("a", "old").hardlink("b", "a").hardlink("d/c", "a").hardlink("d/gone", "a");
    let tree = tree.symlink("link", "a").hardlink("link2", "link").file("m", "meta").hardlink("m2", "m");
    for options in ["", ",sidecar=on", ",whiteouts=xattr", ",metacopy=off", ",index=off"] {
        let mut union = Fixture::new(std::slice::from_ref(&tree), options);
        fs::write(union.at("a"), "new").unwrap();
        fs::remove_file(union.at("d/gone")).unwrap();
        fs::rename(union.at("b"), union.at("d/moved")).unwrap();
        fs::set_permissions(union.at("m"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let shown = if options == ",index=off" { "old" } else { "new" };
        assert_eq!(fs::read(union.at("d/c")).unwrap(), shown.as_bytes(), "{options}");
        union.mounted.remount();
        let before = seen(union.mounted.root());
        union.mounted.unmount();
        same_read_only(union.mounted.layers(), &before, options);
        // The index is as it was.
        union.mounted.mount();
        assert_eq!(fs::read(union.at("d/c")).unwrap(), shown.as_bytes(), "{options}");
    }
}

#[test]
fn random_histories_look_the_same_read_only() {
    require!(Fuse, Union);
    for seed in 0..4 {
        let scratch = scratch();
        let trees = layers(seed, 2);
        let mut places = Layers::below(scratch.path(), 2);
        if seed == 3 {
            places.extra.push_str(",sidecar=on");
        }
        trees.iter().zip(&places.lowers).for_each(|(tree, lower)| tree.build(lower));
        let mut generator = Generator::new(seed, Flavour::full(), &flatten(&trees));
        let mut mounted = Mounted::new(places);
        let mut session = Session::new(mounted.root());
        for step in generator.steps(OPERATIONS).iter().filter(|step| step.op != e2e::operation::Op::Remount) {
            session.execute(step);
        }
        session.close_all();
        mounted.remount();
        let before = seen(mounted.root());
        mounted.unmount();
        same_read_only(mounted.layers(), &before, &format!("seed {seed}"));
    }
}

#[test]
fn an_upper_on_a_read_only_file_system_shows_its_hard_links() {
    require!(Fuse, Union, Root);
    let tree = LayerTree::new().file("a", "old").hardlink("b", "a");
    let mut union = Fixture::new(&[tree], "");
    fs::write(union.at("a"), "new").unwrap();
    union.mounted.remount();
    let before = seen(union.mounted.root());
    union.mounted.unmount();
    let mut layers = union.mounted.layers().clone();
    let above = layers.target.parent().unwrap().to_path_buf();
    let frozen = above.join("frozen");
    fs::create_dir(&frozen).unwrap();
    rustix::mount::mount_bind(&above, &frozen).unwrap();
    let flags = rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::RDONLY;
    rustix::mount::mount_remount(&frozen, flags, c"").unwrap();
    for place in [&mut layers.upper, &mut layers.work] {
        let name = place.as_ref().unwrap().file_name().unwrap().to_owned();
        *place = Some(frozen.join(name));
    }
    same_read_only(&layers, &before, "frozen");
    rustix::mount::unmount(&frozen, rustix::mount::UnmountFlags::empty()).unwrap();
}

#[test]
fn kernel_overlayfs_shows_the_same_read_only() {
    require!(Fuse, Union, Root, KernelOverlay);
    let tree = LayerTree::new().file("a", "old").hardlink("b", "a").hardlink("c", "a");
    let mut union = Fixture::new(&[tree], "");
    fs::write(union.at("a"), "new").unwrap();
    fs::remove_file(union.at("c")).unwrap();
    union.mounted.unmount();
    let mut layers = union.mounted.layers().clone();
    layers.extra.push_str(",ro");
    let ours = Mounted::new(layers.clone());
    let shown = Snapshot::take(ours.root()).unwrap();
    drop(ours);
    layers.extra = ",redirect_dir=on,index=on,metacopy=on,ro".to_owned();
    let kernel = KernelOverlay::new(layers);
    let lines = shown.diff(&Snapshot::take(kernel.root()).unwrap(), ("union", "kernel"));
    assert!(lines.is_empty(), "{}", lines.join("\n"));
}

#[test]
fn an_index_that_cannot_be_read_is_told() {
    require!(Fuse, Union, Root, Tester);
    let tree = LayerTree::new().file("a", "old").hardlink("b", "a");
    let mut union = Fixture::new(&[tree], "");
    fs::write(union.at("a"), "new").unwrap();
    union.mounted.unmount();
    let work = union.mounted.layers().work.clone().unwrap();
    fs::set_permissions(&work, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut layers = union.mounted.layers().clone();
    fs::remove_dir_all(work.join("index")).unwrap();
    fs::write(work.join("index"), "no directory").unwrap();
    layers.extra.push_str(",ro");
    let mounted = Mounted::new(layers);
    assert_eq!(fs::read(mounted.root().join("b")).unwrap(), b"old");
    assert!(mounted.stderr().contains("index"), "{}", mounted.stderr());
}
