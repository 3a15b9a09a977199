//! What the options and the upper decide for the whole mount.

use crate::error::{Errno, Result};
use crate::options::{FsyncPolicy, MountOptions, RedirectDir, Verity};
use crate::stack::LayerStack;

/// What the options decide for the whole mount.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// Data of copied-up files is brought to the disk.
    pub sync_copy_up: bool,
    /// What is copied up or hidden is on the disk when the call returns, with its name.
    pub(crate) strict: bool,
    /// The workdir is marked until the mount ends cleanly.
    pub(crate) volatile: bool,
    /// Files of this size and more are copied up in parts, where that can be told to others.
    pub(crate) parts_from: Option<u64>,
    /// fsync requests reach the disk.
    pub sync_requests: bool,
    /// Changes of attributes copy no data.
    pub(crate) metacopy: bool,
    /// Directories with lowers may be renamed.
    pub redirect: bool,
    /// Owners that cannot be stored are left as they are.
    pub squash_owner: bool,
    /// User and group that objects belong to which this process makes.
    pub(crate) own_ids: (u32, u32),
    /// Extended attributes are not offered.
    pub no_xattrs: bool,
    /// Shown inode numbers have 32 bits.
    pub ino32: bool,
    /// Names may be remembered: the mount was not told that its layers change.
    pub(crate) caches_names: bool,
    /// Every directory shows one link.
    pub(crate) static_nlink: bool,
    /// Whether data of metacopies is checked.
    pub(crate) verity: Verity,
}

impl Policy {
    /// Judges a change of owner: where owners are squashed, one that cannot be stored is left as it is.
    pub(crate) fn owner_stored(&self, done: std::result::Result<(), Errno>) -> Result<()> {
        match done {
            Err(Errno::PERM | Errno::INVAL) if self.squash_owner => Ok(()),
            result => Ok(result?),
        }
    }

    pub(super) fn new(options: &MountOptions, stack: &LayerStack) -> Self {
        let features = stack.upper.as_ref().map(|upper| upper.features);
        let creates = matches!(options.redirect_dir, None | Some(RedirectDir::On));
        let squashes = options.squash_unmapped
            || options.squash_to_root
            || options.squash_to_uid.is_some()
            || options.squash_to_gid.is_some();
        Self {
            sync_copy_up: options.fsync.syncs(),
            strict: options.fsync == FsyncPolicy::Strict,
            volatile: options.fsync == FsyncPolicy::Volatile,
            parts_from: options.copy_up.parts_from(),
            sync_requests: !matches!(options.fsync, FsyncPolicy::Never | FsyncPolicy::Volatile),
            metacopy: options.metacopy.unwrap_or(true) && features.is_some_and(|f| f.namespace.is_some()),
            redirect: creates && features.is_some_and(|f| f.namespace.is_some()),
            squash_owner: squashes || features.is_some_and(|f| !f.chown),
            own_ids: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            no_xattrs: options.noxattrs,
            ino32: options.ino32,
            caches_names: options.timeout > 0.0,
            static_nlink: options.static_nlink,
            verity: options.verity,
        }
    }
}
