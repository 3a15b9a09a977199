//! The command `unionfs` as this package builds it: what is measured is always the current source.

fn main() -> std::process::ExitCode {
    unionfs::cli::main()
}
