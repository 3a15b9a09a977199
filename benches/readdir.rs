//! Listing a directory of 1,000 files: names only, and with attributes; cold on a fresh mount, and warm.

mod settings;

use std::path::Path;
use std::process::ExitCode;

use criterion::{BenchmarkId, Criterion};
use perf::suite::{self, Suite};
use perf::{Result, or_exit, tree};
use settings::settings;

const FILES: usize = 1_000;
/// Equal directories; a cold round lists each once.
const DIRECTORIES: u64 = 8;

fn main() -> ExitCode {
    suite::run(|suite| groups(suite, &mut settings()))
}

fn names(dir: &Path) -> std::io::Result<()> {
    std::fs::read_dir(dir)?.try_for_each(|e| e.map(|_| ()))
}

fn attributes(dir: &Path) -> std::io::Result<()> {
    std::fs::read_dir(dir)?.try_for_each(|e| e?.metadata().map(|_| ()))
}

fn groups(suite: &Suite, criterion: &mut Criterion) -> Result<()> {
    let lower = suite.lower(&suite.places.memory, |dir| {
        (0..DIRECTORIES).try_for_each(|d| tree::flat(&dir.join(format!("d{d}")), FILES, 64))
    })?;
    type List = fn(&Path) -> std::io::Result<()>;
    for (title, list) in [("readdir_1000", names as List), ("readdir_1000_stat", attributes as List)] {
        let mut group = criterion.benchmark_group(title);
        for subject in &suite.subjects {
            group.bench_function(BenchmarkId::new(format!("{subject}"), "cold"), |b| {
                b.iter_custom(|n| {
                    or_exit(lower.consume_reading(subject, n, DIRECTORIES, |root, i| {
                        list(&root.join(format!("d{}", i % DIRECTORIES)))
                    }))
                });
            });
            let mounted = lower.mount_for_reading(subject)?;
            let dir = mounted.path().join("d0");
            group.bench_function(BenchmarkId::new(format!("{subject}"), "warm"), |b| {
                b.iter(|| list(&dir).is_ok())
            });
            mounted.unmount()?;
        }
        group.finish();
    }
    Ok(())
}
