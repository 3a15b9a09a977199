//! One load of a benchmark; prints how long it took.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    perf::exit_code(perf::load::run(&perf::load::LoadArgs::parse()).map(|()| ExitCode::SUCCESS))
}
