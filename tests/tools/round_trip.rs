//! A layer written from what was changed, unpacked again, shows the same above the same lowers.

use std::path::Path;

use e2e::mounted::{Layers, scratch};
use e2e::oracle::{KernelOverlay, copy_tree};
use e2e::require;
use e2e::snapshot::Snapshot;

use crate::{Changed, changed, options_text, seeds, shown, snapshot, succeed, text};

/// Writes the layer of what was changed.
fn layer_of(changed: &Changed, base: &Path) -> String {
    let tar = base.join("layer.tar").display().to_string();
    succeed(&["diff", "-o", &options_text(&changed.layers.options()), "--format=tar", "-O", &tar]);
    tar
}

fn unpacked(tar: &str, format: &str, base: &Path) -> std::path::PathBuf {
    let dir = base.join(format);
    std::fs::create_dir(&dir).unwrap();
    succeed(&["apply", "-o", &format!("format={format}"), tar, &text(&dir)]);
    dir
}

#[track_caller]
fn assert_same(seed: u64, format: &str, want: &Snapshot, got: &Snapshot) {
    let lines = want.diff(got, ("changed", "unpacked"));
    assert!(lines.is_empty(), "seed {seed}, {format}:\n{}", lines.join("\n"));
}

#[test]
fn a_layer_in_each_format_above_the_lowers_is_the_changed_union() {
    require!(Fuse, Union);
    for seed in seeds() {
        let scratch = scratch();
        let changed = changed(seed, scratch.path());
        let tar = layer_of(&changed, scratch.path());
        let root = e2e::user::is_real_root();
        for format in ["overlayfs", "userxattr", "oci"] {
            if root == (format == "userxattr") {
                continue;
            }
            let mut lowers = vec![unpacked(&tar, format, scratch.path())];
            lowers.extend(changed.layers.lowers.iter().cloned());
            let got = shown(lowers, &scratch.path().join(format!("{format}-mount")));
            assert_same(seed, format, &changed.after, &got);
        }
    }
}

#[test]
fn a_layer_unpacked_onto_a_copy_of_the_lowers_is_the_changed_union() {
    require!(Fuse, Union);
    for seed in seeds() {
        let scratch = scratch();
        let changed = changed(seed, scratch.path());
        let tar = layer_of(&changed, scratch.path());
        let mut layers =
            Layers { lowers: changed.layers.lowers.clone(), ..Layers::below(&scratch.path().join("b"), 0) };
        (layers.upper, layers.work) = (None, None);
        let mut mounted = e2e::mounted::Mounted::new(layers);
        let plain = copy_tree(mounted.root(), scratch.path().join("plain"));
        mounted.unmount();
        succeed(&["apply", "-o", "format=plain", &tar, &text(&plain)]);
        assert_same(seed, "plain", &changed.after, &snapshot(&plain));
    }
}

#[test]
fn kernel_overlayfs_reads_an_unpacked_layer() {
    require!(Fuse, Union, Root, KernelOverlay);
    for seed in seeds() {
        let scratch = scratch();
        let changed = changed(seed, scratch.path());
        let tar = layer_of(&changed, scratch.path());
        for (format, options) in [("overlayfs", ""), ("userxattr", ",userxattr")] {
            let base = scratch.path().join(format!("{format}-kernel"));
            let mut layers = Layers::below(&base, 0);
            layers.lowers = vec![unpacked(&tar, format, scratch.path())];
            layers.lowers.extend(changed.layers.lowers.iter().cloned());
            layers.extra = options.to_owned();
            (layers.upper, layers.work) = (None, None);
            // The lowers of the tests are marked in the namespace of root.
            if format == "userxattr" {
                layers.lowers.truncate(1);
                layers.lowers.push(flat_copy(&changed, scratch.path()));
            }
            let mut overlay = KernelOverlay::new(layers);
            let got = snapshot(overlay.root());
            overlay.unmount();
            assert_same(seed, format, &changed.after, &got);
        }
    }
}

/// Returns a directory with what the lowers show together.
fn flat_copy(changed: &Changed, base: &Path) -> std::path::PathBuf {
    let mut layers = Layers { lowers: changed.layers.lowers.clone(), ..Layers::below(&base.join("f"), 0) };
    (layers.upper, layers.work) = (None, None);
    let mut mounted = e2e::mounted::Mounted::new(layers);
    let flat = copy_tree(mounted.root(), base.join("flat"));
    mounted.unmount();
    flat
}

#[test]
fn the_same_changes_give_the_same_bytes() {
    require!(Fuse, Union);
    let scratch = scratch();
    let changed = changed(2, scratch.path());
    let first = std::fs::read(layer_of(&changed, scratch.path())).unwrap();
    assert_eq!(first, std::fs::read(layer_of(&changed, scratch.path())).unwrap());
    assert!(first.len().is_multiple_of(512));
}

#[test]
fn gnu_tar_reads_a_layer_and_makes_one() {
    require!(Fuse, Union);
    for seed in seeds().take(2) {
        let scratch = scratch();
        let changed = changed(seed, scratch.path());
        let tar = layer_of(&changed, scratch.path());
        let (theirs, ours) = (scratch.path().join("theirs"), unpacked(&tar, "oci", scratch.path()));
        std::fs::create_dir(&theirs).unwrap();
        let run = |arguments: &[&str]| {
            let mut tar = std::process::Command::new("tar");
            if !arguments.contains(&"--format=gnu") {
                tar.args(["--xattrs", "--xattrs-include=*"]);
            }
            let output = tar.args(["--numeric-owner", "-p"]).args(arguments).output().unwrap();
            assert!(output.status.success(), "{}", output.stderr.escape_ascii());
        };
        run(&["-C", &text(&theirs), "-xf", &tar]);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        for dir in [&theirs, &ours] {
            std::fs::set_permissions(dir, std::fs::Permissions::clone(&mode)).unwrap();
        }
        let (mut left, mut right) = (snapshot(&theirs), snapshot(&ours));
        // The time and mode of a mark mean nothing.
        for tree in [&mut left, &mut right] {
            tree.forget_directory_times();
            tree.retain(|path| !path.split(|&byte| byte == b'/').any(|part| part.starts_with(b".wh.")));
        }
        let lines = left.diff(&right, ("GNU tar", "apply"));
        assert!(lines.is_empty(), "seed {seed}:\n{}", lines.join("\n"));
        let again = scratch.path().join("again.tar").display().to_string();
        for (flags, name) in [
            (&["--format=pax", "-S"][..], "pax"),
            (&["--format=gnu", "-S"], "gnu"),
            (&["--format=gnu", "-z"], "gz"),
        ] {
            let from = text(&theirs);
            let arguments = [flags, &["-C", &from, "-cf", &again, "."]].concat();
            run(&arguments);
            let dir = scratch.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            succeed(&["apply", "-o", "format=oci", &again, &text(&dir)]);
            let (mut left, mut right) = (snapshot(&theirs), snapshot(&dir));
            for tree in [&mut left, &mut right] {
                tree.forget_directory_times();
                tree.retain(|path| !path.split(|&byte| byte == b'/').any(|part| part.starts_with(b".wh.")));
            }
            if name != "pax" {
                // Only pax holds nanoseconds and attributes.
                left.forget_times_and_xattrs();
                right.forget_times_and_xattrs();
            }
            let lines = left.diff(&right, ("GNU tar", name));
            assert!(lines.is_empty(), "seed {seed}, {name}:\n{}", lines.join("\n"));
        }
    }
}
