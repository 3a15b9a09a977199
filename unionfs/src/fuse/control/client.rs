//! The asking side.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::GREETING;
use super::place::{MountId, directories_of, mount_of, open_directory, sockets};
use crate::error::{Errno, Error, Result};
use crate::sys;

/// How long a server that does not listen yet is waited for: a mount is seen a moment before its socket.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long to wait before looking again.
const PAUSE: Duration = Duration::from_millis(10);

/// Gives a command to the server of the mount that holds `path`, and returns what it answers.
///
/// # Errors
/// There is no such mount, its server does not listen, or the command failed: `Err` of the inner result is the server's
/// own message.
pub fn ask(
    path: &Path,
    words: &[&[u8]],
    runtime: Option<&Path>,
) -> Result<std::result::Result<Vec<u8>, Vec<u8>>> {
    let (id, mount) = mount_of(path)?;
    let connection = connect(path, id, mount.user, runtime)?;
    match talk(connection, words)?.split_first() {
        Some((b'0', text)) => Ok(Ok(text.to_vec())),
        Some((b'1', text)) => Ok(Err(text.to_vec())),
        _ => Err(Error::new(Errno::PROTO).during("control", shown(path)).hint("the server ended meanwhile")),
    }
}

/// Says what is wanted, and returns all of the answer.
fn talk(mut connection: UnixStream, words: &[&[u8]]) -> Result<Vec<u8>> {
    let mut request = GREETING.to_vec();
    request.push(0);
    for word in words {
        request.extend_from_slice(word);
        request.push(0);
    }
    let mut answer = Vec::new();
    connection.write_all(&request)?;
    connection.shutdown(Shutdown::Write)?;
    connection.read_to_end(&mut answer)?;
    Ok(answer)
}

/// How long one of several servers that are asked may take.
const HURRY: Duration = Duration::from_secs(2);

/// Returns what a directory is to a live mount that this process may ask: `upper` or `lower`; `upper` if it is to any.
pub fn role_of(directory: &Path, runtime: Option<&Path>) -> Result<Option<&'static str>> {
    let stat =
        rustix::fs::stat(directory).map_err(|errno| Error::new(errno).during("look at", shown(directory)))?;
    let numbers = [stat.st_dev.to_string(), stat.st_ino.to_string()];
    let words = [b"role", numbers[0].as_bytes(), numbers[1].as_bytes()];
    let mut role = None;
    for socket in sockets(runtime) {
        let ask = || -> Result<Vec<u8>> {
            let connection = UnixStream::connect(&socket)?;
            connection.set_read_timeout(Some(HURRY))?;
            talk(connection, &words)
        };
        // One that has ended, or hangs, is told from its mount and not from here.
        match ask().as_deref() {
            Ok(b"0upper") => return Ok(Some("upper")),
            Ok(b"0lower") => role = Some("lower"),
            _ => {}
        }
    }
    Ok(role)
}

fn shown(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

/// Finds the socket of a mount whose server runs as `user`.
fn connect(path: &Path, id: MountId, user: Option<u32>, runtime: Option<&Path>) -> Result<UnixStream> {
    let own = rustix::process::geteuid().as_raw();
    let mut owners = vec![own, 0];
    if own == 0 {
        owners.extend(user);
    }
    let start = Instant::now();
    let foreign = own != 0 && user.is_some_and(|user| user != own);
    let mut denied = foreign;
    loop {
        for directory in directories_of(user, runtime) {
            let Ok(directory) = open_directory(&directory, &owners) else { continue };
            match UnixStream::connect(format!("{}/{id}", sys::proc_path(directory.as_fd()))) {
                Ok(connection) => return Ok(connection),
                Err(error) => denied |= error.kind() == ErrorKind::PermissionDenied,
            }
        }
        // A directory of root's may be closed to us, and ours not be there yet.
        let patient = start.elapsed() <= PATIENCE;
        if foreign || (denied && !patient) {
            return Err(Error::new(Errno::ACCESS)
                .during("control", shown(path))
                .hint("the mount belongs to another user: ask as that user, or as root"));
        }
        if !patient {
            return Err(Error::new(Errno::NOENT).during("control", shown(path)).hint(
                "no server listens for it: it is not unionfs, is older than this program, or has ended",
            ));
        }
        std::thread::sleep(PAUSE);
    }
}
