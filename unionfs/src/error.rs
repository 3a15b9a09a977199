//! What can go wrong, and which errno the caller of a system call sees for it.
//!
//! Expected answers (a name that does not exist) are an [`Errno`] and nothing else: no text is formatted and
//! nothing is allocated. Unexpected ones carry what was being done and to which path, and print like strace.

use std::fmt;

/// A kernel error number.
pub type Errno = rustix::io::Errno;

/// The result of every operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error number, with the operation and path where one is worth telling.
#[derive(Debug)]
pub struct Error {
    errno: Errno,
    context: Option<Box<Context>>,
}

#[derive(Debug)]
struct Context {
    action: &'static str,
    path: Vec<u8>,
    hint: Option<&'static str>,
}

impl Error {
    /// Returns an error that is an expected answer, without context.
    pub const fn new(errno: Errno) -> Self {
        Self { errno, context: None }
    }

    /// Returns the number that the caller of the system call sees.
    pub const fn errno(&self) -> Errno {
        self.errno
    }

    /// Returns whether the number is `errno`.
    pub fn is(&self, errno: Errno) -> bool {
        self.errno == errno
    }

    /// Adds what was being done to which path. The innermost context wins: it is nearest to the cause.
    #[must_use]
    pub fn during(mut self, action: &'static str, path: impl AsRef<[u8]>) -> Self {
        if self.context.is_none() {
            self.context = Some(Box::new(Context { action, path: path.as_ref().to_vec(), hint: None }));
        }
        self
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: &'static str) -> Self {
        if let Some(context) = &mut self.context {
            context.hint = Some(hint);
        }
        self
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::new(errno)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::new(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(context) = &self.context {
            write!(f, "cannot {} \"{}\": ", context.action, context.path.escape_ascii())?;
        }
        write!(f, "{}", std::io::Error::from(self.errno))?;
        if let Some(hint) = self.context.as_ref().and_then(|context| context.hint) {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_action_the_path_the_cause_and_the_hint() {
        let error = Error::new(Errno::XDEV).during("use workdir", "/w\n").hint("put it beside upperdir");
        assert_eq!(
            error.to_string(),
            "cannot use workdir \"/w\\n\": Invalid cross-device link (os error 18)\nhint: put it beside upperdir"
        );
    }

    #[test]
    fn the_innermost_context_wins() {
        let error = Error::new(Errno::NOENT).during("open", "a").during("copy up", "b");
        assert!(error.to_string().starts_with("cannot open \"a\""));
    }
}
