//! The table of who passes what: `cargo xtask conformance`.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::flatten::flatten;
use e2e::history::{Flavour, Generator, layers};
use e2e::mounted::{Layers, Mounted, scratch, union_program};
use e2e::oracle::KernelOverlay;
use e2e::require;
use e2e::require::say;
use e2e::shrink::{Tolerance, run};
use e2e::sides::{Server, pair};
use e2e::suites::{STRESSORS, Stressed, fsx, pjdfstest, stress};
use e2e::tree::{Kind, LayerTree};
use e2e::user::Role;

/// Operations of one history of the parity suite.
const OPERATIONS: usize = 300;

/// Who is measured.
struct Subject {
    name: String,
    server: Server,
}

/// What is measured of a subject.
struct Measured {
    /// The cells of its row.
    cells: Vec<String>,
    /// What failed, by suite: pjdfstest, stress-ng.
    failed: [BTreeSet<String>; 2],
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output().map(|output| output.stdout);
    let text = String::from_utf8(output.unwrap_or_default()).unwrap_or_default();
    let version =
        text.lines().find_map(|line| line.strip_prefix("fuse-overlayfs: version ").map(str::to_owned));
    version.unwrap_or_else(|| "of unknown version".to_owned())
}

fn subjects() -> Vec<Subject> {
    let mut found = vec![Subject { name: "plain".to_owned(), server: Server::Plain }];
    if e2e::require::Need::KernelOverlay.missing().is_none() {
        found.push(Subject { name: "kernel overlayfs".to_owned(), server: Server::Kernel });
    }
    for program in std::env::split_paths(&std::env::var_os("E2E_PEERS").unwrap_or_default()) {
        let name = format!("fuse-overlayfs {}", version(&program));
        found.push(Subject { name, server: Server::Program(program, "") });
    }
    found.push(Subject { name: "unionfs".to_owned(), server: Server::Program(union_program(), "") });
    found
}

/// Runs the suites that need only a directory.
fn suites_in(root: &Path) -> Measured {
    let (verdict, _) = pjdfstest(root);
    let cases = match &verdict.broken {
        Some(_) => "does not end".to_owned(),
        None => format!("{} / {} / {}", verdict.passed, verdict.failed.len(), verdict.skipped),
    };
    let runs = [(1, "lower"), (2, "lower"), (3, "new")];
    let good =
        runs.iter().filter(|(seed, name)| fsx(root, name, number("E2E_FSX_OPS", 100_000), *seed).is_ok());
    let fsx = format!("{} of {}", good.count(), runs.len());
    let seconds = u32::try_from(number("E2E_STRESS_SECONDS", 3)).unwrap();
    let (mut passed, mut skipped, mut stressed) = (0, 0, BTreeSet::new());
    for stressor in STRESSORS {
        match stress(root, stressor, seconds).0 {
            Stressed::Passed => passed += 1,
            Stressed::Skipped => skipped += 1,
            Stressed::Failed => drop(stressed.insert(stressor.to_owned())),
        }
    }
    let stress_cell = format!("{passed} / {} / {skipped}", stressed.len());
    Measured { cells: vec![cases, fsx, stress_cell], failed: [verdict.failed, stressed] }
}

/// Counts the random histories whose every result and tree equals that of a plain directory.
fn equal_histories(server: &Server) -> String {
    let total = number("E2E_HISTORIES", 20);
    let equal = (1..=total).filter(|&seed| {
        let trees = layers(seed, 1 + (seed % 3) as usize);
        let steps = Generator::new(seed, Flavour::full(), &flatten(&trees)).steps(OPERATIONS);
        // A peer that dies is a difference like another.
        let outcome = std::panic::catch_unwind(|| {
            run(&mut pair(&trees, server, &Server::Plain), &steps, Tolerance::default()).is_ok()
        });
        outcome.unwrap_or(false)
    });
    format!("{} of {total}", equal.count())
}

fn measure(subject: &Subject) -> Measured {
    let scratch = scratch();
    let layers = Layers::below(scratch.path(), 1);
    let tree = LayerTree::new().file("lower", vec![b'x'; 100_000]).with("pjd", Kind::Directory, 0o777);
    tree.build(&layers.lowers[0]);
    let mut measured = match &subject.server {
        Server::Plain => suites_in(&layers.lowers[0]),
        Server::Program(program, _) => suites_in(Mounted::with(program, layers).root()),
        Server::Kernel => suites_in(KernelOverlay::new(layers).root()),
    };
    measured.cells.push(equal_histories(&subject.server));
    measured
}

/// Tells what fails beyond the plain file system's failures.
fn beyond(measured: &Measured, plain: &Measured) -> String {
    let new = |which: usize| measured.failed[which].difference(&plain.failed[which]).cloned();
    let (devices, others): (Vec<_>, Vec<_>) = new(0).partition(|case| case.ends_with("::char"));
    let list = |names: Vec<String>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    format!(
        "pjdfstest {} of `*::char`, others: {}; stress-ng: {}",
        devices.len(),
        list(others),
        list(new(1).collect())
    )
}

/// Writes the rows of this role to `E2E_ROWS`.
#[test]
#[ignore = "a measurement, run by cargo xtask conformance"]
fn rows() {
    require!(Fuse, Union, Suites, StressNg);
    let who = if Role::current().is_some() { "user namespace" } else { "root" };
    let (mut lines, mut failures) = (Vec::new(), Vec::new());
    let mut plain = None;
    for subject in subjects() {
        let measured = measure(&subject);
        let row = format!("| {} | {who} | {} |", subject.name, measured.cells.join(" | "));
        say(&row);
        lines.push(row);
        match &plain {
            None => plain = Some(measured),
            Some(plain) => failures.push(format!("- {}, {who}: {}", subject.name, beyond(&measured, plain))),
        }
    }
    let Some(target) = std::env::var_os("E2E_ROWS") else { return };
    std::fs::write(target, format!("{}\n\n{}\n", lines.join("\n"), failures.join("\n"))).unwrap();
}

/// Copies the peers to where every user can start them, and returns the list.
fn reachable_peers(directory: &Path) -> OsString {
    let list = std::env::var_os("E2E_PEERS").unwrap_or_default();
    let copies: Vec<PathBuf> = std::env::split_paths(&list)
        .enumerate()
        .map(|(number, program)| {
            let home = directory.join(format!("peer{number}"));
            std::fs::create_dir(&home).unwrap();
            e2e::user::copy_program(&program, &home)
        })
        .collect();
    std::env::join_paths(copies).unwrap()
}

/// Writes the document named by `E2E_CONFORMANCE_TABLE`, relative to the workspace.
#[test]
#[ignore = "a measurement, run by cargo xtask conformance"]
fn table() {
    require!(Fuse, Union, Suites, StressNg, Root);
    let Some(target) = std::env::var_os("E2E_CONFORMANCE_TABLE") else { return };
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let scratch = scratch();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(scratch.path(), mode).unwrap();
    let peers = reachable_peers(scratch.path());
    let mut parts = Vec::new();
    for role in [None, Some(Role::Namespace)] {
        let rows = scratch.path().join(format!("rows-{}", role.is_some()));
        let settings: [(&str, &OsStr); 2] = [("E2E_ROWS", rows.as_os_str()), ("E2E_PEERS", &peers)];
        e2e::user::run_measurement(role, "table::rows", &settings);
        parts.push(std::fs::read_to_string(&rows).unwrap());
    }
    let split =
        |part: &String| part.split_once("\n\n").map(|(a, b)| (a.to_owned(), b.trim().to_owned())).unwrap();
    let (rows, failures): (Vec<_>, Vec<_>) = parts.iter().map(split).unzip();
    let path = workspace.join(target);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, document(&rows.join("\n"), failures.join("\n").trim())).unwrap();
}

fn document(rows: &str, failures: &str) -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let stress_ng = Command::new("stress-ng").arg("--version").output().unwrap().stdout;
    let stress_ng = String::from_utf8(stress_ng).unwrap_or_default();
    let stress_ng = stress_ng.split_whitespace().nth(2).unwrap_or_default().trim_end_matches(',');
    format!(
        "# Conformance\n\nWritten by `cargo xtask conformance`. Linux {}, layers on the file system of the temporary \
         directory.\n\n\
         - pjdfstest 0.2.2: cases passed / failed / skipped.\n\
         - fsx 0.3.2: runs of {} operations without a wrong byte, on two lower files and a new one; with mappings, holes, \
         allocation and copy_file_range.\n\
         - stress-ng {stress_ng}: stressors with `--verify`, {} seconds each, passed / failed / skipped for lack of a \
         privilege.\n\
         - parity: random histories of {OPERATIONS} calls, with remounts, of which every result and every tree equals a \
         plain directory's.\n\n\
         | file system | as | pjdfstest | fsx | stress-ng | parity |\n| --- | --- | --- | --- | --- | --- |\n{rows}\n\n\
         ## What fails beyond the plain file system's failures\n\n\
         The cases `*::char` make a character device 0:0, which is a whiteout: EPERM on unions that keep it safe.\n\n\
         {failures}\n",
        release.trim(),
        number("E2E_FSX_OPS", 100_000),
        number("E2E_STRESS_SECONDS", 3),
    )
}
