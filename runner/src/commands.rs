//! The subcommands: each turns what was typed into a call, and the result into text.

pub mod diff;
pub mod ps;
pub mod rm;
pub mod run;

use std::io::Write;

use crate::error::{Error, best_effort};

/// Shows an error to the user.
pub fn complain(error: &Error) {
    best_effort(writeln!(std::io::stderr(), "runner: {error}"), "nobody reads stderr");
}

/// Shows a warning to the user.
pub fn warn(text: &str) {
    best_effort(writeln!(std::io::stderr(), "runner: warning: {text}"), "nobody reads stderr");
}
