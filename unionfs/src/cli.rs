//! The command `unionfs`: what was typed, and the order in which a mount comes about.
//!
//! The calling convention is that of fuse-overlayfs, which is that of libfuse: flags may follow positional
//! arguments, a value may stick to `-o`, and the last positional argument is the mount point. Environment, limits
//! and arguments are read here and nowhere below.
//!
//! A command beside mounting is named by the first argument. A source for mount(8) that has such a name is told apart:
//! mount(8) puts the mount point next, and the layers after it.

mod catalog;
mod ctl;
mod log;
mod remount;
mod tools;

use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::fuse::auto_unmount::Watched;
use crate::fuse::beneath::Beneath;
use crate::fuse::daemon::{self, Leave, Leaver, Mounted, Prepared, Side};
use crate::fuse::mount;
use crate::fuse::session::{Greeted, raise_open_files_limit};
use crate::options::{MountOptions, Warning, Whiteouts};
use crate::plugin;
use crate::store;
use crate::sys;
use crate::union::Union;

/// The name in front of each message.
const NAME: &str = "unionfs";

/// The version of the FUSE protocol that the fuser crate speaks.
const FUSE_PROTOCOL: &str = "7.40";

/// Set, with any value, it asks for whiteouts that are no devices.
const DISABLE_DEVICE_WHITEOUTS: &str = "FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT";

const USAGE: &str = "\
usage: unionfs [-f] [-d] -o lowerdir=A:B[,upperdir=U,workdir=W][,OPTION...] [SOURCE] MOUNTPOINT

Mounts the union of directories: U on top, which takes all changes, then A, then B. Without U it is read-only.

  -o OPTION[,OPTION...]  mount options; may be given several times
  -f, --foreground       serve in the foreground
  -d, --debug            as -f, and log what was decided and each request
  -h, --help             show this text
  -V, --version          show the version

Commands, each with --help: ctl (ask or change a live mount); diff, apply, check, merge, catalog (mount nothing).

Unmount with `umount MOUNTPOINT` or `fusermount3 -u MOUNTPOINT`, or end the process with SIGTERM.
";

/// What runs a command, given what follows its name.
type Run = fn(&[OsString]) -> Result<ExitCode, Failure>;

/// The commands beside mounting.
const COMMANDS: [(&str, Run); 6] = [
    ("apply", tools::apply),
    ("catalog", catalog::run),
    ("check", tools::check),
    ("ctl", ctl::run),
    ("diff", tools::diff),
    ("merge", tools::merge),
];

/// What was typed.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Help,
    Version,
    Mount(Typed),
}

/// The arguments of a mount, as typed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Typed {
    foreground: bool,
    debug: bool,
    options: Vec<OsString>,
    mountpoint: Option<OsString>,
}

/// Why the arguments cannot be used, or the mount not made: one line.
type Failure = Box<dyn std::error::Error>;

/// Runs the command with the arguments of this process.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let done = match (beside_mounting(&arguments), arguments.split_first()) {
        (Some(run), Some((_, rest))) => run(rest),
        _ => mount_or_tell(arguments),
    };
    done.unwrap_or_else(|error| {
        complain(&error);
        ExitCode::FAILURE
    })
}

fn mount_or_tell(arguments: Vec<OsString>) -> Result<ExitCode, Failure> {
    match parse(arguments)? {
        Command::Help => print(USAGE.as_bytes()),
        Command::Version => print(version().as_bytes()),
        Command::Mount(typed) => start(typed),
    }
}

/// Returns the command that the first argument names, unless this is how mount(8) asks for a mount whose source has that
/// name: SOURCE MOUNTPOINT -o OPTIONS, with layers among them.
fn beside_mounting(arguments: &[OsString]) -> Option<Run> {
    let (name, rest) = arguments.split_first()?;
    let (_, run) = COMMANDS.iter().find(|(known, _)| name == known)?;
    let word_next = rest.first().is_some_and(|next| !next.as_bytes().starts_with(b"-"));
    let has_layers = |argument: &OsString| {
        argument.as_bytes().split(|&byte| byte == b',').any(|word| word.starts_with(b"lowerdir="))
    };
    let is_mount = word_next && rest.iter().skip(1).any(has_layers);
    (!is_mount).then_some(*run)
}

/// Reads the arguments of a mount.
fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, Failure> {
    let mut arguments = arguments.into_iter();
    let mut typed = Typed::default();
    let mut flags_end = false;
    while let Some(argument) = arguments.next() {
        match argument.as_bytes() {
            bytes if flags_end || !bytes.starts_with(b"-") || bytes == b"-" => {
                typed.mountpoint = Some(argument)
            }
            b"--" => flags_end = true,
            b"--foreground" => typed.foreground = true,
            b"--debug" => typed.debug = true,
            b"--help" => return Ok(Command::Help),
            b"--version" => return Ok(Command::Version),
            bytes if bytes.starts_with(b"--") => return Err(unknown(bytes)),
            bytes => {
                if let Some(command) = parse_flags(bytes, &mut arguments, &mut typed)? {
                    return Ok(command);
                }
            }
        }
    }
    Ok(Command::Mount(typed))
}

/// Reads the flags of one argument: several letters may share a dash, and `-o` may have its value in the same one.
fn parse_flags(
    argument: &[u8],
    rest: &mut impl Iterator<Item = OsString>,
    typed: &mut Typed,
) -> Result<Option<Command>, Failure> {
    for (index, &letter) in argument.iter().enumerate().skip(1) {
        let sticking = argument.get(index + 1..).filter(|value| !value.is_empty());
        match letter {
            b'f' => typed.foreground = true,
            b'd' => typed.debug = true,
            b'h' => return Ok(Some(Command::Help)),
            b'V' => return Ok(Some(Command::Version)),
            // mount(8) gives these to its helpers: sloppy, no mtab, verbose.
            b's' | b'n' | b'v' => {}
            b'o' | b't' => {
                let value = sticking.map(|value| OsString::from_vec(value.to_vec())).or_else(|| rest.next());
                let value = value.ok_or_else(|| format!("-{} needs a value", char::from(letter)))?;
                if letter == b'o' {
                    typed.options.push(value);
                }
                return Ok(None);
            }
            _ => return Err(unknown(argument)),
        }
    }
    Ok(None)
}

fn unknown(argument: &[u8]) -> Failure {
    format!("unknown flag {} (see {NAME} --help)", argument.escape_ascii()).into()
}

/// Returns what `--version` shows.
fn version() -> String {
    format!(
        "{NAME}: version {}\nusing FUSE kernel interface version {FUSE_PROTOCOL}\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// Makes and serves the mount, here or in a daemon.
fn start(typed: Typed) -> Result<ExitCode, Failure> {
    let (mut options, mut warnings) = MountOptions::parse(&typed.options)?;
    let mountpoint = typed.mountpoint.ok_or_else(|| format!("no mount point given (see {NAME} --help)"))?;
    if options.remount {
        return remount::run(Path::new(&mountpoint), &options);
    }
    options.debug |= typed.debug;
    if std::env::var_os(DISABLE_DEVICE_WHITEOUTS).is_some() {
        options.whiteouts = Whiteouts::DotWh;
    }
    warnings.extend(options.validate()?);
    warn_about(&warnings);
    prepare_process();
    daemon::share_heaps();
    let mountpoint = PathBuf::from(mountpoint);
    let server = if typed.foreground || options.debug { Serving::Here } else { Serving::InDaemon };
    serve(&mountpoint, options, server)
}

/// Which process serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Serving {
    /// The one that was started.
    Here,
    /// A child of it, which stays when that one has ended.
    InDaemon,
}

/// Opens the layers, mounts, and serves until the mount ends.
fn serve(mountpoint: &Path, mut options: MountOptions, serving: Serving) -> Result<ExitCode, Failure> {
    log::start(options.debug);
    let place = Place::of(mountpoint)?;
    place.hide_from_layers(&mut options);
    let mut watched = place.watch(&options)?;
    let beneath = beneath(&mut options)?;
    // Layers first: from here on they are reached through descriptors only, so that one of them may lie below the
    // mount point, or be it.
    let union = Arc::new(Union::open(&options)?);
    drop(beneath);
    for notice in union.notices() {
        tracing::info!("{notice}");
    }
    daemon::hold_signals()?;
    let (device, target) = match place {
        Place::Directory(target) => (mount::mount(&target, &options)?, Some(target)),
        Place::Connected(device) => (device, None),
    };
    let mounted = target.map(Mounted::on);
    let served = rustix::process::chdir("/").map_err(Failure::from).and_then(|()| {
        if let (Some(watched), Some(mounted)) = (&mut watched, &mounted) {
            watched.mounted(mounted.target())?;
        }
        let prepared = Prepared::of(mounted.clone(), runtime_directory().as_deref());
        let greeted = Greeted::by_kernel(device, &options)?;
        let (greeted, leaver) = stay(greeted, serving)?;
        let server = greeted.serve(Arc::clone(&union), &options)?;
        Ok(daemon::run(server, union, prepared, leaver)?)
    });
    if let (Err(_), Some(mounted)) = (&served, mounted) {
        // Nobody will answer any more: a mount left behind would be a trap.
        mounted.take_away();
    }
    served.map(|()| ExitCode::SUCCESS)
}

/// Serves layers that are no directories of this host, each kind by a process beside this one, and has `options` name them as
/// directories, which they are for as long as what is returned is held.
///
/// # Errors
/// What is wrong with them.
fn beneath(options: &mut MountOptions) -> crate::error::Result<[Option<Beneath>; 2]> {
    Ok([plugin::beneath(options)?, store::beneath(options)?])
}

/// Goes on in a daemon, if one is to serve; the process that was started ends here. What can fail is done by then, so that its
/// caller has to wait for nobody.
fn stay(greeted: Greeted, serving: Serving) -> Result<(Greeted, Leaver), Failure> {
    if serving == Serving::Here {
        return Ok((greeted, Leaver::Foreground));
    }
    let leave = if greeted.may_be_refused() { Leave::WhenServing } else { Leave::AtOnce };
    match daemon::split(leave)? {
        Side::Parent(waiter) => {
            if leave == Leave::WhenServing {
                // With the device: else it would wait for ever for the answer of a daemon that was killed.
                drop(greeted);
            }
            // By exit: what both processes have open is the daemon's, and nothing of it ends here.
            std::process::exit(waiter.wait())
        }
        Side::Daemon(leaver) => Ok((greeted, leaver)),
    }
}

/// Returns the directory for sockets and the like of this user's session.
fn runtime_directory() -> Option<PathBuf> {
    std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Where the mount comes to be.
enum Place {
    /// On this directory; the path is absolute and without symbolic links.
    Directory(PathBuf),
    /// Where the caller has mounted already; this is the device.
    Connected(OwnedFd),
}

impl Place {
    /// Finds out what the last argument names.
    fn of(mountpoint: &Path) -> Result<Self, Failure> {
        if let Some(device) = mount::handed_over(mountpoint)? {
            return Ok(Self::Connected(device));
        }
        let shown = mountpoint.as_os_str().as_bytes().escape_ascii();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = sys::retry(|| rustix::fs::open(mountpoint, flags, Mode::empty()));
        let target = directory.map(|directory| sys::real_path(directory.as_fd(), mountpoint));
        target
            .map(Self::Directory)
            .map_err(|errno| format!("cannot mount on \"{shown}\": {}", std::io::Error::from(errno)).into())
    }

    /// Starts the process that takes the mount away when this one has ended, where the options say so.
    fn watch(&self, options: &MountOptions) -> Result<Option<Watched>, Failure> {
        match self {
            _ if !options.auto_unmount => Ok(None),
            Self::Directory(target) => Ok(Some(Watched::over(target)?)),
            Self::Connected(_) => {
                let instead = "the mount is that of the program that has made it";
                complain(&Warning::NotSupported { option: "auto_unmount", instead });
                Ok(None)
            }
        }
    }

    /// Keeps the union from showing its own mount point where that lies inside a layer: a lookup of it would wait
    /// for itself.
    fn hide_from_layers(&self, options: &mut MountOptions) {
        let Self::Directory(target) = self else {
            return;
        };
        let identity = |path: &Path| rustix::fs::stat(path).map(|stat| (stat.st_dev, stat.st_ino)).ok();
        let around: Vec<_> = target.ancestors().skip(1).filter_map(identity).collect();
        let layers = options.upperdir.iter().chain(&options.lowerdir);
        let inside = |layer: &PathBuf| identity(layer).is_some_and(|layer| around.contains(&layer));
        if layers.into_iter().any(inside) {
            complain(&"the mount point lies inside a layer and is not shown in the union");
            options.hidden.push(target.clone());
        }
    }
}

/// Sets what the process as a whole needs: many descriptors, and no umask, because modes come from requests.
fn prepare_process() {
    rustix::process::umask(Mode::empty());
    if let Err(errno) = raise_open_files_limit() {
        complain(&format!("cannot raise the limit of open files: {errno}"));
    }
    if !rustix::fs::statfs("/proc").is_ok_and(|stat| stat.f_type == rustix::fs::PROC_SUPER_MAGIC) {
        complain(&"/proc is not usable, some operations will fail (hint: mount -t proc proc /proc)");
    }
}

fn warn_about(warnings: &[Warning]) {
    for warning in warnings {
        complain(warning);
    }
}

/// Writes one line to standard error. If even that fails there is nobody left to tell.
fn complain(message: &dyn std::fmt::Display) {
    let line = message.to_string().replace('\n', ", ");
    if writeln!(std::io::stderr(), "{NAME}: {line}").is_err() {}
}

fn print(text: &[u8]) -> Result<ExitCode, Failure> {
    std::io::stdout().write_all(text)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(line: &str) -> Typed {
        match parse(line.split(' ').map(OsString::from)) {
            Ok(Command::Mount(typed)) => typed,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn arguments_are_taken_in_every_order() {
        let want = Typed {
            foreground: false,
            debug: false,
            options: vec!["lowerdir=/a".into(), "ro".into()],
            mountpoint: Some("/m".into()),
        };
        for line in [
            "-o lowerdir=/a -o ro /m",
            "-olowerdir=/a -oro /m",
            "overlay /m -o lowerdir=/a -o ro",
            "/m -o lowerdir=/a -oro",
            "-o lowerdir=/a none -o ro -- /m",
            "-s -n -t fuse.unionfs -o lowerdir=/a -oro x /m",
        ] {
            assert_eq!(typed(line), want, "{line}");
        }
    }

    #[test]
    fn a_command_is_the_first_word_unless_it_is_the_source_of_a_mount() {
        for (line, want) in [
            ("diff -o lowerdir=/a,upperdir=/u", true),
            ("apply layer.tar dir", true),
            ("apply -o format=oci - dir", true),
            ("diff", true),
            ("diff /m -o rw,lowerdir=/a", false),
            ("-o lowerdir=/a diff", false),
            ("./diff -o lowerdir=/a", false),
        ] {
            let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert_eq!(beside_mounting(&arguments).is_some(), want, "{line}");
        }
    }

    #[test]
    fn flags_may_share_a_dash() {
        let want = Typed {
            foreground: true,
            debug: true,
            options: vec!["ro".into()],
            mountpoint: Some("-m".into()),
        };
        for line in ["-fdoro -- -m", "-fd -o ro -- -m", "--foreground --debug -o ro -- -m"] {
            assert_eq!(typed(line), want, "{line}");
        }
    }

    #[test]
    fn help_and_version_win() {
        for (line, want) in [
            ("-h", Command::Help),
            ("--help /m", Command::Help),
            ("-o ro --version", Command::Version),
            ("-fV", Command::Version),
        ] {
            assert_eq!(parse(line.split(' ').map(OsString::from)).unwrap(), want, "{line}");
        }
        assert!(version().starts_with(concat!("unionfs: version ", env!("CARGO_PKG_VERSION"), "\n")));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, want) in [
            ("-x", "unknown flag -x"),
            ("--frobnicate /m", "unknown flag --frobnicate"),
            ("/m -o", "-o needs"),
        ] {
            let error = parse(line.split(' ').map(OsString::from)).unwrap_err();
            assert!(error.to_string().starts_with(want), "{line}: {error}");
        }
    }
}
