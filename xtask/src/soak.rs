//! `cargo xtask soak`: each transport under full load for minutes, then the parser of requests under random bytes.

use std::time::{Duration, Instant};

use crate::Outcome;
use crate::ci::call;

/// Random messages of one run of the parser's tests; a run takes about a minute.
const MESSAGES: &str = "2000000";

/// How long, and what.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Minutes of load for each transport.
    #[arg(long, default_value_t = 20)]
    minutes: u64,
    /// The transports, one after the other.
    #[arg(long, value_delimiter = ',', default_value = "dev,uring,fuser")]
    transports: Vec<String>,
    /// Minutes of random messages for the parser.
    #[arg(long, default_value_t = 30)]
    fuzz_minutes: u64,
}

/// Runs all of it; the first finding ends it.
pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let seconds = (arguments.minutes * 60).to_string();
    let limit = (arguments.minutes * 60 + 600).to_string();
    for transport in &arguments.transports {
        let options = format!(",transport={transport}");
        let environment =
            [("E2E_SOAK_SECONDS", &*seconds), ("E2E_HANG_SECONDS", &*limit), ("E2E_OPTIONS", &*options)];
        let test =
            ["test", "--package", "e2e", "--test", "stress", "--", "--ignored", "--nocapture", "soak::"];
        call("cargo", &test, &environment)?;
    }
    fuzz(Duration::from_secs(arguments.fuzz_minutes * 60))
}

/// Gives the parser random and mutated messages, other ones in each run.
fn fuzz(time: Duration) -> Outcome {
    let end = Instant::now() + time;
    while Instant::now() < end {
        let test = ["test", "--release", "--package", "unionfs", "--lib", "parser_panic"];
        call("cargo", &test, &[("PROPTEST_CASES", MESSAGES)])?;
    }
    Ok(())
}
