//! The life of a container: made in the store, run, and either kept with its changes or removed.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use unionfs::MountOptions;

use crate::cgroup::layout::Layout;
use crate::cgroup::{self, Cgroups};
use crate::error::{Class, During, Error, Result, best_effort, shown};
use crate::idmap::{self, Caller, IdMap};
use crate::process::parent::{self, End};
use crate::process::{Launch, Remains};
use crate::seccomp;
use crate::spec::ContainerSpec;
use crate::state::{self, Outcome, Place, Process, RECORD_VERSION, Record, Status, Store, Text};
use crate::{capabilities, mounts, network, removal, sys};

/// A container to be run once.
#[derive(Debug)]
pub struct Request {
    /// What it is to be.
    pub spec: ContainerSpec,
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What its root may do.
    pub capabilities: capabilities::Capabilities,
}

/// Runs a container to its end and returns the command's exit code. `warn` is told what is not as asked.
///
/// Preconditions: this process has one thread.
pub fn run(store: &Store, request: Request, warn: &mut dyn FnMut(&str)) -> Result<u8> {
    let caller = Caller::load()?;
    let ids = idmap::plan(&caller);
    if let Some(warning) = idmap::lost_ranges(&caller) {
        warn(warning);
    }
    let (place, lock) = store.create(&request.id, &request.name)?;
    let name = request.name.clone();
    let remove = request.spec.remove;
    let end = run_in(store, &place, &lock, request, ids, warn);
    // What never ran leaves nothing worth keeping.
    let keep = !remove && end.as_ref().is_ok_and(|end| end.started);
    if !keep {
        if place.path().exists() {
            best_effort(delete(&place, &caller), "`runner rm` finds what is left");
        }
        store.free_name(&name);
    }
    end?.outcome
}

fn run_in(
    store: &Store,
    place: &Place,
    lock: &OwnedFd,
    request: Request,
    ids: IdMap,
    warn: &mut dyn FnMut(&str),
) -> Result<End> {
    make_directories(place, &request.spec)?;
    let etc_files = write_etc(place, &request.spec)?;
    let cgroups = cgroup::prepare(&request.spec.limits, &request.id)?;
    for warning in cgroups.warnings() {
        warn(warning);
    }
    let mut record = new_record(&request, &cgroups);
    let remains = Remains {
        directory: request.spec.remove.then(|| place.path().to_owned()),
        stubs: etc_files.iter().map(|(name, _)| place.upper().join("etc").join(name)).collect(),
        cgroups: cgroups.paths().map(Path::to_owned).collect(),
    };
    // Before anything runs: a container that lost its runner must be found.
    place.save(&record)?;
    let launch = launch(store, place, request, ids, etc_files, remains);
    let running = parent::start(&launch, lock, &cgroups)?;
    record.process = Process::of(running.first_pid());
    // Not yet fatal: the container runs already, and what it needs is in memory.
    best_effort(place.save(&record), "`runner ps` shows the container without its process");
    // The server removes them in the end, whatever becomes of this process.
    cgroups.leave();
    let end = running.wait(warn)?;
    // Only what a killed server has left is still there.
    best_effort(cgroup::remove(&launch.remains.cgroups), "`runner rm` tries again");
    if !record.remove && end.started {
        let code = end.outcome.as_ref().map_or_else(Error::run_exit_code, |code| *code);
        record.outcome = Some(Outcome { code, finished: state::now() });
        place.save(&record)?;
    }
    Ok(end)
}

fn launch(
    store: &Store,
    place: &Place,
    request: Request,
    ids: IdMap,
    etc_files: Vec<(&'static str, PathBuf)>,
    remains: Remains,
) -> Launch {
    let spec = request.spec;
    let mut union = MountOptions::default();
    union.lowerdir.clone_from(&spec.rootfs);
    union.upperdir = Some(place.upper());
    union.workdir = Some(place.work());
    union.hidden = vec![store.path().to_owned()];
    union.squash_unmapped = ids.is_partial();
    let mounts = mounts::Config {
        binds: spec.binds.clone(),
        tmpfs: spec.tmpfs.clone(),
        network: spec.network,
        tty_gid: ids.has_gid(mounts::TTY_GID).then_some(mounts::TTY_GID),
        etc_files: etc_files.into_iter().filter(|(name, _)| !is_users(&spec, name)).collect(),
        cgroups: Layout::load().map(|layout| layout.homes().to_vec()).unwrap_or_default(),
    };
    Launch {
        filter: spec.seccomp.then(|| seccomp::plan(&request.capabilities)),
        capabilities: request.capabilities,
        spec,
        ids,
        mounts,
        union,
        merged: place.merged(),
        remains,
    }
}

/// Whether the user has put something of their own where a generated file of `/etc` would go.
fn is_users(spec: &ContainerSpec, name: &str) -> bool {
    let binds = spec.binds.iter().map(|bind| &bind.target);
    let mut targets = binds.chain(spec.tmpfs.iter().map(|tmpfs| &tmpfs.target));
    targets.any(|target| *target == Path::new("/etc") || *target == Path::new("/etc").join(name))
}

fn make_directories(place: &Place, spec: &ContainerSpec) -> Result<()> {
    for path in [place.upper(), place.work(), place.merged(), place.etc()] {
        fs::DirBuilder::new().mode(0o755).create(&path).during(format_args!("make {}", shown(&path)))?;
    }
    // The root of the container has the mode of its topmost layer, like every merged directory.
    let Some(top) = spec.rootfs.first() else { return Err(Error::usage("--rootfs names no layer")) };
    let mode = fs::metadata(top).during(format_args!("look at the layer {}", shown(top)))?.mode();
    fs::set_permissions(place.upper(), fs::Permissions::from_mode(mode & 0o7777))
        .during("set the mode of the root")
}

fn write_etc(place: &Place, spec: &ContainerSpec) -> Result<Vec<(&'static str, PathBuf)>> {
    let resolv_conf = network::resolv_conf(&fs::read("/etc/resolv.conf").unwrap_or_default());
    let files = [
        ("hosts", network::hosts(&spec.hostname).into_bytes()),
        ("hostname", format!("{}\n", spec.hostname).into_bytes()),
        ("resolv.conf", resolv_conf),
    ];
    let mut written = Vec::new();
    for (name, text) in files {
        let path = place.etc().join(name);
        fs::File::create(&path)
            .and_then(|mut file| {
                file.write_all(&text)?;
                file.set_permissions(fs::Permissions::from_mode(0o644))
            })
            .during(format_args!("write {}", shown(&path)))?;
        written.push((name, path));
    }
    Ok(written)
}

fn new_record(request: &Request, cgroups: &Cgroups) -> Record {
    Record {
        version: RECORD_VERSION,
        id: request.id.clone(),
        name: request.name.clone(),
        created: state::now(),
        rootfs: request.spec.rootfs.iter().map(|layer| Text::from(layer.as_os_str())).collect(),
        command: request.spec.command.iter().map(|word| Text::from(word.as_os_str())).collect(),
        remove: request.spec.remove,
        cgroups: cgroups.paths().map(|path| Text::from(path.as_os_str())).collect(),
        boot_id: state::boot_id(),
        process: None,
        outcome: None,
    }
}

/// What `remove` does with a container that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenRunning {
    /// It stays, and that is an error.
    Refuse,
    /// It is killed.
    Kill,
}

/// Removes a container with its changes.
pub fn remove(store: &Store, place: &Place, when_running: WhenRunning) -> Result<()> {
    let record = place.load();
    let lock = match place.lock()? {
        Some(lock) => lock,
        None => match (&record, when_running) {
            (Ok(record), WhenRunning::Kill) => kill(place, record)?,
            _ => {
                return Err(Error::new(Class::InUse, format!("container {} is running", short(place)))
                    .hint("stop its command first, or use `runner rm --force`"));
            }
        },
    };
    // A container with --rm may have removed itself when it was killed.
    if place.path().exists() {
        let mut cgroups = cgroup::candidates(&place.id);
        if let Ok(record) = &record {
            cgroups.extend(record.cgroups.iter().map(Text::to_path));
        }
        best_effort(cgroup::remove(&cgroups), "an empty cgroup uses next to nothing");
        delete(place, &Caller::load()?)?;
    }
    if let Ok(record) = record {
        store.free_name(&record.name);
    }
    drop(lock);
    Ok(())
}

fn short(place: &Place) -> &str {
    place.id.get(..state::SHORT_ID).unwrap_or(&place.id)
}

/// Kills the first process of a container, and waits until its runner and server have let go.
fn kill(place: &Place, record: &Record) -> Result<OwnedFd> {
    let process = record.process.filter(Process::lives);
    if let Some(pid) = process.and_then(|process| rustix::process::Pid::from_raw(process.pid)) {
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
            .during("open the container's process")?;
        // Looked at again: the number may have been given to another process before it was opened.
        if process.is_some_and(|process| process.lives()) {
            best_effort(
                rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL),
                "it has just ended",
            );
        }
    }
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let lock = rustix::fs::open(place.path(), flags, rustix::fs::Mode::empty())
        .during(format_args!("open {}", shown(place.path())))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .during(format_args!("wait for the end of container {}", short(place)))?;
    Ok(lock)
}

/// Removes containers that should have removed themselves, or were never finished, because what would have done it
/// was killed.
pub fn prune(store: &Store) -> Result<()> {
    for place in store.list()? {
        let dead = match place.load() {
            Ok(record) => record.remove && place.status(&record) != Status::Running,
            Err(_) => place.is_unfinished(),
        };
        if dead {
            best_effort(remove(store, &place, WhenRunning::Refuse), "`runner rm` tells why");
        }
    }
    store.free_dead_names()
}

/// Deletes a container's directory; files of other ids from within a user namespace that has these ids.
fn delete(place: &Place, caller: &Caller) -> Result<()> {
    let path = place.path();
    let cannot = format!("delete {}", shown(path));
    match removal::remove_tree(path) {
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) if caller.uid != 0 => {}
        result => return result.during(cannot),
    }
    in_user_namespace(caller, || removal::remove_tree(path).during(&cannot))
}

/// Runs `work` in a process of its own, as root of a user namespace with all ids that the caller may have.
///
/// Preconditions: this process has one thread.
pub fn in_user_namespace(caller: &Caller, work: impl FnOnce() -> Result<()>) -> Result<()> {
    use crate::process::channel::{Channel, Message};
    let (ours, theirs) = Channel::pair()?;
    match sys::clone::clone_into(libc::CLONE_NEWUSER, None).during("make a user namespace")? {
        sys::clone::Cloned::Child => {
            drop(ours);
            sys::run_and_exit(|| {
                let outcome = match theirs.receive() {
                    Ok(Some((Message::Proceed, _))) => work(),
                    Ok(_) => Err(Error::setup("the runner ended")),
                    Err(error) => Err(error),
                };
                if let Err(error) = outcome {
                    best_effort(theirs.send(&Message::Failed(error), None), "the runner is gone");
                    return Err(1);
                }
                Err(0)
            })
        }
        sys::clone::Cloned::Parent(pid, pidfd) => {
            drop(theirs);
            let mapped = idmap::plan(caller).apply(pid).and_then(|()| ours.send(&Message::Proceed, None));
            // Without its map the child reads the end of the channel and leaves.
            let said = if mapped.is_ok() { ours.receive() } else { Ok(None) };
            drop(ours);
            let ended = rustix::process::waitid(
                rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd)),
                rustix::process::WaitIdOptions::EXITED,
            );
            mapped?;
            if let Some((Message::Failed(error), _)) = said? {
                return Err(error);
            }
            match ended.during("wait for a helper process")? {
                Some(status) if status.exit_status() == Some(0) => Ok(()),
                _ => Err(Error::setup("a helper process was killed")),
            }
        }
    }
}
