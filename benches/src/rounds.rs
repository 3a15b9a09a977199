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
use crate::workload::{Case, Plain, Storage, Workload};

/// No workload of any subject may take longer.
const LIMIT: Duration = Duration::from_secs(180);

/// Keeps what is known so far, so that a run that ends early can go on later.
pub type Keep<'a> = &'a dyn Fn(&Results) -> Result<()>;

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
    /// Measures `cases` on `subjects`, `rounds` times, except what `results` has already, and calls `keep` now and then.
    /// A cell that fails is reported and not tried again.
    pub fn time(
        &self,
        cases: &[Case],
        subjects: &[Subject],
        rounds: usize,
        results: &mut Results,
        keep: Keep<'_>,
    ) -> Result<()> {
        for round in 0..rounds {
            results.load.push(crate::host::load_average());
            println!("round {} of {rounds}, load {}", round + 1, crate::host::load_average());
            for case in cases {
                // Each round begins with another subject, so that none always runs in another's wake.
                let order = subjects.iter().cycle().skip(round % subjects.len().max(1)).take(subjects.len());
                for subject in order {
                    let name = format!("{subject}");
                    if !results.is_gap(&case.name, &name) && !results.is_timed(&case.name, &name, round) {
                        self.sample(case, subject, round, results);
                    }
                }
                keep(results)?;
            }
        }
        Ok(())
    }

    fn sample(&self, case: &Case, subject: &Subject, round: usize, results: &mut Results) {
        let (name, subject_name) = (case.name.clone(), format!("{subject}"));
        match self.run(case, subject, None) {
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

    /// Counts the FUSE requests of each case once, in a pass of its own that is not timed.
    pub fn count(
        &self,
        cases: &[Case],
        subjects: &[Subject],
        results: &mut Results,
        keep: Keep<'_>,
    ) -> Result<()> {
        let counter = Counter::new()?;
        for case in cases {
            for subject in subjects {
                let server = !matches!(subject, Subject::Native | Subject::KernelOverlay);
                let (workload, name) = (case.name.clone(), format!("{subject}"));
                let known = results.requests(&workload, &name).is_some() || results.is_gap(&workload, &name);
                if !server || known {
                    continue;
                }
                match self.run(case, subject, Some(&counter)) {
                    Ok(run) => {
                        results.requests.push(Requests { workload, subject: name, by_kind: run.requests });
                    }
                    Err(e) => println!("  requests of {workload} on {name} not counted: {e}"),
                }
            }
            keep(results)?;
        }
        Ok(())
    }

    fn run(&self, case: &Case, subject: &Subject, counter: Option<&Counter>) -> Result<Run> {
        let workload = &case.workload;
        let dir = match workload.storage {
            Storage::Memory => self.places.memory.join("run"),
            Storage::Disk | Storage::UpperOnDisk => self.places.disk.join("run"),
        };
        let mut layers = Layers::fresh(&dir, self.lowers(case)?)?;
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
        if workload.storage != Storage::Memory {
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

    fn lowers(&self, case: &Case) -> Result<Vec<PathBuf>> {
        if case.workload.storage == Storage::Disk {
            return Ok(vec![self.fixture.disk_lower.clone()]);
        }
        let layers = self.fixture.layers.get(&case.layers).cloned();
        layers.ok_or_else(|| Failure::new(format!("there is no tree of {} layers", case.layers)))
    }

    fn copy(&self, workload: &Workload, paths: &[&str], to: &Path) -> Result<()> {
        let from = match workload.storage {
            Storage::Memory | Storage::UpperOnDisk => &self.fixture.merged,
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

/// Processor time of all threads of a process, in nanoseconds; 0 where the kernel does not tell.
fn cpu_time(pid: u32) -> u64 {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let times = tasks.flatten().filter_map(|task| {
        let text = std::fs::read(task.path().join("schedstat")).ok()?;
        process::text(&text).split(' ').next()?.parse::<u64>().ok()
    });
    times.sum()
}
