//! From the command to its end: a container that runs `true`, beside chroot, bubblewrap, runc and crun.

mod settings;

use std::process::{Command, ExitCode};

use criterion::Criterion;
use perf::container::{Starter, starters};
use perf::suite::{self, Suite};
use perf::{Result, or_exit, process};
use settings::settings;

fn main() -> ExitCode {
    suite::run(|suite| groups(suite, &mut settings()))
}

fn groups(suite: &Suite, criterion: &mut Criterion) -> Result<()> {
    let mut group = criterion.benchmark_group("container_start");
    group.sample_size(20);
    for Starter { name, program, arguments, directory } in starters(&suite.places.memory)? {
        let once = || {
            let mut command = Command::new(&program);
            command.args(&arguments).current_dir(&directory);
            process::check(command)
        };
        if let Err(e) = once() {
            println!("not measured: {name}: {e}");
            continue;
        }
        group.bench_function(name, |b| b.iter(|| or_exit(once())));
    }
    group.finish();
    Ok(())
}
