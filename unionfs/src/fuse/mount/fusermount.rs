//! Mounting without privilege: fusermount3, set-uid root, opens the device, mounts it, and sends it back over a
//! socket whose number it finds in its environment.

use std::ffi::{OsStr, OsString};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::io::FdFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::{Busy, MountError, name};
use crate::error::Errno;
use crate::fuse::sys;
use crate::options::{AtimeMode, MountOptions};

/// The helpers, best first. Names without slash are searched in PATH.
pub(super) const PROGRAMS: [&str; 4] =
    ["fusermount3", "fusermount", "/usr/bin/fusermount3", "/bin/fusermount3"];

/// Where the helper looks for the number of its end of the socket.
const SOCKET_VARIABLE: &str = "_FUSE_COMMFD";

/// Mounts on `target` by fusermount3, for a user without privilege.
///
/// The mount is there when this returns, but every access to it waits until somebody serves the descriptor.
///
/// # Errors
///
/// There is no helper, or it refuses; the error says what it said.
pub fn mount_fusermount(target: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    super::check_target(target)?;
    let (ours, theirs) = UnixStream::pair().map_err(io)?;
    // The helper must inherit its end. A child that another thread starts meanwhile inherits it too, which does no
    // harm: it would only keep the socket open.
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).map_err(MountError::Helper)?;
    let arguments = [OsStr::new("-o"), &mount_options(options), OsStr::new("--"), target.as_os_str()];
    let child = spawn(&arguments, |command| {
        command.env(SOCKET_VARIABLE, sys::number(&theirs).to_string());
    })?;
    drop(theirs);
    let device = receive(&ours);
    let output = child.wait_with_output().map_err(io)?;
    match device.map_err(MountError::Helper)? {
        Some(device) if output.status.success() => Ok(device),
        _ => Err(failure(output)),
    }
}

/// Takes the mount on `target` away.
pub(super) fn unmount(target: &Path, busy: Busy) -> Result<(), MountError> {
    let mut arguments = vec![OsStr::new("-u")];
    if busy == Busy::Detached {
        arguments.push(OsStr::new("-z"));
    }
    arguments.extend([OsStr::new("--"), target.as_os_str()]);
    let output = spawn(&arguments, |_| ())?.wait_with_output().map_err(io)?;
    if output.status.success() { Ok(()) } else { Err(failure(output)) }
}

/// Starts the first helper that exists.
fn spawn(arguments: &[&OsStr], prepare: impl Fn(&mut Command)) -> Result<Child, MountError> {
    for program in PROGRAMS {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        prepare(&mut command);
        match command.spawn() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            started => return started.map_err(io),
        }
    }
    Err(MountError::NoFusermount)
}

/// Returns what the helper said, or how it ended if it said nothing.
fn failure(output: Output) -> MountError {
    if output.stderr.trim_ascii().is_empty() {
        return MountError::Fusermount(format!("fusermount3 failed: {}", output.status).into_bytes());
    }
    MountError::Fusermount(output.stderr)
}

fn io(error: std::io::Error) -> MountError {
    MountError::Helper(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Waits for the device. `None`: the helper has ended without sending one.
fn receive(socket: &UnixStream) -> Result<Option<OwnedFd>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut data = [IoSliceMut::new(&mut byte)];
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(descriptors.flatten().next())
}

/// Returns the options for the helper: its own rules decide about set-id bits, devices and other users.
fn mount_options(options: &MountOptions) -> OsString {
    let flags = options.flags;
    let mut words: Vec<Vec<u8>> = Vec::new();
    if options.default_permissions {
        words.push(b"default_permissions".to_vec());
    }
    words.push([b"fsname=".to_vec(), escape(name(options.fsname.as_deref()))].concat());
    words.push([b"subtype=".to_vec(), escape(name(options.subtype.as_deref()))].concat());
    for (word, wanted) in [
        ("allow_other", options.allow_other == Some(true)),
        ("ro", options.is_read_only()),
        ("noexec", flags.noexec),
        ("noatime", matches!(flags.atime, None | Some(AtimeMode::NoAtime))),
        ("relatime", flags.atime == Some(AtimeMode::Relatime)),
        ("strictatime", flags.atime == Some(AtimeMode::StrictAtime)),
        ("nodiratime", flags.nodiratime),
        ("sync", flags.sync),
        ("dirsync", flags.dirsync),
    ] {
        if wanted {
            words.push(word.as_bytes().to_vec());
        }
    }
    OsString::from_vec(words.join(&b','))
}

/// Protects what the helper would take for the end of a value.
fn escape(value: &[u8]) -> Vec<u8> {
    let bytes = value.iter().flat_map(|&byte| {
        let backslash = matches!(byte, b',' | b'\\').then_some(b'\\');
        backslash.into_iter().chain([byte])
    });
    bytes.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    #[test]
    fn the_helper_gets_words_it_knows() {
        let text = "lowerdir=/l,fsname=a\\,b,noexec,dev,suid,volatile,allow_other";
        let options = MountOptions::parse([text]).unwrap().0;
        let words = mount_options(&options);
        assert_eq!(
            words.as_bytes(),
            b"default_permissions,fsname=a\\,b,subtype=unionfs,allow_other,ro,noexec,noatime"
        );
    }

    #[test]
    fn a_helper_that_ends_without_sending_is_no_device() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(receive(&ours).unwrap().is_none());
    }
}
