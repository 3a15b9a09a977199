//! The command `unionfs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    unionfs::cli::main()
}
