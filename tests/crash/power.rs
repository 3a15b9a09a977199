//! The power goes at a random moment under load: each file holds what it held at some moment since its last fsync, as on
//! a disk without a union; one that was just copied up is the lower's or the new one, never empty, zero or mixed.

use std::fs::{File, OpenOptions};
use std::io::Result;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::random::{Random, data};
use e2e::require;
use e2e::tree::LayerTree;

use crate::disk::Laboratory;
use crate::{checked, names};

/// Small files, which are changed one after the other, so that copy-ups never end.
const SMALL: usize = 1500;
/// Files that are copied up in parts, and their blocks of this size.
const LARGE: usize = 3;
const BLOCKS: usize = 2048;
const BLOCK: usize = 4096;

/// A small file: what has been written to it in turn, each the beginning of all that comes later.
#[derive(Clone, Debug)]
struct Small {
    /// Contents, oldest first: a replaced file begins a new one.
    contents: Vec<Vec<u8>>,
    /// Lengths at the beginning.
    begun: Vec<usize>,
    /// What an fsync has promised: which content, and how much of it.
    synced: (usize, usize),
}

/// What is known of all files.
#[derive(Clone, Debug)]
struct Known {
    small: Vec<Small>,
    /// For each block of each large file the number of the last version begun, and of the last one synced.
    large: Vec<Vec<(u64, u64)>>,
}

fn small_name(index: usize) -> String {
    format!("d{}/f{index}", index % 7)
}

fn large_name(index: usize) -> String {
    format!("d{index}/large")
}

fn block(file: usize, block: usize, version: u64) -> Vec<u8> {
    data(((file as u64) << 40) ^ ((block as u64) << 20) ^ version ^ 0x77_0000_0000_0000, BLOCK)
}

impl Known {
    fn new() -> Self {
        let small = (0..SMALL).map(|index| {
            let content = data(index as u64 + 1, index * 7919 % 60_000 + 1);
            Small { begun: vec![content.len()], synced: (0, content.len()), contents: vec![content] }
        });
        Self { small: small.collect(), large: vec![vec![(0, 0); BLOCKS]; LARGE] }
    }

    fn tree(&self) -> LayerTree {
        let mut tree = LayerTree::new();
        for (index, file) in self.small.iter().enumerate() {
            tree = tree.file(small_name(index), file.contents[0].clone());
        }
        for file in 0..LARGE {
            let content: Vec<u8> = (0..BLOCKS).flat_map(|at| block(file, at, 0)).collect();
            tree = tree.file(large_name(file), content);
        }
        tree
    }

    /// Compares what is there with what may be: nothing older than `self`, taken before the cut, had promised, nothing
    /// that was begun after `later`.
    fn check(&self, later: &Self, root: &Path) -> std::result::Result<(usize, usize), String> {
        let mut new = (0, 0);
        for (index, (before, after)) in self.small.iter().zip(&later.small).enumerate() {
            let name = small_name(index);
            let found = std::fs::read(root.join(&name)).map_err(|error| format!("{name}: {error}"))?;
            let (oldest, length) = before.synced;
            let fits = |at: usize| {
                let least = if at == oldest { length } else { after.begun[at] };
                let content = &after.contents[at];
                found.len() >= least && found.len() <= ends(content) && {
                    let (safe, rest) = found.split_at(least);
                    // What was added without fsync may be zero on ext4: the size goes before the data where the block
                    // was there already, with or without a union.
                    let fits = |(at, byte): (usize, &u8)| *byte == 0 || content.get(least + at) == Some(byte);
                    content.starts_with(safe) && rest.iter().enumerate().all(fits)
                }
            };
            let Some(at) = (oldest..after.contents.len()).find(|&at| fits(at)) else {
                let zeros = found.iter().filter(|&&byte| byte == 0).count();
                return Err(format!("{name}: {} bytes, {zeros} of them 0; {before:?}", found.len()));
            };
            new.0 += usize::from(at > 0 || found.len() > after.begun[0]);
        }
        for file in 0..LARGE {
            let name = large_name(file);
            let found = std::fs::read(root.join(&name)).map_err(|error| format!("{name}: {error}"))?;
            if found.len() != BLOCKS * BLOCK {
                return Err(format!("{name}: {} bytes", found.len()));
            }
            for (at, bytes) in found.chunks(BLOCK).enumerate() {
                let versions = self.large[file][at].1..=later.large[file][at].0;
                let Some(version) = versions.clone().find(|&version| block(file, at, version) == bytes)
                else {
                    let zeros = bytes.iter().filter(|&&byte| byte == 0).count();
                    return Err(format!(
                        "{name}: block {at} is none of the versions {versions:?}; {zeros} bytes are 0"
                    ));
                };
                new.1 += usize::from(version > 0);
            }
        }
        Ok(new)
    }
}

/// Returns how long a file with this content may be: the size on the disk may be that of the whole last block.
fn ends(content: &[u8]) -> usize {
    content.len().next_multiple_of(BLOCK)
}

/// Changes files until told to stop, or a call fails. What will be written is noted before, what was promised after.
fn load(known: &Mutex<Known>, root: &Path, seed: u64, stop: &AtomicBool) -> Result<()> {
    let mut random = Random::new(seed);
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        match random.below(12) {
            0 => change_large(known, root, &mut random)?,
            1 => replace(known, root, (turn * 3) % SMALL, &mut random)?,
            _ => append(known, root, (turn + random.below(3) as usize) % SMALL, &mut random)?,
        }
    }
    Ok(())
}

fn append(known: &Mutex<Known>, root: &Path, index: usize, random: &mut Random) -> Result<()> {
    let path = root.join(small_name(index));
    let more = data(random.draw(), random.below(6000) as usize + 1);
    if random.one_in(6) {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640))?;
    }
    let file = OpenOptions::new().write(true).open(&path)?;
    let (at, offset) = {
        let small = &mut known.lock().unwrap().small[index];
        let at = small.contents.len() - 1;
        let offset = small.contents[at].len();
        small.contents[at].extend_from_slice(&more);
        (at, offset)
    };
    file.write_all_at(&more, offset as u64)?;
    if random.one_in(8) {
        file.sync_all()?;
        known.lock().unwrap().small[index].synced = (at, offset + more.len());
    }
    Ok(())
}

/// Replaces a file by another, as editors and package managers do.
fn replace(known: &Mutex<Known>, root: &Path, index: usize, random: &mut Random) -> Result<()> {
    let path = root.join(small_name(index));
    let content = data(random.draw(), random.below(20_000) as usize + 1);
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, &content)?;
    File::open(&temporary)?.sync_all()?;
    {
        let small = &mut known.lock().unwrap().small[index];
        small.begun.push(content.len());
        small.contents.push(content);
    }
    std::fs::rename(&temporary, &path)
}

fn change_large(known: &Mutex<Known>, root: &Path, random: &mut Random) -> Result<()> {
    let (file, at) = (random.below(LARGE as u64) as usize, random.below(BLOCKS as u64) as usize);
    let version = {
        let begun = &mut known.lock().unwrap().large[file][at].0;
        *begun += 1;
        *begun
    };
    let handle = OpenOptions::new().write(true).open(root.join(large_name(file)))?;
    handle.write_all_at(&block(file, at, version), (at * BLOCK) as u64)?;
    if random.one_in(20) {
        handle.sync_all()?;
        known.lock().unwrap().large[file][at].1 = version;
    }
    Ok(())
}

fn cuts() -> u64 {
    std::env::var("E2E_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

/// What both writers know.
type Logs = (Known, names::Log);

/// Lets both writers work on the mount, cuts the power meanwhile, and returns what they knew before and after.
fn cut_under_load(laboratory: &Laboratory, root: &Path, random: &mut Random) -> (Logs, Logs) {
    let (known, log) = (Mutex::new(Known::new()), Mutex::new(names::Log::default()));
    let stop = AtomicBool::new(false);
    let [turns, other_turns] = [random.draw(), random.draw()];
    let delay = Duration::from_micros(random.below(1_500_000));
    std::thread::scope(|scope| {
        // One thread for each, so that what is noted is in the order in which it is done.
        let writer = scope.spawn(|| load(&known, root, turns, &stop));
        let other = scope.spawn(|| names::load(&log, root, other_turns, &stop));
        std::thread::sleep(delay);
        let now = || (known.lock().unwrap().clone(), log.lock().unwrap().clone());
        let before = now();
        laboratory.cut_power();
        let after = now();
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap().unwrap();
        other.join().unwrap().unwrap();
        (before, after)
    })
}

fn power_cuts(test: &str, kind: &'static str) {
    let scratch = scratch();
    let laboratory = match Laboratory::new(scratch.path(), kind) {
        Ok(laboratory) => laboratory,
        Err(reason) => return e2e::require::skip(test, &reason),
    };
    let mut layers = Layers::below(scratch.path(), 1);
    names::add_to(Known::new().tree()).build(&layers.lowers[0]);
    layers.extra.push_str(",copyup=range:1000000");
    let seed = std::env::var("E2E_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut random = Random::new(seed);
    let (mut new, mut calls, mut repaired) = ((0, 0), 0, 0);
    for cut in 0..cuts() {
        let on = |root: &Path| {
            let [upper, work] = ["upper", "work"].map(|name| root.join(format!("{name}{cut}")));
            [&upper, &work].into_iter().for_each(|directory| std::fs::create_dir_all(directory).unwrap());
            Layers { upper: Some(upper), work: Some(work), ..layers.clone() }
        };
        let mut mounted = Mounted::new(on(&laboratory.disk.root));
        let (before, after) = cut_under_load(&laboratory, &layers.target, &mut random);
        mounted.unmount();
        let snapshot = laboratory.power_on();
        let at = format!("{kind}, seed {seed}, cut {cut}");
        // What a mount finds is sometimes what the cut left, sometimes what the check made of it.
        if cut % 2 == 0 {
            repaired += u64::from(checked(&on(&snapshot.root)).unwrap_or_else(|text| panic!("{at}: {text}")));
        }
        let mut mounted = Mounted::new(on(&snapshot.root));
        // Twice: what was repaired stays repaired.
        for _ in 0..2 {
            let found =
                before.0.check(&after.0, mounted.root()).unwrap_or_else(|text| panic!("{at}: {text}"));
            new = (new.0 + found.0, new.1 + found.1);
            before.1.check(&after.1, mounted.root()).unwrap_or_else(|text| panic!("{at}: {text}"));
            mounted.remount();
        }
        mounted.unmount();
        repaired += u64::from(checked(&on(&snapshot.root)).unwrap_or_else(|text| panic!("{at}: {text}")));
        calls += after.1.len();
        drop(snapshot);
        for name in ["upper", "work"] {
            std::fs::remove_dir_all(laboratory.disk.root.join(format!("{name}{cut}"))).unwrap();
        }
    }
    let (files, blocks) = (new.0 / 2, new.1 / 2);
    e2e::require::say(&format!(
        "{test}: {} cuts, {files} files and {blocks} blocks were new, {calls} changes of names, {repaired} checks repaired",
        cuts()
    ));
}

#[test]
fn a_power_cut_on_ext4_leaves_every_file_old_or_new() {
    require!(Fuse, Union, Root);
    power_cuts("a_power_cut_on_ext4_leaves_every_file_old_or_new", "ext4");
}

#[test]
fn a_power_cut_on_xfs_leaves_every_file_old_or_new() {
    require!(Fuse, Union, Root);
    power_cuts("a_power_cut_on_xfs_leaves_every_file_old_or_new", "xfs");
}

#[test]
fn a_large_file_that_the_disk_has_no_room_for_is_refused_at_its_first_write() {
    require!(Fuse, Union, Root);
    let scratch = scratch();
    let laboratory = match Laboratory::new(scratch.path(), "ext4") {
        Ok(laboratory) => laboratory,
        Err(reason) => return e2e::require::skip("a_large_file_that_the_disk_has_no_room_for", &reason),
    };
    let old = e2e::random::data(1, 40 << 20);
    let disk = &laboratory.disk.root;
    let mut layers = Layers::below(scratch.path(), 1);
    LayerTree::new().file("large", old.clone()).build(&layers.lowers[0]);
    (layers.upper, layers.work) = (Some(disk.join("upper")), Some(disk.join("work")));
    std::fs::create_dir(disk.join("upper")).unwrap();
    std::fs::create_dir(disk.join("work")).unwrap();
    layers.extra.push_str(",copyup=range:1000000");
    let mut mounted = Mounted::new(layers);
    let filler = disk.join("filler");
    let free = rustix::fs::statvfs(disk).unwrap();
    let room = free.f_bfree * free.f_frsize - (20 << 20);
    let file = std::fs::File::create(&filler).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, room).unwrap();
    let write = |root: &Path| {
        let file = OpenOptions::new().write(true).open(root.join("large"))?;
        file.write_all_at(b"new", 1 << 20)
    };
    let refused = write(mounted.root()).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
    mounted.remount();
    assert!(std::fs::read(mounted.root().join("large")).unwrap() == old);
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    write(mounted.root()).unwrap();
    let mut new = old;
    new[1 << 20..(1 << 20) + 3].copy_from_slice(b"new");
    mounted.remount();
    assert!(std::fs::read(mounted.root().join("large")).unwrap() == new);
}

#[test]
fn a_killed_server_leaves_large_files_old_or_new() {
    require!(Fuse, Union);
    let scratch = scratch();
    let mut layers = Layers::below(scratch.path(), 1);
    Known::new().tree().build(&layers.lowers[0]);
    layers.extra.push_str(",copyup=range:1000000");
    let mut random = Random::new(1);
    for kill in 0..crate::kills() / 3 {
        let [upper, work] = ["upper", "work"].map(|name| scratch.path().join(format!("{name}{kill}")));
        [&upper, &work].into_iter().for_each(|directory| std::fs::create_dir(directory).unwrap());
        let layers = Layers { upper: Some(upper), work: Some(work), ..layers.clone() };
        let mut mounted = Mounted::new(layers);
        let known = Mutex::new(Known::new());
        let (turns, delay) = (random.draw(), Duration::from_micros(random.below(300_000)));
        std::thread::scope(|scope| {
            let root = mounted.root().to_owned();
            let known = &known;
            let writer = scope.spawn(move || load(known, &root, turns, &AtomicBool::new(false)));
            std::thread::sleep(delay);
            mounted.kill_server();
            writer.join().unwrap().unwrap_err();
        });
        mounted.clear();
        mounted.mount();
        let known = known.into_inner().unwrap();
        known
            .check(&known, mounted.root())
            .unwrap_or_else(|text| panic!("kill {kill} after {delay:?}: {text}"));
    }
}
