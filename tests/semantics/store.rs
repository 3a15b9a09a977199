//! Uppers that are stores: on exFAT and vfat, and anywhere with `sidecar=store`.

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Output;

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::program;
use e2e::require;
use e2e::snapshot::Snapshot;
use e2e::stick::{Kind, Stick};
use e2e::tree::LayerTree;

use crate::errno;

fn tree() -> LayerTree {
    let tree = LayerTree::new()
        .file("Makefile", "upper case")
        .file("makefile", "lower case")
        .file("d/a", "1")
        .file("d/sub/b", "2")
        .file("gone/a", "3")
        .file("one", "linked")
        .file("big", vec![b'x'; 1 << 20])
        .symlink("link", "d/a");
    tree.hardlink("two", "one").owner("d/a", 7, 8).mode("big", 0o4755)
}

/// Changes of every kind that exFAT knows nothing of.
fn change(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::remove_file(at("Makefile")).unwrap();
    fs::rename(at("d"), at("moved")).unwrap();
    fs::remove_dir_all(at("gone")).unwrap();
    fs::create_dir(at("gone")).unwrap();
    fs::create_dir(at("Gone")).unwrap();
    fs::write(at("one"), "changed").unwrap();
    fs::write(at("new"), "new").unwrap();
    fs::write(at("NEW"), "another").unwrap();
    fs::hard_link(at("new"), at("again")).unwrap();
    fs::set_permissions(at("new"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(at("NEW"), Some(11), Some(12)).unwrap();
    symlink("nowhere/at all", at("pointer")).unwrap();
    for name in [&b"what?"[..], b"a:b*c|\"<>\\", b"not utf-8 \xff", b"end. ", b"con", &[b'n'; 255]] {
        fs::write(root.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let pipe = CString::new(at("pipe").as_os_str().as_bytes()).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, pipe.as_c_str(), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let none = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(at("moved/a"), "user.x", b"y", none).unwrap();
    let file = fs::OpenOptions::new().write(true).open(at("big")).unwrap();
    file.set_len(3 << 20).unwrap();
    file.write_all_at(b"in a hole", 2 << 20).unwrap();
}

/// Panics unless both trees show the same.
fn assert_same(union: &Path, plain: &Path) {
    let [mut left, mut right] = [union, plain].map(|root| Snapshot::take(root).unwrap());
    for snapshot in [&mut left, &mut right] {
        // Sizes and links of directories are those of a file system.
        snapshot.forget_directory_times();
        snapshot.forget_links();
    }
    let lines = left.diff(&right, ("union", "plain"));
    assert!(lines.is_empty(), "{}", lines.join("\n"));
}

/// Lays the tree below a union whose upper and workdir are on a stick.
fn on_stick(stick: &Stick, scratch: &Path) -> Layers {
    let mut layers = Layers::below(scratch, 1);
    tree().build(&layers.lowers[0]);
    for (name, place) in [("upper", &mut layers.upper), ("work", &mut layers.work)] {
        let directory = stick.root.join(name);
        fs::create_dir(&directory).unwrap();
        *place = Some(directory);
    }
    layers
}

/// Runs the union program, for a mount or a command that fails or ends.
fn run(words: &[impl AsRef<OsStr>], layers: &Layers) -> Output {
    let options = layers.options();
    let mut arguments: Vec<&OsStr> = words.iter().map(AsRef::as_ref).collect();
    arguments.extend([OsStr::new("-o"), &options]);
    if words.iter().any(|word| word.as_ref() == "-f") {
        arguments.push(layers.target.as_os_str());
    }
    program::run(Path::new("/"), &arguments)
}

#[test]
fn an_upper_on_exfat_shows_what_a_plain_directory_shows() {
    require!(Fuse, Union, Root, Exfat);
    for kind in Kind::here() {
        let scratch = scratch();
        let stick = Stick::new(kind, scratch.path());
        let layers = on_stick(&stick, scratch.path());
        let plain = scratch.path().join("plain");
        fs::create_dir(&plain).unwrap();
        tree().build(&plain);
        let mut mounted = Mounted::new(layers);
        assert_same(mounted.root(), &plain);
        [mounted.root(), &plain].into_iter().for_each(change);
        assert_same(mounted.root(), &plain);
        for _ in 0..2 {
            mounted.unmount();
            stick.replug();
            mounted.mount();
            assert_same(mounted.root(), &plain);
        }
        let upper = stick.root.join("upper");
        let names: Vec<_> = fs::read_dir(upper).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["unionfs-store"], "{kind:?}");
        mounted.unmount();
    }
}

#[test]
fn an_upper_on_exfat_begins_empty_and_is_a_store_or_nothing() {
    require!(Fuse, Union, Root, Exfat);
    let scratch = scratch();
    let stick = Stick::new(Kind::here()[0], scratch.path());
    let mut layers = on_stick(&stick, scratch.path());
    let stray = stick.root.join("upper/stray");
    fs::write(&stray, "1").unwrap();
    let refused = |layers: &Layers, word: &str| {
        let output = run(&["-f"], layers);
        let said = output.stderr.escape_ascii().to_string();
        assert!(!output.status.success() && said.contains(word), "{said}");
    };
    refused(&layers, "Directory not empty");
    layers.extra = ",sidecar=off".to_owned();
    refused(&layers, "sidecar=off");
    assert_eq!(fs::read(&stray).unwrap(), b"1");
    fs::remove_file(&stray).unwrap();
    refused(&layers, "sidecar=off");
    layers.extra = String::new();
    Mounted::new(layers.clone()).unmount();
    layers.extra = ",sidecar=off".to_owned();
    refused(&layers, "sidecar=off");
    layers.lowers = vec![stick.root.join("upper")];
    layers.extra = String::new();
    refused(&layers, "must not lie inside");
}

#[test]
fn a_store_is_served_by_one_process_at_a_time() {
    require!(Fuse, Union);
    let scratch = scratch();
    let mut layers = Layers::below(scratch.path(), 1);
    tree().build(&layers.lowers[0]);
    layers.extra.push_str(",sidecar=store");
    let mut mounted = Mounted::new(layers.clone());
    fs::write(mounted.root().join("new"), "1").unwrap();
    let second = Layers { target: scratch.path().join("second"), ..layers };
    fs::create_dir(&second.target).unwrap();
    let output = run(&["-f"], &second);
    assert!(!output.status.success() && output.stderr.escape_ascii().to_string().contains("busy"));
    assert_eq!(fs::read(mounted.root().join("new")).unwrap(), b"1");
    // One that has just been taken away is waited for.
    mounted.remount();
    assert_eq!(fs::read(mounted.root().join("new")).unwrap(), b"1");
}

#[test]
fn commands_beside_the_mount_read_a_store() {
    require!(Fuse, Union, Root);
    let scratch = scratch();
    let mut layers = Layers::below(scratch.path(), 1);
    tree().build(&layers.lowers[0]);
    layers.extra.push_str(",sidecar=store");
    let mut mounted = Mounted::new(layers.clone());
    fs::remove_file(mounted.root().join("makefile")).unwrap();
    fs::write(mounted.root().join("new"), "1").unwrap();
    mounted.unmount();
    let listed = run(&["diff"], &layers);
    assert_eq!(String::from_utf8(listed.stdout).unwrap(), "D /makefile\nA /new\n");
    let checked = run(&["check"], &layers);
    assert!(checked.status.success(), "{}", checked.stderr.escape_ascii());
    let into = scratch.path().join("folded");
    let merged = run(&[OsStr::new("merge"), OsStr::new("--into"), into.as_os_str()], &layers);
    assert!(merged.status.success(), "{}", merged.stderr.escape_ascii());
    assert!(into.join("new").exists() && !into.join("makefile").exists());
    mounted.mount();
    assert_same(mounted.root(), &into);
    mounted.unmount();
    layers.extra.push_str(",ro");
    assert_same(Mounted::new(layers).root(), &into);
}

#[test]
fn a_full_stick_can_be_emptied() {
    require!(Fuse, Union, Root, Exfat);
    for kind in [Kind::Exfat, Kind::ExfatFuse].into_iter().filter(|kind| kind.is_here()) {
        let scratch = scratch();
        let stick = Stick::with_size(kind, scratch.path(), 24 << 20);
        let mut mounted = Mounted::new(on_stick(&stick, scratch.path()));
        let file = |number: usize| mounted.root().join(format!("file{number}"));
        for round in 0..2 {
            let full = (0..200).find(|&number| fs::write(file(number), vec![7; 1 << 19]).is_err()).unwrap();
            assert_eq!(errno(fs::write(file(full), vec![7; 1 << 19])), libc::ENOSPC, "{kind:?} {round}");
            // What did not fit does not show in a hole.
            let half = fs::OpenOptions::new().read(true).write(true).open(file(full)).unwrap();
            let size = half.metadata().unwrap().len();
            half.set_len(size + (1 << 20)).unwrap();
            let mut hole = vec![1; 1 << 20];
            half.read_exact_at(&mut hole, size).unwrap();
            assert!(hole.iter().all(|&byte| byte == 0), "{kind:?}: {size}");
            for number in 0..=full {
                fs::remove_file(file(number)).unwrap();
            }
        }
        // A removed file has its room until the kernel has let go of it.
        assert!(
            program::wait_until(|| fs::write(file(0), vec![8; 1 << 20]).is_ok()),
            "{kind:?}: no room came back"
        );
        mounted.remount();
        assert_eq!(fs::read(mounted.root().join("file0")).unwrap(), vec![8; 1 << 20]);
        mounted.unmount();
    }
}
