//! The container from inside: the order of isolation, one line for each mechanism, and the reason of each place.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Dir, Mode, OFlags};
use rustix::process::{DumpableBehavior, Gid, Signal, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::channel::{Channel, Message};
use super::{Launch, init, stdio};
use crate::account::{self, Account};
use crate::error::{Class, During, Error, Result, best_effort, shown};
use crate::mounts::{self, Devices};
use crate::root::Root;
use crate::spec::{Network, value_of};
use crate::{network, sys};

/// The ends of the first process's connections.
#[derive(Debug)]
pub(crate) struct Ends {
    /// To the runner.
    pub(crate) runner: Channel,
    /// To the server.
    pub(crate) server: Channel,
}

/// Becomes the first process of the container; the exit code is the command's.
pub(crate) fn run(launch: &Launch, ends: Ends) -> std::result::Result<Infallible, u8> {
    match start(launch, ends) {
        Ok(code) => Err(code),
        Err((runner, error)) => {
            best_effort(runner.send(&Message::Failed(error.clone()), None), "the runner is gone");
            Err(error.run_exit_code())
        }
    }
}

/// What the command needs, found while its files could be reached.
#[derive(Debug)]
struct Command {
    account: Account,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    search: Vec<OsString>,
    terminal: Option<OwnedFd>,
}

fn start(launch: &Launch, ends: Ends) -> std::result::Result<u8, (Channel, Error)> {
    let Ends { runner, server } = ends;
    match isolate(launch, &runner, server).and_then(|command| fork_command(launch, &runner, command)) {
        Ok(pid) => {
            // From here the command alone holds the connection: it closes with a successful exec.
            drop(runner);
            Ok(init::run(pid))
        }
        Err(error) => Err((runner, error)),
    }
}

/// Isolates the first process, step by step.
fn isolate(launch: &Launch, runner: &Channel, server: Channel) -> Result<Command> {
    // Nothing of the runner's may be reachable from inside; its ends of the channels would hide its death.
    sys::close_all_but(&[runner.as_fd(), server.as_fd()]).during("close inherited descriptors")?;
    // What is made for the container has the modes that are asked for, whatever the caller's mask.
    rustix::process::umask(Mode::empty());
    // While the process may still write to its own memory through /proc.
    hide_title();
    // Without its maps the process has no ids and may do nothing.
    wait_for_ids(runner)?;
    become_root(launch)?;
    // After the change of ids, which takes both back. Nobody in the container may trace or read this process: it is
    // a program of the host.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).during("hide from tracing")?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .during("be killed with the runner")?;
    check_runner(runner)?;
    // Last of the namespaces: its root is the group that the process is in by now.
    new_cgroup_namespace()?;
    mounts::detach_propagation()?;
    let root = mount_root(launch, server)?;
    let mounted = mounts::populate(&root, &launch.mounts)?;
    for warning in &mounted.warnings {
        runner.send(&Message::Warning(warning.clone()), None)?;
    }
    let account = account::load(&root, &launch.spec.user, &launch.ids)?;
    if launch.spec.cwd != Path::new("/") {
        root.ensure_directory(&launch.spec.cwd)?;
    }
    let terminal = open_terminal(launch, runner, &mounted.devices, &account)?;
    mounts::pivot(&root)?;
    drop((root, mounted));
    nix::unistd::sethostname(&launch.spec.hostname).during("set the host name")?;
    if launch.spec.network == Network::None {
        network::loopback_up()?;
    }
    // Read-only and masked paths come when nothing has to be made any more.
    mounts::close(launch.spec.read_only)?;
    command(launch, account, terminal)
}

fn wait_for_ids(runner: &Channel) -> Result<()> {
    match runner.receive()? {
        Some((Message::Proceed, _)) => Ok(()),
        _ => Err(Error::setup("the runner ended before the container started")),
    }
}

fn become_root(launch: &Launch) -> Result<()> {
    if launch.ids.may_set_groups {
        set_thread_groups(&[]).during("give up the groups of the host")?;
    }
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).during("become group 0 of the container")?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).during("become root of the container")
}

/// A runner that died before the death signal was set is seen by its closed end.
fn check_runner(runner: &Channel) -> Result<()> {
    let mut fds = [rustix::event::PollFd::new(runner, rustix::event::PollFlags::empty())];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    match rustix::event::poll(&mut fds, Some(&now)) {
        Ok(0) => Ok(()),
        _ => Err(Error::setup("the runner ended before the container started")),
    }
}

fn new_cgroup_namespace() -> Result<()> {
    match nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP) {
        // A kernel without cgroups has nothing to separate.
        Err(nix::errno::Errno::EINVAL) => Ok(()),
        result => result.during("make a cgroup namespace"),
    }
}

/// Mounts the union and hands its connection to the server. The server answers once it has opened the layers.
fn mount_root(launch: &Launch, server: Channel) -> Result<Root> {
    let device = unionfs::fuse::mount::mount_direct(&launch.merged, &launch.union)
        .map_err(|error| Error::setup(format!("cannot mount the container's root: {error}")))?;
    server.send(&Message::FuseDevice, Some(device.as_fd()))?;
    // A copy kept here would keep requests waiting for ever if the server died.
    drop((device, server));
    Root::open_at(&launch.merged)
}

fn open_terminal(
    launch: &Launch,
    runner: &Channel,
    devices: &Devices,
    account: &Account,
) -> Result<Option<OwnedFd>> {
    if !launch.spec.terminal {
        return Ok(None);
    }
    let (controller, terminal) = stdio::open_terminal(devices.pts())?;
    let tty_gid = launch.mounts.tty_gid.unwrap_or(account.gid);
    rustix::fs::fchown(&terminal, Some(Uid::from_raw(account.uid)), Some(Gid::from_raw(tty_gid)))
        .during("give the terminal to the user")?;
    devices.set_console(&terminal)?;
    runner.send(&Message::Terminal, Some(controller.as_fd()))?;
    Ok(Some(terminal))
}

/// Replaces what `/proc/1/cmdline` shows: the runner's own command line names paths of the host.
fn hide_title() {
    let hide = || -> Option<()> {
        let stat = std::fs::read("/proc/self/stat").ok()?;
        let after = stat.iter().rposition(|byte| *byte == b')')?;
        let mut fields = stat.get(after + 2..)?.split(|byte| *byte == b' ');
        let number = |field: Option<&[u8]>| std::str::from_utf8(field?).ok()?.trim().parse::<u64>().ok();
        // Fields 48 and 49 of the whole line: where the arguments start and end.
        let (start, end) = (number(fields.nth(45))?, number(fields.next())?);
        let mut title = b"runner: init".to_vec();
        title.resize(usize::try_from(end.checked_sub(start)?).ok()?, 0);
        let memory = std::fs::OpenOptions::new().write(true).open("/proc/self/mem").ok()?;
        std::os::unix::fs::FileExt::write_all_at(&memory, &title, start).ok()
    };
    if hide().is_none() {
        tracing::debug!("the title of the first process stays as it is");
    }
    best_effort(rustix::thread::set_name(c"init"), "only shown");
}

fn command(launch: &Launch, account: Account, terminal: Option<OwnedFd>) -> Result<Command> {
    let mut environment = launch.spec.env.clone();
    if value_of(&environment, "HOME").is_none() {
        let mut home = OsString::from("HOME=");
        home.push(if is_usable(&account) { account.home.as_os_str() } else { OsStr::new("/") });
        environment.push(home);
    }
    let search = value_of(&environment, "PATH").unwrap_or_default();
    let search = search.as_bytes().split(|byte| *byte == b':').map(|directory| {
        // An empty part is the current directory.
        OsString::from_vec(if directory.is_empty() { b".".to_vec() } else { directory.to_vec() })
    });
    Ok(Command {
        search: search.collect(),
        account,
        arguments: strings(&launch.spec.command)?,
        environment: strings(&environment)?,
        terminal,
    })
}

/// Whether the home of the container's root can be entered: with the host's system as root and an ordinary user as
/// caller, it belongs to the host's root, whose files stay closed.
fn is_usable(account: &Account) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if account.uid != 0 {
        return true;
    }
    // Opening asks the union nothing; reading does.
    let first = rustix::fs::open(&account.home, flags, Mode::empty())
        .and_then(Dir::new)
        .and_then(|mut directory| directory.next().unwrap_or(Err(rustix::io::Errno::NOENT)));
    !matches!(first, Err(rustix::io::Errno::ACCESS))
}

fn strings(texts: &[OsString]) -> Result<Vec<CString>> {
    texts
        .iter()
        .map(|text| {
            CString::new(text.as_bytes())
                .map_err(|_| Error::usage(format!("{} holds a NUL byte", shown(text))))
        })
        .collect()
}

fn fork_command(launch: &Launch, runner: &Channel, command: Command) -> Result<rustix::process::Pid> {
    match sys::fork().during("fork the command")? {
        sys::Forked::Parent(pid) => {
            // The command alone holds the standard streams, so that their readers see it close them.
            stdio::let_go()?;
            Ok(pid)
        }
        sys::Forked::Child => sys::run_and_exit(|| {
            let Err(error) = become_command(launch, command);
            best_effort(runner.send(&Message::Failed(error.clone()), None), "the runner is gone");
            Err(error.run_exit_code())
        }),
    }
}

/// The command's own steps, from a session of its own to exec.
fn become_command(launch: &Launch, command: Command) -> Result<Infallible> {
    // A session of its own: a command that shared the caller's could push characters into its terminal.
    rustix::process::setsid().during("start a session")?;
    stdio::connect(command.terminal, launch.spec.interactive)?;
    // The caller's keys are not the container's.
    best_effort(sys::new_session_keyring(), "the kernel has no keyrings, or an outer filter hides them");
    // Before the user changes: dropping from the bounding set takes a capability.
    launch.capabilities.apply_before_user_change()?;
    // As root, which may enter directories that the user may not; tried again below for one that only the user may.
    let entered = rustix::process::chdir(&launch.spec.cwd);
    change_user(launch, &command.account)?;
    launch.capabilities.apply_after_user_change(command.account.uid)?;
    if entered.is_err() {
        rustix::process::chdir(&launch.spec.cwd)
            .during(format_args!("enter the working directory {}", shown(&launch.spec.cwd)))?;
    }
    check_directory()?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    rustix::thread::set_no_new_privs(true).during("set no_new_privs")?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).during("unblock signals")?;
    sys::default_signal_actions();
    sys::close_on_exec_from(3).during("close descriptors on exec")?;
    // Last: the filter refuses much of the above.
    if let Some(filter) = &launch.filter {
        filter.apply()?;
    }
    execute(&command.arguments, &command.environment, &command.search)
}

fn change_user(launch: &Launch, account: &Account) -> Result<()> {
    if launch.ids.may_set_groups {
        let groups: Vec<Gid> = account
            .groups
            .iter()
            .filter(|gid| launch.ids.has_gid(**gid))
            .map(|gid| Gid::from_raw(*gid))
            .collect();
        set_thread_groups(&groups).during("set the groups of the user")?;
    }
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    set_thread_res_gid(gid, gid, gid).during("change the group")?;
    set_thread_res_uid(uid, uid, uid).during("change the user")
}

/// A working directory outside the root shows as unreachable.
fn check_directory() -> Result<()> {
    let directory = rustix::process::getcwd(Vec::new()).during("look at the working directory")?;
    if directory.as_bytes().starts_with(b"/") {
        Ok(())
    } else {
        Err(Error::setup("the working directory is not inside the container"))
    }
}

/// Executes the command; returns only when that fails.
fn execute(arguments: &[CString], environment: &[CString], search: &[OsString]) -> Result<Infallible> {
    let Some(program) = arguments.first() else { return Err(Error::usage("no command is given")) };
    let mut refused = None;
    let candidates: Vec<CString> = if program.as_bytes().contains(&b'/') {
        vec![program.clone()]
    } else {
        let join =
            |directory: &OsString| CString::new([directory.as_bytes(), b"/", program.as_bytes()].concat());
        search.iter().filter_map(|directory| join(directory).ok()).collect()
    };
    for candidate in &candidates {
        match nix::unistd::execve(candidate, arguments, environment) {
            Ok(never) => match never {},
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => {}
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    let name = program.as_bytes().escape_ascii();
    match refused {
        Some(error) => {
            let cause = std::io::Error::from(error);
            Err(Error::new(Class::CommandNotRunnable, format!("cannot start \"{name}\": {cause}")))
        }
        None => Err(Error::new(
            Class::CommandNotFound,
            format!("cannot start \"{name}\": No such file or directory"),
        )
        .hint("neither the command nor, for a script, its interpreter was found in the container")),
    }
}

/// Opens the null device of this mount namespace.
pub(super) fn open_null() -> Result<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).during("open /dev/null")
}
