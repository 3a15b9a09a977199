//! Uppers whose attributes are in the workdir: the commands know them.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use e2e::mounted::scratch;
use e2e::require;

use crate::check::{Scene, check, faults};
use crate::{changed_with, options_text, seeds, snapshot, succeed, text, tool};

fn record(scene: &Scene, path: &Path) -> PathBuf {
    let ino = std::fs::symlink_metadata(path).unwrap().ino();
    scene.work(&format!("sidecar/{ino:x}"))
}

/// Returns the files of the sidecar and what is in them.
fn records(scene: &Scene) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(scene.work("sidecar")).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect()
}

#[test]
fn what_differs_is_told_and_merged_with_the_attributes_in_the_workdir() {
    require!(Fuse, Union);
    let list = |scene: &Scene| succeed(&["diff", "-o", &options_text(&scene.layers.options())]);
    let (native, beside) = (Scene::new(), Scene::with(",sidecar=on"));
    assert_eq!(list(&native).escape_ascii().to_string(), list(&beside).escape_ascii().to_string());
    for seed in seeds() {
        let scratch = scratch();
        let changed = changed_with(seed, scratch.path(), ",sidecar=on");
        let options = options_text(&changed.layers.options());
        let into = scratch.path().join("whole");
        succeed(&["merge", "-o", &options, "--into", &text(&into)]);
        let lines = changed.after.diff(&snapshot(&into), ("union", "merged"));
        assert!(lines.is_empty(), "seed {seed}: {}", lines.join("\n"));
        let (status, text) = check(&changed.layers, &[]);
        assert_eq!((status, faults(&text)), (0, Vec::new()), "seed {seed}: {text}");
    }
}

type Damage = fn(&Scene);

/// Faults by name, how each comes about, what is told, and whether it can be repaired.
const DAMAGES: [(&str, Damage, &str, bool); 6] = [
    ("foreign", |s| std::fs::write(s.work("sidecar/x"), "").unwrap(), "work/sidecar/x: is no record", true),
    (
        "half a record",
        |s| std::fs::write(s.work("sidecar/12.new"), "").unwrap(),
        "work/sidecar/12.new: left by a crash",
        true,
    ),
    (
        "an object that is gone",
        |s| {
            let kept = record(s, &s.upper("f"));
            std::fs::remove_file(s.upper("f")).unwrap();
            std::fs::copy(&kept, s.work("sidecar/fffffff1")).unwrap();
        },
        "work/sidecar/fffffff1: speaks of nothing that is there",
        true,
    ),
    (
        "a damaged record of an object that is gone",
        |s| std::fs::write(s.work("sidecar/fffffff1"), "damage").unwrap(),
        "work/sidecar/fffffff1: speaks of nothing that is there",
        true,
    ),
    (
        "a damaged record",
        |s| {
            let record = record(s, &s.upper("o"));
            let bytes = std::fs::read(&record).unwrap();
            std::fs::write(&record, &bytes[..bytes.len() - 1]).unwrap();
            // What is below it is not judged: nobody knows what it is merged with.
            let whiteout = rustix::fs::FileType::CharacterDevice;
            let at = s.upper("o/nothing");
            rustix::fs::mknodat(rustix::fs::CWD, at, whiteout, rustix::fs::Mode::empty(), 0).unwrap();
        },
        "upper/o: the record of its attributes is damaged; no repair",
        false,
    ),
    (
        "a damaged redirect",
        |s| {
            let kept = std::fs::read(record(s, &s.upper("e"))).unwrap();
            std::fs::write(record(s, &s.upper("e")), &kept[..20]).unwrap();
        },
        "upper/e: the record of its attributes is damaged; no repair",
        false,
    ),
];

#[test]
fn faults_of_the_sidecar_are_told_and_what_speaks_of_nothing_is_removed() {
    require!(Fuse, Union);
    for (name, damage, line, repairable) in DAMAGES {
        let scene = Scene::with(",sidecar=on");
        let gone = record(&scene, &scene.upper("f"));
        let before = records(&scene);
        damage(&scene);
        let damaged = records(&scene);
        let (status, text) = check(&scene.layers, &[]);
        assert!(status == 4 && text.contains(line), "{name}: {status}: {text}");
        assert!(records(&scene) == damaged, "{name}");
        let (status, text) = check(&scene.layers, &["--repair"]);
        if repairable {
            assert!(status == 1 && text.contains("; repaired: removed"), "{name}: {status}: {text}");
            assert_eq!(check(&scene.layers, &[]), (0, String::new()), "{name}");
            // Records of what is there are as they were.
            let mut kept = records(&scene);
            if !scene.upper("f").exists() {
                kept.extend(before.get(&gone).map(|bytes| (gone.clone(), bytes.clone())));
            }
            assert!(kept == before, "{name}");
            drop(scene.union());
        } else {
            assert_eq!(status, 4, "{name}: {text}");
            assert!(records(&scene) == damaged, "{name}: nothing that an object needs is removed");
            assert!(!text.contains("; repaired"), "{name}: {text}");
        }
        scene.lowers_unchanged(name);
    }
}

#[test]
fn the_sidecar_of_another_upper_is_told() {
    require!(Fuse, Union);
    let scene = Scene::with(",sidecar=on");
    let copy = scene.layers.work.as_ref().unwrap().with_file_name("copy");
    let copied = std::process::Command::new("cp").arg("-a").arg(scene.upper("")).arg(&copy).status();
    assert!(copied.unwrap().success());
    std::fs::remove_dir_all(scene.layers.upper.as_ref().unwrap()).unwrap();
    std::fs::rename(&copy, scene.layers.upper.as_ref().unwrap()).unwrap();
    let before = records(&scene);
    for flags in [&[][..], &["--repair"]] {
        let (status, text) = check(&scene.layers, flags);
        assert!(
            status == 4 && text.contains("work/sidecar: holds the attributes of another upper"),
            "{text}"
        );
        assert!(records(&scene) == before);
    }
    let options = options_text(&scene.layers.options());
    for command in ["diff", "merge"] {
        let into = text(&copy.with_file_name("into"));
        let mut words = vec![command, "-o", &options];
        if command == "merge" {
            words.extend(["--into", &into]);
        }
        let refused = tool(&words);
        assert!(!refused.status.success() && refused.stderr.escape_ascii().to_string().contains("sidecar"));
    }
}
