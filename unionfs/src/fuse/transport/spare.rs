//! Whether the host has a processor that nobody needs: only then may a thread wait without sleeping.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

/// How long an answer holds. The system call costs some microseconds.
const VALID: Duration = Duration::from_millis(4);

/// Asks the kernel now and then how many threads run.
#[derive(Debug)]
pub(super) struct Spare {
    /// None: cannot be asked, so there is none.
    load: Option<File>,
    asked: Option<Instant>,
    answer: bool,
}

impl Default for Spare {
    fn default() -> Self {
        Self { load: File::open("/proc/loadavg").ok(), asked: None, answer: false }
    }
}

impl Spare {
    /// Returns whether fewer threads run than there are processors, this one counted.
    pub(super) fn is_there(&mut self, processors: usize) -> bool {
        let now = Instant::now();
        if self.asked.is_none_or(|asked| now.duration_since(asked) > VALID) {
            self.asked = Some(now);
            self.answer = self.running().is_some_and(|running| running < processors);
        }
        self.answer
    }

    fn running(&self) -> Option<usize> {
        let mut text = [0; 128];
        let len = self.load.as_ref()?.read_at(&mut text, 0).ok()?;
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
}
