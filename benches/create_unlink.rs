//! Creating a file of 1 KiB (create, write, close), unlinking a new file, and unlinking a lower file.

mod settings;

use std::process::ExitCode;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion};
use perf::suite::{self, Suite};
use perf::{Result, or_exit, tree};
use settings::settings;

const FILES: u64 = 2_000;

fn main() -> ExitCode {
    suite::run(|suite| groups(suite, &mut settings()))
}

fn groups(suite: &Suite, criterion: &mut Criterion) -> Result<()> {
    let lower = suite.lower(&suite.places.memory, |dir| tree::flat(dir, FILES as usize, 1024))?;
    let data = [b'x'; 1024];
    let mut group = criterion.benchmark_group("create_unlink");
    for subject in &suite.subjects {
        group.bench_function(BenchmarkId::new(format!("{subject}"), "create"), |b| {
            b.iter_custom(|n| {
                or_exit(lower.consume(subject, n, FILES, |root, i| {
                    std::fs::write(root.join(format!("new-{i}")), data)
                }))
            });
        });
        group.bench_function(BenchmarkId::new(format!("{subject}"), "unlink_upper"), |b| {
            b.iter_custom(|n| {
                let mounted = or_exit(lower.mount(subject));
                let paths: Vec<_> = (0..n).map(|i| mounted.path().join(format!("new-{i}"))).collect();
                let made = paths.iter().filter(|p| std::fs::write(p, data).is_ok()).count();
                let start = Instant::now();
                let gone = paths.iter().filter(|p| std::fs::remove_file(p).is_ok()).count();
                let elapsed = start.elapsed();
                assert_eq!((made, gone), (paths.len(), paths.len()), "create and unlink on {subject}");
                or_exit(mounted.unmount());
                elapsed
            });
        });
        group.bench_function(BenchmarkId::new(format!("{subject}"), "unlink_lower"), |b| {
            b.iter_custom(|n| {
                or_exit(lower.consume(subject, n, FILES, |root, i| {
                    std::fs::remove_file(root.join(format!("file-{i:05}.txt")))
                }))
            });
        });
    }
    group.finish();
    Ok(())
}
