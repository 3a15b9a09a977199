//! How many threads of the host want to run: whether a processor that we keep is missed by somebody.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

/// Asks the kernel how many threads run or wait for a processor. A question costs some microseconds.
#[derive(Debug)]
pub(super) struct Running(Option<File>);

impl Default for Running {
    fn default() -> Self {
        Self(File::open("/proc/loadavg").ok())
    }
}

impl Running {
    /// Returns the number of such threads, the caller among them; none if it cannot be known.
    pub(super) fn count(&self) -> Option<usize> {
        let mut text = [0; 128];
        let len = self.0.as_ref()?.read_at(&mut text, 0).ok()?;
        parse(text.get(..len)?)
    }
}

/// Reads the number of running threads out of a line like `0.20 0.18 0.12 1/80 11206`.
fn parse(line: &[u8]) -> Option<usize> {
    let field = line.split(|byte| *byte == b' ').nth(3)?;
    let running = field.split(|byte| *byte == b'/').next()?;
    std::str::from_utf8(running).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_threads_are_read_from_the_fourth_field() {
        assert_eq!(parse(b"0.20 0.18 0.12 1/80 11206\n"), Some(1));
        assert_eq!(parse(b"12.00 0.18 0.12 17/80 11206\n"), Some(17));
        for broken in [&b""[..], b"1 2 3", b"1 2 3 x/4 5"] {
            assert_eq!(parse(broken), None);
        }
    }

    #[test]
    fn the_caller_is_counted() {
        assert!(Running::default().count().is_some_and(|count| count > 0));
    }
}
