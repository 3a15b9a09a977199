//! How the layers may lie and what happens when they change.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use e2e::mounted::{Layers, Mounted, make_catalogs, scratch, union_program};
use e2e::require;
use e2e::tree::{LayerTree, overlay_namespace};

use crate::{Fixture, InMemory, errno, names_in};

#[test]
fn an_upper_inside_a_lower_is_not_shown() {
    require!(Fuse, Union);
    let scratch = scratch();
    let mut layers = Layers::below(scratch.path(), 0);
    fs::write(scratch.path().join("beside"), "1").unwrap();
    layers.lowers = vec![scratch.path().to_path_buf()];
    let mounted = Mounted::new(layers.clone());
    let mut shown: Vec<_> =
        fs::read_dir(mounted.root()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    shown.sort();
    // Neither upper nor workdir nor the mount point; what the server says lies beside them.
    assert_eq!(shown, ["beside", "merged.stderr"]);
    fs::write(mounted.root().join("upper"), "a file of that name can be made").unwrap();
    assert!(fs::metadata(layers.upper.unwrap().join("upper")).unwrap().is_file());
}

#[test]
fn changes_of_a_layer_below_a_mount_show_for_sure_with_timeout_0_only() {
    require!(Fuse, Union);
    for (option, shows) in [("", false), (",timeout=0", true)] {
        let union = Fixture::new(&[LayerTree::new().file("f", "before")], option);
        assert_eq!(fs::read(union.at("f")).unwrap(), b"before");
        fs::set_permissions(union.lower("f"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(union.lower("f"), "after!").unwrap();
        // Without, attributes show when the kernel happens to ask; data that it keeps does not.
        let mode = fs::metadata(union.at("f")).unwrap().permissions().mode() & 0o7777;
        assert!(mode == 0o600 || !shows, "{mode:o}");
        assert_eq!(fs::read(union.at("f")).unwrap() == b"after!", shows, "{option}");
    }
}

#[test]
fn names_that_appear_in_a_layer_show_for_sure_with_timeout_0() {
    require!(Fuse, Union);
    let trees = [LayerTree::new().file("d/a", "1"), LayerTree::new().file("d/b", "2")];
    let union = Fixture::new(&trees, ",timeout=0");
    assert_eq!(fs::read_dir(union.at("d")).unwrap().count(), 2);
    for name in ["d/1", "d/2", "d/3", "d/4"] {
        assert_eq!(errno(fs::metadata(union.at(name))), libc::ENOENT);
        fs::write(union.lower(name), "late").unwrap();
        assert_eq!(fs::read(union.at(name)).unwrap(), b"late");
    }
    assert_eq!(fs::read_dir(union.at("d")).unwrap().count(), 6);
}

#[test]
fn without_attributes_every_call_about_them_answers_enotsup() {
    require!(Fuse, Union);
    let union = Fixture::new(&[LayerTree::new().file("f", "1").xattr("f", "user.x", "y")], ",noxattrs");
    let mut value = [0; 8];
    let got = rustix::fs::getxattr(union.at("f"), "user.x", &mut value[..]);
    assert_eq!(got, Err(rustix::io::Errno::OPNOTSUPP));
}

#[test]
fn all_three_forms_of_whiteouts_are_read() {
    require!(Fuse, Union);
    let space = overlay_namespace();
    let upper_layer = LayerTree::new()
        .whiteout("d/device")
        .file("d/.wh.name", "")
        .dir("x")
        .xattr("x", &format!("{space}.overlay.opaque"), "x")
        .file("x/attribute", "")
        .xattr("x/attribute", &format!("{space}.overlay.whiteout"), "");
    let names = ["d/device", "d/name", "x/attribute"];
    let below = names.iter().fold(LayerTree::new(), |tree, name| tree.file(name, "below"));
    let union = Fixture::new(&[upper_layer, below.file("d/seen", "1").file("x/seen", "1")], "");
    for name in names {
        assert_eq!(errno(fs::metadata(union.at(name))), libc::ENOENT, "{name}");
        fs::write(union.at(name), "again").unwrap();
        assert_eq!(fs::read(union.at(name)).unwrap(), b"again");
        fs::remove_file(union.at(name)).unwrap();
    }
    for directory in ["d", "x"] {
        let shown: Vec<_> =
            fs::read_dir(union.at(directory)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(shown, ["seen"], "{directory}");
    }
}

#[test]
fn what_was_an_upper_shows_the_same_as_a_lower() {
    require!(Fuse, Union);
    let lower = LayerTree::new().file("d/a", "1").file("f", "data of f").file("e/x", "2");
    let mut fixture = Fixture::new(&[lower], "");
    for name in ["new", "new/deep"] {
        std::fs::create_dir(fixture.at(name)).unwrap();
    }
    // In directories that only the upper has: redirects from the root of the layers below.
    std::fs::rename(fixture.at("d"), fixture.at("new/deep/moved")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(fixture.at("f"), mode).unwrap();
    std::fs::rename(fixture.at("f"), fixture.at("new/g")).unwrap();
    let before = e2e::snapshot::Snapshot::take(fixture.mounted.root()).unwrap();
    fixture.mounted.unmount();
    let mut layers = fixture.mounted.layers().clone();
    layers.lowers.insert(0, layers.upper.take().unwrap());
    layers.work = None;
    let mut stacked = e2e::mounted::Mounted::new(layers);
    let mut after = e2e::snapshot::Snapshot::take(stacked.root()).unwrap();
    after.faults.clear();
    let lines = before.diff(&after, ("as upper", "as lower"));
    stacked.unmount();
    assert!(lines.is_empty(), "{}", lines.join("\n"));
}

#[test]
fn a_directory_below_one_that_a_layer_has_moved_can_be_moved_again() {
    require!(Fuse, Union);
    let redirect = format!("{}.overlay.redirect", overlay_namespace());
    let moved = LayerTree::new().whiteout("a/x").dir("y").xattr("y", &redirect, "/a/x");
    let bottom = LayerTree::new().file("a/x/sub/g", "1").file("a/x/other/h", "2").file("e/f", "3");
    let mut union = Fixture::new(&[moved, bottom], "");
    std::fs::rename(union.at("y/sub"), union.at("z")).unwrap();
    std::fs::rename(union.at("y/other"), union.at("e/other")).unwrap();
    for _ in 0..2 {
        assert_eq!(fs::read(union.at("z/g")).unwrap(), b"1");
        assert_eq!(fs::read(union.at("e/other/h")).unwrap(), b"2");
        assert_eq!(fs::read_dir(union.at("y")).unwrap().count(), 0);
        union.mounted.remount();
    }
    // And again, from where it was moved to, with what holds it.
    std::fs::rename(union.at("z"), union.at("y/back")).unwrap();
    std::fs::rename(union.at("y"), union.at("a/x")).unwrap();
    union.mounted.remount();
    assert_eq!(fs::read(union.at("a/x/back/g")).unwrap(), b"1");
}

#[test]
fn a_hard_link_without_data_in_a_middle_layer_shows_what_was_written_through_another_name() {
    require!(Fuse, Union);
    let metacopy = format!("{}.overlay.metacopy", overlay_namespace());
    let middle = LayerTree::new().file("f", [0; 3]).xattr("f", &metacopy, "").hardlink("h", "f");
    let bottom = LayerTree::new().file("f", "old").hardlink("h", "f");
    let mut union = Fixture::new(&[middle, bottom], "");
    fs::write(union.at("f"), "new").unwrap();
    for first in ["h", "f"] {
        // The upper has one of the names. The object is read as the name that is looked up first has it.
        union.mounted.remount();
        assert_eq!(fs::read(union.at(first)).unwrap(), b"new", "{first}");
        assert_eq!(fs::read(union.at("h")).unwrap(), b"new");
    }
}

#[test]
fn a_layer_that_was_changed_after_its_catalog_was_made_is_seen_as_it_is() {
    require!(Fuse, Union);
    let scratch = scratch();
    let mut layers = Layers::below(scratch.path(), 2);
    LayerTree::new().file("d/deep/a", "a").file("e/b", "b").build(&layers.lowers[0]);
    LayerTree::new().file("d/c", "c").file("e/b", "hidden").build(&layers.lowers[1]);
    make_catalogs(&union_program(), &layers.lowers);
    layers.extra.push_str(",catalog=require");
    let mut mounted = Mounted::new(layers.clone());
    assert_eq!(fs::read(mounted.root().join("d/deep/a")).unwrap(), b"a");
    assert_eq!(fs::read(mounted.root().join("d/c")).unwrap(), b"c");
    mounted.unmount();
    let [top, bottom] = layers.lowers.as_slice() else { panic!("two lowers") };
    fs::remove_file(top.join("d/deep/a")).unwrap();
    fs::write(top.join("d/deep/late"), "late").unwrap();
    fs::write(bottom.join("d/c"), "longer than before").unwrap();
    mounted.mount();
    let names = |at: &str| -> Vec<_> {
        fs::read_dir(mounted.root().join(at)).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    assert_eq!(names("d/deep"), ["late"]);
    assert_eq!(fs::read(mounted.root().join("d/deep/late")).unwrap(), b"late");
    assert_eq!(fs::read(mounted.root().join("e/b")).unwrap(), b"b");
    assert_eq!(errno(fs::read(mounted.root().join("d/c"))), libc::ESTALE);
    assert!(mounted.stderr().contains("changed since the catalog was made"), "{}", mounted.stderr());
    mounted.unmount();
    // Its root has another time: such a layer is another layer.
    fs::write(top.join("new"), "").unwrap();
    let message = mounted.try_mount().unwrap_err();
    assert!(message.contains("has changed"), "{message}");
}

#[test]
fn layers_that_are_near_each_other_are_each_what_their_path_leads_to() {
    require!(Fuse, Union, Root);
    let scratch = scratch();
    let base = scratch.path();
    let mut layers = Layers::below(base, 3);
    for (path, file) in
        [("lower0", "plain"), ("lower1/d", "beneath"), ("far/three", "linked"), ("x/4/diff", "nested")]
    {
        fs::create_dir_all(base.join(path)).unwrap();
        fs::write(base.join(path).join(file), "").unwrap();
    }
    std::os::unix::fs::symlink("far/three", base.join("lower3")).unwrap();
    fs::create_dir_all(base.join("x/5/diff")).unwrap();
    let (covered, mounted_layer, deep) = (base.join("lower1/d"), base.join("lower2"), base.join("x/5/diff"));
    let _mounts = [(&covered, "above"), (&mounted_layer, "own"), (&deep, "deep")].map(|(at, file)| {
        let mount = InMemory::new("tmpfs", at, "");
        fs::write(at.join(file), "").unwrap();
        mount
    });
    layers.lowers.extend(["lower3", "x/4/diff", "x/5/diff"].map(|path| base.join(path)));
    let mut mounted = Mounted::new(layers);
    assert_eq!(names_in(mounted.root()), ["d", "deep", "linked", "nested", "own", "plain"]);
    assert_eq!(names_in(&mounted.root().join("d")), ["beneath"], "what lies under other mounts is shown");
    mounted.unmount();
}
