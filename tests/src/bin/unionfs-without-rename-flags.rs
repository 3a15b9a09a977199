//! The `unionfs` program where no file system knows flags for rename, as none over NFS does.

fn main() -> std::process::ExitCode {
    match e2e::sys::refuse_flags_of_renames() {
        Ok(()) => unionfs::cli::main(),
        Err(error) => {
            eprintln!("cannot filter system calls: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
