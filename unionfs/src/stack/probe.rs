//! What the upper's file system can do: each ability tried in the workdir and read back, once per mount.
//!
//! Reading back matters: on some file systems mknod of a device 0:0 succeeds and makes something else.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Mode, OFlags, RenameFlags};

use crate::error::{Errno, Result};
use crate::ondisk::{self, Namespace};
use crate::options::{MountOptions, Whiteouts};
use crate::stack::workdir::Workdir;
use crate::sys;

/// The form in which this mount writes whiteouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhiteoutForm {
    /// Character device 0:0, kernel overlayfs' form.
    CharDevice,
    /// An empty file with an attribute, in a directory with another one.
    Xattr,
    /// An empty file `.wh.NAME`.
    DotWh,
}

/// What was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// How to write whiteouts.
    pub whiteouts: WhiteoutForm,
    /// Where marks are kept; none if the file system holds no attributes and there is no sidecar.
    pub namespace: Option<Namespace>,
    /// Marks and the attributes of programs are in the workdir.
    pub sidecar: bool,
    /// renameat2(2) knows NOREPLACE and EXCHANGE.
    pub exchange: bool,
    /// This process may give files any owner.
    pub chown: bool,
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whiteouts = match self.whiteouts {
            WhiteoutForm::CharDevice => "character device 0:0",
            WhiteoutForm::Xattr => "files with an attribute",
            WhiteoutForm::DotWh => "files .wh.NAME",
        };
        let marks = match self.namespace {
            Some(_) if self.sidecar => "in the workdir (sidecar), which belongs to this upper from now on",
            Some(Namespace::Trusted) => "trusted.overlay.*",
            Some(Namespace::User) => "user.overlay.*",
            None => "none: opaque directories by .wh..wh..opq, renaming lower directories gives EXDEV",
        };
        let owners = if self.chown { "kept" } else { "this process's (it may not chown)" };
        write!(f, "upper: whiteouts: {whiteouts}; marks: {marks}; owners: {owners}; ")?;
        write!(f, "rename exchange: {}", if self.exchange { "yes" } else { "no" })
    }
}

/// Tries everything that `options` do not leave out.
pub(crate) fn probe(workdir: &Workdir, options: &MountOptions) -> Result<Features> {
    let namespace = try_namespace(workdir, options.userxattr)?;
    let wants_devices = matches!(options.whiteouts, Whiteouts::Auto | Whiteouts::Char);
    let (exchange, whiteouts) = if wants_devices && holds_exchanged_devices(workdir)? {
        (true, WhiteoutForm::CharDevice)
    } else {
        let exchange = try_exchange(workdir)?;
        (exchange, choose_whiteouts(workdir, options.whiteouts, exchange, namespace)?)
    };
    Ok(Features { whiteouts, namespace, sidecar: false, exchange, chown: may_chown(workdir)? })
}

/// Chooses the form of whiteouts: the first that is wanted and can be had. The first two are put in place by an exchange.
///
/// # Errors
/// The upper holds no form, or not the one that is asked for.
fn choose_whiteouts(
    workdir: &Workdir,
    wanted: Whiteouts,
    exchange: bool,
    namespace: Option<Namespace>,
) -> Result<WhiteoutForm> {
    let wants = |form| wanted == Whiteouts::Auto || wanted == form;
    if wants(Whiteouts::Char) && exchange && try_char_whiteout(workdir)? {
        return Ok(WhiteoutForm::CharDevice);
    }
    if let Some(namespace) = namespace
        && wants(Whiteouts::Xattr)
        && exchange
        && try_xattr_whiteout(workdir, namespace)?
    {
        return Ok(WhiteoutForm::Xattr);
    }
    if !wants(Whiteouts::DotWh) {
        return Err(crate::Error::new(Errno::OPNOTSUPP)
            .during("use option", "whiteouts")
            .hint("upperdir's file system cannot hold this form; whiteouts=auto takes one that it can"));
    }
    try_dot_wh(workdir)?;
    Ok(WhiteoutForm::DotWh)
}

/// Returns where marks are looked for if there is no upper to try on.
pub(crate) fn namespace_without_upper(userxattr: bool) -> Namespace {
    let trusted = !userxattr && rustix::process::geteuid().is_root() && in_initial_user_namespace();
    if trusted { Namespace::Trusted } else { Namespace::User }
}

/// Returns whether `trusted.*` attributes exist for root here: in other user namespaces they can be neither read nor set.
pub(crate) fn in_initial_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_ascii_whitespace().eq(["0", "0", "4294967295"]))
}

fn make_file(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    sys::open_at(dir, name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, 0o600)
        .map_err(|e| crate::Error::new(e).during("create a file in the workdir", name))?;
    Ok(())
}

/// Tries in one go what nearly every upper can do: devices as whiteouts, exchanged with a file and left behind by a rename.
fn holds_exchanged_devices(workdir: &Workdir) -> Result<bool> {
    let (file, device, moved) = (workdir.temp(), workdir.temp(), workdir.temp());
    let (dir, is_whiteout) =
        (workdir.fd(), |name| sys::stat_at(workdir.fd(), name).map(|stat| stat.is_whiteout()));
    make_file(dir, file.name())?;
    let made = make_whiteout(dir, device.name()).and_then(|()| {
        rustix::fs::renameat_with(dir, file.name(), dir, device.name(), RenameFlags::EXCHANGE)
    });
    // The device is now where the file was.
    if made.is_err() || !is_whiteout(file.name())? {
        return Ok(false);
    }
    let left = rustix::fs::renameat_with(dir, device.name(), dir, moved.name(), RenameFlags::WHITEOUT);
    Ok(left.is_ok() && is_whiteout(device.name())? && !is_whiteout(moved.name())?)
}

fn try_exchange(workdir: &Workdir) -> Result<bool> {
    let (a, b) = (workdir.temp(), workdir.temp());
    make_file(workdir.fd(), a.name())?;
    make_file(workdir.fd(), b.name())?;
    let before = sys::stat_at(workdir.fd(), a.name())?.ino;
    let done =
        rustix::fs::renameat_with(workdir.fd(), a.name(), workdir.fd(), b.name(), RenameFlags::EXCHANGE);
    Ok(done.is_ok() && sys::stat_at(workdir.fd(), b.name())?.ino == before)
}

fn try_char_whiteout(workdir: &Workdir) -> Result<bool> {
    let (made, from, to) = (workdir.temp(), workdir.temp(), workdir.temp());
    if make_whiteout(workdir.fd(), made.name()).is_err()
        || !sys::stat_at(workdir.fd(), made.name())?.is_whiteout()
    {
        return Ok(false);
    }
    make_file(workdir.fd(), from.name())?;
    let moved =
        rustix::fs::renameat_with(workdir.fd(), from.name(), workdir.fd(), to.name(), RenameFlags::WHITEOUT);
    Ok(moved.is_ok() && sys::stat_at(workdir.fd(), from.name())?.is_whiteout())
}

/// Makes a whiteout of kernel overlayfs' form. Needs no privilege since Linux 5.8.
pub(crate) fn make_whiteout(dir: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<(), Errno> {
    rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
}

fn try_xattr_whiteout(workdir: &Workdir, namespace: Namespace) -> Result<bool> {
    let temp = workdir.temp();
    let made = make_xattr_whiteout(workdir.fd(), temp.name(), namespace);
    let read = sys::xattr::get_at(workdir.fd(), temp.name(), &namespace.name("whiteout"));
    Ok(made.is_ok() && read.is_ok_and(|value| value == XATTR_WHITEOUT))
}

/// The value of a `whiteout` attribute; that it is there is all that counts.
const XATTR_WHITEOUT: &[u8] = b"y";

/// Makes a whiteout by attribute: an empty file. It counts in directories that are marked for it.
pub(crate) fn make_xattr_whiteout(dir: BorrowedFd<'_>, name: &[u8], namespace: Namespace) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let file = sys::open_at(dir, name, flags, 0o600)?;
    Ok(sys::xattr::set(file.as_fd(), &namespace.name("whiteout"), XATTR_WHITEOUT, 0)?)
}

/// Checks that names can be hidden by `.wh.NAME`, the form that is left.
///
/// # Errors
/// The upper holds no form of whiteout: it lies on another union without attributes, which takes such names for its own.
fn try_dot_wh(workdir: &Workdir) -> Result<()> {
    let name = ondisk::whiteout_name(workdir.temp().name());
    let made = sys::open_at(workdir.fd(), &name, OFlags::WRONLY | OFlags::CREATE, 0o600);
    made.map_err(|errno| {
        crate::Error::new(errno)
            .during("make a whiteout of any form in the workdir, for instance", &name)
            .hint("put upperdir and workdir on a tmpfs or a volume, not on the root of a container or another union")
    })?;
    Ok(rustix::fs::unlinkat(workdir.fd(), &name, rustix::fs::AtFlags::empty())?)
}

/// Tries attributes on the workdir, as kernel overlayfs does.
fn try_namespace(workdir: &Workdir, userxattr: bool) -> Result<Option<Namespace>> {
    for namespace in [Namespace::Trusted, Namespace::User] {
        if userxattr && namespace == Namespace::Trusted {
            continue;
        }
        let name = namespace.name("opaque");
        if sys::xattr::set(workdir.fd(), &name, b"y", 0).is_err() {
            continue;
        }
        let kept = sys::xattr::get(workdir.fd(), &name).is_ok_and(|value| value == b"y");
        match sys::xattr::remove(workdir.fd(), &name) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno.into()),
        }
        if kept {
            return Ok(Some(namespace));
        }
    }
    Ok(None)
}

/// Tries to give a file to another id: only a privileged process may.
fn may_chown(workdir: &Workdir) -> Result<bool> {
    if rustix::process::geteuid().is_root() {
        return Ok(true);
    }
    let temp = workdir.temp();
    make_file(workdir.fd(), temp.name())?;
    let other = rustix::fs::Uid::from_raw(rustix::process::geteuid().as_raw().wrapping_add(1));
    let done = rustix::fs::chownat(
        workdir.fd(),
        temp.name(),
        Some(other),
        None,
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    );
    Ok(done.is_ok())
}
