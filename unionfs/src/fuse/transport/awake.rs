//! Keeps idle processors from halting while requests follow each other closely.
//!
//! Caller and server take turns, so one of their two processors is always idle, and each request wakes both threads.
//! To wake a thread on a halted processor takes 10 to 60 us in a virtual machine: several times as long as the request.
//! Threads of the lowest class (`SCHED_IDLE`) prevent that. The scheduler takes a processor that runs only such a
//! thread for idle and gives it to whoever is woken; it just does not have to start it first.
//!
//! *Gives* is not always *at once*. Within a group of the scheduler a thread that just had more than its share is passed over
//! for the lowest class (EEVDF, Linux 6.6), so a spinning thread yields all the time. A kernel thread that does I/O for us is
//! in another group, against which our group has its whole weight and yielding does not help; so they pause while a request
//! waits for a disk.
//!
//! They run only while that costs nobody else anything: requests come one after the other, no more threads want to run
//! than there are processors, and no cgroup limits our processor time, which they would use up.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::processors::Processors;
use super::quota;
use super::running::Running;
use super::sys;

/// So many requests in a row must have come quickly before processors are kept awake.
const BURST: u32 = 16;

/// How long such a burst may take: also when two halted processors must be started for each request.
const BURST_TIME: Duration = Duration::from_millis(3);

/// How long processors stay awake after the last request: a caller's work between two requests.
const PATIENCE: Duration = Duration::from_millis(1);

/// How often a thread that keeps a processor awake asks whether somebody else needs it.
const LOOK_EVERY: Duration = Duration::from_micros(500);

/// So many looks in a row must find too many threads: about every second one finds caller and server both running.
const TOO_MANY: u32 = 24;

/// A thread that does not run for so long was pushed away, if not by caller and server then by somebody else.
const PUSHED_AWAY: Duration = Duration::from_millis(2);

/// As so many looks counts one after that: there will not be many.
const TOO_MANY_PUSHED: u32 = 8;

/// How long no processor is kept awake after others needed them. So they lose at most some hundredths of one.
const RETREAT: Duration = Duration::from_millis(200);

/// How long an answer about cgroups holds.
const QUOTA_VALID: Duration = Duration::from_secs(10);

/// Threads at most. With one for each processor none halts; with fewer it is chance which one does, and so on larger hosts.
const MAX_THREADS: usize = 4;

/// Keeps processors awake as long as it lives.
#[derive(Debug)]
pub(super) struct Awake(Arc<Vigil>);

/// What those who answer requests share with the threads.
#[derive(Debug)]
pub(super) struct Vigil {
    /// How many processors there are for all.
    processors: usize,
    /// Where the threads may run.
    places: Processors,
    /// How many threads there shall be.
    wanted: usize,
    began: Instant,
    /// The threads, started when they are first needed: many mounts never see a burst of requests.
    threads: OnceLock<Vec<Thread>>,
    /// They have been woken and not gone to sleep again.
    up: AtomicBool,
    ended: AtomicBool,
    /// Requests that wait for a disk.
    pauses: AtomicU32,
    /// Requests answered; wraps around.
    served: AtomicU32,
    /// When the present burst began, in nanoseconds since `began`.
    burst_began: AtomicU64,
    /// Until when the threads are not to be woken, in nanoseconds since `began`.
    rest_until: AtomicU64,
    running: Running,
}

impl Awake {
    /// Makes ready for threads. There will be none if none are `wanted`, for a single processor, and for too many.
    pub(super) fn new(wanted: bool) -> Self {
        let places = Processors::of_this_thread();
        let threads = if wanted && (2..=MAX_THREADS).contains(&places.count()) { places.count() } else { 0 };
        Self(Arc::new(Vigil::new(places, threads)))
    }

    /// Returns what is to be told of each request.
    pub(super) fn vigil(&self) -> Arc<Vigil> {
        Arc::clone(&self.0)
    }
}

/// Starts a thread. It is not waited for when it ends, since it may have to wait long for a processor; it is only a
/// means to go faster, so it may as well be missing.
fn start(vigil: &Arc<Vigil>) -> Option<Thread> {
    let vigil = Arc::clone(vigil);
    let started = std::thread::Builder::new().name("fuse-awake".to_owned()).spawn(move || vigil.keep());
    match started {
        Ok(handle) => Some(handle.thread().clone()),
        Err(error) => {
            tracing::debug!("cannot start a thread that keeps a processor awake: {error}");
            None
        }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
        self.0.wake();
    }
}

impl Vigil {
    fn new(places: Processors, wanted: usize) -> Self {
        Self {
            processors: places.count(),
            places,
            wanted,
            began: Instant::now(),
            threads: OnceLock::new(),
            up: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            pauses: AtomicU32::new(0),
            served: AtomicU32::new(0),
            burst_began: AtomicU64::new(0),
            rest_until: AtomicU64::new(0),
            running: Running::default(),
        }
    }

    /// Learns that a request was answered. That costs next to nothing, and only a burst wakes the threads.
    pub(super) fn served(self: &Arc<Self>) {
        let served = self.served.fetch_add(1, Ordering::Relaxed);
        if served.is_multiple_of(BURST) && !self.up.load(Ordering::Relaxed) {
            self.burst_ended(self.now());
        }
    }

    /// Lets all processors go until the pause is dropped.
    pub(super) fn pause(self: &Arc<Self>) -> Pause {
        self.pauses.fetch_add(1, Ordering::AcqRel);
        let goes_on = self.up.swap(false, Ordering::AcqRel);
        Pause { vigil: Arc::clone(self), goes_on }
    }

    /// A burst ended `now`: wakes the threads if it was a quick one and a processor is idle.
    fn burst_ended(self: &Arc<Self>, now: u64) {
        let began = self.burst_began.swap(now, Ordering::Relaxed);
        if now - began.min(now) > nanos(BURST_TIME) || now < self.rest_until.load(Ordering::Relaxed) {
            return;
        }
        if self.pauses.load(Ordering::Acquire) > 0 || self.processors_are_needed(0) {
            return;
        }
        self.up.store(true, Ordering::Release);
        self.threads.get_or_init(|| (0..self.wanted).filter_map(|_| start(self)).collect());
        self.wake();
    }

    /// Returns whether more threads want to run than can, `idlers` of them being those of this vigil. For a moment that
    /// is so whenever a client is answered.
    fn processors_are_needed(&self, idlers: usize) -> bool {
        self.running.count().is_none_or(|count| count > self.processors.saturating_add(idlers))
    }

    /// Lets the processors to others for a while.
    fn rest(&self) {
        self.rest_until.store(self.now().saturating_add(nanos(RETREAT)), Ordering::Relaxed);
    }

    /// Nanoseconds since `began`.
    fn now(&self) -> u64 {
        nanos(self.began.elapsed())
    }

    fn wake(&self) {
        self.threads.get().into_iter().flatten().for_each(Thread::unpark);
    }

    /// The life of a thread that keeps a processor awake.
    fn keep(&self) {
        self.places.use_all();
        if let Err(errno) = sys::run_when_idle() {
            tracing::debug!("no processor is kept awake: {errno}");
            return;
        }
        let mut limit = Limit::default();
        while !self.ended.load(Ordering::Acquire) {
            std::thread::park();
            if !self.up.load(Ordering::Acquire) {
                continue;
            }
            match if limit.is_set() { Left::Needed } else { self.spin() } {
                // Perhaps told to go on by now.
                Left::Told => continue,
                Left::Needed => self.rest(),
                Left::Quiet => {}
            }
            self.up.store(false, Ordering::Release);
        }
    }

    /// Spins as long as requests come and nobody else needs the processor.
    fn spin(&self) -> Left {
        let idlers = self.threads.get().map_or(0, Vec::len);
        let mut needed = 0;
        let mut served = self.served.load(Ordering::Relaxed);
        let mut last = Instant::now();
        let (mut request, mut look) = (last, last);
        while self.up.load(Ordering::Relaxed) && !self.ended.load(Ordering::Relaxed) {
            for _ in 0..32 {
                std::hint::spin_loop();
            }
            // Who was woken meanwhile may wait for this very processor.
            std::thread::yield_now();
            let now = Instant::now();
            let serving = self.served.load(Ordering::Relaxed);
            if serving != served {
                served = serving;
                request = now;
            } else if now.duration_since(request) > PATIENCE {
                return Left::Quiet;
            }
            let pushed_away = now.duration_since(last) > PUSHED_AWAY;
            last = now;
            if pushed_away || now.duration_since(look) > LOOK_EVERY {
                look = now;
                let weight = if pushed_away { TOO_MANY_PUSHED } else { 1 };
                needed = if self.processors_are_needed(idlers) { needed + weight } else { 0 };
                if needed >= TOO_MANY {
                    return Left::Needed;
                }
            }
        }
        Left::Told
    }
}

/// No processor is kept awake as long as it lives: a request waits for a disk, and so for threads of the kernel.
#[derive(Debug)]
pub(super) struct Pause {
    vigil: Arc<Vigil>,
    /// Processors were kept awake before.
    goes_on: bool,
}

impl Drop for Pause {
    fn drop(&mut self) {
        let is_last = self.vigil.pauses.fetch_sub(1, Ordering::AcqRel) == 1;
        if is_last && self.goes_on {
            self.vigil.up.store(true, Ordering::Release);
            self.vigil.wake();
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Why a thread stopped spinning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// No requests come any more.
    Quiet,
    /// Somebody else needs the processor.
    Needed,
    /// It was told to: a request waits for a disk, or the mount ends.
    Told,
}

/// Whether a cgroup limits our processor time, asked now and then.
#[derive(Debug, Default)]
struct Limit {
    asked: Option<Instant>,
    is_set: bool,
}

impl Limit {
    fn is_set(&mut self) -> bool {
        if self.asked.is_none_or(|asked| asked.elapsed() > QUOTA_VALID) {
            self.asked = Some(Instant::now());
            self.is_set = quota::is_limited();
        }
        self.is_set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vigil without threads that never finds too many others running.
    fn calm() -> Arc<Vigil> {
        let mut vigil = Vigil::new(Processors::of_this_thread(), 0);
        vigil.processors = usize::MAX;
        Arc::new(vigil)
    }

    #[test]
    fn only_a_quick_burst_wakes_and_not_while_others_need_the_processors() {
        let mut vigil = calm();
        let ms = |ms| nanos(Duration::from_millis(ms));
        let is_up = |vigil: &Vigil| vigil.up.load(Ordering::Relaxed);
        vigil.burst_ended(ms(1000));
        assert!(!is_up(&vigil), "16 requests in a second");
        Arc::get_mut(&mut vigil).unwrap().processors = 0;
        vigil.burst_ended(ms(1001));
        assert!(!is_up(&vigil), "more run than there are processors: this thread");
        Arc::get_mut(&mut vigil).unwrap().processors = usize::MAX;
        vigil.rest_until.store(ms(1200), Ordering::Relaxed);
        vigil.burst_ended(ms(1002));
        assert!(!is_up(&vigil), "within the rest");
        vigil.burst_ended(ms(1199));
        vigil.burst_ended(ms(1201));
        assert!(is_up(&vigil));
    }

    #[test]
    fn spinning_ends_when_nobody_asks_and_with_the_mount() {
        let vigil = calm();
        vigil.up.store(true, Ordering::Relaxed);
        vigil.spin();
        vigil.ended.store(true, Ordering::Relaxed);
        assert_eq!(vigil.spin(), Left::Told);
    }

    #[test]
    fn no_processor_is_kept_awake_while_a_request_waits_for_a_disk() {
        let vigil = calm();
        let is_up = || vigil.up.load(Ordering::Relaxed);
        drop(vigil.pause());
        assert!(!is_up(), "none was before");
        vigil.burst_ended(1);
        let (first, second) = (vigil.pause(), vigil.pause());
        assert_eq!((is_up(), vigil.spin()), (false, Left::Told));
        vigil.burst_ended(2);
        assert!(!is_up(), "a burst of others in the pause");
        drop(second);
        assert!(!is_up(), "the first still waits");
        drop(first);
        assert!(is_up());
    }

    #[test]
    fn threads_end_with_what_they_belong_to() {
        let mut vigil = calm();
        Arc::get_mut(&mut vigil).unwrap().wanted = 2;
        let awake = Awake(Arc::clone(&vigil));
        vigil.burst_ended(1);
        assert_eq!(vigil.threads.get().map(Vec::len), Some(2));
        drop(awake);
        let deadline = Instant::now() + Duration::from_secs(20);
        while Arc::strong_count(&vigil) > 1 {
            assert!(Instant::now() < deadline, "a thread goes on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
