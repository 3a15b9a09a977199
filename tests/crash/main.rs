//! The server is killed (SIGKILL) at random moments under a writing load. After a remount every object is in
//! the state before or after the call that was under way, every finished call has lasted, the lowers are what
//! they were, and the workdir is clean.
//!
//! What stands on the disk then is clean for `unionfs check`, or repaired by it.
//!
//! A call is finished when it returned and, where it writes data, its fsync returned.

mod disk;
mod load;
mod names;
mod power;
mod start;

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::random::Random;
use e2e::require;
use e2e::snapshot::Snapshot;
use e2e::tree::LayerTree;
use e2e::user::{Role, run_again};
use rustix::process::{Pid, Signal};

use load::Worker;

/// Threads that write.
const WORKERS: usize = 3;

fn kills() -> u64 {
    std::env::var("E2E_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(15)
}

/// Runs `unionfs check --repair` on what no mount uses; returns whether something was repaired.
fn checked(layers: &Layers) -> Result<bool, String> {
    match e2e::program::repair(layers) {
        (Some(0), _) => Ok(false),
        (Some(1), _) => Ok(true),
        (status, text) => Err(format!("unionfs check: {status:?}\n{text}")),
    }
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
    let (mut calls, mut repaired) = (0, 0);
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
        if kill % 2 == 0 {
            repaired += u64::from(checked(&layers).unwrap_or_else(|text| panic!("kill {kill}: {text}")));
        }
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
    e2e::require::say(&format!(
        "crash: {} kills, {calls} finished calls, all accounted for, {repaired} checks repaired",
        kills()
    ));
}

#[test]
fn a_killed_server_leaves_names_as_after_the_last_call_or_the_one_before() {
    require!(Fuse, Union);
    kill_while_names_change("", Mounted::kill_server);
}

/// The server of an upper that is a store is a process beside the union's.
#[test]
fn a_killed_store_leaves_names_as_after_the_last_call_or_the_one_before() {
    require!(Fuse, Union);
    kill_while_names_change(",sidecar=store", Mounted::kill_server);
    kill_while_names_change(",sidecar=store", |mounted| {
        let children = format!("/proc/{0}/task/{0}/children", mounted.pid());
        let children = std::fs::read_to_string(children).unwrap();
        let store = Pid::from_raw(children.trim().parse().unwrap());
        rustix::process::kill_process(store.unwrap(), Signal::KILL).unwrap();
        mounted.kill_server();
    });
}

/// Kills by `kill` again and again while names change.
fn kill_while_names_change(options: &str, kill_servers: impl Fn(&mut Mounted)) {
    let scratch = scratch();
    let mut layers = Layers::below(scratch.path(), 1);
    layers.extra.push_str(options);
    names::add_to(LayerTree::new()).build(&layers.lowers[0]);
    let mut random = Random::new(1);
    let (mut calls, mut repaired) = (0, 0);
    for kill in 0..kills() {
        let [upper, work] = ["upper", "work"].map(|name| scratch.path().join(format!("{name}{kill}")));
        [&upper, &work].into_iter().for_each(|directory| std::fs::create_dir(directory).unwrap());
        let layers = Layers { upper: Some(upper), work: Some(work), ..layers.clone() };
        let mut mounted = Mounted::new(layers.clone());
        let log = Mutex::new(names::Log::default());
        let (delay, turns) = (Duration::from_micros(500 + random.below(150_000)), random.draw());
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| names::load(&log, &layers.target, turns, &AtomicBool::new(false)));
            std::thread::sleep(delay);
            kill_servers(&mut mounted);
            writer.join().unwrap().unwrap_err();
        });
        mounted.clear();
        let at = format!("kill {kill} after {delay:?}");
        if kill % 2 == 0 {
            repaired += u64::from(checked(&layers).unwrap_or_else(|text| panic!("{at}: {text}")));
        }
        mounted.mount();
        let mut log = log.into_inner().unwrap();
        log.promise_finished();
        log.check(&log, mounted.root()).unwrap_or_else(|text| panic!("{at}: {text}"));
        calls += log.len();
        mounted.unmount();
        repaired += u64::from(checked(&layers).unwrap_or_else(|text| panic!("{at}: {text}")));
        [&layers.upper, &layers.work].into_iter().flatten().for_each(|directory| {
            std::fs::remove_dir_all(directory).unwrap();
        });
    }
    let kills = kills();
    e2e::require::say(&format!("crash: {kills} kills, {calls} changes of names, {repaired} checks repaired"));
}

#[test]
fn as_an_ordinary_user() {
    require!(Fuse, Union, Root, Tester);
    run_again(Role::Plain, "a_killed_server");
}
