//! The loads that no standard program makes: the program `perf-load` runs one and prints `elapsed_ns N`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

use crate::failure::{During, Result};
use crate::tree::{Random, read_list};

/// One load on a mounted tree.
#[derive(Debug, Parser)]
#[command(name = "perf-load")]
pub struct LoadArgs {
    #[command(subcommand)]
    load: Load,
}

#[derive(Debug, Subcommand)]
enum Load {
    /// lstat every path of a list.
    Stat { root: PathBuf, list: PathBuf, clients: usize },
    /// Open, read to the end and close every file of a list.
    Read { root: PathBuf, list: PathBuf, clients: usize },
    /// Open every file of a list for appending, add one byte, close.
    Append { root: PathBuf, list: PathBuf },
    /// Create, write and close `count` files of `size` bytes, then unlink them all.
    CreateUnlink { dir: PathBuf, count: usize, size: usize },
    /// Read a file from start to end in blocks.
    SeqRead { file: PathBuf, block: usize },
    /// Write a new file of `mib` MiB in blocks, and close it.
    SeqWrite { file: PathBuf, block: usize, mib: u64 },
    /// Read `count` blocks at random places.
    RandRead { file: PathBuf, block: usize, count: usize },
    /// Overwrite `count` blocks at random places of the first `mib` MiB.
    RandWrite { file: PathBuf, block: usize, count: usize, mib: u64 },
    /// Append 4 KiB and fsync, `count` times.
    Fsync { file: PathBuf, count: usize },
    /// Rename a directory by one rename(2).
    Rename { from: PathBuf, to: PathBuf },
}

/// Runs the load and prints how long it took.
pub fn run(arguments: &LoadArgs) -> Result<()> {
    let elapsed = match &arguments.load {
        Load::Stat { root, list, clients } => storm(root, list, *clients, &|path, _| {
            // Not std's: that asks for the birth time as well, which programs in C do not.
            rustix::fs::lstat(path).during(format_args!("stat {}", path.display())).map(|_| ())
        }),
        Load::Read { root, list, clients } => storm(root, list, *clients, &|path, buffer| {
            let mut file = File::open(path).during(format_args!("open {}", path.display()))?;
            while file.read(buffer).during(format_args!("read {}", path.display()))? > 0 {}
            Ok(())
        }),
        Load::Append { root, list } => storm(root, list, 1, &|path, _| {
            let mut file = OpenOptions::new().append(true).open(path);
            let file = file.as_mut().map_err(|e| &*e).during(format_args!("open {}", path.display()))?;
            file.write_all(b"x").during(format_args!("append to {}", path.display()))
        }),
        Load::CreateUnlink { dir, count, size } => create_unlink(dir, *count, *size),
        Load::SeqRead { file, block } => seq_read(file, *block),
        Load::SeqWrite { file, block, mib } => seq_write(file, *block, *mib),
        Load::RandRead { file, block, count } => rand_read(file, *block, *count),
        Load::RandWrite { file, block, count, mib } => rand_write(file, *block, *count, *mib),
        Load::Fsync { file, count } => fsync(file, *count),
        Load::Rename { from, to } => timed(|| std::fs::rename(from, to).during("rename")),
    }?;
    println!("elapsed_ns {}", elapsed.as_nanos());
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

type Each<'a> = &'a (dyn Fn(&Path, &mut [u8]) -> Result<()> + Sync);

/// Does `each` with every path, the list dealt out to `clients` threads.
fn storm(root: &Path, list: &Path, clients: usize, each: Each<'_>) -> Result<Duration> {
    let paths = read_list(list)?;
    std::env::set_current_dir(root).during(format_args!("enter {}", root.display()))?;
    let paths = &paths;
    timed(|| {
        std::thread::scope(|scope| {
            let work = |client: usize| {
                let mut buffer = vec![0; 128 << 10];
                paths.iter().skip(client).step_by(clients.max(1)).try_for_each(|path| each(path, &mut buffer))
            };
            if clients <= 1 {
                return work(0);
            }
            let threads: Vec<_> = (0..clients).map(|c| scope.spawn(move || work(c))).collect();
            threads.into_iter().try_for_each(|t| t.join().unwrap_or(Ok(())))
        })
    })
}

fn create_unlink(dir: &Path, count: usize, size: usize) -> Result<Duration> {
    let data = Random::new(size as u64).text(size);
    std::fs::create_dir_all(dir).during(format_args!("make {}", dir.display()))?;
    let paths: Vec<PathBuf> = (0..count).map(|i| dir.join(format!("new-{i:06}"))).collect();
    timed(|| {
        for path in &paths {
            std::fs::write(path, &data).during(format_args!("create {}", path.display()))?;
        }
        paths.iter().try_for_each(|p| std::fs::remove_file(p).during(format_args!("unlink {}", p.display())))
    })
}

fn seq_read(path: &Path, block: usize) -> Result<Duration> {
    let mut buffer = vec![0; block];
    timed(|| {
        let mut file = File::open(path).during(format_args!("open {}", path.display()))?;
        while file.read(&mut buffer).during(format_args!("read {}", path.display()))? > 0 {}
        Ok(())
    })
}

fn seq_write(path: &Path, block: usize, mib: u64) -> Result<Duration> {
    let data = Random::new(1).text(block);
    let count = (mib << 20) / block.max(1) as u64;
    timed(|| {
        let mut file = File::create(path).during(format_args!("create {}", path.display()))?;
        (0..count).try_for_each(|_| file.write_all(&data)).during(format_args!("write {}", path.display()))
    })
}

fn rand_read(path: &Path, block: usize, count: usize) -> Result<Duration> {
    let mut random = Random::new(11);
    let mut buffer = vec![0; block];
    let file = File::open(path).during(format_args!("open {}", path.display()))?;
    let blocks = file.metadata().during("stat a file")?.len() / block.max(1) as u64;
    timed(|| {
        (0..count)
            .try_for_each(|_| file.read_exact_at(&mut buffer, random.below(blocks) * block as u64))
            .during(format_args!("read {}", path.display()))
    })
}

fn rand_write(path: &Path, block: usize, count: usize, mib: u64) -> Result<Duration> {
    let mut random = Random::new(13);
    let data = random.text(block);
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let file = file.during(format_args!("open {}", path.display()))?;
    let blocks = (mib << 20) / block.max(1) as u64;
    timed(|| {
        (0..count)
            .try_for_each(|_| file.write_all_at(&data, random.below(blocks) * block as u64))
            .during(format_args!("write {}", path.display()))?;
        drop(file);
        Ok(())
    })
}

fn fsync(path: &Path, count: usize) -> Result<Duration> {
    let data = Random::new(17).text(4096);
    let mut file = File::create(path).during(format_args!("create {}", path.display()))?;
    timed(|| {
        for _ in 0..count {
            file.write_all(&data).during(format_args!("write {}", path.display()))?;
            file.sync_data().during(format_args!("sync {}", path.display()))?;
        }
        Ok(())
    })
}
