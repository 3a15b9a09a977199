//! Sockets and fifos work, those of the lower as well as new ones.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use e2e::require;
use e2e::tree::{Kind, LayerTree};

use crate::{Seen, same};

fn lowers() -> [LayerTree; 1] {
    [LayerTree::new().with("fifo", Kind::Fifo, 0o644).dir("d").file("d/x", "1")]
}

/// Names an object in `dir` in fewer bytes than an address of a socket has.
fn short(dir: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

fn talk(seen: &mut Seen, listener: &UnixListener, address: &Path) {
    let client = UnixStream::connect(address);
    seen.note("connect", client.as_ref().map(drop).map_err(|error| error.raw_os_error()));
    let Ok(mut client) = client else { return };
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"ask").unwrap();
    drop(client);
    let mut got = String::new();
    server.read_to_string(&mut got).unwrap();
    seen.note("heard", got);
}

#[test]
fn a_socket_is_listened_on_and_connected_to() {
    require!(Fuse, Union);
    same(&lowers(), |root, seen| {
        let dir = File::open(root.join("d")).unwrap();
        let listener = UnixListener::bind(short(&dir, "s")).unwrap();
        talk(seen, &listener, &short(&dir, "s"));
        // Its other names and modes are the same socket.
        fs::set_permissions(root.join("d/s"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        fs::rename(root.join("d/s"), root.join("d/t")).unwrap();
        talk(seen, &listener, &short(&dir, "t"));
        fs::hard_link(root.join("d/t"), root.join("d/u")).unwrap();
        talk(seen, &listener, &short(&dir, "u"));
        seen.note("bind over", UnixListener::bind(short(&dir, "u")).map(drop).map_err(|e| e.raw_os_error()));
        fs::rename(root.join("d"), root.join("moved")).unwrap();
        talk(seen, &listener, &short(&dir, "u"));
        fs::remove_file(root.join("moved/t")).unwrap();
        talk(seen, &listener, &short(&dir, "t"));
    });
}

#[test]
fn a_fifo_carries_bytes_before_and_after_its_copy_up() {
    require!(Fuse, Union);
    same(&lowers(), |root, seen| {
        rustix::fs::mknodat(rustix::fs::CWD, root.join("new"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .unwrap();
        for name in ["fifo", "new"] {
            let path = root.join(name);
            let open = |path: &Path| {
                OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap()
            };
            let mut before = open(&path);
            let alone =
                OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(root.join(name)).is_ok();
            seen.note("a reader is there", alone);
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o622)).unwrap();
            fs::rename(&path, root.join("d/moved")).unwrap();
            let mut after = open(&root.join("d/moved"));
            after.write_all(b"through").unwrap();
            let mut got = [0; 7];
            before.read_exact(&mut got).unwrap();
            seen.note("heard", got);
            fs::remove_file(root.join("d/moved")).unwrap();
        }
    });
}
