//! Reading and writing a file of 64 MiB in blocks of 1 MiB and of 4 KiB. A write ends with close.

mod settings;

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

use criterion::{BenchmarkId, Criterion, Throughput};
use perf::suite::{self, Suite};
use perf::{Result, or_exit, tree};
use settings::settings;

const SIZE: u64 = 64 << 20;

fn main() -> ExitCode {
    suite::run(|suite| groups(suite, &mut settings()))
}

fn read(path: &Path, block: usize) -> std::io::Result<()> {
    let mut buffer = vec![0; block];
    let mut file = File::open(path)?;
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

fn write(path: &Path, block: usize) -> std::io::Result<()> {
    let data = vec![7; block];
    let mut file = File::create(path)?;
    (0..SIZE / block as u64).try_for_each(|_| file.write_all(&data))
}

fn groups(suite: &Suite, criterion: &mut Criterion) -> Result<()> {
    let lower = suite.lower(&suite.places.memory, |dir| tree::big(&dir.join("big"), SIZE))?;
    for (name, block) in [("1_MiB", 1 << 20), ("4_KiB", 4096)] {
        let mut group = criterion.benchmark_group(format!("sequential_{name}"));
        group.throughput(Throughput::Bytes(SIZE));
        for subject in &suite.subjects {
            group.bench_function(BenchmarkId::new(format!("{subject}"), "read_cold"), |b| {
                b.iter_custom(|n| {
                    or_exit(lower.consume_reading(subject, n, 1, |root, _| read(&root.join("big"), block)))
                });
            });
            let mounted = lower.mount_for_reading(subject)?;
            let big = mounted.path().join("big");
            group.bench_function(BenchmarkId::new(format!("{subject}"), "read_warm"), |b| {
                b.iter(|| read(&big, block).is_ok());
            });
            mounted.unmount()?;
            group.bench_function(BenchmarkId::new(format!("{subject}"), "write"), |b| {
                b.iter_custom(|n| {
                    or_exit(lower.consume(subject, n, 1, |root, _| write(&root.join("new"), block)))
                });
            });
        }
        group.finish();
    }
    Ok(())
}
