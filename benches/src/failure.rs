//! What a benchmark says when it cannot go on: one line that names the thing and the cause.

use std::fmt;
use std::process::ExitCode;

/// Why a measurement or its preparation failed.
#[derive(Clone, Debug)]
pub struct Failure(String);

/// The result of everything in this package.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// Adds to an error what was being done.
pub trait During<T> {
    /// `what` reads after "cannot".
    fn during(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> During<T> for std::result::Result<T, E> {
    fn during(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| Failure(format!("cannot {what}: {e}")))
    }
}

/// The value, or the end of the process with the reason on stderr; for closures that cannot return an error.
pub fn or_exit<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|e| {
        eprintln!("perf: {e}");
        std::process::exit(1)
    })
}

/// Turns the outcome of a program into its exit code, the reason on stderr.
pub fn exit_code(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|e| {
        eprintln!("perf: {e}");
        ExitCode::FAILURE
    })
}
