//! What kernel overlayfs needs to read an upper that the union wrote.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use e2e::oracle::KernelOverlay;
use e2e::require;
use e2e::tree::LayerTree;

use crate::Fixture;

#[test]
fn kernel_overlayfs_reads_a_metacopy_only_when_told_to() {
    require!(Fuse, Union, Root, KernelOverlay);
    let tree = LayerTree::new().file("f", "content");
    let mut union = Fixture::new(&[tree], "");
    fs::set_permissions(union.at("f"), fs::Permissions::from_mode(0o600)).unwrap();
    union.mounted.unmount();
    let mut layers = union.mounted.layers().clone();
    for (option, readable) in [("", false), (",metacopy=on", true)] {
        option.clone_into(&mut layers.extra);
        let kernel = KernelOverlay::new(layers.clone());
        assert_eq!(fs::read(kernel.root().join("f")).is_ok(), readable, "{option}");
    }
}
