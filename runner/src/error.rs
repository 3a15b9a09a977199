//! What can go wrong, in the words of the user, and which exit code says so.
//!
//! An error is plain data, so that it can travel from a process inside the container to the one that prints it.

use std::fmt;
use std::io;

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Which kind of failure this is; it decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Class {
    /// The command line asks for something that has no meaning.
    Usage,
    /// The container could not be built.
    Setup,
    /// The command does not exist in the container.
    CommandNotFound,
    /// The command exists but cannot be started.
    CommandNotRunnable,
    /// No container has this name.
    NoSuchContainer,
    /// The container is in a state that forbids this.
    InUse,
}

/// A failure: one line of text, and what the user can do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    class: Class,
    text: String,
    hint: Option<String>,
}

impl Error {
    /// Returns an error of a class with its text.
    pub fn new(class: Class, text: impl Into<String>) -> Self {
        Self { class, text: text.into(), hint: None }
    }

    /// Returns an error in building the container.
    pub fn setup(text: impl Into<String>) -> Self {
        Self::new(Class::Setup, text)
    }

    /// Returns an error in what was asked for.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::new(Class::Usage, text)
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Returns the class.
    pub const fn class(&self) -> Class {
        self.class
    }

    /// Returns the text without the hint.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the hint, when there is one.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Returns the exit code of `runner run` for this failure.
    pub const fn run_exit_code(&self) -> u8 {
        match self.class {
            Class::Usage | Class::Setup | Class::NoSuchContainer | Class::InUse => 125,
            Class::CommandNotRunnable => 126,
            Class::CommandNotFound => 127,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Turns the error of a system call into one that says what was being done.
pub trait During<T> {
    /// Adds what was being done, as "cannot ...".
    fn during(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<io::Error>> During<T> for std::result::Result<T, E> {
    fn during(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| {
            let error: io::Error = error.into();
            Error::setup(format!("cannot {what}: {error}"))
        })
    }
}

/// Runs a clean-up that may fail without harm; `reason` says why it is harmless.
pub fn best_effort<T, E: fmt::Display>(result: std::result::Result<T, E>, reason: &'static str) {
    if let Err(error) = result {
        tracing::debug!(%error, reason, "clean-up step failed");
    }
}

/// Shows a path or name of bytes as text, with everything unprintable escaped.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a>(pub &'a std::ffi::OsStr);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use std::os::unix::ffi::OsStrExt;
        write!(f, "\"{}\"", self.0.as_bytes().escape_ascii())
    }
}

/// Shows a path as text, with everything unprintable escaped.
pub fn shown(path: &(impl AsRef<std::ffi::OsStr> + ?Sized)) -> Shown<'_> {
    Shown(path.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_call_error_says_what_was_being_done() {
        let failed: std::result::Result<(), _> = Err(rustix::io::Errno::PERM);
        let error = failed.during(format_args!("mount {}", shown("/proc"))).unwrap_err();
        assert_eq!(error.to_string(), "cannot mount \"/proc\": Operation not permitted (os error 1)");
        assert_eq!(error.run_exit_code(), 125);
    }

    #[test]
    fn exit_codes_follow_docker() {
        for (class, code) in [
            (Class::Usage, 125),
            (Class::Setup, 125),
            (Class::CommandNotRunnable, 126),
            (Class::CommandNotFound, 127),
        ] {
            assert_eq!(Error::new(class, "x").run_exit_code(), code);
        }
    }
}
