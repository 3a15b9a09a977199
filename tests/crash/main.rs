//! The server is killed (SIGKILL) at random moments under a writing load. After a remount every object is in
//! the state before or after the call that was under way, every finished call has lasted, the lowers are what
//! they were, and the workdir is clean.
//!
//! A call is finished when it returned and, where it writes data, its fsync returned.

mod disk;
mod load;
mod power;
mod start;

use std::time::Duration;

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::random::Random;
use e2e::require;
use e2e::snapshot::Snapshot;
use e2e::user::{Role, run_again};

use load::Worker;

/// Threads that write.
const WORKERS: usize = 3;

fn kills() -> u64 {
    std::env::var("E2E_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(15)
}

#[test]
fn a_killed_server_leaves_every_file_old_or_new() {
    require!(Fuse, Union);
    let scratch = scratch();
    let layers = Layers::below(scratch.path(), 2);
    load::trees(WORKERS).iter().zip(&layers.lowers).for_each(|(tree, lower)| tree.build(lower));
    let lowers: Vec<Snapshot> = layers.lowers.iter().map(|lower| Snapshot::take(lower).unwrap()).collect();
    let mut workers: Vec<Worker> = (0..WORKERS).map(Worker::new).collect();
    let mut mounted = Mounted::new(layers.clone());
    let mut random =
        Random::new(std::env::var("E2E_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1));
    let mut calls = 0;
    for kill in 0..kills() {
        let root = layers.target.clone();
        let delay = Duration::from_micros(500 + random.below(60_000));
        std::thread::scope(|scope| {
            let running: Vec<_> =
                workers.iter_mut().map(|worker| scope.spawn(|| worker.run_until_failure(&root))).collect();
            std::thread::sleep(delay);
            mounted.kill_server();
            for thread in running {
                calls += thread.join().unwrap();
            }
        });
        mounted.clear();
        mounted.mount();
        for worker in &mut workers {
            worker.check(&layers.target).unwrap_or_else(|text| panic!("kill {kill} after {delay:?}: {text}"));
        }
    }
    mounted.unmount();
    for (lower, before) in layers.lowers.iter().zip(&lowers) {
        let lines = before.diff(&Snapshot::take(lower).unwrap(), ("before", "after"));
        assert!(lines.is_empty(), "a lower was written:\n{}", lines.join("\n"));
    }
    let left = e2e::sides::leftovers(layers.work.as_ref().unwrap());
    assert!(left.is_empty(), "left in the workdir: {left:?}");
    e2e::require::say(&format!("crash: {} kills, {calls} finished calls, all accounted for", kills()));
}

#[test]
fn as_an_ordinary_user() {
    require!(Fuse, Union, Root, Tester);
    run_again(Role::Plain, "a_killed_server");
}
