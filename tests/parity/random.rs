//! Random histories.

use std::time::Duration;

use e2e::flatten::flatten;
use e2e::history::{Flavour, Generator, layers};
use e2e::operation::Step;
use e2e::require;
use e2e::require::say;
use e2e::shrink::{Difference, Pair, Tolerance, run, shrink};
use e2e::sides::{MAPPED, Server, pair};

/// Operations of one fresh mount; a long run is several of them with different seeds.
const BATCH: usize = 2_000;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The fuser crate knows no FUSE_TMPFILE, so over it the union refuses O_TMPFILE.
const OVER_FUSER: Tolerance = Tolerance { exdev: false, tmpfile: true };

/// Nothing may differ.
const NONE: Tolerance = Tolerance { exdev: false, tmpfile: false };

/// Runs `total` operations of random histories on both servers and panics with a short history that differs.
fn compare(ours: &Server, oracle: &Server, lowers: usize, flavour: Flavour, tolerance: Tolerance) {
    let total = number("E2E_OPS", 1_000) as usize;
    let first = number("E2E_SEED", 1);
    let (mut done, mut succeeded) = (0, 0);
    let mut seed = first;
    while done < total {
        let trees = layers(seed, lowers);
        let steps = Generator::new(seed, flavour, &flatten(&trees)).steps(BATCH.min(total - done));
        let make = || pair(&trees, ours, oracle);
        match run(&mut make(), &steps, tolerance) {
            Ok(count) => succeeded += count,
            Err(difference) => fail(&make, &steps, difference, (seed, lowers), tolerance),
        }
        done += steps.len();
        seed += 1;
    }
    let what = format!("{lowers} lowers, seeds {first}..{seed}: {ours:?} = {oracle:?}");
    say(&format!("parity: {done} operations, {succeeded} of them successful, {what}"));
}

fn fail(
    make: &dyn Fn() -> Pair,
    steps: &[Step],
    difference: Difference,
    run: (u64, usize),
    tolerance: Tolerance,
) {
    let budget = Duration::from_secs(number("E2E_SHRINK_SECONDS", 120));
    let (short, found) = shrink(make, steps, difference, tolerance, budget);
    panic!(
        "seed {}, {} lowers: after {} steps:\n{}\n{}",
        run.0,
        run.1,
        short.len(),
        text(&short),
        found.text
    );
}

fn text(steps: &[Step]) -> String {
    steps.iter().map(|step| format!("    {step:?}")).collect::<Vec<_>>().join("\n")
}

#[test]
fn random_histories_equal_a_plain_directory_on_one_lower() {
    require!(Fuse, Union);
    compare(&Server::ours(), &Server::Plain, 1, Flavour::full(), NONE);
}

#[test]
fn random_histories_equal_a_plain_directory_on_three_lowers() {
    require!(Fuse, Union);
    compare(&Server::ours(), &Server::Plain, 3, Flavour::full(), NONE);
}

#[test]
fn random_histories_equal_kernel_overlayfs_on_three_lowers() {
    require!(Fuse, Union, Root, KernelOverlay);
    compare(&Server::ours(), &Server::Kernel, 3, Flavour::full(), NONE);
}

#[test]
fn random_histories_equal_a_plain_directory_over_fuser() {
    require!(Fuse, Union);
    compare(&Server::ours_with(",transport=fuser"), &Server::Plain, 2, Flavour::full(), OVER_FUSER);
}

#[test]
fn random_histories_equal_a_plain_directory_without_writeback() {
    require!(Fuse, Union);
    compare(&Server::ours_with(",writeback=0"), &Server::Plain, 2, Flavour::full(), NONE);
}

#[test]
fn random_histories_equal_a_plain_directory_with_files_copied_in_parts() {
    require!(Fuse, Union);
    compare(&Server::ours_with(",copyup=range:4096"), &Server::Plain, 2, Flavour::full(), NONE);
}

#[test]
fn random_histories_equal_a_plain_directory_without_any_caching() {
    require!(Fuse, Union);
    compare(&Server::ours_with(",timeout=0"), &Server::Plain, 2, Flavour::full(), NONE);
}

#[test]
fn random_histories_equal_a_plain_directory_without_device_whiteouts() {
    require!(Fuse, Union);
    compare(&Server::ours_with(",dot_wh_whiteouts"), &Server::Plain, 2, Flavour::full(), NONE);
}

#[test]
fn random_histories_equal_a_plain_directory_with_owners_in_user_attributes() {
    require!(Fuse, Union);
    compare(&Server::ours_with(",xattr_permissions=2"), &Server::Plain, 2, Flavour::full(), NONE);
}

#[test]
fn random_histories_equal_a_plain_directory_with_owners_in_security_attributes() {
    require!(Fuse, Union, Root);
    compare(&Server::ours_with(",xattr_permissions=1"), &Server::Plain, 2, Flavour::full(), NONE);
}

#[test]
fn random_histories_equal_one_directory_through_a_mapping_of_ids() {
    require!(Fuse, Union, Root);
    compare(&Server::ours_with(MAPPED), &Server::Plain, 2, Flavour::full(), NONE);
}

#[test]
fn random_histories_equal_a_plain_directory_with_whiteouts_by_attribute() {
    require!(Fuse, Union);
    compare(&Server::ours_with(",whiteouts=xattr"), &Server::Plain, 3, Flavour::full(), NONE);
}

#[test]
fn random_histories_equal_a_plain_directory_with_a_sidecar() {
    require!(Fuse, Union);
    compare(&Server::ours_with(",sidecar=on"), &Server::Plain, 1, Flavour::full(), NONE);
    compare(&Server::ours_with(",sidecar=on"), &Server::Plain, 3, Flavour::full(), NONE);
}

/// The harness itself: the two oracles agree, so what differs from them is the union's.
#[test]
fn kernel_overlayfs_equals_a_plain_directory() {
    require!(Root, KernelOverlay);
    compare(&Server::Kernel, &Server::Plain, 1, Flavour::full(), NONE);
    compare(&Server::Kernel, &Server::Plain, 3, Flavour::full(), NONE);
}

/// The harness itself: two plain directories never differ.
#[test]
fn a_plain_directory_equals_another() {
    compare(&Server::Plain, &Server::Plain, 3, Flavour::full(), NONE);
}
