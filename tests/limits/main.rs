//! Bounds: many layers, many objects; memory for each inode and descriptors stay small.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Mutex;

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::require;
use e2e::require::say;
use e2e::tree::LayerTree;

/// Memory of the server for each inode that the kernel holds.
const BYTES_FOR_AN_INODE: u64 = 120;

/// Memory of the server for its caches, which are bounded.
const BYTES_FOR_CACHES: u64 = 24 << 20;

/// Descriptors of the server during a walk.
const DESCRIPTORS: usize = 1000;

/// Files in one directory of the walk.
const IN_ONE_DIRECTORY: usize = 500;

fn files() -> usize {
    std::env::var("E2E_FILES").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000)
}

/// Returns the memory that only this process has, in bytes.
fn own_memory(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Stats everything below `root` from two threads; returns how many objects there are.
fn walk(root: &Path) -> usize {
    let queue = Mutex::new(VecDeque::from([root.to_path_buf()]));
    let count = std::sync::atomic::AtomicUsize::new(0);
    let step = || {
        let mut idle = 0;
        while idle < 100 {
            let Some(directory) = queue.lock().unwrap().pop_front() else {
                idle += 1;
                std::thread::sleep(std::time::Duration::from_millis(2));
                continue;
            };
            idle = 0;
            for entry in std::fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                let meta = entry.metadata().unwrap();
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if meta.is_dir() {
                    queue.lock().unwrap().push_back(entry.path());
                }
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(step);
        scope.spawn(step);
    });
    count.into_inner()
}

#[test]
fn a_walk_over_many_files_keeps_memory_and_descriptors_bounded() {
    require!(Fuse, Union);
    let scratch = scratch();
    let layers = Layers::below(scratch.path(), 2);
    let directories = files().div_ceil(IN_ONE_DIRECTORY);
    for directory in 0..directories {
        let path = layers.lowers[directory % 2].join(format!("d{}/e{directory}", directory % 20));
        std::fs::create_dir_all(&path).unwrap();
        for file in 0..IN_ONE_DIRECTORY {
            drop(std::fs::File::create(path.join(format!("file-number-{file}.txt"))).unwrap());
        }
    }
    let mounted = Mounted::new(layers);
    std::fs::metadata(mounted.root()).unwrap();
    let before = own_memory(mounted.pid());
    let most = std::sync::atomic::AtomicUsize::new(0);
    let done = std::sync::atomic::AtomicBool::new(false);
    let count = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Acquire) {
                most.fetch_max(descriptors(mounted.pid()), std::sync::atomic::Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        });
        let count = walk(mounted.root());
        done.store(true, std::sync::atomic::Ordering::Release);
        count
    });
    let grown = own_memory(mounted.pid()).saturating_sub(before);
    let (each, most) = (grown / count as u64, most.into_inner());
    say(&format!(
        "limits: {count} objects: {each} bytes each ({grown} in all, {before} before), {most} descriptors"
    ));
    let bound = BYTES_FOR_CACHES + count as u64 * BYTES_FOR_AN_INODE;
    assert!(grown < bound, "{grown} bytes for {count} inodes");
    assert!(most < DESCRIPTORS, "{most} descriptors");
}

#[test]
fn five_hundred_lowers_are_one_tree() {
    require!(Fuse, Union);
    const LAYERS: usize = 500;
    let scratch = scratch();
    let layers = Layers::below(scratch.path(), LAYERS);
    for (index, lower) in layers.lowers.iter().enumerate() {
        let tree = LayerTree::new().file(format!("d/own{index}"), format!("{index}"));
        tree.file("shared", format!("{index}")).build(lower);
    }
    let mut mounted = Mounted::new(layers);
    assert_eq!(std::fs::read_dir(mounted.root().join("d")).unwrap().count(), LAYERS);
    for index in 0..LAYERS {
        let bytes = std::fs::read(mounted.root().join(format!("d/own{index}"))).unwrap();
        assert_eq!(bytes, index.to_string().into_bytes());
    }
    assert_eq!(std::fs::read(mounted.root().join("shared")).unwrap(), b"0");
    std::fs::write(mounted.root().join("d/own499"), b"changed").unwrap();
    std::fs::remove_file(mounted.root().join("d/own498")).unwrap();
    std::fs::remove_file(mounted.root().join("shared")).unwrap();
    mounted.remount();
    assert_eq!(std::fs::read(mounted.root().join("d/own499")).unwrap(), b"changed");
    assert_eq!(std::fs::read_dir(mounted.root().join("d")).unwrap().count(), LAYERS - 1);
    assert!(!mounted.root().join("shared").exists());
    assert!(descriptors(mounted.pid()) < DESCRIPTORS + LAYERS);
}

#[test]
fn a_large_directory_is_listed_whole_and_once() {
    require!(Fuse, Union);
    const NAMES: usize = 20_000;
    let scratch = scratch();
    let layers = Layers::below(scratch.path(), 2);
    for index in 0..NAMES {
        let path = layers.lowers[index % 2].join(format!("{index:08}-a-rather-long-name-to-fill-the-buffer"));
        drop(std::fs::File::create(path).unwrap());
    }
    let mounted = Mounted::new(layers);
    let mut names: Vec<_> =
        std::fs::read_dir(mounted.root()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), NAMES);
    let directory = std::fs::File::open(mounted.root()).unwrap();
    let mut removed = 0;
    for entry in std::fs::read_dir(mounted.root()).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
        removed += 1;
        if removed % 3000 == 0 {
            // As when memory is short: the kernel drops the names that it keeps.
            rustix::fs::fadvise(&directory, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
    }
    assert_eq!(removed, NAMES, "names removed while they are listed");
    assert_eq!(std::fs::read_dir(mounted.root()).unwrap().count(), 0);
}
