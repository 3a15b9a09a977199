//! How the connection to the kernel comes about: mount(2) where this process may, fusermount3 where it may not, or
//! a descriptor that somebody else has mounted. And how a mount is taken away again.
//!
//! Nothing here knows the union: a mount may be made in one process and served in another. The kernel accepts the
//! device only if it was opened in the user namespace that owns the mount, so [`mount_direct`] opens it itself.

mod fusermount;

use std::ffi::{CString, OsStr};
use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags as Flags, UnmountFlags};

pub use self::fusermount::mount_fusermount;
use super::sys;
use crate::error::{Errno, Error};
use crate::options::{AtimeMode, MountOptions};

/// The device through which requests travel.
const DEVICE: &str = "/dev/fuse";

/// The name shown as source and as part of the type where the options give none.
pub const DEFAULT_NAME: &str = "unionfs";

/// Mount points of this form are descriptors of the device that somebody else has mounted.
const DESCRIPTOR_PREFIX: &[u8] = b"/dev/fd/";

/// Why there is no mount.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum MountError {
    /// The device cannot be opened.
    Device(Errno),
    /// There is no directory to mount on.
    Target(PathBuf, Errno),
    /// mount(2) was refused.
    Refused(PathBuf, Errno),
    /// The descriptor handed over is not open.
    Descriptor(PathBuf, Errno),
    /// None of the helpers was found.
    NoFusermount,
    /// The helper failed; what it said.
    Fusermount(Vec<u8>),
    /// Talking to the helper failed.
    Helper(Errno),
    /// The mount could not be taken away.
    Unmount(PathBuf, Errno),
    /// The flags of the mount could not be changed.
    Remount(PathBuf, Errno),
}

impl MountError {
    /// Returns the number that stands for the error.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Device(errno)
            | Self::Target(_, errno)
            | Self::Refused(_, errno)
            | Self::Descriptor(_, errno)
            | Self::Helper(errno)
            | Self::Unmount(_, errno)
            | Self::Remount(_, errno) => *errno,
            Self::NoFusermount => Errno::NOENT,
            Self::Fusermount(_) => Errno::PERM,
        }
    }

    /// Returns what the user can do about it.
    const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Device(Errno::NOENT | Errno::NODEV | Errno::NXIO) => Some(
                "load the kernel module (modprobe fuse); in a container, pass the device in (--device /dev/fuse)",
            ),
            Self::Device(Errno::ACCESS | Errno::PERM) => Some(
                "the device must be readable and writable for this user (mode 0666) and allowed by the device cgroup",
            ),
            Self::Refused(_, Errno::PERM | Errno::ACCESS) => Some(
                "mounting needs CAP_SYS_ADMIN in this user namespace; where AppArmor restricts unprivileged user \
                 namespaces (Ubuntu 24.04), the namespace gives no capabilities; fusermount3 is the other way",
            ),
            Self::Refused(_, Errno::INVAL) => {
                Some("the device must be opened in the user namespace that owns the mount namespace")
            }
            Self::NoFusermount => {
                Some("a user without privilege needs fusermount3 (package fuse3), set-uid root")
            }
            Self::Remount(_, Errno::INVAL) => Some("only the mount point of a mount can be named"),
            Self::Target(..)
            | Self::Device(_)
            | Self::Refused(..)
            | Self::Descriptor(..)
            | Self::Fusermount(_)
            | Self::Helper(_)
            | Self::Unmount(..)
            | Self::Remount(..) => None,
        }
    }
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = std::io::Error::from(self.errno());
        match self {
            Self::Device(_) => write!(f, "cannot open {DEVICE}: {cause}")?,
            Self::Target(path, _) => write!(f, "cannot mount on {}: {cause}", shown(path))?,
            Self::Refused(path, _) => write!(f, "mount on {} was refused: {cause}", shown(path))?,
            Self::Descriptor(path, _) => write!(f, "cannot use {} as FUSE device: {cause}", shown(path))?,
            Self::NoFusermount => write!(f, "cannot mount without privilege: fusermount3 not found")?,
            Self::Fusermount(text) => write!(f, "{}", text.trim_ascii().escape_ascii())?,
            Self::Helper(_) => write!(f, "cannot run fusermount3: {cause}")?,
            Self::Unmount(path, _) => write!(f, "cannot unmount {}: {cause}", shown(path))?,
            Self::Remount(path, _) => {
                write!(f, "cannot change the flags of the mount on {}: {cause}", shown(path))?;
            }
        }
        self.hint().map_or(Ok(()), |hint| write!(f, " (hint: {hint})"))
    }
}

impl std::error::Error for MountError {}

impl From<MountError> for Error {
    fn from(error: MountError) -> Self {
        let plain = Self::new(error.errno());
        let error_with = match &error {
            MountError::Device(_) => plain.during("open", DEVICE),
            MountError::Target(path, _) | MountError::Refused(path, _) => {
                plain.during("mount on", bytes(path))
            }
            MountError::Descriptor(path, _) => plain.during("use as FUSE device", bytes(path)),
            MountError::NoFusermount | MountError::Helper(_) => plain.during("run", fusermount::PROGRAMS[0]),
            MountError::Fusermount(text) => plain.during("mount by fusermount3", text),
            MountError::Unmount(path, _) => plain.during("unmount", bytes(path)),
            MountError::Remount(path, _) => plain.during("change the flags of the mount on", bytes(path)),
        };
        match error.hint() {
            Some(hint) => error_with.hint(hint),
            None => error_with,
        }
    }
}

/// Mounts on `target` in the way that this process may: by itself, else by fusermount3.
///
/// # Errors
///
/// What the ways give. If neither is allowed, fusermount3's answer.
pub fn mount(target: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    match mount_direct(target, options) {
        Err(MountError::Refused(_, Errno::PERM) | MountError::Device(Errno::ACCESS))
            if !rustix::process::geteuid().is_root() =>
        {
            mount_fusermount(target, options)
        }
        done => done,
    }
}

/// Opens the device in the user namespace of the calling process and mounts it on `target` by mount(2), as root or
/// as root of a user namespace that owns the mount namespace.
///
/// The mount is there when this returns, but every access to it waits until somebody serves the descriptor.
///
/// # Errors
///
/// The device cannot be opened, `target` is no directory, or the kernel refuses.
pub fn mount_direct(target: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    check_target(target)?;
    let device = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(MountError::Device)?;
    let refused = |errno| MountError::Refused(target.to_path_buf(), errno);
    let data = CString::new(mount_data(&device, options)).map_err(|_| refused(Errno::INVAL))?;
    let kind = [b"fuse.", name(options.subtype.as_deref())].concat();
    let flags = mount_flags(options, rustix::process::geteuid().is_root());
    rustix::mount::mount(name(options.fsname.as_deref()), target, kind, flags, data.as_c_str())
        .map_err(refused)?;
    Ok(device)
}

/// Gives the mount on `target` the flags that `options` name, as mount(8) asks for with `-o remount`.
///
/// # Errors
///
/// EINVAL if nothing is mounted there, EBUSY if files are open for writing and it shall be read-only, EPERM.
pub fn remount(target: &Path, options: &MountOptions) -> Result<(), MountError> {
    let mut flags = mount_flags(options, rustix::process::geteuid().is_root());
    // Without layers among the options they do not say whether the union can be written.
    flags.set(Flags::RDONLY, options.flags.read_only);
    rustix::mount::mount_remount(target, flags, c"")
        .map_err(|errno| MountError::Remount(target.to_path_buf(), errno))
}

/// Returns the connected device if `target` is one handed over by the program that has mounted it (`/dev/fd/N`).
///
/// # Errors
///
/// The descriptor is not open.
pub fn handed_over(target: &Path) -> Result<Option<OwnedFd>, MountError> {
    let Some(number) = bytes(target).strip_prefix(DESCRIPTOR_PREFIX) else {
        return Ok(None);
    };
    let number = std::str::from_utf8(number).ok().and_then(|text| text.parse().ok());
    let number = number.ok_or_else(|| MountError::Descriptor(target.to_path_buf(), Errno::BADF))?;
    let device = sys::duplicate(number);
    let error = |error: std::io::Error| {
        MountError::Descriptor(target.to_path_buf(), Errno::from_io_error(&error).unwrap_or(Errno::BADF))
    };
    device.map(Some).map_err(error)
}

/// What becomes of programs that still use a mount when it is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// They keep it: EBUSY.
    Keeps,
    /// They go on with what they have open; nobody finds the mount any more.
    Detached,
}

/// Takes the mount on `target` away, by umount2(2), else by fusermount3.
///
/// # Errors
///
/// EBUSY if the mount is in use and `busy` lets it be kept; what umount2(2) answers otherwise.
pub fn unmount(target: &Path, busy: Busy) -> Result<(), MountError> {
    let lazy = if busy == Busy::Detached { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(target, lazy | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => fusermount::unmount(target, busy),
        Err(errno) => Err(MountError::Unmount(target.to_path_buf(), errno)),
    }
}

/// Checks that `target` is a directory: the root of a union is one.
fn check_target(target: &Path) -> Result<(), MountError> {
    let wrong = |errno| MountError::Target(target.to_path_buf(), errno);
    let stat = rustix::fs::stat(target).map_err(wrong)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
        Ok(())
    } else {
        Err(wrong(Errno::NOTDIR))
    }
}

/// Returns the options that the file system itself reads.
fn mount_data(device: &OwnedFd, options: &MountOptions) -> Vec<u8> {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let number = sys::number(device);
    // rootmode is the type of the root, in octal; the kernel asks for the rest.
    let mut data =
        format!("fd={number},rootmode=40000,user_id={},group_id={}", uid.as_raw(), gid.as_raw()).into_bytes();
    if options.default_permissions {
        data.extend_from_slice(b",default_permissions");
    }
    if options.allow_other.unwrap_or(!options.allow_root && rustix::process::geteuid().is_root()) {
        data.extend_from_slice(b",allow_other");
    }
    if selinux_is_enabled() {
        let labels = &options.security;
        for (key, label) in [
            ("context", &labels.context),
            ("fscontext", &labels.fscontext),
            ("defcontext", &labels.defcontext),
            ("rootcontext", &labels.rootcontext),
        ] {
            if let Some(label) = label {
                data.extend_from_slice(&[b",", key.as_bytes(), b"=\"", label.as_bytes(), b"\""].concat());
            }
        }
    }
    data
}

/// Returns the flags of the mount. The defaults are those of libfuse: set-id bits count where root mounts, device
/// nodes never, and access times are not kept.
fn mount_flags(options: &MountOptions, by_root: bool) -> Flags {
    let wanted = options.flags;
    let mut flags = Flags::empty();
    flags.set(Flags::RDONLY, options.is_read_only());
    flags.set(Flags::NOSUID, wanted.nosuid.unwrap_or(!by_root));
    flags.set(Flags::NODEV, wanted.nodev.unwrap_or(true));
    flags.set(Flags::NOEXEC, wanted.noexec);
    flags.set(Flags::NODIRATIME, wanted.nodiratime);
    flags.set(Flags::SYNCHRONOUS, wanted.sync);
    flags.set(Flags::DIRSYNC, wanted.dirsync);
    match wanted.atime {
        None | Some(AtimeMode::NoAtime) => flags |= Flags::NOATIME,
        Some(AtimeMode::Atime) => {}
        Some(AtimeMode::Relatime) => flags |= Flags::RELATIME,
        Some(AtimeMode::StrictAtime) => flags |= Flags::STRICTATIME,
    }
    flags
}

/// Returns whether labels in mount options have a meaning. Without SELinux they would be refused.
fn selinux_is_enabled() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

fn name(given: Option<&OsStr>) -> &[u8] {
    given.map_or(DEFAULT_NAME.as_bytes(), OsStr::as_bytes)
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// Shows a path between quotes, with what is not printable escaped.
fn shown(path: &Path) -> String {
    format!("\"{}\"", bytes(path).escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> MountOptions {
        MountOptions::parse([text]).unwrap().0
    }

    #[test]
    fn flags_default_as_in_libfuse() {
        let upper = "lowerdir=/l,upperdir=/u,workdir=/w";
        for (text, by_root, want) in [
            ("", true, Flags::RDONLY | Flags::NODEV | Flags::NOATIME),
            (upper, true, Flags::NODEV | Flags::NOATIME),
            (upper, false, Flags::NODEV | Flags::NOSUID | Flags::NOATIME),
            (&format!("{upper},ro"), true, Flags::RDONLY | Flags::NODEV | Flags::NOATIME),
            (&format!("{upper},dev,suid,relatime,noexec"), false, Flags::RELATIME | Flags::NOEXEC),
        ] {
            assert_eq!(mount_flags(&options(text), by_root), want, "{text}");
        }
    }

    #[test]
    fn a_descriptor_is_no_directory_name() {
        assert!(handed_over(Path::new("/mnt")).unwrap().is_none());
        for name in ["/dev/fd/", "/dev/fd/x", "/dev/fd/-1", "/dev/fd/99999"] {
            let error = handed_over(Path::new(name)).unwrap_err();
            assert_eq!(error.errno(), Errno::BADF, "{name}");
        }
    }

    #[test]
    fn what_is_no_directory_cannot_be_mounted_on() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (path, want) in [(file.path(), Errno::NOTDIR), (Path::new("/nowhere"), Errno::NOENT)] {
            let error = mount_direct(path, &MountOptions::default()).unwrap_err();
            assert_eq!(error.errno(), want);
            assert!(error.to_string().starts_with("cannot mount on \"/"), "{error}");
        }
    }
}
