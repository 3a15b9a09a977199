//! The listening side: one thread, one command at a time.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};

use super::commands::Live;
use super::place::{LOCK, MountId, open_directory, own_directories};
use super::{GREETING, REQUEST_MAX};
use crate::error::{Errno, Error, Result};
use crate::sys;
use crate::sys::process::in_user_namespace;

/// How long a client may take to say what it wants, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The control socket of a mount. It goes with [`Control::close`].
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    directory: OwnedFd,
    name: String,
    /// Which socket it is: the next mount with this device number puts its own in the place.
    ino: u64,
    listener: Mutex<Option<UnixListener>>,
}

impl Control {
    /// Makes the socket of a mount in the first directory that can be had.
    ///
    /// # Errors
    /// There is no directory of this user's own.
    pub fn listen(mount: MountId, runtime: Option<&Path>) -> Result<Self> {
        let mut last = Error::new(Errno::NOENT);
        for path in own_directories(runtime) {
            match Self::listen_in(&path, mount) {
                Ok(control) => return Ok(control),
                Err(error) => {
                    last = error.during("make a control socket in", path.as_os_str().as_encoded_bytes())
                }
            }
        }
        Err(last)
    }

    fn listen_in(path: &Path, mount: MountId) -> Result<Self> {
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let directory = open_directory(path, &[rustix::process::geteuid().as_raw()])?;
        let _locked = lock(directory.as_fd())?;
        // Under a name of its own until it listens. Through the descriptor: the path may be longer than the name of a
        // socket.
        let (name, made) = (mount.to_string(), format!(".{}", std::process::id()));
        let listener = UnixListener::bind(format!("{}/{made}", sys::proc_path(directory.as_fd())))?;
        rustix::fs::chmodat(&directory, &*made, Mode::RUSR | Mode::WUSR, AtFlags::empty())?;
        let ino = sys::stat_at(directory.as_fd(), made.as_bytes())?.ino;
        // What stands there is of a mount that had this device number before, and is ending.
        rustix::fs::renameat(&directory, &*made, &directory, &*name)?;
        Ok(Self { path: path.join(&name), directory, name, ino, listener: Mutex::new(Some(listener)) })
    }

    /// Returns where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers commands until the process ends. Before, removes some of the sockets that servers left behind.
    pub fn serve(&self, live: &Live) {
        let Some(listener) = self.listener.lock().take() else { return };
        wait_a_little(&listener);
        match lock(self.directory.as_fd()) {
            Ok(_locked) => sweep(self.directory.as_fd()),
            Err(errno) => tracing::debug!("the directory of the control socket is not swept: {errno}"),
        }
        for connection in listener.incoming() {
            let done = connection.map_err(Error::from).and_then(|connection| answer(&connection, live));
            if let Err(error) = done {
                tracing::debug!("a control connection: {error}");
            }
        }
    }

    /// Removes the socket: the mount has ended.
    pub fn close(&self) {
        match self.remove() {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => tracing::debug!("the control socket stays: {errno}"),
        }
    }

    fn remove(&self) -> std::result::Result<(), Errno> {
        let _locked = lock(self.directory.as_fd())?;
        if sys::stat_at(self.directory.as_fd(), self.name.as_bytes())?.ino != self.ino {
            return Ok(());
        }
        rustix::fs::unlinkat(&self.directory, &*self.name, AtFlags::empty())
    }
}

/// Waits until there is a command, or whoever has mounted has gone on: to sweep wakes other servers, and takes the
/// processors from who waits for this one.
fn wait_a_little(listener: &UnixListener) {
    let timeout = Timespec { tv_sec: 1, tv_nsec: 0 };
    if let Err(errno) = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&timeout)) {
        tracing::debug!("commands are not waited for: {errno}");
    }
}

/// Waits until no other server makes or removes a socket in the directory, as long as the file is open.
fn lock(directory: BorrowedFd<'_>) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, LOCK, flags, Mode::RUSR | Mode::WUSR)?;
    sys::retry(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))?;
    Ok(file)
}

/// Sockets that one server looks at: with many mounts, looking at all would disturb every server at each new mount.
const SWEPT: usize = 8;

/// Removes sockets of servers that were killed: nobody listens on them. Each process looks at others of them.
///
/// Preconditions: the directory is locked, so that none is about to be listened on.
fn sweep(directory: BorrowedFd<'_>) {
    let mut names = Vec::new();
    let listed = sys::dirents::for_each_name(directory, |entry| {
        if entry.name != LOCK.as_bytes() {
            names.push(entry.name.to_vec());
        }
        Ok(true)
    });
    if let Err(errno) = listed {
        tracing::debug!("cannot look for sockets of servers that were killed: {errno}");
    }
    let first = usize::try_from(std::process::id()).unwrap_or(0) % names.len().max(1);
    names.rotate_left(first);
    for name in names.iter().take(SWEPT) {
        let path = [sys::proc_path(directory).as_bytes(), b"/", name].concat();
        let path = Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&path));
        let refused = UnixStream::connect(path)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
        if refused && rustix::fs::unlinkat(directory, name.as_slice(), AtFlags::empty()).is_err() {
            tracing::debug!("the socket of a server that was killed stays");
        }
    }
}

fn answer(connection: &UnixStream, live: &Live) -> Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let done = check_peer(connection.as_fd()).and_then(|()| {
        let mut request = Vec::new();
        connection.take(REQUEST_MAX).read_to_end(&mut request)?;
        let mut words = request.split(|byte| *byte == 0);
        if words.next() != Some(GREETING) {
            return Err(Error::new(Errno::PROTO)
                .during("understand", "the command")
                .hint("the server and the program that asks it are of different versions"));
        }
        let words: Vec<&[u8]> = words.filter(|word| !word.is_empty()).collect();
        live.command(&words)
    });
    let (status, text) = match done {
        Ok(text) => (b'0', text),
        Err(error) => (b'1', error.to_string().into_bytes()),
    };
    let mut connection = connection;
    connection.write_all(&[&[status], text.as_slice()].concat())?;
    Ok(())
}

/// Checks who is connected: the user of this process, or root. Who has no id in this user namespace, and could open the
/// directory all the same, has the right to everything that belongs to the server's user.
///
/// # Errors
/// EPERM.
fn check_peer(connection: BorrowedFd<'_>) -> Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(connection)?.uid.as_raw();
    let overflow = std::fs::read_to_string("/proc/sys/kernel/overflowuid").unwrap_or_default();
    let outside = overflow.trim().parse() == Ok(peer) && in_user_namespace();
    if peer == rustix::process::geteuid().as_raw() || peer == 0 || outside {
        return Ok(());
    }
    Err(Error::new(Errno::PERM).during("control", "a mount of another user"))
}

#[cfg(test)]
mod tests {
    use super::super::place::mount_at;
    use super::*;

    #[test]
    fn a_socket_takes_the_place_of_one_that_is_ending_and_stays_when_that_ends() {
        let base = tempfile::tempdir().unwrap();
        let mount = mount_at(Path::new("/proc")).unwrap();
        let first = Control::listen(mount, Some(base.path())).unwrap();
        let second = Control::listen(mount, Some(base.path())).unwrap();
        assert_eq!(first.path(), second.path());
        first.close();
        // Another server of the same user looks for those of killed ones.
        sweep(second.directory.as_fd());
        assert!(UnixStream::connect(second.path()).is_ok());
        drop(second.listener.lock().take());
        sweep(second.directory.as_fd());
        assert!(!second.path().exists());
        second.close();
    }

    #[test]
    fn each_server_looks_at_a_few_sockets_only() {
        let base = tempfile::tempdir().unwrap();
        let count = || std::fs::read_dir(base.path()).unwrap().count();
        for number in 0..2 * SWEPT + 1 {
            drop(UnixListener::bind(base.path().join(format!("0:{number}"))).unwrap());
        }
        let directory =
            rustix::fs::open(base.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for left in [SWEPT + 1, 1, 0, 0] {
            sweep(directory.as_fd());
            assert_eq!(count(), left);
        }
    }

    #[test]
    fn many_servers_that_start_at_once_all_listen() {
        let base = tempfile::tempdir().unwrap();
        let mounts: Vec<MountId> =
            ["/proc", "/sys", "/"].iter().filter_map(|at| mount_at(Path::new(at)).ok()).collect();
        for _ in 0..50 {
            std::thread::scope(|scope| {
                for mount in &mounts {
                    scope.spawn(|| {
                        let control = Control::listen(*mount, Some(base.path())).unwrap();
                        assert!(UnixStream::connect(control.path()).is_ok());
                        control.close();
                        assert!(!control.path().exists());
                    });
                }
            });
        }
    }
}
