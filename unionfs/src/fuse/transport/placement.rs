//! Where a thread that reads the device runs: on the processor of its client.
//!
//! Left to itself the scheduler wakes the server on an idle processor and then the client on another. Both wake-ups
//! cross processors, which takes several times as long as the request. On one processor client and server take turns.

use rustix::thread::CpuSet;

/// After how many requests of one client its processor is asked for: soon, again, and then now and then, because the
/// client may have moved.
const FIRST: u32 = 3;
const SECOND: u32 = 32;
const EVERY: u32 = 256;

/// After how many changes of client in a row there is no one client.
const MIXED: u32 = 8;

/// Where one thread runs. To be used by that thread only.
#[derive(Debug)]
pub(super) struct Placement {
    /// Where the thread may run at all; none if it cannot be moved.
    allowed: Option<CpuSet>,
    pinned: Option<usize>,
    client: u32,
    /// Requests of this client in a row.
    streak: u32,
    /// Clients in a row that made few requests.
    changes: u32,
}

impl Placement {
    /// Starts with no place.
    pub(super) fn new() -> Self {
        let allowed = rustix::thread::sched_getaffinity(None).ok().filter(|set| set.count() > 1);
        Self { allowed, pinned: None, client: 0, streak: 0, changes: 0 }
    }

    /// Learns that `client`, a thread's number, made a request, and moves this thread to it if it makes many.
    pub(super) fn served(&mut self, client: u32) {
        if self.allowed.is_none() || client == 0 {
            return;
        }
        if client != self.client {
            self.changes = if self.streak < FIRST { self.changes.saturating_add(1) } else { 0 };
            self.client = client;
            self.streak = 0;
            if self.changes >= MIXED {
                self.leave();
            }
        }
        self.streak = self.streak.saturating_add(1);
        if self.streak == FIRST || self.streak == SECOND || self.streak.is_multiple_of(EVERY) {
            match processor_of(client) {
                Some(processor) => self.pin(processor),
                None => self.leave(),
            }
        }
    }

    /// Lets the thread run anywhere again: several clients are to be served.
    pub(super) fn leave(&mut self) {
        if let (Some(allowed), Some(_)) = (&self.allowed, self.pinned.take()) {
            set_affinity(allowed);
        }
    }

    fn pin(&mut self, processor: usize) {
        let Some(allowed) = self.allowed.filter(|_| processor < CpuSet::MAX_CPU) else { return };
        if self.pinned == Some(processor) || !allowed.is_set(processor) {
            return;
        }
        let mut set = CpuSet::new();
        set.set(processor);
        if set_affinity(&set) {
            self.pinned = Some(processor);
        }
    }
}

fn set_affinity(set: &CpuSet) -> bool {
    match rustix::thread::sched_setaffinity(None, set) {
        Ok(()) => true,
        Err(errno) => {
            tracing::debug!("cannot move a thread to its client: {errno}");
            false
        }
    }
}

/// Returns the processor that a thread ran on last.
fn processor_of(thread: u32) -> Option<usize> {
    parse(&std::fs::read(format!("/proc/{thread}/stat")).ok()?)
}

/// Reads the processor, the 39th field, out of a stat line. The second field, a name in parentheses, may hold anything.
fn parse(stat: &[u8]) -> Option<usize> {
    let after_name = stat.iter().rposition(|byte| *byte == b')')?;
    // The field after the name is the third.
    let field = stat.get(after_name + 2..)?.split(|byte| *byte == b' ').nth(36)?;
    std::str::from_utf8(field).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_the_39th_field_whatever_the_name() {
        for name in ["sh", "a b) (c", ")"] {
            let tail: Vec<String> =
                (3..=52).map(|field| if field == 39 { "7".into() } else { "x".into() }).collect();
            assert_eq!(parse(format!("1 ({name}) {}\n", tail.join(" ")).as_bytes()), Some(7), "{name}");
        }
        assert_eq!(parse(b"1 (sh) S 1"), None);
        assert!(processor_of(std::process::id()).is_some());
    }

    #[test]
    fn a_thread_moves_to_a_client_and_leaves_when_there_are_many() {
        let mut placement = Placement::new();
        if placement.allowed.is_none() {
            return;
        }
        for _ in 0..FIRST {
            placement.served(std::process::id());
        }
        assert!(placement.pinned.is_some());
        for client in 1_000_000..1_000_000 + 2 * MIXED {
            placement.served(client);
        }
        assert_eq!(placement.pinned, None);
        let allowed = rustix::thread::sched_getaffinity(None).unwrap();
        assert_eq!(Some(allowed), placement.allowed);
    }
}
