//! The program `perf-report`: arguments, and the order of a run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Parser;

use crate::failure::{Failure, Result};
use crate::fixture::{self, Scale};
use crate::raw::Raw;
use crate::rootfs::Rootfs;
use crate::rounds::{Bench, Keep};
use crate::samples::{Gap, Results};
use crate::sandbox::{self, Entered, Places};
use crate::subject::{Peers, Subject};
use crate::workload::{self, Case, LAYERS};
use crate::{criterion_report, host, report, rootfs, special};

/// Times whole programs on unionfs and its peers and writes a directory of results.
#[derive(Debug, Parser)]
#[command(name = "perf-report")]
pub struct ReportArgs {
    /// Small sizes and 3 rounds.
    #[arg(long)]
    quick: bool,
    /// Only these workloads, sections, `mount` or `memory` (separated by commas).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Numbers of layers into which the real tree is cut, for the workloads that go through it (3,20,100, or 3 with
    /// --quick).
    #[arg(long, value_delimiter = ',')]
    layers: Vec<usize>,
    /// Only these subjects: native, kernel_overlay, fuse_overlayfs_1, fuse_overlayfs, unionfs.
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<String>,
    /// Measure ours once more with these `-o` options; may be repeated.
    #[arg(long, value_name = "OPTIONS")]
    ours: Vec<String>,
    /// As root in the initial user namespace, not in a user namespace.
    #[arg(long)]
    root: bool,
    /// Number of rounds (5, or 3 with --quick).
    #[arg(long)]
    rounds: Option<usize>,
    /// Do not count FUSE requests.
    #[arg(long)]
    no_counts: bool,
    /// Directory of the results (benches/results/DATE). What it has of the same commit and scale is kept and not
    /// measured again: a run that was ended goes on, and pieces make a whole.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Also report what the criterion groups measured in the last N hours.
    #[arg(long, value_name = "N", default_value_t = 12)]
    criterion_hours: u64,
    /// Something to say about the run in its README.
    #[arg(long)]
    note: Option<String>,
}

/// Runs the program.
pub fn main() -> ExitCode {
    crate::failure::exit_code(run(&ReportArgs::parse()))
}

fn run(args: &ReportArgs) -> Result<ExitCode> {
    let target = sandbox::target_dir()?;
    let base = target.join("perf");
    // Before the sandbox: making the tree needs the network and, for an ordinary user, a namespace of its own.
    let rootfs = rootfs::ensure(&base.join("cache"))?;
    let places = match sandbox::enter(&base, !args.root)? {
        Entered::Done(code) => return Ok(code),
        Entered::Inside(places) => places,
    };
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or_else(|| Failure::new("no project"))?;
    let out = args.out.clone().unwrap_or_else(|| project.join("benches/results").join(host::day()));
    let mut raw = Raw::load(&out)?;
    let peers = Peers::detect(sandbox::sibling("perf-unionfs").ok());
    let (subjects, missing) = peers.available(&subjects(args)?, &places.memory)?;
    let gaps =
        missing.into_iter().map(|m| Gap { workload: "all".into(), subject: m.subject, reason: m.reason });
    let mut next = Results {
        subjects: subjects.iter().map(|s| format!("{s}")).collect(),
        facts: facts(args, project, &places, &peers, &rootfs.description),
        gaps: gaps.collect(),
        ..Results::default()
    };
    let cases = cases(args, &rootfs, &mut next);
    let mut results = raw.go_on(next)?;
    measure(args, &places, &peers, &rootfs, (&cases, &subjects), &mut results, &|so_far| {
        let mut kept = raw.clone();
        kept.put(so_far.clone());
        kept.save(&out)
    })?;
    raw.put(results);
    let since = SystemTime::now().checked_sub(Duration::from_secs(args.criterion_hours * 3600));
    let micro = criterion_report::read(&target.join("criterion"), since.unwrap_or(SystemTime::UNIX_EPOCH))?;
    if !micro.is_empty() {
        raw.criterion = micro;
    }
    report::write(&out, &raw)?;
    Ok(ExitCode::SUCCESS)
}

fn measure(
    args: &ReportArgs,
    places: &Places,
    peers: &Peers,
    rootfs: &Rootfs,
    (cases, subjects): (&[Case], &[Subject]),
    results: &mut Results,
    keep: Keep<'_>,
) -> Result<()> {
    let rounds = args.rounds.unwrap_or(if args.quick { 3 } else { 5 });
    let cases = left(args, cases, subjects, rounds, results);
    let (mounts, memory) = (wants(args, "mount", "mount"), wants(args, "memory", "memory"));
    if cases.is_empty() && !mounts && !memory {
        return Ok(());
    }
    let scale = if args.quick { Scale::QUICK } else { Scale::FULL };
    println!("making the trees");
    let fixture = fixture::make(rootfs, places, &scale, &cases)?;
    let bench =
        Bench { peers, places, fixture: &fixture, scale: &scale, load: sandbox::sibling("perf-load")? };
    if !cases.is_empty() {
        bench.time(&cases, subjects, rounds, results, keep)?;
        if !args.no_counts
            && let Err(e) = bench.count(&cases, subjects, results, keep)
        {
            println!("requests are not counted: {e}");
        }
    }
    if mounts {
        special::mounts(&bench, subjects, rounds, results)?;
        keep(results)?;
    }
    if memory {
        special::memory(&bench, subjects, results)?;
    }
    Ok(())
}

/// The cases of which something is still to be measured.
fn left(
    args: &ReportArgs,
    cases: &[Case],
    subjects: &[Subject],
    rounds: usize,
    results: &Results,
) -> Vec<Case> {
    let done = |case: &Case, subject: &Subject| {
        let (name, server) =
            (format!("{subject}"), !matches!(subject, Subject::Native | Subject::KernelOverlay));
        let counted = args.no_counts || !server || results.requests(&case.name, &name).is_some();
        counted && (0..rounds).all(|round| results.is_timed(&case.name, &name, round))
    };
    cases.iter().filter(|case| !subjects.iter().all(|s| done(case, s))).cloned().collect()
}

fn wants(args: &ReportArgs, name: &str, section: &str) -> bool {
    args.only.is_empty() || args.only.iter().any(|o| o == name || o == section)
}

/// The cases asked for; those that cannot run on this tree become gaps.
fn cases(args: &ReportArgs, rootfs: &Rootfs, results: &mut Results) -> Vec<Case> {
    let usual: &[usize] = if args.quick { &[LAYERS] } else { &[LAYERS, 20, 100] };
    let counts = if args.layers.is_empty() { usual } else { &args.layers };
    let wanted =
        |c: &Case| wants(args, &c.name, &c.section) || wants(args, c.workload.name, c.workload.section);
    let (usable, missing): (Vec<Case>, Vec<Case>) = workload::cases(counts)
        .into_iter()
        .filter(wanted)
        .partition(|c| rootfs.complete || !c.workload.chroot);
    for case in missing {
        let reason = "needs a complete Debian root file system (mmdebstrap)".to_owned();
        results.gaps.push(Gap { workload: case.name, subject: "all".to_owned(), reason });
    }
    results.workloads = usable.iter().map(|c| (c.section.clone(), c.name.clone())).collect();
    usable
}

/// The subjects asked for, in the order of the tables.
fn subjects(args: &ReportArgs) -> Result<Vec<Subject>> {
    let peers = [Subject::Native, Subject::KernelOverlay, Subject::FuseOverlayfs1, Subject::FuseOverlayfs2];
    let defaults = Subject::Unionfs(String::new());
    let all: Vec<Subject> = peers.into_iter().chain([defaults]).collect();
    if let Some(unknown) = args.subjects.iter().find(|name| !all.iter().any(|s| format!("{s}") == **name)) {
        return Err(Failure::new(format!("there is no subject {unknown}")));
    }
    let chosen =
        all.into_iter().filter(|s| args.subjects.is_empty() || args.subjects.contains(&format!("{s}")));
    Ok(chosen.chain(args.ours.iter().map(|o| Subject::Unionfs(o.clone()))).collect())
}

/// The arguments, without the place of the results: that is nobody else's.
fn command() -> Vec<String> {
    let mut arguments = std::env::args().skip(1);
    let mut kept = Vec::new();
    while let Some(argument) = arguments.next() {
        if argument == "--out" {
            arguments.next();
        } else if !argument.starts_with("--out=") {
            kept.push(argument);
        }
    }
    kept
}

fn facts(
    args: &ReportArgs,
    project: &Path,
    places: &Places,
    peers: &Peers,
    tree: &str,
) -> Vec<(String, String)> {
    let mut facts = host::facts();
    let privilege = if places.userns {
        "unprivileged: in a user namespace, all subjects alike (kernel overlayfs with userxattr)"
    } else {
        "root in the initial user namespace"
    };
    let more = [
        ("commit", host::commit(project)),
        ("command", format!("cargo xtask bench-report {}", command().join(" "))),
        ("scale", if args.quick { "quick: indicative only" } else { "full" }.to_owned()),
        ("privilege", privilege.to_owned()),
        (
            "layers and upper",
            "tmpfs; where the workload writes lower files of a disk or syncs: the disk".to_owned(),
        ),
        ("disk", places.disk_kind.clone()),
        ("tree", format!("{tree}; in {LAYERS} layers unless the row says otherwise")),
        ("note", args.note.clone().unwrap_or_else(|| "none".to_owned())),
    ];
    facts.extend(more.map(|(name, value)| (name.to_owned(), value)));
    facts.extend(peers.versions());
    facts
}
