//! The order of measurement: every round runs every workload on every subject, side by side, on fresh mounts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::counts::Counter;
use crate::failure::{During, Failure, Result};
use crate::fixture::{Fixture, GIT, Scale};
use crate::process;
use crate::samples::{Gap, Requests, Results, Sample};
use crate::sandbox::Places;
use crate::subject::{Layers, Mounted, Peers, Subject, abort_connection};
use crate::workload::{Plain, Storage, Workload};

/// No workload of any subject may take longer.
const LIMIT: Duration = Duration::from_secs(180);

/// What a run works with.
#[derive(Debug)]
pub struct Bench<'a> {
    /// The programs found.
    pub peers: &'a Peers,
    /// The prepared file systems.
    pub places: &'a Places,
    /// The prepared trees.
    pub fixture: &'a Fixture,
    /// Sizes.
    pub scale: &'a Scale,
    /// The program `perf-load`.
    pub load: PathBuf,
}

impl Bench<'_> {
    /// Measures `workloads` on `subjects`, `rounds` times. A cell that fails is reported and not tried again.
    pub fn time(&self, workloads: &[Workload], subjects: &[Subject], rounds: usize, results: &mut Results) {
        for round in 0..rounds {
            results.load.push(crate::host::load_average());
            println!("round {} of {rounds}, load {}", round + 1, crate::host::load_average());
            for workload in workloads {
                // Each round begins with another subject, so that none always runs in another's wake.
                let order = subjects.iter().cycle().skip(round % subjects.len().max(1)).take(subjects.len());
                for subject in order {
                    if !has_gap(results, workload, subject) {
                        self.sample(workload, subject, round, results);
                    }
                }
            }
        }
    }

    fn sample(&self, workload: &Workload, subject: &Subject, round: usize, results: &mut Results) {
        let (name, subject_name) = (workload.name.to_owned(), format!("{subject}"));
        match self.run(workload, subject, None) {
            Ok(run) => {
                println!("  {name:24} {subject_name:20} {:10.3} ms", run.ns as f64 / 1e6);
                let (ns, server_cpu_ns) = (run.ns, run.server_cpu_ns);
                results.samples.push(Sample {
                    workload: name,
                    subject: subject_name,
                    round,
                    ns,
                    server_cpu_ns,
                });
            }
            Err(e) => {
                println!("  {name:24} {subject_name:20} failed: {e}");
                results.gaps.push(Gap { workload: name, subject: subject_name, reason: format!("{e}") });
            }
        }
    }

    /// Counts the FUSE requests of each workload once, in a pass of its own that is not timed.
    pub fn count(&self, workloads: &[Workload], subjects: &[Subject], results: &mut Results) -> Result<()> {
        let counter = Counter::new()?;
        for workload in workloads {
            for subject in subjects {
                let server = !matches!(subject, Subject::Native | Subject::KernelOverlay);
                if !server || has_gap(results, workload, subject) {
                    continue;
                }
                let (name, subject_name) = (workload.name.to_owned(), format!("{subject}"));
                match self.run(workload, subject, Some(&counter)) {
                    Ok(run) => {
                        let by_kind = run.requests;
                        results.requests.push(Requests { workload: name, subject: subject_name, by_kind });
                    }
                    Err(e) => println!("  requests of {name} on {subject_name} not counted: {e}"),
                }
            }
        }
        Ok(())
    }

    fn run(&self, workload: &Workload, subject: &Subject, counter: Option<&Counter>) -> Result<Run> {
        let dir = match workload.storage {
            Storage::Memory => self.places.memory.join("run"),
            Storage::Disk => self.places.disk.join("run"),
        };
        let mut layers = Layers::fresh(&dir, self.lowers(workload))?;
        if *subject == Subject::Native {
            match workload.plain {
                Plain::Shared(_) => layers.mountpoint.clone_from(&self.fixture.merged),
                Plain::Copy(paths) => self.copy(workload, paths, &layers.mountpoint)?,
            }
        }
        let mounted = self.peers.mount(subject, &layers)?;
        let run = self.on_mount(workload, &mounted, counter);
        mounted.unmount()?;
        if let (Plain::Shared(clean), Subject::Native) = (workload.plain, subject)
            && !clean.is_empty()
        {
            self.script(clean, &layers.mountpoint, None)?;
        }
        run
    }

    fn on_mount(&self, workload: &Workload, mounted: &Mounted, counter: Option<&Counter>) -> Result<Run> {
        let (path, connection) = (mounted.path(), mounted.connection());
        if !workload.prepare.is_empty() {
            self.script(workload.prepare, path, connection)?;
        }
        if workload.storage == Storage::Disk {
            process::shell(&self.places.disk, "sync -f .")?;
        }
        if let (Some(counter), Some(connection)) = (counter, connection) {
            counter.start(connection)?;
        }
        let before = mounted.server_pid().map(cpu_time);
        let ns = self.script(workload.run, path, connection)?;
        let after = mounted.server_pid().map(cpu_time);
        let requests = counter.map(Counter::stop).transpose()?.unwrap_or_default();
        Ok(Run { ns, server_cpu_ns: before.zip(after).map(|(b, a)| a.saturating_sub(b)), requests })
    }

    fn lowers(&self, workload: &Workload) -> Vec<PathBuf> {
        match workload.storage {
            Storage::Memory => self.fixture.layers.clone(),
            Storage::Disk => vec![self.fixture.disk_lower.clone()],
        }
    }

    fn copy(&self, workload: &Workload, paths: &[&str], to: &Path) -> Result<()> {
        let from = match workload.storage {
            Storage::Memory => &self.fixture.merged,
            Storage::Disk => &self.fixture.disk_lower,
        };
        for path in paths {
            process::shell(from, &format!("cp -a --parents {path} '{}'", to.display()))?;
        }
        Ok(())
    }

    /// Runs one script on the tree at `root`; its time by its own clock if it prints one, else as a whole.
    fn script(&self, script: &str, root: &Path, connection: Option<u64>) -> Result<u64> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{GIT}\n{script}")).current_dir("/");
        command.env("M", root).env("F", &self.fixture.files).env("LOAD", &self.load).env("LC_ALL", "C");
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.envs(self.scale.variables());
        let finished = process::timed(command, LIMIT, || {
            if let Some(connection) = connection {
                abort_connection(connection);
            }
        })?;
        if !finished.output.status.success() {
            let stderr = process::text(&finished.output.stderr);
            return Err(Failure::new(format!("{script}: {}: {stderr}", finished.output.status)));
        }
        let whole = u64::try_from(finished.wall.as_nanos()).during("count nanoseconds")?;
        let own = finished.output.stdout.strip_prefix(b"elapsed_ns ").map(|n| process::text(n).parse());
        Ok(own.transpose().during("read a load's time")?.unwrap_or(whole))
    }
}

#[derive(Debug)]
struct Run {
    ns: u64,
    server_cpu_ns: Option<u64>,
    requests: std::collections::BTreeMap<String, u64>,
}

fn has_gap(results: &Results, workload: &Workload, subject: &Subject) -> bool {
    let subject = format!("{subject}");
    results.gaps.iter().any(|g| g.workload == workload.name && g.subject == subject)
}

/// Processor time of all threads of a process, in nanoseconds; 0 where the kernel does not tell.
fn cpu_time(pid: u32) -> u64 {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let times = tasks.flatten().filter_map(|task| {
        let text = std::fs::read(task.path().join("schedstat")).ok()?;
        process::text(&text).split(' ').next()?.parse::<u64>().ok()
    });
    times.sum()
}
