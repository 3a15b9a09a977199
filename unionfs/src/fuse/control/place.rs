//! Where the control socket of a mount is, for its server and for who looks for it.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Statx, StatxAttributes, StatxFlags};

use crate::error::{Errno, Error, Result};
use crate::sys;

/// The device number of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountId {
    major: u32,
    minor: u32,
}

impl std::fmt::Display for MountId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    id: MountId,
    kind: Vec<u8>,
    /// Whose server it is, for FUSE.
    pub(super) user: Option<u32>,
}

impl Mounted {
    pub(super) fn is_fuse(&self) -> bool {
        self.kind == b"fuse" || self.kind.starts_with(b"fuse.")
    }
}

/// Reads the text of a mount table.
fn parse(table: &[u8]) -> Vec<Mounted> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mounted> {
    let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<u32>().ok();
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.nth(2)?;
    let colon = device.iter().position(|byte| *byte == b':')?;
    let id = MountId { major: number(device.get(..colon)?)?, minor: number(device.get(colon + 1..)?)? };
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = fields.next()?.to_vec();
    let options = fields.nth(1).unwrap_or_default();
    let user = options.split(|byte| *byte == b',').find_map(|option| option.strip_prefix(b"user_id="));
    Some(Mounted { id, kind, user: user.and_then(number) })
}

fn mount_table() -> Result<Vec<Mounted>> {
    let table = std::fs::read("/proc/self/mountinfo");
    table
        .map(|table| parse(&table))
        .map_err(|error| Error::from(error).during("read", "/proc/self/mountinfo"))
}

/// Returns the mount on `target`, without asking its server.
///
/// # Errors
/// There is no such path; ENOENT if no mount is on it.
pub fn mount_at(target: &Path) -> Result<MountId> {
    let stat = look_at(target)?;
    let tells = stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
    if tells && !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Error::new(Errno::NOENT));
    }
    Ok(MountId { major: stat.stx_dev_major, minor: stat.stx_dev_minor })
}

/// Returns what is known of `path`: a server that hangs is not waited for.
fn look_at(path: &Path) -> Result<Statx> {
    let flags = AtFlags::from_bits_retain(libc::AT_STATX_DONT_SYNC.cast_unsigned());
    let named = |error: Errno| Error::new(error).during("look at", path.as_os_str().as_bytes());
    rustix::fs::statx(CWD, path, flags, StatxFlags::TYPE).map_err(named)
}

/// Returns the mount that holds `path`, and its line in the mount table.
///
/// # Errors
/// There is no such path; EINVAL if no mount table line of FUSE is for it.
pub(super) fn mount_of(path: &Path) -> Result<(MountId, Mounted)> {
    let stat = look_at(path)?;
    let id = MountId { major: stat.stx_dev_major, minor: stat.stx_dev_minor };
    let mount = mount_table()?.into_iter().find(|mount| mount.id == id && mount.is_fuse());
    mount.map(|mount| (id, mount)).ok_or_else(|| {
        Error::new(Errno::INVAL)
            .during("control", path.as_os_str().as_bytes())
            .hint("this is no mount of unionfs")
    })
}

/// Returns the id that the parent of this user namespace knows this user by: the same inside and outside of it.
fn outer_uid() -> u32 {
    let own = rustix::process::geteuid().as_raw();
    let map = sys::read_setting("/proc/self/uid_map").unwrap_or_default();
    let outer = map.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().map(|field| field.parse::<u32>().ok());
        let (inner, outer, len) = (fields.next()??, fields.next()??, fields.next()??);
        own.checked_sub(inner).filter(|offset| *offset < len).and_then(|offset| outer.checked_add(offset))
    });
    outer.unwrap_or(own)
}

/// Returns the directories where a server of this process may put its socket, the best first.
pub(super) fn own_directories(runtime: Option<&Path>) -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> = runtime.map(|runtime| runtime.join("unionfs")).into_iter().collect();
    let user = outer_uid();
    if user == 0 {
        directories.push("/run/unionfs".into());
    }
    directories.push(format!("/tmp/unionfs-{user}").into());
    directories
}

/// Returns the directories where the socket of a server of user `user` may be, beside those of this process.
pub(super) fn directories_of(user: Option<u32>, runtime: Option<&Path>) -> Vec<PathBuf> {
    let mut directories = own_directories(runtime);
    for user in user.into_iter().chain([0]) {
        directories.push(format!("/run/user/{user}/unionfs").into());
        directories.push(format!("/tmp/unionfs-{user}").into());
    }
    directories.push("/run/unionfs".into());
    directories
}

/// Returns the sockets of all servers that this process may ask: its user's, and for root everybody's.
pub(super) fn sockets(runtime: Option<&Path>) -> Vec<PathBuf> {
    let own = rustix::process::geteuid().as_raw();
    let mut directories: Vec<(PathBuf, u32)> =
        own_directories(runtime).into_iter().chain(["/run/unionfs".into()]).map(|path| (path, own)).collect();
    if own == 0 {
        let names = |directory: &str| std::fs::read_dir(directory).into_iter().flatten().flatten();
        let number = |name: &std::ffi::OsStr, prefix: &[u8]| {
            std::str::from_utf8(name.as_bytes().strip_prefix(prefix)?).ok()?.parse::<u32>().ok()
        };
        let sessions = names("/run/user")
            .filter_map(|entry| Some((entry.path().join("unionfs"), number(&entry.file_name(), b"")?)));
        directories.extend(sessions);
        let temporary =
            names("/tmp").filter_map(|entry| Some((entry.path(), number(&entry.file_name(), b"unionfs-")?)));
        directories.extend(temporary);
    }
    let trusted = directories.into_iter().filter(|(path, user)| open_directory(path, &[own, *user]).is_ok());
    let entries = trusted.flat_map(|(path, _)| std::fs::read_dir(path).into_iter().flatten().flatten());
    entries
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name != LOCK))
        .collect()
}

/// The file in a directory of sockets that is locked while they come and go.
pub(super) const LOCK: &str = ".lock";

/// Opens a directory of sockets, if it belongs to one of `owners` and to nobody else.
///
/// # Errors
/// EPERM if somebody else could have put a socket there.
pub(super) fn open_directory(path: &Path, owners: &[u32]) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    let stat = sys::stat_fd(directory.as_fd())?;
    if owners.contains(&stat.uid) && stat.mode & 0o077 == 0 { Ok(directory) } else { Err(Errno::PERM.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_mount_table_are_read() {
        let table = b"28 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
            166 28 0:58 / /m\\040x rw shared:1 master:2 - fuse.unionfs unionfs rw,user_id=1000,group_id=7\n\
            167 28 0:59 / /n rw - tmpfs tmpfs rw\nbroken\n\n1 2 x:y / / rw - a b c\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[1].id, MountId { major: 0, minor: 58 });
        assert_eq!((mounts[1].user, mounts[1].is_fuse()), (Some(1000), true));
        assert_eq!((mounts[0].user, mounts[0].is_fuse()), (None, false));
    }

    #[test]
    fn a_directory_that_others_could_have_filled_is_not_trusted() {
        let base = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        let set_mode = |mode| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(base.path(), mode).unwrap();
        };
        set_mode(0o700);
        assert!(open_directory(base.path(), &[own]).is_ok());
        assert!(open_directory(base.path(), &[own + 1]).is_err_and(|error| error.is(Errno::PERM)));
        set_mode(0o711);
        assert!(open_directory(base.path(), &[own]).is_err_and(|error| error.is(Errno::PERM)));
    }
}
