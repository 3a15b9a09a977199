//! Where upper and workdir may lie: on another union, on file systems without attributes.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::require;
use e2e::snapshot::xattrs;
use e2e::tree::LayerTree;

use crate::{Fixture, InMemory, errno, mark};

fn tree() -> LayerTree {
    let tree = LayerTree::new()
        .file("f", "lower")
        .file("d/a", "1")
        .file("d/sub/b", "2")
        .file("gone/a", "3")
        .file("one", "linked")
        .file("big", vec![b'x'; 1 << 16])
        .symlink("link", "d/a");
    tree.hardlink("two", "one")
}

fn shown(root: &Path) -> Vec<String> {
    fn walk(directory: &Path, prefix: &str, into: &mut Vec<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{prefix}{}", entry.file_name().into_string().unwrap());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), &format!("{path}/"), into);
            }
            into.push(path);
        }
    }
    let mut names = Vec::new();
    walk(root, "", &mut names);
    names.sort();
    names
}

/// Changes of every kind that leaves a mark.
fn change(root: &Path) {
    fs::remove_file(root.join("f")).unwrap();
    fs::rename(root.join("d"), root.join("moved")).unwrap();
    fs::rename(root.join("moved/sub"), root.join("sub")).unwrap();
    fs::remove_dir_all(root.join("gone")).unwrap();
    fs::create_dir(root.join("gone")).unwrap();
    fs::write(root.join("gone/new"), "new").unwrap();
    fs::write(root.join("one"), "changed").unwrap();
    fs::set_permissions(root.join("big"), fs::Permissions::from_mode(0o600)).unwrap();
    set(&root.join("moved/a"), "user.x", b"y");
    fs::rename(root.join("link"), root.join("link2")).unwrap();
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

/// Whether the names of a lower file stay one: where an index is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Links {
    Joined,
    Split,
}

fn check(root: &Path, links: Links) {
    let names = ["big", "gone", "gone/new", "link2", "moved", "moved/a", "one", "sub", "sub/b", "two"];
    assert_eq!(shown(root), names);
    for name in ["f", "d", "d/a", "gone/a", "moved/sub", "link"] {
        assert_eq!(errno(fs::symlink_metadata(root.join(name))), libc::ENOENT, "{name}");
    }
    for (name, content) in [("moved/a", "1"), ("sub/b", "2"), ("one", "changed")] {
        assert_eq!(fs::read_to_string(root.join(name)).unwrap(), content, "{name}");
    }
    assert_eq!(fs::read(root.join("big")).unwrap(), vec![b'x'; 1 << 16]);
    assert_eq!(fs::metadata(root.join("big")).unwrap().permissions().mode() & 0o7777, 0o600);
    let two = if links == Links::Joined { "changed" } else { "linked" };
    assert_eq!(fs::read_to_string(root.join("two")).unwrap(), two);
    if links == Links::Joined {
        assert_eq!(fs::metadata(root.join("one")).unwrap().nlink(), 2);
    }
    assert_eq!(xattrs(&root.join("moved/a")).unwrap().get(&b"user.x"[..]).unwrap(), b"y");
}

#[test]
fn unions_can_be_nested() {
    require!(Fuse, Union);
    let outer = Fixture::new(&[LayerTree::new().dir("inner")], "");
    let inner = outer.at("inner");
    let mut layers = Layers::below(&inner, 1);
    tree().build(&layers.lowers[0]);
    // On the outer union as its own mount point would be: only the target lies elsewhere.
    layers.target = outer.mounted.root().with_file_name("target");
    fs::create_dir(&layers.target).unwrap();
    let mut mounted = Mounted::new(layers);
    // The outer union's file handles end with its mount, so names of its files cannot be kept together.
    change(mounted.root());
    check(mounted.root(), Links::Split);
    for _ in 0..2 {
        mounted.remount();
        check(mounted.root(), Links::Split);
    }
    let whiteout = outer.at("inner/upper/f");
    let meta = fs::symlink_metadata(&whiteout).unwrap();
    assert!(meta.is_file() && meta.len() == 0 && !meta.file_type().is_char_device());
    assert!(mark(&whiteout, "whiteout").is_some());
    assert_eq!(mark(&outer.at("inner/upper"), "opaque").as_deref(), Some(&b"x"[..]));
}

#[test]
fn a_form_of_whiteouts_that_the_upper_cannot_hold_is_refused() {
    require!(Fuse, Union);
    let outer = Fixture::new(&[LayerTree::new().dir("inner")], "");
    let layers = Layers::below(&outer.at("inner"), 1);
    for form in ["char", "dot_wh"] {
        let mut layers = layers.clone();
        layers.extra.push_str(&format!(",whiteouts={form}"));
        let output = std::process::Command::new(e2e::mounted::union_program())
            .args(["-f", "-o"])
            .arg(layers.options())
            .arg(&layers.target)
            .output()
            .unwrap();
        assert!(!output.status.success(), "{form}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("hint"), "{form}");
    }
}

#[test]
fn each_form_of_whiteouts_can_be_chosen() {
    require!(Fuse, Union);
    for (form, name) in [("char", "f"), ("xattr", "f"), ("dot_wh", ".wh.f")] {
        let mut union = Fixture::new(&[tree()], &format!(",whiteouts={form}"));
        change(union.mounted.root());
        union.mounted.remount();
        check(union.mounted.root(), Links::Joined);
        let meta = fs::symlink_metadata(union.upper(name)).unwrap();
        assert_eq!(meta.file_type().is_char_device(), form == "char", "{form}");
        assert_eq!(mark(&union.upper(name), "whiteout").is_some(), form == "xattr", "{form}");
    }
}

/// Lays the tree below a union whose upper and workdir are on a file system that holds no attributes.
fn on_ramfs(scratch: &std::path::Path) -> (InMemory, Layers) {
    let at = scratch.join("ramfs");
    fs::create_dir(&at).unwrap();
    let ramfs = InMemory::new("ramfs", &at, "");
    let mut layers = Layers::below(scratch, 1);
    tree().build(&layers.lowers[0]);
    for (name, place) in [("upper", &mut layers.upper), ("work", &mut layers.work)] {
        let directory = ramfs.0.join(name);
        fs::create_dir(&directory).unwrap();
        *place = Some(directory);
    }
    (ramfs, layers)
}

#[test]
fn an_upper_that_holds_no_attributes_has_them_in_the_workdir() {
    require!(Fuse, Union, Root);
    let scratch = scratch();
    let (ramfs, mut layers) = on_ramfs(scratch.path());
    let sidecar = ramfs.0.join("work/sidecar");
    let mut mounted = Mounted::new(layers.clone());
    change(mounted.root());
    check(mounted.root(), Links::Joined);
    for _ in 0..2 {
        mounted.remount();
        check(mounted.root(), Links::Joined);
    }
    assert!(fs::metadata(ramfs.0.join("upper/big")).unwrap().blocks() < 8, "no data was copied");
    // Whoever reads only knows the marks too, if told where they are.
    mounted.unmount();
    layers.extra.push_str(",ro");
    check(Mounted::new(layers.clone()).root(), Links::Joined);
    let left = e2e::sides::leftovers(&ramfs.0.join("work"));
    assert!(left.is_empty(), "{left:?}");
    // A removed object takes its record with it.
    let records = || fs::read_dir(&sidecar).unwrap().count();
    mounted.mount();
    let before = records();
    fs::write(mounted.root().join("fresh"), "1").unwrap();
    set(&mounted.root().join("fresh"), "user.x", b"y");
    assert_eq!(records(), before + 1);
    fs::remove_file(mounted.root().join("fresh")).unwrap();
    assert_eq!(records(), before);
    mounted.unmount();
    // Without the sidecar the tree would be wrong.
    for (option, upper) in [(",sidecar=off", "upper"), ("", "copy")] {
        let copy = ramfs.0.join("copy");
        fs::create_dir_all(&copy).unwrap();
        fs::write(copy.join("file"), "1").unwrap();
        let mut layers = mounted.layers().clone();
        (layers.extra, layers.upper) = (option.to_owned(), Some(ramfs.0.join(upper)));
        let output = std::process::Command::new(e2e::mounted::union_program())
            .args(["-f", "-o"])
            .arg(layers.options())
            .arg(&layers.target)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains("sidecar"), "{said}");
    }
}

#[test]
fn without_a_sidecar_an_upper_without_attributes_does_what_it_can() {
    require!(Fuse, Union, Root);
    let scratch = scratch();
    let (ramfs, mut layers) = on_ramfs(scratch.path());
    layers.extra.push_str(",sidecar=off");
    let mut mounted = Mounted::new(layers);
    assert_eq!(errno(fs::rename(mounted.root().join("d"), mounted.root().join("e"))), libc::EXDEV);
    fs::remove_dir_all(mounted.root().join("gone")).unwrap();
    fs::create_dir(mounted.root().join("gone")).unwrap();
    mounted.remount();
    assert_eq!(fs::read_dir(mounted.root().join("gone")).unwrap().count(), 0);
    assert!(ramfs.0.join("upper/gone/.wh..wh..opq").exists());
}

#[test]
fn a_killed_server_leaves_an_upper_with_a_sidecar_whole() {
    require!(Fuse, Union);
    let mut union = Fixture::new(&[tree()], ",sidecar=on");
    change(union.mounted.root());
    union.mounted.kill_server();
    union.mounted.clear();
    union.mounted.mount();
    check(union.mounted.root(), Links::Joined);
}

#[test]
fn a_damaged_record_is_an_error_and_not_another_tree() {
    require!(Fuse, Union);
    let mut union = Fixture::new(&[tree()], ",sidecar=on");
    change(union.mounted.root());
    let ino = fs::metadata(union.upper("gone")).unwrap().ino();
    let record = union.mounted.layers().work.clone().unwrap().join(format!("sidecar/{ino:x}"));
    union.mounted.unmount();
    let bytes = fs::read(&record).unwrap();
    fs::write(&record, &bytes[..bytes.len() - 1]).unwrap();
    union.mounted.mount();
    assert_eq!(errno(fs::read_dir(union.at("gone"))), libc::EIO);
    assert_eq!(fs::read(union.at("moved/a")).unwrap(), b"1");
}
