//! Formats of layers: what is read, and from whom.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::oracle::KernelOverlay;
use e2e::require;
use e2e::tree::{Kind, LayerTree, overlay_namespace};

use crate::{Fixture, errno, mark, names_in};

fn overlay(mark: &str) -> String {
    format!("{}.overlay.{mark}", overlay_namespace())
}

/// A file without data of its own, as image tools make it: its content is that of `target` in a data-only layer.
fn reference(name: &str, size: u64, target: &str) -> LayerTree {
    LayerTree::new()
        .with(name, Kind::Sparse(size, vec![]), 0o644)
        .xattr(name, &overlay("metacopy"), "")
        .xattr(name, &overlay("redirect"), target)
}

#[test]
fn every_form_of_opaque_directory_is_read() {
    require!(Fuse, Union);
    let below = LayerTree::new().file("d/hidden", "below").file("d/both", "below");
    let layer = LayerTree::new().file("d/both", "above");
    let mut forms = vec![("user.overlay.opaque", "y"), ("user.fuseoverlayfs.opaque", "y")];
    if overlay_namespace() == "trusted" {
        forms.push(("trusted.overlay.opaque", "y"));
    }
    let mut trees: Vec<LayerTree> =
        forms.iter().map(|(name, value)| layer.clone().xattr("d", name, value)).collect();
    trees.push(layer.clone().file("d/.wh..wh..opq", ""));
    for tree in trees {
        let union = Fixture::new(&[tree.clone(), below.clone()], "");
        assert_eq!(names_in(&union.at("d")), ["both"], "{tree:?}");
        assert_eq!(errno(fs::read(union.at("d/hidden"))), libc::ENOENT, "{tree:?}");
        assert_eq!(fs::read(union.at("d/both")).unwrap(), b"above");
    }
    for (name, value) in [("user.overlay.opaque", "n"), ("user.fuseoverlayfs.opaque", "")] {
        let union = Fixture::new(&[layer.clone().xattr("d", name, value), below.clone()], "");
        assert_eq!(names_in(&union.at("d")), ["both", "hidden"], "{name}={value}");
    }
}

#[test]
fn a_whiteout_of_image_layers_hides_nothing_in_its_own_layer() {
    require!(Fuse, Union);
    let layer = LayerTree::new()
        .file("d/.wh.f", "")
        .file("d/f", "same layer")
        .file("d/.wh.sub", "")
        .file("d/sub/new", "same layer")
        .file("d/.wh..wh.plnk", "")
        .file("d/.wh..wh.orph", "")
        .file(".wh..wh.aufs", "");
    let below = LayerTree::new().file("d/f", "below").file("d/sub/old", "below").file("d/kept", "below");
    let union = Fixture::new(&[layer, below], "");
    assert_eq!(fs::read(union.at("d/f")).unwrap(), b"same layer");
    assert_eq!(names_in(&union.at("d")), ["f", "kept", "sub"]);
    assert_eq!(names_in(&union.at("d/sub")), ["new"]);
    assert_eq!(names_in(&union.at("")), ["d"]);
}

#[test]
fn a_redirect_that_breaks_the_rules_is_an_error_and_leads_nowhere() {
    require!(Fuse, Union);
    let below = LayerTree::new().file("old/f", "1").file("secret", "2").symlink("link", "/etc");
    let long = format!("/{}", "x/".repeat(200) + "old");
    for (value, want) in [
        ("old", Ok("f")),
        ("/old", Ok("f")),
        ("", Err(libc::EINVAL)),
        ("/", Err(libc::EINVAL)),
        ("a/b", Err(libc::EINVAL)),
        ("/old/", Err(libc::EINVAL)),
        ("//old", Err(libc::EINVAL)),
        ("..", Err(libc::EACCES)),
        ("/../old", Err(libc::EACCES)),
        ("/.", Err(libc::EACCES)),
        // What is no directory below, or is not there, adds nothing.
        ("secret", Ok("")),
        ("link", Ok("")),
        ("/link/passwd", Ok("")),
        ("nowhere", Ok("")),
        (&long, Ok("")),
    ] {
        let layer = LayerTree::new().dir("new").xattr("new", &overlay("redirect"), value);
        let union = Fixture::new(&[layer, below.clone()], "");
        match (fs::read_dir(union.at("new")), want) {
            (Ok(_), Ok(want)) => assert_eq!(names_in(&union.at("new")).join(","), want, "{value}"),
            (got, want) => assert_eq!(
                got.map(drop).map_err(|e| e.raw_os_error()),
                want.map(drop).map_err(Some),
                "{value}"
            ),
        }
    }
}

#[test]
fn marks_count_in_the_namespace_in_force_only() {
    require!(Fuse, Union, Root);
    let layer = LayerTree::new()
        .dir("moved")
        .xattr("moved", "user.overlay.redirect", "old")
        .with("meta", Kind::Sparse(5, vec![]), 0o644)
        .xattr("meta", "user.overlay.metacopy", "")
        .xattr("meta", "user.overlay.redirect", "/secret");
    let below = LayerTree::new().file("old/f", "1").file("secret", "12345").file("meta", "below");
    for (option, listed, content) in [("", "", "\0\0\0\0\0"), (",userxattr", "f", "12345")] {
        let union = Fixture::new(&[layer.clone(), below.clone()], option);
        assert_eq!(names_in(&union.at("moved")).join(","), listed, "{option}");
        assert_eq!(fs::read_to_string(union.at("meta")).unwrap(), content, "{option}");
    }
}

#[test]
fn data_only_layers_give_contents_and_no_names() {
    require!(Fuse, Union);
    let image = reference("f", 7, "/objects/aa/f").file("own", "own");
    let objects = LayerTree::new().file("objects/aa/f", "content").file("objects/seen", "no");
    let scratch = scratch();
    let mut layers = Layers::below(scratch.path(), 1);
    image.build(&layers.lowers[0]);
    let data = [scratch.path().join("data0"), scratch.path().join("data1")];
    LayerTree::new().dir("objects/aa/f").build(&data[0]);
    objects.build(&data[1]);
    layers.extra.push_str(&format!(",datadir+={},datadir+={}", data[0].display(), data[1].display()));
    let mut mounted = Mounted::new(layers);
    for _ in 0..2 {
        assert_eq!(names_in(mounted.root()), ["f", "own"]);
        assert_eq!(fs::read(mounted.root().join("f")).unwrap(), b"content");
        assert_eq!(errno(fs::metadata(mounted.root().join("objects"))), libc::ENOENT);
        mounted.remount();
    }
    // Attributes first: the upper then refers to the image's file, and that to the object.
    let file = mounted.root().join("f");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    mounted.remount();
    assert_eq!(fs::read(&file).unwrap(), b"content");
    fs::rename(&file, mounted.root().join("g")).unwrap();
    mounted.remount();
    let file = mounted.root().join("g");
    assert_eq!(fs::read(&file).unwrap(), b"content");
    let appending = fs::OpenOptions::new().append(true).open(&file).unwrap();
    std::io::Write::write_all(&mut &appending, b"+more").unwrap();
    drop(appending);
    mounted.remount();
    assert_eq!(fs::read(&file).unwrap(), b"content+more");
    assert_eq!(fs::read(data[1].join("objects/aa/f")).unwrap(), b"content", "layers are not written");
}

#[test]
fn a_reference_to_nothing_is_eio() {
    require!(Fuse, Union);
    let scratch = scratch();
    let mut layers = Layers::below(scratch.path(), 1);
    reference("f", 7, "/nowhere").file("own", "own").build(&layers.lowers[0]);
    let data = scratch.path().join("data");
    LayerTree::new().whiteout("nowhere").build(&data);
    layers.extra.push_str(&format!(",datadir+={}", data.display()));
    let mounted = Mounted::new(layers);
    assert_eq!(errno(fs::read(mounted.root().join("f"))), libc::EIO);
    assert_eq!(fs::read(mounted.root().join("own")).unwrap(), b"own");
}

#[test]
fn kernel_overlayfs_and_the_union_take_turns_on_data_only_layers() {
    require!(Fuse, Union, Root, KernelOverlay);
    let scratch = scratch();
    let mut layers = Layers::below(scratch.path(), 1);
    let image = ["a", "b", "c", "d"].iter().fold(LayerTree::new(), |tree, name| {
        tree.with(name, Kind::Sparse(7, vec![]), 0o644).xattr(name, &overlay("metacopy"), "").xattr(
            name,
            &overlay("redirect"),
            format!("/objects/{name}"),
        )
    });
    image.build(&layers.lowers[0]);
    let data = scratch.path().join("data");
    let content = |name: &str| format!("conten{name}");
    ["a", "b", "c", "d"]
        .iter()
        .fold(LayerTree::new(), |tree, name| tree.file(format!("objects/{name}"), content(name)))
        .build(&data);
    // The kernel knows `lowerdir=A::D` in one string.
    layers.lowers[0].as_mut_os_string().push(format!("::{}", data.display()));
    let own = layers.extra.clone();
    let change = |root: &Path, chmod: &str, write: &str| {
        fs::set_permissions(root.join(chmod), fs::Permissions::from_mode(0o600)).unwrap();
        let file = fs::OpenOptions::new().append(true).open(root.join(write)).unwrap();
        std::io::Write::write_all(&mut &file, b"!").unwrap();
    };
    let check = |root: &Path, who: &str, written: &[&str]| {
        for name in ["a", "b", "c", "d"] {
            let tail = if written.contains(&name) { "!" } else { "" };
            let want = content(name) + tail;
            assert_eq!(fs::read_to_string(root.join(name)).unwrap(), want, "{who}: {name}");
        }
        assert_eq!(names_in(root), ["a", "b", "c", "d"], "{who}");
    };
    let mut union = Mounted::new(layers.clone());
    change(union.root(), "a", "b");
    check(union.root(), "union", &["b"]);
    union.unmount();
    layers.extra = ",redirect_dir=on,index=on,metacopy=on".to_owned();
    let mut kernel = KernelOverlay::new(layers.clone());
    check(kernel.root(), "kernel", &["b"]);
    change(kernel.root(), "c", "d");
    kernel.unmount();
    layers.extra = own;
    let union = Mounted::new(layers);
    check(union.root(), "union", &["b", "d"]);
    change(union.root(), "c", "c");
    check(union.root(), "union", &["b", "c", "d"]);
}

#[test]
fn verity_is_refused_where_no_layer_has_it() {
    require!(Fuse, Union);
    let scratch = scratch();
    let mut layers = Layers::below(scratch.path(), 1);
    reference("f", 7, "/f").build(&layers.lowers[0]);
    let data = scratch.path().join("data");
    LayerTree::new().file("f", "content").build(&data);
    let own = layers.extra.clone();
    layers.extra = format!("{own},datadir+={},verity=on", data.display());
    {
        // Without a digest there is nothing to compare.
        let mounted = Mounted::new(layers.clone());
        assert_eq!(fs::read(mounted.root().join("f")).unwrap(), b"content");
    }
    let digest = [&[0, 36, 0, 1][..], &[7; 32]].concat();
    let name = overlay("metacopy");
    let set =
        rustix::fs::setxattr(layers.lowers[0].join("f"), &*name, &digest, rustix::fs::XattrFlags::empty());
    set.unwrap();
    let mut mounted = Mounted::new(layers);
    assert_eq!(errno(fs::read(mounted.root().join("f"))), libc::EIO, "the digest cannot be right");
    mounted.unmount();
    let mut layers = mounted.layers().clone();
    layers.extra = format!("{own},datadir+={},verity=require", data.display());
    let required = std::process::Command::new(e2e::mounted::union_program())
        .args(["-f", "-o"])
        .arg(layers.options())
        .arg(&layers.target)
        .output()
        .unwrap();
    let said = String::from_utf8(required.stderr).unwrap();
    assert!(!required.status.success() && said.contains("fs-verity"), "{said}");
}

#[test]
fn a_malformed_metacopy_header_is_eio_where_digests_count() {
    require!(Fuse, Union);
    let scratch = scratch();
    let mut layers = Layers::below(scratch.path(), 2);
    LayerTree::new()
        .with("f", Kind::Sparse(7, vec![]), 0o644)
        .xattr("f", &overlay("metacopy"), "xyz")
        .build(&layers.lowers[0]);
    LayerTree::new().file("f", "content").build(&layers.lowers[1]);
    layers.extra.push_str(",verity=on");
    let mounted = Mounted::new(layers);
    assert_eq!(errno(fs::read(mounted.root().join("f"))), libc::EIO);
}

#[test]
fn records_of_origin_have_no_file_system_identifier_with_uuid_off() {
    require!(Fuse, Union);
    // A file system in memory has an identifier; others may have been made without.
    let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else {
        return e2e::require::skip("semantics::formats::records_of_origin", "no /dev/shm");
    };
    fs::write(elsewhere.path().join("f"), "1").unwrap();
    for (option, zero) in [("", false), (",uuid=on", false), (",uuid=off", true), (",uuid=null", true)] {
        let scratch = scratch();
        let mut layers = Layers::below(scratch.path(), 0);
        layers.lowers = vec![elsewhere.path().to_path_buf()];
        layers.extra.push_str(option);
        let upper = layers.upper.clone().unwrap();
        let mounted = Mounted::new(layers);
        fs::set_permissions(mounted.root().join("f"), fs::Permissions::from_mode(0o600)).unwrap();
        let origin = mark(&upper.join("f"), "origin").unwrap();
        assert_eq!(origin[5..21] == [0; 16], zero, "{option}");
    }
}

#[test]
fn options_about_numbers_do_what_they_say() {
    require!(Fuse, Union);
    let tree = LayerTree::new().file("d/sub/f", "1").file("e/f", "2");
    let union = Fixture::new(std::slice::from_ref(&tree), ",static_nlink");
    for name in ["", "d", "d/sub", "e"] {
        assert_eq!(fs::metadata(union.at(name)).unwrap().nlink(), 1, "{name}");
    }
    fs::create_dir(union.at("new")).unwrap();
    assert_eq!(fs::metadata(union.at("new")).unwrap().nlink(), 1);
}
