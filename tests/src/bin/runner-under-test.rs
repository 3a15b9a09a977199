//! The `runner` program as the tests start it: cargo builds this one for them, always current.

fn main() -> std::process::ExitCode {
    runner::cli::main()
}
