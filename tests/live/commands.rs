//! What each command answers, and what each mistake.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::mounted::{Layers, Mounted, scratch, union_program};
use e2e::require;
use e2e::tree::LayerTree;
use e2e::user::is_real_root;

fn mount(base: &Path) -> Mounted {
    let layers = Layers::below(base, 1);
    LayerTree::new().file("f", "low").file("d/g", "low").hardlink(b"h", b"f").build(&layers.lowers[0]);
    Mounted::new(layers)
}

fn words(line: &str) -> Vec<&OsStr> {
    line.split(' ').map(OsStr::new).collect()
}

fn rotation<'a>(upper: &'a Path, work: &'a Path) -> [&'a OsStr; 5] {
    ["rotate".as_ref(), "--upper".as_ref(), upper.as_os_str(), "--work".as_ref(), work.as_os_str()]
}

fn made(path: PathBuf) -> PathBuf {
    fs::create_dir_all(&path).unwrap();
    path
}

#[test]
fn a_program_that_only_creates_files_is_asked_for_no_closing() {
    require!(Fuse, Union);
    for transport in ["auto", "dev"] {
        let scratch = scratch();
        let mut layers = Layers::below(scratch.path(), 1);
        layers.extra = format!(",transport={transport}");
        let mut mounted = Mounted::new(layers);
        let directory = made(mounted.root().join("d"));
        // The first is in the root: the directory is locked while a file is made in it.
        for name in ["new", "d/0", "d/1", "d/2"] {
            drop(fs::File::create(mounted.root().join(name)).unwrap());
        }
        let stats = mounted.ctl(&words("stats")).unwrap();
        let asked = |name: &str| {
            let line = stats.lines().find_map(|line| line.strip_prefix(&format!("request {name} ")));
            line.map_or(0, |count| count.parse::<u32>().unwrap())
        };
        assert_eq!((asked("Create"), asked("Open"), asked("Release")), (4, 1, 0), "{transport}: {stats}");
        assert!(asked("Flush") <= 2, "{transport}: {stats}");
        assert_eq!(fs::read_dir(directory).unwrap().count(), 3);
        // Nothing of ours keeps the mount.
        drop(fs::File::create(mounted.root().join("last")).unwrap());
        mounted.unmount();
    }
}

#[test]
fn stats_and_layers_tell_what_was_done_and_with_what() {
    require!(Fuse, Union);
    let scratch = scratch();
    let mounted = mount(scratch.path());
    fs::write(mounted.root().join("f"), "changed").unwrap();
    fs::remove_file(mounted.root().join("d/g")).unwrap();
    let stats = mounted.ctl(&words("stats")).unwrap();
    let value = |name: &str| -> u64 {
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {stats}")).parse().unwrap()
    };
    assert!(value("requests") > 3 && value("request Lookup") > 0, "{stats}");
    assert_eq!((value("failures"), value("whiteouts")), (0, 1));
    assert!(value("copied_up") >= 2 && value("nodes") >= 2, "{stats}");
    let json: serde_json::Value =
        serde_json::from_str(&mounted.ctl(&words("stats --json")).unwrap()).unwrap();
    assert!(json["by_request"]["Lookup"].as_u64().unwrap() > 0, "{json}");
    assert_eq!(json["whiteouts"], 1);
    let layers = mounted.ctl(&words("layers")).unwrap();
    let lines: Vec<&str> = layers.lines().collect();
    let device = fs::metadata(mounted.layers().upper.as_ref().unwrap()).unwrap().dev();
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    assert_eq!(lines[0], format!("upper {device} {}", mounted.layers().upper.as_ref().unwrap().display()));
    assert_eq!(lines[1], format!("lower {device} {}", mounted.layers().lowers[0].display()));
    assert!(lines[2].starts_with("upper: whiteouts: "), "{layers}");
    assert!(lines[3].starts_with("transport: ") && lines[4].starts_with("data: "), "{layers}");
    assert_eq!(mounted.ctl(&words("flush")).unwrap(), "");
}

#[test]
fn what_is_open_while_the_upper_is_rotated_goes_on() {
    require!(Fuse, Union);
    let scratch = scratch();
    let mut mounted = mount(scratch.path());
    let root = mounted.root().to_path_buf();
    let open = |name: &str| {
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(root.join(name))
            .unwrap()
    };
    let (lower, new, gone) = (open("f"), open("new"), open("gone"));
    new.write_all_at(b"before", 0).unwrap();
    gone.write_all_at(b"private", 0).unwrap();
    fs::remove_file(root.join("gone")).unwrap();
    fs::hard_link(root.join("new"), root.join("d/link")).unwrap();
    // Its name goes, and another one that nobody has looked up by this name stays.
    let linked = open("linked");
    fs::hard_link(root.join("linked"), root.join("d/other")).unwrap();
    let numbers: Vec<u64> = ["f", "new", "d", "d/g", "h"]
        .iter()
        .map(|name| fs::metadata(root.join(name)).unwrap().ino())
        .collect();
    for round in 0..3 {
        mounted.rotate();
        let text = format!("round {round}");
        lower.write_all_at(text.as_bytes(), 0).unwrap();
        new.write_all_at(text.as_bytes(), 0).unwrap();
        gone.write_all_at(text.as_bytes(), 0).unwrap();
        linked.write_all_at(text.as_bytes(), 0).unwrap();
        for name in ["f", "h", "new", "d/link", "linked", "d/other"] {
            assert_eq!(fs::read_to_string(root.join(name)).unwrap(), text, "{name}");
        }
        let mut seen = [0; 7];
        gone.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!((&seen, gone.metadata().unwrap().nlink()), (text.as_bytes().first_chunk().unwrap(), 0));
        assert_eq!(new.metadata().unwrap().nlink(), 2);
    }
    drop((lower, new, gone, linked));
    mounted.remount();
    let again: Vec<u64> = ["f", "new", "d", "d/g", "h"]
        .iter()
        .map(|name| fs::metadata(root.join(name)).unwrap().ino())
        .collect();
    assert_eq!(numbers, again, "inode numbers");
}

#[test]
fn an_upper_that_cannot_take_over_changes_nothing() {
    require!(Fuse, Union);
    let scratch = scratch();
    let mut mounted = mount(scratch.path());
    let layers = mounted.layers().clone();
    let (upper, work) = (layers.upper.clone().unwrap(), layers.work.clone().unwrap());
    let [new, new_work, full] = ["new", "new-work", "full"].map(|name| made(scratch.path().join(name)));
    fs::write(full.join("x"), "").unwrap();
    let elsewhere = Path::new("/proc");
    let inside = made(upper.join("inside"));
    let file = layers.lowers[0].join("f");
    let cases: [(&Path, &Path, &str); 9] = [
        (&upper, &new_work, "the upper layer already"),
        (&full, &new_work, "must be empty"),
        (&new, &full, "must be empty"),
        (&new, &work, "not in or around"),
        (&inside, &new_work, "not in or around"),
        (&new, &new, "separate directories"),
        (scratch.path(), &new_work, "separate directories"),
        (&file, &new_work, "Not a directory"),
        (elsewhere, &new_work, "file system of the present one"),
    ];
    for (upper, work, want) in cases {
        let error = mounted.ctl(&rotation(upper, work)).unwrap_err();
        assert!(
            error.contains(want) && error.starts_with("unionfs: ") && error.lines().count() == 1,
            "{error}"
        );
    }
    fs::remove_dir(inside).unwrap();
    assert!(mounted.ctl(&words("layers")).unwrap().starts_with("upper "));
    assert_eq!(fs::read_to_string(mounted.root().join("f")).unwrap(), "low");
    mounted.rotate();
    mounted.unmount();
}

#[test]
fn mounts_that_cannot_be_rotated_say_why() {
    require!(Fuse, Union);
    for (extra, want) in [
        (",ro", "Read-only"),
        (",index=off", "index=on"),
        (",sidecar=on", "attributes are in its workdir"),
        (",whiteouts=xattr", "whiteouts by attribute"),
    ] {
        let scratch = scratch();
        let mut layers = Layers::below(scratch.path(), 1);
        LayerTree::new().file("f", "low").build(&layers.lowers[0]);
        layers.extra.push_str(extra);
        let mounted = Mounted::new(layers);
        let [new, work] = ["new", "new-work"].map(|name| made(scratch.path().join(name)));
        let error = mounted.ctl(&rotation(&new, &work)).unwrap_err();
        assert!(error.contains(want), "{error}");
        assert_eq!(fs::read_dir(&new).unwrap().count(), 0);
    }
}

#[test]
fn hard_links_that_would_fall_apart_are_not_rotated() {
    require!(Fuse, Union);
    let scratch = scratch();
    let mut layers = Layers::below(scratch.path(), 1);
    if is_real_root() {
        layers.extra.push_str(",userxattr");
    }
    LayerTree::new().file("d/f", "low").build(&layers.lowers[0]);
    let mounted = Mounted::new(layers);
    let link = mounted.root().join("d/link");
    std::os::unix::fs::symlink("f", &link).unwrap();
    fs::hard_link(&link, mounted.root().join("second")).unwrap();
    let [new, work] = ["new", "new-work"].map(|name| made(scratch.path().join(name)));
    let error = mounted.ctl(&rotation(&new, &work)).unwrap_err();
    assert!(error.contains("would fall apart"), "{error}");
    assert_eq!(fs::read_dir(&new).unwrap().count(), 0);
    assert_eq!(fs::symlink_metadata(&link).unwrap().nlink(), 2);
    fs::remove_file(link).unwrap();
    mounted.ctl(&rotation(&new, &work)).unwrap();
    assert_eq!(fs::read_to_string(mounted.root().join("d/f")).unwrap(), "low");
}

#[test]
fn what_is_no_mount_of_ours_is_told() {
    require!(Fuse, Union);
    let scratch = scratch();
    let run = |path: &Path| {
        let output = Command::new(union_program()).arg("ctl").arg(path).arg("stats").output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(run(scratch.path()).contains("no mount of unionfs"));
    assert!(run(&scratch.path().join("none")).contains("No such file"));
    let mut mounted = mount(scratch.path());
    mounted.kill_server();
    let killed = run(mounted.root());
    assert!(killed.contains("no server listens") && killed.lines().count() == 1, "{killed}");
    mounted.clear();
    // The next server takes the place of the killed one.
    mounted.mount();
    mounted.ctl(&words("stats")).unwrap();
    let error = mounted.ctl(&words("dance")).unwrap_err();
    assert!(error.contains("unknown command"), "{error}");
}

#[test]
fn another_user_may_not_ask() {
    require!(Fuse, Union, Root, Tester);
    let scratch = scratch();
    let mounted = mount(scratch.path());
    let program = e2e::user::copy_program(&union_program(), scratch.path());
    let as_tester = Command::new("setpriv")
        .args(["--reuid=tester", "--regid=tester", "--init-groups", "--"])
        .arg(&program)
        .arg("ctl")
        .arg(mounted.root())
        .arg("stats")
        .output()
        .unwrap();
    let error = String::from_utf8(as_tester.stderr).unwrap();
    assert!(!as_tester.status.success() && error.contains("belongs to another user"), "{error}");
}
