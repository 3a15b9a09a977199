//! The merged tree of several layers, by the rules and without a mount: the oracle for users without rights.

use std::collections::BTreeMap;

use crate::tree::{Kind, LayerTree};

/// Returns the tree that the union of `layers` (topmost first) shows.
pub fn flatten(layers: &[LayerTree]) -> LayerTree {
    let mut merged: BTreeMap<Vec<u8>, crate::tree::Item> = BTreeMap::new();
    for layer in layers.iter().rev() {
        for (path, item) in &layer.items {
            match &item.kind {
                Kind::Whiteout | Kind::OciWhiteout => remove(&mut merged, path),
                Kind::Directory => {
                    if !merged.get(path).is_some_and(|old| old.kind == Kind::Directory) {
                        remove(&mut merged, path);
                    }
                    merged.insert(path.clone(), item.clone());
                }
                Kind::Opaque => {
                    remove(&mut merged, path);
                    let mut item = item.clone();
                    item.kind = Kind::Directory;
                    merged.insert(path.clone(), item);
                }
                _ => {
                    remove(&mut merged, path);
                    merged.insert(path.clone(), item.clone());
                }
            }
        }
    }
    LayerTree { items: merged }
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
        assert_eq!(directories(&merged), [b"".to_vec(), b"d".to_vec(), b"e".to_vec()]);
        assert_eq!(split(b"a/b/c"), (b"a/b".as_slice(), b"c".as_slice()));
    }
}
