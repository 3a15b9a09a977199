//! `unionfs check`: silent on what is right, tells each fault, and repairs so that nothing reachable is lost.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::oracle::KernelOverlay;
use e2e::random::Random;
use e2e::require;
use e2e::snapshot::Snapshot;
use e2e::tree::{LayerTree, overlay_namespace};
use rustix::fs::XattrFlags;

use crate::{changed, options_text, seeds, snapshot, tool};

/// Runs a check; returns its exit status and what it said.
pub(crate) fn check(layers: &Layers, flags: &[&str]) -> (i32, String) {
    let options = options_text(&layers.options());
    let mut arguments = vec!["check", "-o", &options];
    arguments.extend(flags);
    let output = tool(&arguments);
    let text = [output.stdout, output.stderr].concat().escape_ascii().to_string();
    (output.status.code().unwrap_or(-1), text.replace("\\n", "\n"))
}

/// Returns the lines that tell a fault, and not what is allowed.
pub(crate) fn faults(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.contains("repair")).collect()
}

fn mark(path: &Path, name: &str, value: &[u8]) {
    let name = format!("{}.overlay.{name}", overlay_namespace());
    rustix::fs::lsetxattr(path, name.as_str(), value, XattrFlags::empty()).unwrap();
}

fn unmark(path: &Path, name: &str) {
    let name = format!("{}.overlay.{name}", overlay_namespace());
    rustix::fs::lremovexattr(path, name.as_str()).unwrap();
}

/// A changed union, no longer mounted: a directory renamed, one replaced, files changed, one name of two written.
pub(crate) struct Scene {
    _scratch: tempfile::TempDir,
    pub(crate) layers: Layers,
    before: Vec<Snapshot>,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with("")
    }

    /// Makes one with more options, a comma first.
    pub(crate) fn with(options: &str) -> Self {
        let scratch = scratch();
        let mut layers = Layers::below(scratch.path(), 1);
        layers.extra.push_str(options);
        let tree = LayerTree::new().file("d/a", "1").file("d/sub/x", "2").file("f", "data of f");
        let tree = tree
            .file("one", "3")
            .hardlink("two", "one")
            .file("gone", "4")
            .file("o/old", "5")
            .file("keep/k", "6");
        tree.build(&layers.lowers[0]);
        let before = layers.lowers.iter().map(|lower| Snapshot::take(lower).unwrap()).collect();
        let mut mounted = Mounted::new(layers.clone());
        let at = |name: &str| layers.target.join(name);
        std::fs::rename(at("d"), at("e")).unwrap();
        std::fs::set_permissions(at("f"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(at("one"), "new").unwrap();
        std::fs::remove_file(at("gone")).unwrap();
        std::fs::remove_dir_all(at("o")).unwrap();
        std::fs::create_dir(at("o")).unwrap();
        std::fs::write(at("keep/new"), "7").unwrap();
        std::fs::write(at("e/b"), "8").unwrap();
        mounted.unmount();
        Self { _scratch: scratch, layers, before }
    }

    pub(crate) fn upper(&self, name: &str) -> PathBuf {
        self.layers.upper.as_ref().unwrap().join(name)
    }

    pub(crate) fn work(&self, name: &str) -> PathBuf {
        self.layers.work.as_ref().unwrap().join(name)
    }

    pub(crate) fn union(&self) -> Snapshot {
        let mut mounted = Mounted::new(self.layers.clone());
        let seen = snapshot(mounted.root());
        mounted.unmount();
        seen
    }

    /// Checks that kernel overlayfs shows what the union does.
    #[track_caller]
    fn kernel_agrees(&self, why: &str) {
        if !e2e::user::is_real_root() || e2e::require::Need::KernelOverlay.missing().is_some() {
            return;
        }
        let ours = self.union();
        let mut layers = self.layers.clone();
        layers.extra = ",redirect_dir=on,index=on,metacopy=on".to_owned();
        let mut overlay = KernelOverlay::new(layers);
        let lines = ours.diff(&snapshot(overlay.root()), ("union", "kernel"));
        overlay.unmount();
        assert!(lines.is_empty(), "{why}: {}", lines.join("\n"));
    }

    #[track_caller]
    pub(crate) fn lowers_unchanged(&self, why: &str) {
        for (lower, before) in self.layers.lowers.iter().zip(&self.before) {
            let lines = before.diff(&Snapshot::take(lower).unwrap(), ("before", "after"));
            assert!(lines.is_empty(), "{why}: {}", lines.join("\n"));
        }
    }
}

#[test]
fn a_tree_that_the_union_left_is_clean() {
    require!(Fuse, Union);
    let scene = Scene::new();
    assert_eq!(check(&scene.layers, &[]), (0, String::new()));
    for seed in seeds() {
        let scratch = scratch();
        let changed = changed(seed, scratch.path());
        let (status, text) = check(&changed.layers, &[]);
        assert_eq!((status, faults(&text)), (0, Vec::new()), "seed {seed}: {text}");
    }
}

type Damage = fn(&Scene);

/// Faults by name, how each comes about, and what is told of it.
const DAMAGES: [(&str, Damage, &str); 14] = [
    ("leftover", |s| std::fs::write(s.work("work/#12"), "x").unwrap(), "work/work/#12: left by a crash"),
    (
        "leftover tree",
        |s| std::fs::create_dir_all(s.work("work/#13/a/b")).unwrap(),
        "work/work/#13: left by a crash",
    ),
    (
        "volatile",
        |s| std::fs::create_dir_all(s.work("work/incompat/volatile")).unwrap(),
        "volatile mount did not end",
    ),
    ("no redirect", |s| mark(&s.upper("e"), "redirect", b"nowhere"), "upper/e: its redirect leads nowhere"),
    ("bad redirect", |s| mark(&s.upper("e"), "redirect", b"/a/../b"), "upper/e: its redirect is malformed"),
    ("empty redirect", |s| mark(&s.upper("e"), "redirect", b""), "upper/e: its redirect is malformed"),
    (
        "bad origin",
        |s| mark(&s.upper("f"), "origin", b"xyz"),
        "upper/f: the record of its origin is malformed",
    ),
    ("impure", |s| unmark(&s.upper("keep"), "impure"), ""),
    ("idle whiteout", |s| whiteout(&s.upper("nothing")), "upper/nothing: a whiteout of nothing"),
    ("whiteout inside", |s| whiteout(&s.upper("o/nothing")), "upper/o/nothing: a whiteout of nothing"),
    (
        "reserved",
        |s| std::fs::write(s.upper(".wh..wh.aufs"), "").unwrap(),
        "upper/.wh..wh.aufs: is not shown",
    ),
    (
        "idle .wh.",
        |s| std::fs::write(s.upper(".wh.nothing"), "").unwrap(),
        "upper/.wh.nothing: a whiteout of nothing",
    ),
    ("junk in index", |s| std::fs::write(s.work("index/#99"), "").unwrap(), "work/index/#99: is no entry"),
    (
        "size",
        |s| {
            let file = std::fs::File::options().write(true).open(s.upper("f")).unwrap();
            let time = file.metadata().unwrap().modified().unwrap();
            file.set_len(3).unwrap();
            file.set_modified(time).unwrap();
        },
        "upper/f: shows 3 bytes, and the file below that has its data 9",
    ),
];

#[test]
fn each_fault_is_told_and_repaired_and_nothing_reachable_is_lost() {
    require!(Fuse, Union);
    for (name, damage, line) in DAMAGES {
        let scene = Scene::new();
        let want = scene.union();
        if name == "impure" && !has_impure(&scene) || name == "junk in index" && !scene.work("index").exists()
        {
            continue;
        }
        damage(&scene);
        let (status, text) = check(&scene.layers, &[]);
        assert!(status == 4 && text.contains(line), "{name}: {status}: {text}");
        let (status, text) = check(&scene.layers, &["--repair"]);
        assert!(status == 1 && text.contains("; repaired: "), "{name}: {status}: {text}");
        let (status, text) = check(&scene.layers, &[]);
        assert_eq!((status, faults(&text)), (0, Vec::new()), "{name}: {text}");
        let got = scene.union();
        // What a lost redirect led to is not reachable any more; what the upper has of the directory is.
        if !name.contains("redirect") {
            let lines = want.diff(&got, ("before", "repaired"));
            assert!(lines.is_empty(), "{name}: {}", lines.join("\n"));
        }
        assert_eq!(got.get(b"e/b").map(|node| node.size), Some(1), "{name}");
        scene.kernel_agrees(name);
        scene.lowers_unchanged(name);
    }
}

fn whiteout(path: &Path) {
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        0,
    )
    .unwrap();
}

fn has_impure(scene: &Scene) -> bool {
    let name = format!("{}.overlay.impure", overlay_namespace());
    rustix::fs::lgetxattr(scene.upper("keep"), name.as_str(), &mut [0_u8; 4]).is_ok()
}

#[test]
fn marks_of_images_become_marks_that_the_kernel_reads() {
    require!(Fuse, Union);
    let scratch = scratch();
    let layers = Layers::below(scratch.path(), 1);
    LayerTree::new().file("a", "1").file("d/x", "2").file("g/x", "3").file("h", "4").build(&layers.lowers[0]);
    let upper = layers.upper.clone().unwrap();
    let top = LayerTree::new().file(".wh.a", "").file("d/.wh..wh..opq", "").file("d/n", "5");
    top.file(".wh.g", "").dir("g").file(".wh.h", "").file("h", "6").build(&upper);
    let scene = Scene { _scratch: scratch, before: Vec::new(), layers };
    let want = scene.union();
    assert_eq!(check(&scene.layers, &[]).0, 0);
    let (status, text) = check(&scene.layers, &["--repair"]);
    assert_eq!(status, 1, "{text}");
    assert_eq!(check(&scene.layers, &["--repair"]), (0, String::new()));
    let lines = want.diff(&scene.union(), ("before", "after"));
    assert!(lines.is_empty(), "{}", lines.join("\n"));
    scene.kernel_agrees("converted");
}

#[test]
fn what_cannot_be_repaired_is_left_and_told() {
    require!(Fuse, Union);
    let scene = Scene::new();
    let name = format!("{}.overlay.metacopy", overlay_namespace());
    let is_metacopy = rustix::fs::lgetxattr(scene.upper("f"), name.as_str(), &mut [0_u8; 64]).is_ok();
    if is_metacopy {
        std::fs::rename(scene.layers.lowers[0].join("f"), scene.layers.lowers[0].join("away")).unwrap();
        let (status, text) = check(&scene.layers, &["--repair"]);
        assert!(status == 4 && text.contains("upper/f: holds attributes only"), "{status}: {text}");
    }
    let scene = Scene::new();
    std::fs::create_dir(scene.upper("again")).unwrap();
    mark(&scene.upper("again"), "redirect", b"d");
    let (status, text) = check(&scene.layers, &[]);
    assert!(status == 0 && text.contains("shows the same lower directory as upper/"), "{status}: {text}");
}

#[test]
fn a_wrong_number_of_links_and_a_lost_entry_are_found() {
    require!(Fuse, Union);
    let scene = Scene::new();
    let entries = || std::fs::read_dir(scene.work("index")).into_iter().flatten().flatten();
    let Some(entry) = entries().next() else { return };
    let want = scene.union();
    mark(&entry.path(), "nlink", b"U-1");
    let (status, text) = check(&scene.layers, &["--repair"]);
    assert!(status == 1 && text.contains("less than 2"), "{status}: {text}");
    let lines = want.diff(&scene.union(), ("before", "after"));
    assert!(lines.is_empty(), "{}", lines.join("\n"));
    // Without any name the entry is nobody's.
    std::fs::remove_file(scene.upper("one")).unwrap();
    whiteout(&scene.upper("one"));
    whiteout(&scene.upper("two"));
    let (status, text) = check(&scene.layers, &["--repair"]);
    assert!(status == 1 && text.contains("no name leads to this file"), "{status}: {text}");
    assert_eq!(entries().count(), 0);
}

#[test]
fn a_live_mount_is_refused() {
    require!(Fuse, Union);
    let scene = Scene::new();
    let mut mounted = Mounted::new(scene.layers.clone());
    let (status, text) = check(&scene.layers, &["--repair"]);
    assert!(status == 8 && text.contains("unmount it first"), "{status}: {text}");
    mounted.unmount();
    if e2e::user::is_real_root() && e2e::require::Need::KernelOverlay.missing().is_none() {
        let mut layers = scene.layers.clone();
        layers.extra = ",redirect_dir=on,index=on,metacopy=on".to_owned();
        let mut overlay = KernelOverlay::new(layers);
        let (status, text) = check(&scene.layers, &[]);
        assert!(status == 8 && text.contains("kernel overlayfs"), "{status}: {text}");
        overlay.unmount();
    }
    assert_eq!(check(&scene.layers, &[]).0, 0);
}

/// Damages one random thing in an upper and workdir.
fn damage(random: &mut Random, layers: &Layers) {
    let mut all = Vec::new();
    for base in [&layers.upper, &layers.work].into_iter().flatten() {
        let mut pending = vec![base.clone()];
        while let Some(path) = pending.pop() {
            if std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
                pending.extend(
                    std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()),
                );
            }
            all.push(path);
        }
    }
    all.sort();
    let path = random.pick(&all).clone();
    let marks = ["redirect", "opaque", "metacopy", "origin", "nlink", "impure", "ino", "whiteout"];
    let name = format!("{}.overlay.{}", overlay_namespace(), random.pick(&marks));
    let values: [&[u8]; 9] =
        [b"", b"y", b"x", b"a", b"/a/b", b"/../x", b"U+7", b"L-1", b"\0\xfb\x19\0\x01zzzzzzzzzzzzzzzzzzzz"];
    // Whatever fails leaves the tree as it is, which is a state to be checked as well.
    let _done: bool = match random.below(8) {
        0..3 => {
            rustix::fs::lsetxattr(&path, name.as_str(), random.pick::<&[u8]>(&values), XattrFlags::empty())
                .is_ok()
        }
        3 => rustix::fs::lremovexattr(&path, name.as_str()).is_ok(),
        4 => std::fs::remove_file(&path).is_ok(),
        5 if std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file()) => std::fs::File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(random.below(9000)))
            .is_ok(),
        6 => std::fs::write(
            path.join(OsStr::from_bytes(random.pick::<&[u8]>(&[b".wh.a", b".wh..wh.x", b"\xff"]))),
            "",
        )
        .is_ok(),
        _ => std::fs::rename(&path, path.with_file_name("f")).is_ok(),
    };
}

#[test]
fn random_damage_is_survived_and_lowers_are_not_touched() {
    require!(Fuse, Union);
    for seed in seeds() {
        let scratch = scratch();
        let changed = changed(seed, scratch.path());
        let take = |lowers: &[PathBuf]| -> Vec<Snapshot> {
            lowers.iter().map(|lower| Snapshot::take(lower).unwrap()).collect()
        };
        let before = take(&changed.layers.lowers);
        let mut random = Random::new(seed);
        for round in 0..12 {
            for _ in 0..3 {
                damage(&mut random, &changed.layers);
            }
            let (status, text) = check(&changed.layers, &[]);
            assert!([0, 4, 8].contains(&status), "seed {seed}, round {round}: {status}: {text}");
            let (status, text) = check(&changed.layers, &["--repair"]);
            assert!([0, 1, 4, 8].contains(&status), "seed {seed}, round {round}: {status}: {text}");
            // What could be repaired is.
            let (_, text) = check(&changed.layers, &[]);
            assert!(!text.contains("; repair: "), "seed {seed}, round {round}: {text}");
        }
        for (before, after) in before.iter().zip(take(&changed.layers.lowers)) {
            let lines = before.diff(&after, ("before", "after"));
            assert!(lines.is_empty(), "seed {seed}: {}", lines.join("\n"));
        }
    }
}
