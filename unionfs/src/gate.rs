//! One value for all requests, which may be exchanged for another between two of them.
//!
//! Each request enters and leaves; an exchange waits until all have left and lets none in meanwhile. The doors are as
//! many as there are threads to be expected, each in a cache line of its own, so that entering touches nothing that
//! another thread writes.

use std::cell::Cell;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

/// Doors of a gate beside the first. Threads beyond so many share them.
const MORE_DOORS: usize = 64;

static NEXT_SLOT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SLOT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Returns a number for this thread: consecutive ones for threads in the order in which they first asked.
pub(crate) fn thread_slot() -> usize {
    SLOT.with(|slot| {
        slot.get().unwrap_or_else(|| {
            let number = NEXT_SLOT.fetch_add(1, Ordering::Relaxed);
            slot.set(Some(number));
            number
        })
    })
}

/// Keeps what it holds out of other data's cache lines; processors fetch them in pairs.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Apart<T>(pub T);

type Door<T> = Apart<RwLock<Arc<T>>>;

/// The gate, and the value behind it.
pub(crate) struct Gate<T> {
    first: Door<T>,
    more: Box<[Door<T>]>,
    /// One exchange at a time.
    exchange: Mutex<()>,
}

/// The right to use the value. A thread must not enter again while it holds one: it could wait for itself.
#[derive(Debug)]
pub(crate) struct Entered<'a, T>(RwLockReadGuard<'a, Arc<T>>);

impl<T> Deref for Entered<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: fmt::Debug> fmt::Debug for Gate<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("value", &*self.enter()).finish_non_exhaustive()
    }
}

impl<T> Gate<T> {
    /// Puts a value behind a gate.
    pub(crate) fn new(value: T) -> Self {
        let value = Arc::new(value);
        let door = || Apart(RwLock::new(Arc::clone(&value)));
        Self { first: door(), more: (0..MORE_DOORS).map(|_| door()).collect(), exchange: Mutex::new(()) }
    }

    /// Enters; waits while an exchange is under way.
    pub(crate) fn enter(&self) -> Entered<'_, T> {
        let door = self.more.get(thread_slot() % MORE_DOORS).unwrap_or(&self.first);
        Entered(door.0.read())
    }

    /// Waits until everybody has left, then lets `act` look at the value while nobody else does. The value that it
    /// returns first, if any, takes the place of the old one.
    pub(crate) fn exchange<R>(&self, act: impl FnOnce(&T) -> (Option<T>, R)) -> R {
        let _one = self.exchange.lock();
        let mut first = self.first.0.write();
        let mut more: Vec<_> = self.more.iter().map(|door| door.0.write()).collect();
        let (new, result) = act(&first);
        if let Some(new) = new {
            *first = Arc::new(new);
            for door in &mut more {
                **door = Arc::clone(&first);
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_is_alone_and_everybody_sees_what_it_left() {
        let gate = Gate::new(0_u64);
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut last = 0;
                    while last < 100 {
                        let value = gate.enter();
                        inside.fetch_add(1, Ordering::SeqCst);
                        assert!(*value >= last, "the value went back");
                        last = *value;
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(value);
                    }
                });
            }
            for _ in 0..100 {
                gate.exchange(|value| {
                    assert_eq!(inside.load(Ordering::SeqCst), 0, "somebody is inside");
                    (Some(value + 1), ())
                });
            }
        });
        assert_eq!(gate.exchange(|value| (None, *value)), 100);
    }
}
