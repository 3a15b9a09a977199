//! How many FUSE requests the kernel sent, by kind, counted through the tracepoint `fuse:fuse_request_send`.
//!
//! Works for every FUSE server alike and needs nothing of it. Needs Linux 6.12 or later and a readable tracefs; where
//! that is missing the counts are absent and the reason is given once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::failure::{During, Failure, Result};

const TRACEFS: &str = "/sys/kernel/tracing";
/// Buffer of one CPU; one event takes about 40 bytes.
const BUFFER_KIB: &str = "65536";

/// A private trace buffer; removed when dropped.
#[derive(Debug)]
pub struct Counter {
    instance: PathBuf,
}

impl Counter {
    /// Makes the buffer, or says why that is impossible.
    pub fn new() -> Result<Self> {
        let tracefs = Path::new(TRACEFS);
        if !tracefs.join("events/fuse/fuse_request_send").exists() {
            return Err(Failure::new(
                "no tracepoint fuse:fuse_request_send (tracefs not mounted, or Linux < 6.12)",
            ));
        }
        let instance = tracefs.join(format!("instances/perf-{}", std::process::id()));
        std::fs::create_dir(&instance).during("make a trace instance")?;
        let counter = Self { instance };
        counter.set("buffer_size_kb", BUFFER_KIB)?;
        Ok(counter)
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        std::fs::write(self.instance.join(file), value)
            .during(format_args!("set {file} of the trace instance"))
    }

    /// Starts to count the requests of one connection.
    pub fn start(&self, connection: u64) -> Result<()> {
        self.set("trace", "")?;
        self.set("events/fuse/fuse_request_send/filter", &format!("connection == {connection}"))?;
        self.set("events/fuse/fuse_request_send/enable", "1")
    }

    /// Ends counting; the requests by name, without the prefix `FUSE_`.
    pub fn stop(&self) -> Result<BTreeMap<String, u64>> {
        self.set("events/fuse/fuse_request_send/enable", "0")?;
        let text = std::fs::read(self.instance.join("trace")).during("read the trace")?;
        Ok(tally(&text))
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir(&self.instance) {
            eprintln!("perf: cannot remove {}: {e}", self.instance.display());
        }
    }
}

/// Counts `opcode N (FUSE_NAME)` in the text of a trace.
fn tally(text: &[u8]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in text.split(|b| *b == b'\n').filter(|l| !l.starts_with(b"#")) {
        let mut words = line.split(|b| *b == b' ').skip_while(|w| *w != b"opcode").skip(1);
        let Some(number) = words.next() else { continue };
        let named = words.next().and_then(|w| w.strip_prefix(b"(FUSE_")).and_then(|w| w.strip_suffix(b")"));
        let name: String = named.unwrap_or(number).iter().map(|b| char::from(*b)).collect();
        *counts.entry(name).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_name_and_unknown_ones_by_number() {
        let text = b"# tracer: nop\n\
            ls-1 [000] ..... 1.0: fuse_request_send: connection 40 req 2 opcode 1 (FUSE_LOOKUP) len 45 \n\
            ls-1 [000] ..... 1.1: fuse_request_send: connection 40 req 4 opcode 1 (FUSE_LOOKUP) len 45 \n\
            ls-1 [000] ..... 1.2: fuse_request_send: connection 40 req 6 opcode 53 (0x35) len 45 \n";
        let counts = tally(text);
        assert_eq!(counts.get("LOOKUP"), Some(&2));
        assert_eq!(counts.get("53"), Some(&1));
    }
}
