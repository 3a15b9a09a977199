//! The merged tree of several layers, by the rules and without a mount: the oracle for users without rights.

use std::collections::BTreeMap;

use crate::tree::{Kind, LayerTree};

/// Returns the tree that the union of `layers` (topmost first) shows.
pub fn flatten(layers: &[LayerTree]) -> LayerTree {
    let mut merged: BTreeMap<Vec<u8>, crate::tree::Item> = BTreeMap::new();
    // The layer and first name of each object that has several names.
    let mut objects: BTreeMap<Vec<u8>, (usize, Vec<u8>)> = BTreeMap::new();
    for (number, layer) in layers.iter().enumerate().rev() {
        for (path, item) in &layer.items {
            let merges = |old: &crate::tree::Item| old.kind == Kind::Directory;
            if item.kind != Kind::Directory || !merged.get(path).is_some_and(merges) {
                remove(&mut merged, path);
            }
            objects.remove(path);
            let mut item = item.clone();
            match &item.kind {
                Kind::Whiteout | Kind::OciWhiteout => continue,
                Kind::Opaque => item.kind = Kind::Directory,
                Kind::HardLink(first) => {
                    objects.insert(first.clone(), (number, first.clone()));
                    objects.insert(path.clone(), (number, first.clone()));
                }
                _ => {}
            }
            merged.insert(path.clone(), item);
        }
    }
    join_names(layers, &mut merged, &objects);
    LayerTree { items: merged }
}

/// Makes the first name that is left of each object the file itself, and the others links to it.
fn join_names(
    layers: &[LayerTree],
    merged: &mut BTreeMap<Vec<u8>, crate::tree::Item>,
    objects: &BTreeMap<Vec<u8>, (usize, Vec<u8>)>,
) {
    let mut first_left: BTreeMap<(usize, Vec<u8>), Vec<u8>> = BTreeMap::new();
    for (path, item) in merged.iter_mut() {
        let Some(object) = objects.get(path) else { continue };
        match first_left.get(object) {
            Some(first) => item.kind = Kind::HardLink(first.clone()),
            None => {
                first_left.insert(object.clone(), path.clone());
                item.clone_from(&layers[object.0].items[&object.1]);
            }
        }
    }
}

fn remove(merged: &mut BTreeMap<Vec<u8>, crate::tree::Item>, path: &[u8]) {
    let below =
        |name: &[u8]| name.starts_with(path) && (name.len() == path.len() || name[path.len()] == b'/');
    merged.retain(|name, _| !below(name));
}

/// Returns the directories of a tree, the root first.
pub fn directories(tree: &LayerTree) -> Vec<Vec<u8>> {
    let mut found = vec![Vec::new()];
    let is_directory = |kind: &Kind| matches!(kind, Kind::Directory | Kind::Opaque);
    found
        .extend(tree.items.iter().filter(|(_, item)| is_directory(&item.kind)).map(|(path, _)| path.clone()));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::split;

    #[test]
    fn a_whiteout_hides_what_is_below_and_opaque_hides_contents() {
        let low = LayerTree::new().file("d/a", "1").file("e/b", "2").file("f", "3");
        let top = LayerTree::new().opaque("d").file("d/n", "4").whiteout("f").dir("e").whiteout("e/b");
        let merged = flatten(&[top, low]);
        let names: Vec<_> = merged.items.keys().map(|path| path.escape_ascii().to_string()).collect();
        assert_eq!(names, ["d", "d/n", "e"]);
        let links = LayerTree::new().file("a", "1").hardlink("b", "a").hardlink("c", "a");
        let merged_links = flatten(&[LayerTree::new().whiteout("a"), links]);
        assert_eq!(merged_links.items[b"b".as_slice()].kind, Kind::File(b"1".to_vec()));
        assert_eq!(merged_links.items[b"c".as_slice()].kind, Kind::HardLink(b"b".to_vec()));
        assert_eq!(directories(&merged), [b"".to_vec(), b"d".to_vec(), b"e".to_vec()]);
        assert_eq!(split(b"a/b/c"), (b"a/b".as_slice(), b"c".as_slice()));
    }
}
