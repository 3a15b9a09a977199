//! A lower file with several names, one of which is written: every name shows one and the same content before
//! and after remounts, whichever is looked at first.
//!
//! With an index all names follow; without, the written name splits off and the others keep the old data.

use std::os::unix::fs::MetadataExt;

use e2e::mounted::Layers;
use e2e::oracle::KernelOverlay;
use e2e::require;
use e2e::tree::LayerTree;

use crate::Fixture;

const OLD: &str = "OLDOLD";

/// Content, size by stat, number of links and inode number of a name, or None if it is not there.
type View = Option<(String, u64, u64, u64)>;

fn view(fixture: &Fixture, name: &str) -> View {
    let meta = std::fs::symlink_metadata(fixture.at(name)).ok()?;
    let bytes = std::fs::read(fixture.at(name)).unwrap();
    assert_eq!(bytes.len() as u64, meta.size(), "{name}: bytes read and st_size");
    Some((bytes.escape_ascii().to_string(), meta.size(), meta.nlink(), meta.ino()))
}

/// Looks at `names` in the given order and returns the views in the order of `names`.
fn views(fixture: &Fixture, names: &[&str], order: &[usize]) -> Vec<View> {
    let mut found = vec![None; names.len()];
    for index in order {
        found[*index] = view(fixture, names[*index]);
    }
    found
}

/// Checks that every order of looking, in fresh mounts, gives the same, and the size belongs to the data.
fn check_stable(fixture: &mut Fixture, names: &[&str]) -> Vec<View> {
    let forward: Vec<usize> = (0..names.len()).collect();
    let backward: Vec<usize> = forward.iter().rev().copied().collect();
    let before = views(fixture, names, &forward);
    for order in [&forward, &backward, &forward] {
        fixture.mounted.remount();
        let after = views(fixture, names, order);
        assert_eq!(before, after, "{names:?} in order {order:?} after a remount");
    }
    fixture.mounted.remount();
    for index in &backward {
        drop(std::fs::symlink_metadata(fixture.at(names[*index])));
    }
    assert_eq!(before, views(fixture, names, &forward), "stat only, in reverse, before reading");
    before
}

/// The written name shows `new`; the others all show `new` (index) or all show the old data.
fn check_legal(views: &[View], new: &str) {
    assert_eq!(views[0].as_ref().unwrap().0, new);
    let others: Vec<&str> = views[1..].iter().flatten().map(|view| view.0.as_str()).collect();
    let follow = others.iter().all(|bytes| *bytes == new);
    assert!(follow || others.iter().all(|bytes| *bytes == OLD), "{views:?}");
    let same = views[1..].iter().flatten().all(|view| view.3 == views[0].as_ref().unwrap().3);
    assert!(!follow || same, "names of one object show different inode numbers: {views:?}");
}

fn linked(names: &[&str]) -> LayerTree {
    let tree = LayerTree::new().file(names[0], OLD);
    names[1..].iter().fold(tree, |tree, name| tree.hardlink(name, names[0]))
}

#[test]
fn a_written_name_shows_the_same_after_every_remount() {
    require!(Fuse, Union);
    for new in ["new-longer-content", "new", ""] {
        for names in [&["a", "b"][..], &["b", "a"], &["d/a", "e/b", "f/g/c"]] {
            let mut sorted = names.to_vec();
            sorted.sort_unstable();
            let mut fixture = Fixture::new(&linked(&sorted), "");
            std::fs::write(fixture.at(names[0]), new).unwrap();
            let views = check_stable(&mut fixture, names);
            check_legal(&views, new);
            fixture.finish();
        }
    }
}

#[test]
fn names_looked_up_before_the_write_show_the_same_after_it() {
    require!(Fuse, Union);
    let mut fixture = Fixture::new(&linked(&["a", "b", "c"]), "");
    let names = ["b", "a", "c"];
    let before = views(&fixture, &names, &[0, 1, 2]);
    assert!(before.iter().flatten().all(|view| view.0 == OLD));
    let held = std::fs::File::open(fixture.at("c")).unwrap();
    std::fs::write(fixture.at("b"), "new-longer-content").unwrap();
    let mut through_handle = String::new();
    std::io::Read::read_to_string(&mut &held, &mut through_handle).unwrap();
    drop(held);
    let views = check_stable(&mut fixture, &names);
    check_legal(&views, "new-longer-content");
    assert_eq!(views[2].as_ref().unwrap().0, through_handle, "a handle and its name show the same");
    fixture.finish();
}

#[test]
fn a_renamed_removed_or_recreated_link_stays_consistent() {
    require!(Fuse, Union);
    let mut fixture = Fixture::new(&linked(&["a", "b", "c", "d", "e"]), "");
    std::fs::write(fixture.at("a"), "written").unwrap();
    std::fs::rename(fixture.at("b"), fixture.at("moved")).unwrap();
    std::fs::remove_file(fixture.at("c")).unwrap();
    std::fs::remove_file(fixture.at("d")).unwrap();
    std::fs::write(fixture.at("d"), "another object").unwrap();
    let names = ["a", "moved", "e", "b", "c", "d"];
    let views = check_stable(&mut fixture, &names);
    assert_eq!(views[3], None);
    assert_eq!(views[4], None);
    assert_eq!(views[5].as_ref().unwrap().0, "another object");
    check_legal(&views[..3], "written");
    fixture.finish();
}

#[test]
fn a_changed_mode_does_not_join_or_mix_the_names() {
    require!(Fuse, Union);
    let mut fixture = Fixture::new(&linked(&["a", "b"]), "");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(fixture.at("a"), mode).unwrap();
    let names = ["a", "b"];
    let views = check_stable(&mut fixture, &names);
    check_legal(&views, OLD);
    fixture.finish();
}

#[test]
fn an_upper_that_kernel_overlayfs_wrote_shows_the_same_in_every_order() {
    require!(Fuse, Union, Root, KernelOverlay);
    let mut fixture = Fixture::new(&linked(&["a", "b"]), "");
    fixture.mounted.unmount();
    let layers: Layers = fixture.mounted.layers().clone();
    let mut kernel = KernelOverlay::new(layers);
    std::fs::write(fixture.at("a"), "new-longer-content").unwrap();
    kernel.unmount();
    fixture.mounted.mount();
    let views = check_stable(&mut fixture, &["a", "b"]);
    check_legal(&views, "new-longer-content");
    fixture.finish();
}
