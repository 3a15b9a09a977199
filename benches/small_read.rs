//! Open, read to the end and close a file of 4 KiB: the first time on a mount, and again.

mod settings;

use std::path::Path;
use std::process::ExitCode;

use criterion::{BenchmarkId, Criterion};
use perf::suite::{self, Suite};
use perf::{Result, or_exit, tree};
use settings::settings;

const FILES: u64 = 2_000;
const SIZE: u64 = 4096;

fn main() -> ExitCode {
    suite::run(|suite| groups(suite, &mut settings()))
}

fn read(root: &Path, i: u64) -> std::io::Result<()> {
    std::fs::read(root.join(format!("file-{:05}.txt", i % FILES))).map(|_| ())
}

fn groups(suite: &Suite, criterion: &mut Criterion) -> Result<()> {
    let lower = suite.lower(&suite.places.memory, |dir| tree::flat(dir, FILES as usize, SIZE))?;
    let mut group = criterion.benchmark_group("small_read");
    for subject in &suite.subjects {
        group.bench_function(BenchmarkId::new(format!("{subject}"), "cold"), |b| {
            b.iter_custom(|n| or_exit(lower.consume_reading(subject, n, FILES, read)));
        });
        let mounted = lower.mount_for_reading(subject)?;
        let mut i = 0;
        (0..FILES)
            .try_for_each(|i| read(mounted.path(), i))
            .map_err(|e| perf::Failure::new(format!("{e}")))?;
        group.bench_function(BenchmarkId::new(format!("{subject}"), "warm"), |b| {
            b.iter(|| {
                i += 1;
                read(mounted.path(), i).is_ok()
            });
        });
        mounted.unmount()?;
    }
    group.finish();
    Ok(())
}
