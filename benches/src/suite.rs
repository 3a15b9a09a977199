//! What a criterion group needs before its first measurement: the sandbox, the subjects, trees, fresh mounts.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::failure::{During, Failure, Result, exit_code};
use crate::process;
use crate::sandbox::{self, Entered, Places};
use crate::subject::{Layers, Mounted, Peers, Subject};

/// The subjects and file systems of a group.
#[derive(Debug)]
pub struct Suite {
    /// The programs found.
    pub peers: Peers,
    /// The file systems prepared.
    pub places: Places,
    /// The subjects that run here.
    pub subjects: Vec<Subject>,
}

/// The body of a group's `main`: enters the sandbox and calls `body` inside. As root the subjects run in the initial
/// user namespace, with `PERF_USERNS=1` or as an ordinary user in one of their own. `PERF_OPTIONS` gives the options of ours
/// instead of all transports and ways of data; several sets are separated by blanks.
pub fn run(body: impl FnOnce(&Suite) -> Result<()>) -> ExitCode {
    exit_code(start(body))
}

fn start(body: impl FnOnce(&Suite) -> Result<()>) -> Result<ExitCode> {
    // Asked only for names: nothing needs a mount. (`cargo test --benches` would run everything once.)
    if std::env::args().any(|a| a == "--list" || a == "--test") {
        return Ok(ExitCode::SUCCESS);
    }
    let userns = std::env::var_os("PERF_USERNS").is_some() || !rustix::process::geteuid().is_root();
    let places = match sandbox::enter(&sandbox::target_dir()?.join("perf"), userns)? {
        Entered::Done(code) => return Ok(code),
        Entered::Inside(places) => places,
    };
    let peers = Peers::detect(sandbox::sibling("perf-unionfs").ok());
    let wanted = match std::env::var("PERF_OPTIONS") {
        Ok(sets) => subjects(sets.split_whitespace()),
        Err(_) => subjects(OURS.into_iter()),
    };
    let (subjects, _) = peers.available(&wanted, &places.memory)?;
    body(&Suite { peers, places, subjects })?;
    Ok(ExitCode::SUCCESS)
}

/// Ours in each way that requests travel and each way that data does; fuser's adapter knows one of the latter.
const OURS: [&str; 5] = [
    "transport=uring",
    "transport=uring,data=passthrough",
    "transport=dev",
    "transport=dev,data=passthrough",
    "transport=fuser",
];

/// The subjects of a criterion group; ours once for each of `options`.
fn subjects<'a>(options: impl Iterator<Item = &'a str>) -> Vec<Subject> {
    let peers = [Subject::Native, Subject::KernelOverlay, Subject::FuseOverlayfs2];
    peers.into_iter().chain(options.map(|o| Subject::Unionfs(o.to_owned()))).collect()
}

/// One lower layer and what may be mounted over it.
#[derive(Debug)]
pub struct Lower<'a> {
    suite: &'a Suite,
    dir: PathBuf,
}

impl Suite {
    /// An empty lower layer on the file system `on`, filled by `fill`.
    pub fn lower(&self, on: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<Lower<'_>> {
        let dir = on.join("criterion");
        if dir.exists() {
            std::fs::remove_dir_all(&dir).during(format_args!("empty {}", dir.display()))?;
        }
        let lower = dir.join("lower");
        std::fs::create_dir_all(&lower).during(format_args!("make {}", lower.display()))?;
        fill(&lower)?;
        Ok(Lower { suite: self, dir })
    }
}

impl Lower<'_> {
    /// A fresh mount with an empty upper; for `native` a fresh plain copy (sharing blocks where that is possible).
    pub fn mount(&self, subject: &Subject) -> Result<Mounted> {
        let layers = Layers::fresh(&self.dir, vec![self.dir.join("lower")])?;
        if *subject == Subject::Native {
            process::shell(&self.dir, "cp -a --reflink=auto lower/. mnt/")?;
        }
        self.suite.peers.mount(subject, &layers)
    }

    /// As `mount`, but `native` is the layer itself: for loads that change nothing.
    pub fn mount_for_reading(&self, subject: &Subject) -> Result<Mounted> {
        let lower = self.dir.join("lower");
        let mut layers = Layers::fresh(&self.dir, vec![lower.clone()])?;
        if *subject == Subject::Native {
            layers.mountpoint = lower;
        }
        self.suite.peers.mount(subject, &layers)
    }

    /// As `consume`, but the operations change nothing, so that `native` is the layer itself.
    pub fn consume_reading(
        &self,
        subject: &Subject,
        total: u64,
        supply: u64,
        operation: impl Fn(&Path, u64) -> std::io::Result<()>,
    ) -> Result<Duration> {
        self.batches(subject, total, supply, &operation, Self::mount_for_reading)
    }

    /// Times `total` operations of which each can be done once for each of `supply` prepared files: mounts afresh,
    /// untimed, whenever they are used up. `operation` gets the tree and the number of the file.
    pub fn consume(
        &self,
        subject: &Subject,
        total: u64,
        supply: u64,
        operation: impl Fn(&Path, u64) -> std::io::Result<()>,
    ) -> Result<Duration> {
        self.batches(subject, total, supply, &operation, Self::mount)
    }

    fn batches(
        &self,
        subject: &Subject,
        total: u64,
        supply: u64,
        operation: &dyn Fn(&Path, u64) -> std::io::Result<()>,
        mount: fn(&Self, &Subject) -> Result<Mounted>,
    ) -> Result<Duration> {
        let mut elapsed = Duration::ZERO;
        let mut done = 0;
        while done < total {
            let batch = supply.min(total - done);
            if batch == 0 {
                return Err(Failure::new("a benchmark that consumes files has none"));
            }
            let mounted = mount(self, subject)?;
            let start = Instant::now();
            for i in 0..batch {
                operation(mounted.path(), i).during(format_args!("use file {i} on {subject}"))?;
            }
            elapsed += start.elapsed();
            mounted.unmount()?;
            done += batch;
        }
        Ok(elapsed)
    }
}
