//! One `lstat`: of a name never seen by this mount (cold), known (warm), and absent (negative).

mod settings;

use std::process::ExitCode;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion};
use perf::suite::{self, Suite};
use perf::{During, Result, or_exit, tree};
use settings::settings;

/// Files of the directory; a cold round uses each once.
const FILES: u64 = 4_000;

fn main() -> ExitCode {
    suite::run(|suite| groups(suite, &mut settings()))
}

fn name(i: u64) -> String {
    format!("file-{:05}.txt", i % FILES)
}

fn groups(suite: &Suite, criterion: &mut Criterion) -> Result<()> {
    let lower = suite.lower(&suite.places.memory, |dir| tree::flat(dir, FILES as usize, 512))?;
    let mut group = criterion.benchmark_group("lookup");
    for subject in &suite.subjects {
        group.bench_function(BenchmarkId::new(format!("{subject}"), "cold"), |b| {
            b.iter_custom(|n| {
                or_exit(lower.consume_reading(subject, n, FILES, |root, i| {
                    Ok(rustix::fs::lstat(root.join(name(i))).map(|_| ())?)
                }))
            });
        });
        let mounted = lower.mount_for_reading(subject)?;
        let known = mounted.path().join(name(7));
        let absent = mounted.path().join("absent");
        rustix::fs::lstat(&known).during("stat a known name")?;
        group.bench_function(BenchmarkId::new(format!("{subject}"), "warm"), |b| {
            b.iter(|| rustix::fs::lstat(&known).is_ok());
        });
        group.bench_function(BenchmarkId::new(format!("{subject}"), "negative"), |b| {
            b.iter(|| rustix::fs::lstat(&absent).is_err());
        });
        // The kernel remembers absent names too: each is asked for once.
        let mut asked = 0;
        group.bench_function(BenchmarkId::new(format!("{subject}"), "negative_cold"), |b| {
            b.iter_custom(|n| {
                let names: Vec<_> =
                    (asked..asked + n).map(|i| mounted.path().join(format!("absent-{i}"))).collect();
                asked += n;
                let start = Instant::now();
                let found = names.iter().filter(|p| rustix::fs::lstat(p.as_path()).is_ok()).count();
                let elapsed = start.elapsed();
                assert_eq!(found, 0, "an absent name was found");
                elapsed
            });
        });
        mounted.unmount()?;
    }
    group.finish();
    Ok(())
}
