//! Random calls on `Union` itself, without a mount, against a file system in memory; the union is dropped and
//! opened again, or gets another upper, in the middle.

mod drive;
mod memory;

use proptest::collection::vec;
use proptest::prelude::*;

use drive::{Call, Driver};
use memory::Over;

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c", "d"]).prop_map(str::to_owned)
}

fn path() -> impl Strategy<Value = Vec<String>> {
    vec(name(), 1..4)
}

fn over() -> impl Strategy<Value = Over> {
    prop::sample::select(vec![Over::Replace, Over::Replace, Over::NoReplace, Over::Exchange])
}

fn call() -> impl Strategy<Value = Call> {
    let mode = prop::sample::select(vec![0o644_u32, 0o600, 0o755, 0o444]);
    prop_oneof![
        3 => (path(), mode.clone()).prop_map(|(path, mode)| Call::Create(path, mode)),
        4 => (path(), 0_u64..9000, 0_usize..5000, any::<u64>())
            .prop_map(|(path, offset, len, seed)| Call::Write(path, offset, len, seed)),
        2 => (path(), 0_u64..12_000).prop_map(|(path, size)| Call::Truncate(path, size)),
        3 => path().prop_map(Call::Read),
        4 => path().prop_map(Call::Unlink),
        4 => path().prop_map(Call::Mkdir),
        4 => path().prop_map(Call::Rmdir),
        6 => (path(), path(), over()).prop_map(|(from, to, over)| Call::Rename(from, to, over)),
        3 => (path(), path()).prop_map(|(from, to)| Call::Link(from, to)),
        2 => (path(), name()).prop_map(|(path, target)| Call::Symlink(path, target)),
        2 => (path(), mode).prop_map(|(path, mode)| Call::Chmod(path, mode)),
        2 => (path(), vec(any::<u8>(), 0..9)).prop_map(|(path, value)| Call::SetXattr(path, value)),
        1 => path().prop_map(Call::RemoveXattr),
        3 => (path(), 1_usize..4).prop_map(|(path, chunk)| Call::List(path, chunk)),
        2 => path().prop_map(Call::Hold),
        2 => (0_u64..9000, 1_usize..3000, any::<u64>()).prop_map(|(offset, len, seed)| Call::WriteHeld(offset, len, seed)),
        2 => Just(Call::ReadHeld),
        1 => Just(Call::Forget),
        1 => Just(Call::Compare),
        1 => Just(Call::Reopen),
        2 => Just(Call::Rotate),
    ]
}

fn cases() -> u32 {
    std::env::var("E2E_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_calls_on_the_union_equal_a_file_system_in_memory(seed in 0_u64..1000, calls in vec(call(), 1..120)) {
        let mut driver = Driver::new(seed);
        for (index, call) in calls.iter().enumerate() {
            driver.apply(call).map_err(|text| TestCaseError::fail(format!("call {index} {call:?}: {text}")))?;
        }
        driver.finish().map_err(TestCaseError::fail)?;
    }

    #[test]
    fn an_nfs_client_that_keeps_names_changes_no_link_count(seed in 0_u64..1000, calls in vec(call(), 1..120)) {
        let directory = e2e::mounted::scratch();
        let root = directory.path().to_owned();
        e2e::nfs::imitated(&root, || {
            let mut driver = Driver::below(directory, seed);
            for (index, call) in calls.iter().filter(|call| is_known_to_nfs(call)).enumerate() {
                driver.apply(call).map_err(|text| TestCaseError::fail(format!("call {index} {call:?}: {text}")))?;
            }
            driver.finish().map_err(TestCaseError::fail)
        })?;
    }
}

/// Returns whether it is no exchange, which NFS has not.
fn is_known_to_nfs(call: &Call) -> bool {
    !matches!(call, Call::Rename(_, _, Over::Exchange))
}

fn path_of(text: &str) -> Vec<String> {
    text.split('/').map(str::to_owned).collect()
}

/// A name goes by which the file is open, or where no other one is known.
#[test]
fn on_nfs_a_removed_name_is_not_counted_among_the_links() {
    let replace = |from, to| Call::Rename(path_of(from), path_of(to), Over::Replace);
    let link = |from, to| Call::Link(path_of(from), path_of(to));
    let unlink = |path| Call::Unlink(path_of(path));
    let (write, hold) = (Call::Write(path_of("new"), 0, 9, 1), Call::Hold(path_of("new")));
    let begin = [unlink("new"), Call::Create(path_of("new"), 0o644), link("new", "second")];
    let ends = [
        vec![unlink("new")],
        vec![write.clone(), unlink("new"), Call::Read(path_of("second"))],
        vec![hold.clone(), unlink("new"), Call::WriteHeld(5, 9, 2), Call::ReadHeld],
        vec![hold.clone(), link("new", "third"), unlink("second"), unlink("third"), Call::ReadHeld],
        vec![hold.clone(), unlink("second"), unlink("new"), Call::WriteHeld(5, 9, 2), Call::ReadHeld],
        vec![write, Call::Create(path_of("other"), 0o600), replace("other", "new")],
        vec![
            hold.clone(),
            Call::Create(path_of("other"), 0o600),
            replace("other", "new"),
            Call::WriteHeld(5, 9, 2),
        ],
        vec![Call::Forget, unlink("new")],
        vec![
            Call::Reopen,
            Call::Forget,
            unlink("new"),
            Call::Compare,
            link("second", "third"),
            unlink("second"),
        ],
        vec![
            Call::Forget,
            hold,
            unlink("new"),
            Call::WriteHeld(5, 9, 2),
            Call::Compare,
            unlink("second"),
            Call::ReadHeld,
        ],
        vec![link("new", "third"), Call::Forget, unlink("new"), unlink("second")],
        vec![Call::Forget, unlink("new"), Call::Rotate, Call::Forget, Call::Compare],
        vec![Call::Symlink(path_of("symlink"), "a".into()), link("symlink", "other"), unlink("symlink")],
    ];
    let of_a_new_file = ends.into_iter().flat_map(|end| {
        let calls: Vec<Call> = begin.iter().cloned().chain(end).collect();
        [(0, calls.clone()), (1, calls)]
    });
    let of_the_lower = [
        // A file of two names; what is copied up of it is never opened.
        (94, vec![unlink("b/d/c"), Call::Forget, Call::Rotate]),
        // What is held keeps its name in what becomes a lower.
        (217, vec![Call::Hold(path_of("b/b/c")), replace("a/d", "b/b/c"), Call::Forget, Call::Rotate]),
    ];
    for (seed, calls) in of_a_new_file.chain(of_the_lower) {
        let directory = e2e::mounted::scratch();
        let root = directory.path().to_owned();
        e2e::nfs::imitated(&root, || {
            let mut driver = Driver::below(directory, seed);
            for call in calls.iter().chain([&Call::Compare]) {
                driver.apply(call).unwrap_or_else(|text| panic!("seed {seed}, {calls:?}, {call:?}: {text}"));
            }
            driver.finish().unwrap_or_else(|text| panic!("seed {seed}, {calls:?}: {text}"));
        });
    }
}

/// Histories that once went wrong.
#[test]
fn what_the_layers_say_after_a_rotation_is_read_as_it_was_meant() {
    let path = path_of;
    let exchange = |from, to| Call::Rename(path(from), path(to), Over::Exchange);
    let histories = [
        // A name that leads to a whole file through the index, and has one without data below.
        (522, vec![Call::SetXattr(path("a"), vec![]), Call::Rotate, Call::Write(path("a"), 0, 1, 0)]),
        // A directory that a layer has moved is moved again: the layers below have it in another place than that one.
        (73, vec![exchange("c/d", "b"), Call::Rotate, exchange("c/d/b", "a")]),
    ];
    for (seed, calls) in histories {
        let mut driver = Driver::new(seed);
        for call in &calls {
            driver.apply(call).unwrap_or_else(|text| panic!("seed {seed}, {call:?}: {text}"));
        }
        driver.finish().unwrap_or_else(|text| panic!("seed {seed}: {text}"));
    }
}
