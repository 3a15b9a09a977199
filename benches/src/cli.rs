//! The program `perf-report`: arguments, and the order of a run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Parser;

use crate::failure::{Failure, Result};
use crate::fixture::{self, Scale};
use crate::rounds::Bench;
use crate::samples::{Gap, Results};
use crate::sandbox::{self, Entered, Places};
use crate::subject::{Peers, Subject};
use crate::workload::{Storage, WORKLOADS, Workload};
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
    /// Directory of the results (benches/results/DATE).
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
    let project =
        target.parent().map(Path::to_path_buf).ok_or_else(|| Failure::new("target has no parent"))?;
    let scale = if args.quick { Scale::QUICK } else { Scale::FULL };
    let peers = Peers::detect(sandbox::sibling("perf-unionfs").ok());
    let (subjects, missing) = peers.available(&subjects(args)?, &places.memory)?;
    let gaps =
        missing.into_iter().map(|m| Gap { workload: "all".into(), subject: m.subject, reason: m.reason });
    let mut results = Results {
        subjects: subjects.iter().map(|s| format!("{s}")).collect(),
        facts: facts(args, &project, &places, &peers, &rootfs.description),
        gaps: gaps.collect(),
        ..Results::default()
    };
    let workloads = workloads(args, &rootfs, &mut results);
    let disk = workloads.iter().any(|w| w.storage == Storage::Disk);
    println!("making the trees");
    let fixture = fixture::make(&rootfs, &places, &scale, disk)?;
    let load = sandbox::sibling("perf-load")?;
    let bench = Bench { peers: &peers, places: &places, fixture: &fixture, scale: &scale, load };
    measure(args, &bench, &workloads, &subjects, &mut results)?;
    let since = SystemTime::now().checked_sub(Duration::from_secs(args.criterion_hours * 3600));
    let micro = criterion_report::read(&target.join("criterion"), since.unwrap_or(SystemTime::UNIX_EPOCH))?;
    let out = args.out.clone().unwrap_or_else(|| project.join("benches/results").join(host::day()));
    report::write(&out, &results, &micro)?;
    Ok(ExitCode::SUCCESS)
}

fn measure(
    args: &ReportArgs,
    bench: &Bench<'_>,
    workloads: &[Workload],
    subjects: &[Subject],
    results: &mut Results,
) -> Result<()> {
    let rounds = args.rounds.unwrap_or(if args.quick { 3 } else { 5 });
    if !workloads.is_empty() {
        bench.time(workloads, subjects, rounds, results);
        if !args.no_counts
            && let Err(e) = bench.count(workloads, subjects, results)
        {
            println!("requests are not counted: {e}");
        }
    }
    if wants(args, "mount", "mount") {
        special::mounts(bench, subjects, rounds, results)?;
        let names = special::LAYERS.iter().map(|n| ("mount".to_owned(), special::mount_name(*n)));
        results.workloads.extend(names);
    }
    if wants(args, "memory", "memory") {
        special::memory(bench, subjects, results)?;
    }
    Ok(())
}

fn wants(args: &ReportArgs, name: &str, section: &str) -> bool {
    args.only.is_empty() || args.only.iter().any(|o| o == name || o == section)
}

/// The workloads asked for; those that cannot run on this tree become gaps.
fn workloads(args: &ReportArgs, rootfs: &rootfs::Rootfs, results: &mut Results) -> Vec<Workload> {
    let (usable, missing): (Vec<Workload>, Vec<Workload>) = WORKLOADS
        .iter()
        .filter(|w| wants(args, w.name, w.section))
        .partition(|w| rootfs.complete || !w.chroot);
    for workload in missing {
        let reason = "needs a complete Debian root file system (mmdebstrap)".to_owned();
        results.gaps.push(Gap { workload: workload.name.to_owned(), subject: "all".to_owned(), reason });
    }
    results.workloads = usable.iter().map(|w| (w.section.to_owned(), w.name.to_owned())).collect();
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

fn facts(
    args: &ReportArgs,
    project: &Path,
    places: &Places,
    peers: &Peers,
    tree: &str,
) -> Vec<(String, String)> {
    let mut facts = host::facts();
    let command: Vec<String> = std::env::args().skip(1).collect();
    let privilege = if places.userns {
        "unprivileged: in a user namespace, all subjects alike (kernel overlayfs with userxattr)"
    } else {
        "root in the initial user namespace"
    };
    let more = [
        ("commit", host::commit(project)),
        ("command", format!("cargo xtask bench-report {}", command.join(" "))),
        ("scale", if args.quick { "quick: indicative only" } else { "full" }.to_owned()),
        ("privilege", privilege.to_owned()),
        (
            "layers and upper",
            "tmpfs; where the workload writes lower files of a disk or syncs: the disk".to_owned(),
        ),
        ("disk", places.disk_kind.clone()),
        ("tree", format!("{tree}; in 3 layers")),
        ("note", args.note.clone().unwrap_or_else(|| "none".to_owned())),
    ];
    facts.extend(more.map(|(name, value)| (name.to_owned(), value)));
    facts.extend(peers.versions());
    facts
}
