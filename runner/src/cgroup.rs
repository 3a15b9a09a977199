//! Limits: where each controller lives on this host, and how a container is put under them.
//!
//! A host may have cgroup v2, v1 or both. Each controller is used where it lives; one that lives nowhere cannot
//! limit anything, and that is said.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;

use crate::error::{During, Error, Result, best_effort, shown};
use crate::spec::Limits;

pub mod layout;
pub mod limit;

use layout::{Home, Layout, Version};
use limit::Limit;

/// How long an ended container's cgroup may stay busy: its last processes are still being torn down.
const REMOVE_PATIENCE: Duration = Duration::from_secs(2);

/// How often a busy cgroup is tried again.
const REMOVE_INTERVAL: Duration = Duration::from_millis(2);

/// The cgroups of one container. Dropping it removes them.
#[derive(Debug, Default)]
pub struct Cgroups {
    directories: Vec<Directory>,
    warnings: Vec<String>,
}

#[derive(Clone, Debug)]
struct Directory {
    path: PathBuf,
    version: Version,
}

/// Makes the cgroups of container `id` and sets its limits, each read back.
///
/// Without limits a container still gets its own v2 group where one can be made, so that its cgroup namespace has a
/// root of its own.
///
/// # Errors
/// A limit that cannot be enforced, unless the limits are best-effort: then it is a warning.
pub fn prepare(limits: &Limits, id: &str) -> Result<Cgroups> {
    let mut groups = Cgroups::default();
    let layout = Layout::load();
    let wanted = limit::plan(limits);
    if wanted.is_empty() {
        groups.add_plain(layout.as_ref().ok(), id);
        return Ok(groups);
    }
    for limit in wanted {
        let outcome =
            layout.as_ref().map_err(Clone::clone).and_then(|layout| groups.enforce(layout, &limit, id));
        match outcome {
            Ok(()) => {}
            Err(error) if limits.best_effort => {
                groups.warnings.push(format!("{} is not in force: {}", limit.flag(), error.text()));
            }
            Err(error) => return Err(refusal(&limit, &error)),
        }
    }
    Ok(groups)
}

fn refusal(limit: &Limit, cause: &Error) -> Error {
    let error = Error::setup(format!("{} cannot be enforced: {}", limit.flag(), cause.text()));
    if rustix::process::geteuid().is_root() {
        return error.hint("use --limits=best-effort to run without it");
    }
    error.hint(
        "an ordinary user needs a delegated cgroup, for example `systemd-run --user --scope -p Delegate=yes runner ...`; \
         or use --limits=best-effort to run without it",
    )
}

impl Cgroups {
    /// What could not be enforced, for the user.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The directories, for a record from which they can be removed later.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.directories.iter().map(|directory| directory.path.as_path())
    }

    /// Opens the v2 group, into which a process can be cloned directly.
    pub fn open_v2(&self) -> Option<OwnedFd> {
        let directory = self.directories.iter().find(|directory| directory.version == Version::V2)?;
        rustix::fs::open(&directory.path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .ok()
    }

    /// Moves a process into the groups that clone3 cannot reach.
    pub fn add(&self, pid: Pid, cloned_into_v2: bool) -> Result<()> {
        for directory in &self.directories {
            if directory.version == Version::V2 && cloned_into_v2 {
                continue;
            }
            let file = directory.path.join("cgroup.procs");
            fs::write(&file, pid.as_raw_nonzero().to_string())
                .during(format_args!("move the container into cgroup {}", shown(&directory.path)))?;
        }
        Ok(())
    }

    /// Forgets the directories: another process removes them.
    pub fn leave(mut self) {
        self.directories.clear();
    }

    fn add_plain(&mut self, layout: Option<&Layout>, id: &str) {
        let Some(home) = layout.and_then(Layout::unified) else { return };
        let path = home.own.join(group_name(id));
        // No limit was asked for: a host that forbids this loses nothing.
        if fs::create_dir(&path).is_ok() {
            self.directories.push(Directory { path, version: Version::V2 });
        }
    }

    fn enforce(&mut self, layout: &Layout, limit: &Limit, id: &str) -> Result<()> {
        let home = layout.find(limit.controller()).ok_or_else(|| {
            Error::setup(format!("this host has no cgroup controller \"{}\"", limit.controller()))
        })?;
        let parent = match home.version {
            Version::V1 => home.own.clone(),
            Version::V2 => v2_parent(home, limit.controller())?,
        };
        let path = parent.join(group_name(id));
        self.make(&path, home.version)?;
        limit.apply(&path, home.version)
    }

    fn make(&mut self, path: &Path, version: Version) -> Result<()> {
        match fs::create_dir(path) {
            Ok(()) => {
                self.directories.push(Directory { path: path.to_owned(), version });
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Two controllers may share one hierarchy, which then has our directory already.
                if self.directories.iter().any(|directory| directory.path == path) {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            Err(error) => Err(error),
        }
        .during(format_args!("create cgroup {}", shown(path)))
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let paths: Vec<PathBuf> = self.directories.drain(..).map(|directory| directory.path).collect();
        best_effort(remove(&paths), "an empty cgroup uses next to nothing");
    }
}

fn group_name(id: &str) -> String {
    format!("runner-{id}")
}

/// The places where a container may have groups, for one that was killed before it could be recorded.
pub fn candidates(id: &str) -> Vec<PathBuf> {
    let Ok(layout) = Layout::load() else { return Vec::new() };
    let parents = layout.homes().iter().flat_map(|home| [&home.own, &home.mount]);
    let mut paths: Vec<PathBuf> =
        parents.map(|parent| parent.join(group_name(id))).filter(|path| path.exists()).collect();
    paths.dedup();
    paths
}

/// Removes the groups of a container whose last process has ended or is ending.
pub fn remove(paths: &[PathBuf]) -> Result<()> {
    let end = Instant::now() + REMOVE_PATIENCE;
    for path in paths {
        loop {
            match fs::remove_dir(path) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                    std::thread::sleep(REMOVE_INTERVAL);
                }
                Err(error) => return Err(error).during(format_args!("remove cgroup {}", shown(path))),
            }
        }
    }
    Ok(())
}

/// Finds a v2 group that can have children with this controller.
fn v2_parent(home: &Home, controller: &str) -> Result<PathBuf> {
    let mut failure = None;
    let root = (home.own != home.mount).then_some(&home.mount);
    for group in std::iter::once(&home.own).chain(root) {
        match enable(group, controller) {
            Ok(()) => return Ok(group.clone()),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    Err(failure.unwrap_or_else(|| Error::setup("no cgroup can be used")))
}

fn enable(group: &Path, controller: &str) -> Result<()> {
    let has = |file: &str| {
        fs::read_to_string(group.join(file))
            .is_ok_and(|text| text.split_ascii_whitespace().any(|word| word == controller))
    };
    if has("cgroup.subtree_control") {
        return Ok(());
    }
    if !has("cgroup.controllers") {
        return Err(Error::setup(format!("cgroup {} has no controller \"{controller}\"", shown(group))));
    }
    let request = format!("+{controller}");
    let switch = || fs::write(group.join("cgroup.subtree_control"), &request);
    let result = match switch() {
        // A group with members cannot hand out controllers; if the only member is this process, it moves to a leaf.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) && we_are_alone(group) => {
            move_aside(group).and_then(|()| switch())
        }
        result => result,
    };
    result.during(format_args!("hand controller \"{controller}\" down in cgroup {}", shown(group)))
}

fn we_are_alone(group: &Path) -> bool {
    let own = std::process::id().to_string();
    fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|text| text.lines().all(|line| line == own))
}

fn move_aside(group: &Path) -> io::Result<()> {
    let leaf = group.join("runner-supervisor");
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::write(leaf.join("cgroup.procs"), std::process::id().to_string())
}
