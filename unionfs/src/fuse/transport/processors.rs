//! The processors that the server may use. A thread inherits the place of the one that starts it, and those that answer
//! requests are bound to one processor, so a thread that shall run anywhere must say so.

use rustix::thread::CpuSet;

/// A set of processors; none if it cannot be known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Processors(Option<CpuSet>);

impl Processors {
    /// Returns those that the calling thread may run on.
    pub(super) fn of_this_thread() -> Self {
        Self(rustix::thread::sched_getaffinity(None).ok())
    }

    /// Returns how many there are.
    pub(super) fn count(&self) -> usize {
        self.0.map_or(1, |set| usize::try_from(set.count()).unwrap_or(1))
    }

    /// Lets the calling thread run on any of them.
    pub(super) fn use_all(&self) {
        let Some(set) = &self.0 else { return };
        if let Err(errno) = rustix::thread::sched_setaffinity(None, set) {
            tracing::debug!("a thread stays bound to the processor of the one that started it: {errno}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_was_started_by_a_bound_one_can_run_anywhere_again() {
        let all = Processors::of_this_thread();
        let (bound, free) = std::thread::spawn(move || {
            let mut one = CpuSet::new();
            let first = (0..CpuSet::MAX_CPU).find(|number| all.0.unwrap().is_set(*number));
            one.set(first.unwrap());
            rustix::thread::sched_setaffinity(None, &one).unwrap();
            let inside = move || {
                let before = Processors::of_this_thread().count();
                all.use_all();
                (before, Processors::of_this_thread().count())
            };
            std::thread::spawn(inside).join().unwrap()
        })
        .join()
        .unwrap();
        assert_eq!((bound, free), (1, all.count()));
    }
}
