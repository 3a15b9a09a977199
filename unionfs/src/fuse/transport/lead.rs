//! The lead: one thread at a time has it, and only that one waits on the device.
//!
//! It is *given* away when somebody else shall go on at once, which wakes a thread, often on another processor. It is
//! *lent* by who expects to be back soon: it stays where it is for a grace, and only then is given to a follower. Arming a
//! timer for that wakes nobody.
//!
//! Beside the lead there are a few *seats*. Who has answered something large stays awake and waits on the device too, instead
//! of for the lead. So a stream of large requests goes round between a few threads, none of which wakes another: the kernel
//! wakes the one that waited longest. While somebody sits there the lead may stay vacant; who gets up takes it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::error::Errno;

/// Seats beside the lead: with the leader enough to keep a stream going of which two requests are under way.
const SEATS: usize = 2;

/// The lead, with what its holder knows.
#[derive(Debug)]
pub(super) struct Lead<T> {
    shared: Mutex<Shared<T>>,
    vacant: Condvar,
    /// Goes when the grace of the last loan is over.
    alarm: OwnedFd,
}

#[derive(Debug)]
struct Shared<T> {
    state: State<T>,
    /// Threads that wait on the device without the lead.
    seated: usize,
}

#[derive(Clone, Copy, Debug)]
enum State<T> {
    Held,
    Lent(T),
    Vacant(T),
    /// There is nothing to lead any more.
    Ended,
}

/// Who holds it has the lead, until it is dropped or left to others.
#[derive(Debug)]
pub(super) struct Held<'a, T: Copy> {
    lead: &'a Lead<T>,
    /// What is handed on with the lead.
    pub known: T,
    left: bool,
}

impl<T: Copy> Held<'_, T> {
    /// Gives the lead away, to a thread that waits for it.
    pub(super) fn give(self) {}

    /// Lends the lead: whoever comes first in the time of `grace` has it, then it is given away.
    pub(super) fn lend(mut self, grace: Duration) {
        self.left = true;
        drop(self.lead.leave(State::Lent(self.known)));
        if let Err(errno) = self.lead.wake_watch(grace) {
            tracing::warn!("no timer for a loan: {errno}");
            self.lead.call_in();
        }
    }
}

/// However a thread ends, somebody goes on.
impl<T: Copy> Drop for Held<'_, T> {
    fn drop(&mut self) {
        if !self.left {
            self.lead.hand_on(self.known);
        }
    }
}

impl<T: Copy> Lead<T> {
    /// Makes a lead that waits for the first thread.
    ///
    /// # Errors
    ///
    /// What timerfd_create(2) answers.
    pub(super) fn new(known: T) -> Result<Self, Errno> {
        let alarm = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        Ok(Self {
            shared: Mutex::new(Shared { state: State::Vacant(known), seated: 0 }),
            vacant: Condvar::new(),
            alarm,
        })
    }

    /// Waits for the lead; none: there is nothing to lead any more. One that is lent is there for who comes, but wakes nobody.
    pub(super) fn follow(&self) -> Option<Held<'_, T>> {
        let mut shared = self.shared.lock();
        loop {
            if matches!(shared.state, State::Ended) {
                return None;
            }
            if let Some(held) = self.take(&mut shared) {
                return Some(held);
            }
            self.vacant.wait(&mut shared);
        }
    }

    /// Takes the lead if nobody has it, else a seat beside it if one is free, which is left by [`Lead::rise`].
    pub(super) fn sit(&self) -> Seat<'_, T> {
        let mut shared = self.shared.lock();
        if let Some(held) = self.take(&mut shared) {
            return Seat::Lead(held);
        }
        if shared.seated >= SEATS || matches!(shared.state, State::Ended) {
            return Seat::None;
        }
        shared.seated += 1;
        Seat::Beside
    }

    /// Leaves a seat, to answer a request. Takes the lead if nobody has it, since then nobody may wait on the device now.
    pub(super) fn rise(&self) -> Option<Held<'_, T>> {
        let mut shared = self.shared.lock();
        shared.seated = shared.seated.saturating_sub(1);
        self.take(&mut shared)
    }

    /// Returns whether somebody waits on the device, or will at once, though the lead is vacant.
    pub(super) fn has_seated(&self) -> bool {
        self.shared.lock().seated > 0
    }

    fn take(&self, shared: &mut Shared<T>) -> Option<Held<'_, T>> {
        let (State::Lent(known) | State::Vacant(known)) = shared.state else { return None };
        shared.state = State::Held;
        Some(Held { lead: self, known, left: false })
    }

    /// Ends all waiting, of followers and of the watch.
    pub(super) fn end(&self) {
        self.shared.lock().state = State::Ended;
        self.vacant.notify_all();
        if let Err(errno) = self.wake_watch(Duration::from_nanos(1)) {
            tracing::error!("the thread that watches over loans stays: {errno}");
        }
    }

    /// The life of the thread that watches over loans.
    pub(super) fn watch(&self) {
        loop {
            let mut times = [0; 8];
            if let Err(errno) = crate::sys::retry(|| rustix::io::read(&self.alarm, &mut times)) {
                tracing::error!("nobody watches over loans: {errno}");
                return;
            }
            if matches!(self.shared.lock().state, State::Ended) {
                return;
            }
            self.call_in();
        }
    }

    /// Gives away what is lent. The alarm of a loan that is over may come in the next one: then that ends early.
    fn call_in(&self) {
        let mut shared = self.shared.lock();
        if let State::Lent(known) = shared.state {
            shared.state = State::Vacant(known);
            self.call(shared);
        }
    }

    /// Leaves the lead to a follower, or to those who sit beside it.
    fn hand_on(&self, known: T) {
        self.call(self.leave(State::Vacant(known)));
    }

    /// Wakes a follower for a lead that is vacant, unless somebody sits beside it.
    fn call(&self, shared: MutexGuard<'_, Shared<T>>) {
        let nobody_sits = shared.seated == 0;
        drop(shared);
        if nobody_sits {
            self.vacant.notify_one();
        }
    }

    /// Leaves the lead to others, unless all has ended meanwhile.
    fn leave(&self, to: State<T>) -> MutexGuard<'_, Shared<T>> {
        let mut shared = self.shared.lock();
        if !matches!(shared.state, State::Ended) {
            shared.state = to;
        }
        shared
    }

    fn wake_watch(&self, after: Duration) -> Result<(), Errno> {
        let once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let after = Timespec {
            tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(after.subsec_nanos()),
        };
        let time = Itimerspec { it_interval: once, it_value: after };
        rustix::time::timerfd_settime(self.alarm.as_fd(), TimerfdTimerFlags::empty(), &time).map(|_| ())
    }
}

/// What a thread that has answered something large gets.
#[derive(Debug)]
pub(super) enum Seat<'a, T: Copy> {
    Lead(Held<'a, T>),
    /// It waits on the device beside the leader.
    Beside,
    /// It is to follow.
    None,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_millis(1);

    /// Runs `test`, which has the lead, beside a thread that follows once, and the watch; returns what the follower got.
    fn beside_a_follower(test: impl FnOnce(Held<'_, u32>)) -> Option<u32> {
        let lead = Lead::new(7).unwrap();
        let first = lead.follow().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| lead.watch());
            let follower = scope.spawn(|| lead.follow().map(|held| held.known));
            test(first);
            let got = follower.join().unwrap();
            lead.end();
            got
        })
    }

    #[test]
    fn what_is_given_away_goes_to_a_follower() {
        assert_eq!(beside_a_follower(|held| held.give()), Some(7));
    }

    #[test]
    fn a_thread_that_breaks_leaves_the_lead_to_a_follower() {
        let breaks = |held: Held<'_, u32>| {
            let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _held = held;
                std::panic::resume_unwind(Box::new(()));
            }));
            assert!(broken.is_err());
        };
        assert_eq!(beside_a_follower(breaks), Some(7));
    }

    #[test]
    fn a_loan_that_lasts_goes_to_a_follower() {
        assert_eq!(beside_a_follower(|held| held.lend(SHORT)), Some(7));
    }

    #[test]
    fn a_loan_is_there_for_who_comes_back() {
        let lead = Lead::new(0).unwrap();
        for known in 0..3 {
            let mut held = lead.follow().unwrap();
            assert_eq!(held.known, known);
            held.known += 1;
            held.lend(LONG);
        }
    }

    #[test]
    fn a_later_loan_is_watched_over_like_the_first() {
        let got = beside_a_follower(|held| {
            let lead = held.lead;
            held.lend(LONG);
            if let Some(again) = lead.follow() {
                again.lend(SHORT);
            }
        });
        assert_eq!(got, Some(7));
    }

    #[test]
    fn who_sits_beside_takes_the_lead_that_nobody_was_woken_for() {
        let lead = Lead::new(7).unwrap();
        let first = lead.follow().unwrap();
        for _ in 0..SEATS {
            assert!(matches!(lead.sit(), Seat::Beside));
        }
        assert!(matches!(lead.sit(), Seat::None), "all seats are taken");
        assert!(lead.rise().is_none(), "somebody has the lead");
        assert!(lead.has_seated());
        first.give();
        let Some(held) = lead.rise() else { panic!("nobody has the lead") };
        assert!(!lead.has_seated());
        held.give();
        assert!(matches!(lead.sit(), Seat::Lead(held) if held.known == 7));
        lead.end();
        assert!(matches!(lead.sit(), Seat::None));
    }

    #[test]
    fn the_end_is_told_to_all() {
        let got = beside_a_follower(|held| {
            let lead = held.lead;
            lead.end();
            held.give();
            assert!(lead.follow().is_none(), "an answer that came late");
        });
        assert_eq!(got, None);
    }
}
