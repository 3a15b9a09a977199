//! The first change of a lower file, by its size: one byte written (whole, sparse, on a file system that shares
//! blocks), and metadata alone. `native` does the same call on a plain file, which copies nothing.

mod settings;

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode};
use perf::suite::{self, Suite};
use perf::{Result, or_exit, tree};
use settings::settings;

/// Name, size, and how many such files one mount offers.
const SIZES: [(&str, u64, u64); 5] = [
    ("1_KiB", 1 << 10, 256),
    ("64_KiB", 64 << 10, 256),
    ("1_MiB", 1 << 20, 64),
    ("64_MiB", 64 << 20, 4),
    ("1_GiB", 1 << 30, 1),
];

fn main() -> ExitCode {
    suite::run(|suite| {
        let mut criterion = settings();
        let memory = &suite.places.memory;
        group(suite, &mut criterion, memory, "copy_up_whole", tree::big, first_write)?;
        group(suite, &mut criterion, memory, "copy_up_sparse", tree::sparse, first_write)?;
        group(suite, &mut criterion, memory, "copy_up_metadata", tree::big, chmod)?;
        match &suite.places.reflink {
            Some(dir) => group(suite, &mut criterion, dir, "copy_up_reflink", tree::big, first_write),
            None => {
                println!("not measured: copy_up_reflink: no file system here that shares blocks");
                Ok(())
            }
        }
    })
}

fn first_write(file: &Path) -> std::io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all_at(b"x", 0)
}

fn chmod(file: &Path) -> std::io::Result<()> {
    std::fs::set_permissions(file, Permissions::from_mode(0o600))
}

type Make = fn(&Path, u64) -> Result<()>;
type Change = fn(&Path) -> std::io::Result<()>;

fn group(
    suite: &Suite,
    criterion: &mut Criterion,
    on: &Path,
    title: &str,
    make: Make,
    change: Change,
) -> Result<()> {
    let mut group = criterion.benchmark_group(title);
    group.sampling_mode(SamplingMode::Flat);
    for (name, size, files) in SIZES {
        let lower =
            suite.lower(on, |dir| (0..files).try_for_each(|i| make(&dir.join(i.to_string()), size)))?;
        if size > 1 << 20 {
            group
                .sample_size(10)
                .warm_up_time(Duration::from_millis(1))
                .measurement_time(Duration::from_millis(10));
        }
        for subject in &suite.subjects {
            group.bench_function(BenchmarkId::new(format!("{subject}"), name), |b| {
                b.iter_custom(|n| {
                    or_exit(lower.consume(subject, n, files, |root, i| change(&root.join(i.to_string()))))
                });
            });
        }
    }
    group.finish();
    Ok(())
}
