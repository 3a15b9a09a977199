//! The list of changes is the difference of the trees before and after.

use std::collections::BTreeSet;

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::require;
use e2e::snapshot::Snapshot;
use e2e::tree::LayerTree;

use crate::{changed, options_text, seeds, succeed};

fn lines(options: &std::ffi::OsStr) -> Vec<String> {
    let text = succeed(&["diff", "-o", &options_text(options)]);
    text.split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| line.escape_ascii().to_string())
        .collect()
}

/// Returns what the list should say, from what was seen before and after.
fn wanted(before: &Snapshot, after: &Snapshot) -> BTreeSet<String> {
    let mut wanted = BTreeSet::new();
    let mut changed_below: BTreeSet<Vec<u8>> = BTreeSet::new();
    let line = |letter: char, path: &[u8]| format!("{letter} /{}", path.escape_ascii());
    let above = |path: &[u8]| -> Vec<Vec<u8>> {
        path.iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/')
            .map(|(at, _)| path[..at].to_vec())
            .collect()
    };
    let is_dir = |tree: &Snapshot, path: &[u8]| {
        tree.get(path).is_some_and(|node| node.mode & libc::S_IFMT == libc::S_IFDIR)
    };
    for path in after.paths().filter(|path| !path.is_empty()) {
        let letter = match before.get(path) {
            None => 'A',
            Some(node) if node.looks_like(after.get(path).unwrap()) => continue,
            Some(_) => 'C',
        };
        wanted.insert(line(letter, path));
        changed_below.extend(above(path));
    }
    for path in before.paths().filter(|path| after.get(path).is_none()) {
        let parent = above(path).pop().unwrap_or_default();
        // Of what is below a name that is gone nothing is told.
        if after.get(&parent).is_some() && is_dir(before, &parent) {
            wanted.insert(line('D', path));
            changed_below.extend(above(path));
        }
    }
    for path in changed_below {
        if before.get(&path).is_some() && after.get(&path).is_some() {
            wanted.insert(line('C', &path));
        }
    }
    wanted
}

#[test]
fn the_list_is_the_difference_of_the_trees() {
    require!(Fuse, Union);
    for seed in seeds() {
        let scratch = scratch();
        let changed = changed(seed, scratch.path());
        let found = lines(&changed.layers.options());
        let got: BTreeSet<String> = found.iter().filter(|line| *line != "C /").cloned().collect();
        let want = wanted(&changed.before, &changed.after);
        let missing: Vec<_> = want.difference(&got).collect();
        let surplus: Vec<_> = got.difference(&want).collect();
        assert!(
            missing.is_empty() && surplus.is_empty(),
            "seed {seed}: missing {missing:?}, surplus {surplus:?}"
        );
    }
}

#[test]
fn what_was_copied_up_and_is_the_same_is_not_listed() {
    require!(Fuse, Union);
    let scratch = scratch();
    let layers = Layers::below(scratch.path(), 1);
    LayerTree::new().file("d/mode", "1").file("d/data", "2").file("e/moved", "3").build(&layers.lowers[0]);
    let mut mounted = Mounted::new(layers.clone());
    let at = |name: &str| layers.target.join(name);
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    for bits in [0o600, 0o644] {
        std::fs::set_permissions(at("d/mode"), mode(bits)).unwrap();
    }
    assert!(layers.upper.as_ref().unwrap().join("d/mode").exists());
    // Opened for writing, and not written.
    drop(std::fs::OpenOptions::new().write(true).open(at("d/data")).unwrap());
    mounted.unmount();
    assert_eq!(lines(&layers.options()), Vec::<String>::new());
    mounted.mount();
    std::fs::rename(at("e"), at("f")).unwrap();
    std::fs::write(at("d/data"), "new").unwrap();
    // While it is mounted.
    assert_eq!(lines(&layers.options()), ["C /d", "C /d/data", "D /e", "A /f", "A /f/moved"]);
    mounted.unmount();
}

#[test]
fn a_change_through_one_name_of_a_lower_file_is_listed_for_all() {
    require!(Fuse, Union);
    let scratch = scratch();
    let layers = Layers::below(scratch.path(), 1);
    let tree = LayerTree::new().file("a/one", "1").hardlink("b/two", "a/one").file("b/other", "2");
    tree.build(&layers.lowers[0]);
    let mut mounted = Mounted::new(layers.clone());
    std::fs::write(layers.target.join("a/one"), "new").unwrap();
    let index = layers.work.as_ref().unwrap().join("index");
    let kept = std::fs::read_dir(index).is_ok_and(|mut entries| entries.next().is_some());
    mounted.unmount();
    if kept {
        assert_eq!(lines(&layers.options()), ["C /a", "C /a/one", "C /b", "C /b/two"]);
    }
}
