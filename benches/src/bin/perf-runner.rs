//! The command `runner` as this package builds it: what is measured is always the current source.

fn main() -> std::process::ExitCode {
    runner::cli::main()
}
