//! The server: it answers for the container's files and cleans up when the container is gone.

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::fd::AsFd;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::termios::{OptionalActions, Termios, tcsetattr};
use rustix::thread::LinkNameSpaceType;
use unionfs::Union;
use unionfs::fuse::session;

use super::channel::{Channel, Message};
use super::{Launch, Remains};
use crate::error::{During, Error, Result, best_effort, shown};
use crate::{cgroup, sys};

/// The ends of the server's connections, and what it holds for others.
#[derive(Debug)]
pub(crate) struct Ends {
    /// To the runner.
    pub(crate) runner: Channel,
    /// To the container's first process.
    pub(crate) first: Channel,
    /// The lock on the container's directory.
    pub(crate) lock: OwnedFd,
    /// The runner's terminal as it was, for when the runner cannot put it back.
    pub(crate) terminal: Option<(OwnedFd, Termios)>,
}

/// Serves until the container is gone; the exit code is for nobody.
pub(crate) fn run(launch: &Launch, ends: Ends) -> std::result::Result<Infallible, u8> {
    let outcome = serve(launch, &ends);
    if let Err(error) = &outcome {
        best_effort(ends.runner.send(&Message::Failed(error.clone()), None), "the runner is gone");
    }
    best_effort(clean_up(&launch.remains), "`runner rm` finds what is left");
    drop(ends.lock);
    Err(u8::from(outcome.is_err()))
}

fn serve(launch: &Launch, ends: &Ends) -> Result<()> {
    detach(ends)?;
    match ends.runner.receive()? {
        Some((Message::UserNamespace, Some(namespace))) => {
            rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))
                .during("enter the container's user namespace")?;
        }
        Some((Message::Proceed, _)) => {}
        // The runner gave up before the container had ids.
        _ => return Ok(()),
    }
    let union = Union::open(&launch.union).map_err(|error| Error::setup(error.to_string()))?;
    let device = match ends.first.receive()? {
        Some((Message::FuseDevice, Some(device))) => device,
        // The first process failed before it mounted the union, and said why to the runner.
        _ => return Ok(()),
    };
    let watch = ends.terminal.as_ref().map(|(terminal, before)| watch_runner(&ends.runner, terminal, before));
    let watch = watch.transpose()?;
    let outcome = session::serve(Arc::new(union), device, &launch.union)
        .map_err(|error| Error::setup(error.to_string()));
    // The runner has either said by now that it put the terminal back, or is dead: no end without knowing which.
    if let Some(watch) = watch
        && watch.join().is_err()
    {
        tracing::error!("the thread that watches the runner has failed");
    }
    outcome
}

/// Makes this process independent of the runner's terminal, directory and input.
fn detach(ends: &Ends) -> Result<()> {
    rustix::process::setsid().during("start a session for the server")?;
    rustix::process::chdir("/").during("change to /")?;
    rustix::process::umask(Mode::empty());
    best_effort(rustix::thread::set_name(c"runner-server"), "only shown");
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .during("open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).during("let go of stdin")?;
    rustix::stdio::dup2_stdout(&null).during("let go of stdout")?;
    drop(null);
    let mut keep = vec![ends.runner.as_fd(), ends.first.as_fd(), ends.lock.as_fd()];
    keep.extend(ends.terminal.iter().map(|(terminal, _)| terminal.as_fd()));
    // The other ends of the channels must not live on here, or nobody would see their owners die.
    sys::close_all_but(&keep).during("close inherited descriptors")
}

/// Puts the runner's terminal back when the runner dies without having done so.
fn watch_runner(runner: &Channel, terminal: &OwnedFd, before: &Termios) -> Result<JoinHandle<()>> {
    let runner = runner.duplicate()?;
    let terminal = terminal.try_clone().during("duplicate the terminal")?;
    let before = before.clone();
    std::thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || {
            while let Ok(message) = runner.receive() {
                match message {
                    Some((Message::Finished, _)) => break,
                    Some(_) => {}
                    None => {
                        best_effort(
                            tcsetattr(&terminal, OptionalActions::Now, &before),
                            "the terminal is gone",
                        );
                        break;
                    }
                }
            }
        })
        .during("start a thread that watches the runner")
}

/// Deletes what the container leaves.
pub(crate) fn clean_up(remains: &Remains) -> Result<()> {
    let cgroups = cgroup::remove(&remains.cgroups);
    for stub in &remains.stubs {
        remove_stub(stub);
    }
    if let Some(directory) = &remains.directory {
        crate::removal::remove_tree(directory).during(format_args!("delete {}", shown(directory)))?;
    }
    cgroups
}

/// Removes a file that only ever was a place to mount on: while the container lived nothing could write to it.
fn remove_stub(path: &Path) {
    let made_by_us = rustix::fs::lstat(path).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_size == 0 && stat.st_nlink == 1
    });
    if made_by_us {
        best_effort(rustix::fs::unlink(path), "it is empty");
    }
}
