//! Whole-process benchmarks; `cargo xtask bench-report` builds and runs it.

fn main() -> std::process::ExitCode {
    perf::cli::main()
}
