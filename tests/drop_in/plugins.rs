//! Layers by plugins of fuse-overlayfs 1.x, here of one that shows directories as they are.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::program::{Unmount, mount_type, run, wait_until};
use e2e::require;
use e2e::snapshot::Snapshot;
use e2e::tree::LayerTree;

/// Compiles the plugin, with macros of its own.
fn compiled(directory: &Path, name: &str, macros: &[&str]) -> PathBuf {
    let (source, object) =
        (Path::new(env!("CARGO_MANIFEST_DIR")).join("drop_in/mirror.c"), directory.join(name));
    let options = ["-shared", "-fPIC", "-Wall", "-Werror", "-D_FILE_OFFSET_BITS=64"];
    let done =
        Command::new("cc").args(options).args(macros).arg(&source).arg("-o").arg(&object).output().unwrap();
    assert!(done.status.success(), "{}", done.stderr.escape_ascii());
    object
}

/// Builds layers below a directory, by number, as the plugin wants them.
fn build(directory: &Path) {
    let above = LayerTree::new()
        .file("dir/above", "1")
        .whiteout("dir/hidden")
        .file("changed", "new")
        .opaque("opaque")
        .file("opaque/only", "2");
    let big: Vec<u8> = (0..3_000_000_u32).map(|at| (at >> 5) as u8).collect();
    let below = LayerTree::new()
        .file("dir/below", "3")
        .file("dir/hidden", "4")
        .file("changed", "old")
        .file("opaque/gone", "5")
        .file("big", &big)
        .hardlink("dir/linked", "dir/below")
        .symlink("symlink", "dir/below")
        .file("marked", "6")
        .xattr("marked", "user.colour", "blue")
        .mode("marked", 0o751)
        .dir("lower/inner")
        .file("lower/inner/f", "7")
        .file(b"not utf-8 \xff", "8");
    for (number, tree) in [above, below].iter().enumerate() {
        let layer = directory.join(number.to_string());
        fs::create_dir_all(&layer).unwrap();
        tree.build(&layer);
    }
}

struct Place {
    layers: Layers,
    directories: Vec<PathBuf>,
    base: PathBuf,
    _scratch: tempfile::TempDir,
}

fn place() -> Place {
    let scratch = scratch();
    let base = scratch.path().canonicalize().unwrap();
    build(&base.join("layers"));
    let plugin = compiled(&base, "mirror.so", &[]);
    let mut layers = Layers::below(&base, 1);
    LayerTree::new().file("dir/lowest", "9").file("lowest", "10").build(&layers.lowers[0]);
    let directories = vec![base.join("layers/0"), base.join("layers/1"), layers.lowers[0].clone()];
    layers.lowers.insert(0, format!("//mirror/2/{}", base.join("layers").display()).into());
    layers.extra.push_str(&format!(",plugins={}", plugin.display()));
    Place { layers, directories, base, _scratch: scratch }
}

/// Takes what a tree looks like, but for what the union is free to choose.
fn shown(root: &Path) -> Snapshot {
    let mut snapshot = Snapshot::take(root).unwrap();
    snapshot.forget_directory_times();
    snapshot
}

/// Changes what layers by plugins have in all ways there are, and returns what the union shows then.
fn changed(layers: &Layers) -> (Snapshot, Snapshot) {
    let change = || {
        let mounted = Mounted::new(layers.clone());
        let before = shown(mounted.root());
        let at = |name: &str| mounted.root().join(name);
        fs::rename(at("lower"), at("dir/moved")).unwrap();
        fs::write(at("dir/moved/inner/f"), "77").unwrap();
        let mut file = fs::OpenOptions::new().append(true).open(at("big")).unwrap();
        std::io::Write::write_all(&mut file, b"more").unwrap();
        fs::remove_file(at("changed")).unwrap();
        fs::remove_dir_all(at("opaque")).unwrap();
        fs::create_dir(at("opaque")).unwrap();
        std::os::unix::fs::symlink("elsewhere", at("opaque/s")).unwrap();
        fs::set_permissions(at("marked"), fs::Permissions::from_mode(0o600)).unwrap();
        before
    };
    let before = change();
    let again = Mounted::new(layers.clone());
    (before, shown(again.root()))
}

#[test]
fn a_layer_by_a_plugin_is_the_layer() {
    require!(Fuse, Union, Compiler);
    let by_plugin = place();
    let direct =
        Layers { lowers: by_plugin.directories.clone(), ..Layers::below(&by_plugin.base.join("direct"), 0) };
    let (ours, want) = (changed(&by_plugin.layers), changed(&direct));
    assert_eq!(ours.0.diff(&want.0, ("plugin", "directories")), [""; 0]);
    assert_eq!(ours.1.diff(&want.1, ("plugin", "directories")), [""; 0]);
}

#[test]
fn what_is_wrong_with_a_plugin_is_told_and_nothing_is_mounted() {
    require!(Fuse, Union, Compiler);
    let place = place();
    let base = &place.base;
    let mirror = base.join("mirror.so").display().to_string();
    compiled(base, "twin.so", &[]);
    compiled(base, "future.so", &["-DVERSION=2"]);
    compiled(base, "nameless.so", &["-Dplugin_name=another_name"]);
    compiled(base, "endless.so", &["-Dplugin_release=another_release"]);
    fs::write(base.join("text.so"), "text").unwrap();
    let in_base = |name: &str| base.join(name).display().to_string();
    let layer = format!("//mirror/2/{}", in_base("layers"));
    for (plugins, lower, told) in [
        (in_base("nowhere.so"), layer.clone(), "nowhere.so"),
        (in_base("text.so"), layer.clone(), "text.so"),
        (in_base("future.so"), layer.clone(), "version 2"),
        (in_base("nameless.so"), layer.clone(), "it has no plugin_name"),
        (in_base("endless.so"), layer.clone(), "it has no plugin_release"),
        (
            format!("{mirror}:{}", in_base("twin.so")),
            layer.clone(),
            "twin.so: there is one of its name already",
        ),
        (mirror.clone(), format!("//another/2/{}", in_base("layers")), "another: there is none of that name"),
        (mirror.clone(), format!("//mirror/0/{}", in_base("layers")), "does not take it"),
        (mirror.clone(), format!("//mirror/3/{}", in_base("layers")), "cannot load its layer 2"),
        (mirror.clone(), "//mirror/exits/x".to_owned(), "killed by one"),
        (mirror, "//mirror".to_owned(), "//NAME/DATA/PATH"),
    ] {
        let options = format!("plugins={plugins},lowerdir={lower},upperdir=upper,workdir=work");
        let output = run(base, &["-o", &options, "merged"]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(told), "{options}: {text}");
        assert!(text.lines().count() <= 2 && !text.contains("panicked"), "{options}: {text}");
        assert_eq!(mount_type(&base.join("merged")), None, "{options}");
    }
}

#[test]
fn paths_of_plugins_and_layers_are_relative_to_where_the_command_was_given() {
    require!(Fuse, Union, Compiler);
    let place = place();
    let base = &place.base;
    let options = "plugins=./mirror.so,lowerdir=//mirror/1/layers,upperdir=upper,workdir=work";
    let output = run(base, &["-o", options, "merged"]);
    let mounted = Unmount(base.join("merged"));
    assert!(output.status.success(), "{}", output.stderr.escape_ascii());
    assert_eq!(fs::read(mounted.0.join("changed")).unwrap(), b"new");
}

#[test]
fn who_may_read_a_layer_by_a_plugin_is_for_the_union_to_say() {
    require!(Fuse, Union, Compiler);
    let place = place();
    let base = &place.base;
    compiled(base, "mirror.so", &["-DOWNER=12345"]);
    let mut layers = place.layers.clone();
    let own = rustix::process::geteuid().as_raw();
    layers.extra.push_str(&format!(",squash_to_uid={own}"));
    fs::set_permissions(base.join("layers/0/changed"), fs::Permissions::from_mode(0o600)).unwrap();
    let mounted = Mounted::new(layers);
    assert_eq!(fs::read(mounted.root().join("changed")).unwrap(), b"new");
}

#[test]
fn a_plugin_that_crashes_or_hangs_is_a_layer_that_fails() {
    require!(Fuse, Union, Compiler);
    for fault in ["exit", "hang"] {
        let place = place();
        let mounted = Mounted::new(place.layers.clone());
        let failed = |done: std::io::Result<()>| done.unwrap_err().raw_os_error();
        assert_eq!(fs::read(mounted.root().join("lowest")).unwrap(), b"10");
        let met = fs::metadata(mounted.root().join(fault)).map(drop);
        assert!(matches!(failed(met), Some(libc::ENOTCONN | libc::ECONNABORTED)), "{fault}");
        assert!(fs::read(mounted.root().join("dir/below")).is_err(), "{fault}");
        assert_eq!(failed(fs::write(mounted.root().join("new"), "11")), Some(libc::ENOTCONN), "{fault}");
    }
}

#[test]
fn plugins_are_released_and_their_process_ends_with_the_union() {
    require!(Fuse, Union, Compiler);
    let place = place();
    let base = &place.base;
    let plugin = base.join("mirror.so");
    let mounted = Mounted::new(place.layers.clone());
    assert_eq!(users_of(&plugin), 1);
    drop(mounted);
    assert!(wait_until(|| users_of(&plugin) == 0), "a process still has the plugin");
    assert!(base.join("layers/released").exists());
}

/// Returns how many processes have a file mapped.
fn users_of(file: &Path) -> usize {
    let name = file.display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|entry| fs::read_to_string(entry.path().join("maps")).is_ok_and(|maps| maps.contains(&name)))
        .count()
}

#[test]
fn fuse_overlayfs_shows_the_same_layers() {
    require!(Fuse, Union, Compiler, FuseOverlayfs);
    let place = place();
    let peer = Command::new("fuse-overlayfs").arg("--version").output().unwrap();
    if !String::from_utf8(peer.stdout).unwrap().contains("version 1.") {
        return e2e::require::skip("drop_in::plugins", "fuse-overlayfs in PATH is not 1.x");
    }
    let mut ours = shown(Mounted::new(place.layers.clone()).root());
    let mut theirs = shown(Mounted::with(Path::new("fuse-overlayfs"), place.layers.clone()).root());
    for snapshot in [&mut ours, &mut theirs] {
        snapshot.forget_links();
    }
    assert_eq!(ours.diff(&theirs, ("unionfs", "fuse-overlayfs")), [""; 0]);
}
