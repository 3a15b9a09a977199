//! The table of who passes what: `cargo xtask conformance`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::flatten::flatten;
use e2e::history::{Flavour, Generator, layers};
use e2e::mounted::{Layers, Mounted, Watchdog, scratch, union_program, watchdog_limit};
use e2e::oracle::KernelOverlay;
use e2e::require;
use e2e::require::say;
use e2e::shrink::{Tolerance, run};
use e2e::sides::{Server, pair};
use e2e::suites::{Ended, GRACE, LIMIT, STRESSORS, Verdict, fsx, pjdfstest, stress};
use e2e::tree::LayerTree;
use e2e::user::Role;

/// Operations of one history of the parity suite.
const OPERATIONS: usize = 300;

/// Runs of fsx, by seed: on the file that the lower has, or on a new one. Several, because fsx keeps all its mappings and
/// becomes slow.
const FSX_RUNS: [(u64, &str); 5] = [(1, "lower"), (2, "lower"), (3, "lower"), (4, "lower"), (5, "new")];

/// Who is measured.
struct Subject {
    name: String,
    server: Server,
}

/// The suites, in the order of the columns.
const SUITES: [&str; 4] = ["pjdfstest", "fsx", "stress-ng", "parity"];

/// What each suite said of a subject.
type Measured = [Verdict; SUITES.len()];

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
    let only = std::env::var("E2E_ONLY").unwrap_or_default();
    found.retain(|subject| subject.name.contains(&only));
    found
}

impl Subject {
    /// Runs one item on a fresh mount; a server that does not let it end is killed after `limit`.
    ///
    /// Each item has a mount of its own, so that a server that dies fails this item and no other.
    fn on_fresh<T>(&self, limit: Duration, item: impl FnOnce(&Path) -> T) -> T {
        let scratch = scratch();
        let layers = Layers::below(scratch.path(), 1);
        LayerTree::new().file("lower", vec![b'x'; 100_000]).build(&layers.lowers[0]);
        match &self.server {
            Server::Plain => item(&layers.lowers[0]),
            Server::Kernel => item(KernelOverlay::new(layers).root()),
            Server::Program(program, _) => {
                let mounted = Mounted::with(program, layers);
                let _watchdog = Watchdog::arm(mounted.pid(), limit + GRACE);
                item(mounted.root())
            }
        }
    }

    fn fsx(&self) -> Verdict {
        let mut verdict = Verdict::default();
        for (seed, name) in FSX_RUNS {
            let ops = number("E2E_FSX_OPS", 100_000) / FSX_RUNS.len() as u64;
            let (ended, _) = self.on_fresh(LIMIT, |root| fsx(root, name, ops, seed));
            verdict.add(&format!("{name} file, seed {seed}"), ended);
        }
        verdict
    }

    fn stress_ng(&self) -> Verdict {
        let seconds = u32::try_from(number("E2E_STRESS_SECONDS", 2)).unwrap();
        let limit = Duration::from_secs(seconds.into()) + GRACE;
        let mut verdict = Verdict::default();
        for stressor in STRESSORS {
            let (ended, _) = self.on_fresh(limit, |root| stress(root, stressor, seconds));
            verdict.add(stressor, ended);
        }
        verdict
    }

    /// Compares every result and tree of random histories with those of a plain directory.
    fn parity(&self) -> Verdict {
        let mut verdict = Verdict::default();
        for seed in 1..=number("E2E_HISTORIES", 20) {
            let trees = layers(seed, 1 + (seed % 3) as usize);
            let steps = Generator::new(seed, Flavour::full(), &flatten(&trees)).steps(OPERATIONS);
            let start = Instant::now();
            // A peer that dies is a difference like another.
            let equal = std::panic::catch_unwind(|| {
                run(&mut pair(&trees, &self.server, &Server::Plain), &steps, Tolerance::default()).is_ok()
            });
            let ended = match equal {
                Ok(true) => Ended::Passed,
                _ if start.elapsed() > watchdog_limit() => Ended::TimedOut,
                _ => Ended::Failed,
            };
            verdict.add(&format!("seed {seed:02}"), ended);
        }
        verdict
    }

    fn measure(&self) -> Measured {
        [self.on_fresh(LIMIT, |root| pjdfstest(root).0), self.fsx(), self.stress_ng(), self.parity()]
    }
}

fn cell(verdict: &Verdict) -> String {
    let cell = format!("{} / {} / {}", verdict.passed, verdict.failed.len(), verdict.skipped.len());
    match verdict.timed_out.len() {
        0 => cell,
        late => format!("{cell}, {late} timed out"),
    }
}

/// Names the cases, those of devices 0:0 by their number.
fn list<'a>(cases: impl Iterator<Item = &'a String>) -> Option<String> {
    let (devices, mut names): (Vec<_>, Vec<_>) = cases.cloned().partition(|case| case.ends_with("::char"));
    if !devices.is_empty() {
        names.insert(0, format!("{} of `*::char`", devices.len()));
    }
    (!names.is_empty()).then(|| names.join(", "))
}

/// Tells what does not pass beyond what does not on the plain file system: a line for each suite and kind.
fn beyond(measured: &Measured, plain: &Measured) -> Vec<String> {
    let mut lines = Vec::new();
    for ((suite, verdict), plain) in SUITES.iter().zip(measured).zip(plain) {
        let kinds = [
            ("failed", &verdict.failed, &plain.failed),
            ("timed out", &verdict.timed_out, &plain.timed_out),
            ("skipped", &verdict.skipped, &plain.skipped),
        ];
        for (kind, cases, plain) in kinds {
            let whole = verdict.passed == 0 && cases.len() > 1;
            let named = if whole { Some("all".to_owned()) } else { list(cases.difference(plain)) };
            lines.extend(named.map(|named| format!("  - {suite}, {kind}: {named}")));
        }
    }
    lines
}

/// Writes the rows of this role to `E2E_ROWS`.
#[test]
#[ignore = "a measurement, run by cargo xtask conformance"]
fn rows() {
    require!(Fuse, Union, Suites, StressNg);
    let who = if Role::current().is_some() { "user namespace" } else { "root" };
    let (mut lines, mut failures) = (Vec::new(), Vec::new());
    let mut plain = Measured::default();
    for subject in subjects() {
        let measured = subject.measure();
        let row = format!("| {} | {who} | {} |", subject.name, measured.each_ref().map(cell).join(" | "));
        say(&row);
        lines.push(row);
        let more = beyond(&measured, &plain);
        let none = if more.is_empty() { ": nothing" } else { "" };
        failures.push(format!("- {}, {who}{none}", subject.name));
        failures.extend(more);
        if subject.server == Server::Plain {
            plain = measured;
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
    let patience = (LIMIT + GRACE).as_secs().to_string();
    let measure = &|role: Option<Role>| {
        let rows = scratch.path().join(format!("rows-{}", role.is_some()));
        let settings: [(&str, &OsStr); 3] =
            [("E2E_ROWS", rows.as_os_str()), ("E2E_PEERS", &peers), ("E2E_HANG_SECONDS", patience.as_ref())];
        e2e::user::run_measurement(role, "table::rows", &settings);
        std::fs::read_to_string(&rows).unwrap()
    };
    let parts = std::thread::scope(|scope| {
        let measured = [None, Some(Role::Namespace)].map(|role| scope.spawn(move || measure(role)));
        measured.map(|thread| thread.join().unwrap())
    });
    if std::env::var_os("E2E_ONLY").is_some() {
        return;
    }
    let split =
        |part: &String| part.split_once("\n\n").map(|(a, b)| (a.to_owned(), b.trim().to_owned())).unwrap();
    let (rows, failures): (Vec<_>, Vec<_>) = parts.iter().map(split).unzip();
    let path = workspace.join(target);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, document(&rows.join("\n"), failures.join("\n").trim())).unwrap();
}

/// Returns the words that a program prints, or nothing.
fn words(program: &str, arguments: &[&str]) -> Vec<String> {
    let output = Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let text = output.map(|output| String::from_utf8(output.stdout).unwrap_or_default()).unwrap_or_default();
    text.split_whitespace().map(|word| word.trim_end_matches(',').to_owned()).collect()
}

fn document(rows: &str, failures: &str) -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let commit = words("git", &["describe", "--always", "--dirty"]).concat();
    let stress_ng = words("stress-ng", &["--version"]).into_iter().nth(2).unwrap_or_default();
    let base = scratch();
    let kind = words("findmnt", &["-n", "-o", "FSTYPE", "-T", &base.path().display().to_string()]).concat();
    format!(
        "# Conformance\n\nWritten by `cargo xtask conformance` at commit {commit}. Linux {}, layers on {kind}.\n\n\
         - pjdfstest 0.2.2, cases.\n\
         - fsx 0.3.2, {} operations in {} runs on a lower file or a new one; with mappings, holes, allocation and \
         copy_file_range.\n\
         - stress-ng {stress_ng}, file stressors with `--verify`, {} seconds each.\n\
         - parity: random histories of {OPERATIONS} calls, with remounts, of which every result and every tree must equal a \
         plain directory's.\n\n\
         Each cell: passed / failed / skipped, where skipped is what does not apply or needs a privilege. What does not end \
         is ended and counted as timed out.\n\n\
         | file system | as | {} |\n| --- | --- | --- | --- | --- | --- |\n{rows}\n\n\
         ## Beyond the plain file system\n\n\
         What fails, times out or is skipped, and does not on the plain file system in the same role. For that itself, all of \
         it. The cases `*::char` make a character device 0:0, which is a whiteout: EPERM on unions that keep it safe.\n\n\
         {failures}\n",
        release.trim(),
        number("E2E_FSX_OPS", 100_000),
        FSX_RUNS.len(),
        number("E2E_STRESS_SECONDS", 2),
        SUITES.join(" | "),
    )
}
