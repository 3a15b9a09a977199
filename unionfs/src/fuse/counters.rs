//! What a mount has been asked, and how long the answers took: counted by each thread for itself.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::wire::Opcode;
use crate::gate::{Apart, thread_slot};

/// Numbers of requests that are counted one by one; greater ones are counted together as the first.
const NUMBERS: usize = 64;
/// Threads that count apart from each other; more of them share.
const SHARDS: usize = 32;
/// Of so many requests one is timed.
const SAMPLE: u64 = 16;
/// Times are counted by powers of two of nanoseconds.
const POWERS: usize = 40;

/// The counters of one mount.
#[derive(Debug)]
pub struct Counters {
    shards: Box<[Apart<Shard>]>,
}

#[derive(Debug)]
struct Shard {
    requests: [AtomicU64; NUMBERS],
    failures: AtomicU64,
    times: [AtomicU64; POWERS],
}

impl Default for Shard {
    fn default() -> Self {
        let zeros = || std::array::from_fn(|_| AtomicU64::new(0));
        Self {
            requests: zeros(),
            failures: AtomicU64::new(0),
            times: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Apart(Shard::default())).collect() }
    }
}

/// What was counted so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Requests by kind, those that came at all.
    pub requests: Vec<(&'static str, u64)>,
    /// Unexpected failures among them.
    pub failures: u64,
    /// Of every sixteenth request, how many were answered in less than so many nanoseconds, and not in less than half of it.
    pub times: Vec<(u64, u64)>,
}

impl Counted {
    /// Returns the number of all requests.
    pub fn total(&self) -> u64 {
        self.requests.iter().map(|(_, count)| count).sum()
    }
}

/// A request under way, if it is one of those that are timed.
#[derive(Debug)]
#[must_use]
pub(super) struct Timed(Option<Instant>);

impl Counters {
    fn shard(&self) -> Option<&Shard> {
        self.shards.get(thread_slot() % SHARDS).map(|shard| &shard.0)
    }

    /// Counts a request that begins.
    pub(super) fn begin(&self, opcode: u32) -> Timed {
        let Some(shard) = self.shard() else { return Timed(None) };
        let number = usize::try_from(opcode).unwrap_or(0);
        let Some(requests) = shard.requests.get(number).or_else(|| shard.requests.first()) else {
            return Timed(None);
        };
        let before = requests.fetch_add(1, Ordering::Relaxed);
        Timed(before.is_multiple_of(SAMPLE).then(Instant::now))
    }

    /// Counts how long a request took.
    pub(super) fn end(&self, timed: Timed) {
        let (Timed(Some(start)), Some(shard)) = (timed, self.shard()) else { return };
        let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let power = usize::try_from(u64::BITS - nanoseconds.leading_zeros()).unwrap_or(0);
        if let Some(times) = shard.times.get(power).or_else(|| shard.times.last()) {
            times.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts an unexpected failure.
    pub(super) fn fail(&self) {
        if let Some(shard) = self.shard() {
            shard.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns what was counted. Threads go on counting meanwhile.
    pub fn read(&self) -> Counted {
        let sum = |of: &dyn Fn(&Shard) -> u64| self.shards.iter().map(|shard| of(&shard.0)).sum::<u64>();
        let at = |counters: &[AtomicU64], index: usize| {
            counters.get(index).map_or(0, |counter| counter.load(Ordering::Relaxed))
        };
        let mut counted =
            Counted { failures: sum(&|shard| shard.failures.load(Ordering::Relaxed)), ..Counted::default() };
        for number in 0..NUMBERS {
            let count = sum(&|shard| at(&shard.requests, number));
            if count > 0 {
                let opcode = u32::try_from(number).ok().and_then(Opcode::from_number);
                counted.requests.push((opcode.map_or("unknown", Opcode::name), count));
            }
        }
        for power in 0..POWERS {
            let count = sum(&|shard| at(&shard.times, power));
            if count > 0 {
                counted.times.push((1 << power, count));
            }
        }
        counted
    }
}

impl Counted {
    /// Returns the lines of the requests and their times.
    pub fn text(&self) -> String {
        let mut text = format!("requests {}\nfailures {}\n", self.total(), self.failures);
        let written = self
            .requests
            .iter()
            .try_for_each(|(name, count)| writeln!(text, "request {name} {count}"))
            .and_then(|()| {
                self.times.iter().try_for_each(|(below, count)| {
                    writeln!(text, "answered below {:?} {count}", Duration::from_nanos(*below))
                })
            });
        // Writing to a string cannot fail.
        debug_assert!(written.is_ok());
        text
    }

    /// Returns the members of a JSON object: requests, failures, times.
    pub fn json(&self) -> String {
        let requests: Vec<String> =
            self.requests.iter().map(|(name, count)| format!("\"{name}\":{count}")).collect();
        let times: Vec<String> = self
            .times
            .iter()
            .map(|(below, count)| format!("{{\"below_ns\":{below},\"count\":{count}}}"))
            .collect();
        format!(
            "\"requests\":{},\"failures\":{},\"by_request\":{{{}}},\"sampled_times\":[{}]",
            self.total(),
            self.failures,
            requests.join(","),
            times.join(",")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_kind_and_some_are_timed() {
        let counters = Counters::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let timed = counters.begin(Opcode::Lookup.number());
                        counters.end(timed);
                    }
                    counters.end(counters.begin(9999));
                    counters.fail();
                });
            }
        });
        let counted = counters.read();
        assert_eq!(counted.requests, [("unknown", 4), ("Lookup", 400)]);
        assert_eq!((counted.total(), counted.failures), (404, 4));
        let timed: u64 = counted.times.iter().map(|(_, count)| count).sum();
        assert!(timed >= 400 / SAMPLE, "{timed}");
        assert!(counted.json().contains("\"Lookup\":400"));
        assert!(counted.text().starts_with("requests 404\nfailures 4\n"));
    }
}
