//! What a mount is asked to be: the text of `-o` and its meaning.
//!
//! [`MountOptions::parse`] reads the text, [`MountOptions`] shows as text that reads back to an equal value, and
//! [`MountOptions::validate`] checks what only several options together can get wrong. No file is touched here:
//! paths are taken as given, also relative and unclean ones.

mod parse;
mod show;
mod support;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Errno, Error};
use crate::idmap::{IdMap, IdView};

/// Lifetime of cached names and attributes: for ever, because every change passes through the mount.
pub const DEFAULT_TIMEOUT: f64 = 1e9;

/// Largest write request: the kernel's default limit of 256 pages.
pub const DEFAULT_MAX_WRITE: u32 = 1 << 20;

/// The meaning of a mount's options.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MountOptions {
    /// Lower layers, topmost first. A path that begins with two slashes is no directory's: see [`PluginLayer`].
    pub lowerdir: Vec<PathBuf>,
    /// Plugins, by file; none: those that fuse-overlayfs would find.
    pub plugins: Option<Vec<PathBuf>>,
    /// Layers below `lowerdir` that give file contents reached by a redirect, never names. Topmost first.
    pub datadir: Vec<PathBuf>,
    /// The writable layer; none mounts read-only.
    pub upperdir: Option<PathBuf>,
    /// Private directory on the upper's file system.
    pub workdir: Option<PathBuf>,
    /// Directories, as absolute paths of this process, that the union does not show although a layer has them.
    pub hidden: Vec<PathBuf>,
    /// Since when nothing that was written to the upper can have been lost, where a store knows. No word of a mount.
    pub upper_epoch: Option<[u8; 16]>,
    /// Owners that have no id in this user namespace are shown as, and taken for, id 0.
    pub squash_unmapped: bool,
    /// The form in which whiteouts are written. All forms are read.
    pub whiteouts: Whiteouts,
    /// Where attributes are kept that the upper's file system cannot hold.
    pub sidecar: SidecarUse,

    /// How renamed directories that have lowers are handled; none decides by what the upper can store.
    pub redirect_dir: Option<RedirectDir>,
    /// Whether hard links survive copy-up; none decides by what the layers can do.
    pub index: Option<bool>,
    /// Whether a change of metadata copies up metadata only; none decides by what the upper can store.
    pub metacopy: Option<bool>,
    /// Accepted for the kernel's sake.
    pub nfs_export: bool,
    /// Whether the digest of a metacopy file is checked when its data file opens.
    pub verity: Verity,
    /// How the file system's uuid is used in origin records.
    pub uuid: UuidPolicy,
    /// How inode numbers of several file systems are kept apart.
    pub xino: Xino,
    /// Shown inode numbers are cut to 32 bits.
    pub ino32: bool,
    /// Marks are kept in `user.overlay.*` even where `trusted.overlay.*` could be set.
    pub userxattr: bool,
    /// Whether catalogs of lower layers are used.
    pub catalog: CatalogPolicy,
    /// What is synced when.
    pub fsync: FsyncPolicy,
    /// How large files are copied up.
    pub copy_up: CopyUpMode,
    /// All directories show a link count of 1.
    pub static_nlink: bool,

    /// Mapping of user ids.
    pub uid_map: IdMap,
    /// Mapping of group ids.
    pub gid_map: IdMap,
    /// Every object is shown with owner and group 0.
    pub squash_to_root: bool,
    /// Every object is shown with this owner.
    pub squash_to_uid: Option<u32>,
    /// Every object is shown with this group.
    pub squash_to_gid: Option<u32>,
    /// Where owner and mode are kept instead of in the inode.
    pub xattr_permissions: XattrPermissions,
    /// All extended attribute operations answer ENOTSUP.
    pub noxattrs: bool,
    /// POSIX ACLs are not negotiated.
    pub noacl: bool,

    /// Lifetime, in seconds, of cached names, attributes and negative entries. 0: nothing is cached.
    pub timeout: f64,
    /// The kernel collects writes in its page cache. Off by default, unlike fuse-overlayfs: measured, it speeds up
    /// many small writes to one file and slows down the creation of many small files.
    pub writeback: bool,
    /// Largest write request in bytes.
    pub max_write: u32,
    /// How requests travel between the kernel and the server.
    pub transport: Transport,
    /// Whether idle processors are kept from halting while requests come.
    pub spin: Spin,
    /// Who keeps track of open files.
    pub data: DataMode,

    /// Flags of the mount itself.
    pub flags: MountFlags,
    /// Users other than the mounting one may enter; none: yes where the mounting user is root.
    pub allow_other: Option<bool>,
    /// Besides the mounting user only root may enter. Has an effect where root mounts; an ordinary user is alone anyway.
    pub allow_root: bool,
    /// The mount is taken away when its server has ended, also when it was killed.
    pub auto_unmount: bool,
    /// The flags of a mount that is there are changed (`mount -o remount`); nothing is mounted.
    pub remount: bool,
    /// The kernel checks permissions by mode and owner. No union is without it: cached names would bypass every check.
    pub default_permissions: bool,
    /// The source shown in the mount table.
    pub fsname: Option<OsString>,
    /// The part of the type shown after `fuse.`.
    pub subtype: Option<OsString>,
    /// SELinux labels for the mount.
    pub security: SecurityContexts,
    /// Log requests; the command stays in the foreground.
    pub debug: bool,
}

/// The form in which whiteouts are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Whiteouts {
    /// The first of the others that the upper can hold.
    #[default]
    Auto,
    /// Character devices 0:0.
    Char,
    /// Empty files with an attribute.
    Xattr,
    /// Empty files `.wh.NAME`.
    DotWh,
}

/// Where attributes are kept that the upper's file system cannot hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SidecarUse {
    /// In the workdir where the file system holds none, or where they are there already.
    #[default]
    Auto,
    /// In the workdir.
    On,
    /// Nowhere.
    Off,
    /// In a store, which the upper is then as a whole.
    Store,
}

/// How a renamed directory that has lowers is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectDir {
    /// Redirects are made and followed.
    On,
    /// Redirects are followed, none is made.
    Follow,
    /// Redirects are neither made nor followed.
    NoFollow,
    /// None is made, existing ones are followed.
    Off,
}

/// Whether the data of a metacopy file is checked against its digest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verity {
    /// Not checked.
    #[default]
    Off,
    /// Checked where a digest is stored.
    On,
    /// Checked; a metacopy file without digest is refused.
    Require,
}

/// How the file system's uuid is used in origin records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UuidPolicy {
    /// As the kernel decides: stored where it identifies the layer.
    #[default]
    Auto,
    /// Stored.
    On,
    /// Zero is stored.
    Off,
    /// Zero is stored, and none is shown.
    Null,
}

/// How inode numbers of several file systems are kept apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Xino {
    /// High bits carry the file system where they are free.
    #[default]
    Auto,
    /// High bits always carry the file system.
    On,
    /// Numbers are shown as they are.
    Off,
}

/// Whether catalogs of lower layers are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CatalogPolicy {
    /// Where a layer has one that counts.
    #[default]
    Auto,
    /// None is.
    Off,
    /// A layer without one is an error.
    Require,
}

/// What is synced when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FsyncPolicy {
    /// fsync requests are passed on, and copied-up data is synced before it is published.
    #[default]
    Auto,
    /// As `Auto`, and metadata and parent directories are synced after each publish.
    Strict,
    /// Nothing is synced (`fsync=0`).
    Never,
    /// Nothing is synced, and the workdir is marked until a clean unmount (`volatile`).
    Volatile,
}

impl FsyncPolicy {
    /// Returns whether fsync requests of programs have an effect.
    pub const fn syncs(self) -> bool {
        matches!(self, Self::Auto | Self::Strict)
    }
}

/// How large files are copied up whose blocks cannot be shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyUpMode {
    /// As `Range` where that gains something.
    #[default]
    Auto,
    /// The first change copies all data.
    Full,
    /// In files of this size and more, in bytes, the first change copies what it touches, and the rest follows.
    Range(u64),
}

impl CopyUpMode {
    /// Files of this size and more are copied in parts. Measured: to copy less takes no longer than what else belongs to
    /// a copy-up, some milliseconds at most.
    pub(crate) const LARGE: u64 = 4 << 20;

    /// Returns the size from which files are copied in parts.
    pub const fn parts_from(self) -> Option<u64> {
        match self {
            Self::Auto => Some(Self::LARGE),
            Self::Full => None,
            Self::Range(size) => Some(size),
        }
    }
}

/// Where owner and mode are kept instead of in the inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XattrPermissions {
    /// In the inode.
    #[default]
    Off,
    /// In `security.fuseoverlayfs.override_stat`.
    Security,
    /// In `user.containers.override_stat`.
    User,
}

/// How requests travel between the kernel and the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// The fastest that this build and this kernel offer.
    #[default]
    Auto,
    /// FUSE over io_uring, one queue for each CPU.
    Uring,
    /// Reads and writes on the FUSE device by this crate's own codec.
    Dev,
    /// The fuser crate.
    Fuser,
}

/// Whether threads of the lowest class keep idle processors from halting. Only own transports have them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spin {
    /// While requests follow each other closely, and as long as that takes processor time from nobody.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// Who keeps track of open files, and so how their data travels. Only own transports know other than `Handles`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataMode {
    /// The fastest that suits the mount.
    #[default]
    Auto,
    /// The kernel alone: it opens files without asking, and keeps their data in its page cache.
    Cached,
    /// The server, by handles.
    Handles,
    /// The server, by handles, and the kernel reads and writes upper files without it. Needs `CAP_SYS_ADMIN` in the
    /// initial user namespace; without it as `Handles`.
    Passthrough,
}

/// Flags of the mount itself. `None` leaves the choice to who mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountFlags {
    /// The mount is read-only, also with an upper; the upper is then not touched.
    pub read_only: bool,
    /// Set-id bits have no effect. Default: no effect unless root mounts.
    pub nosuid: Option<bool>,
    /// Device nodes have no effect. Default: no effect.
    pub nodev: Option<bool>,
    /// Nothing can be executed.
    pub noexec: bool,
    /// How access times are kept. Default: not at all.
    pub atime: Option<AtimeMode>,
    /// Access times of directories are not kept.
    pub nodiratime: bool,
    /// Every write is synchronous.
    pub sync: bool,
    /// Every change of a directory is synchronous.
    pub dirsync: bool,
}

/// How access times are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtimeMode {
    /// Not at all.
    NoAtime,
    /// The kernel's default.
    Atime,
    /// Only where older than a change.
    Relatime,
    /// At each access.
    StrictAtime,
}

/// SELinux labels for the mount. They have an effect only where SELinux is enabled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecurityContexts {
    /// Label of every object (`context=`).
    pub context: Option<OsString>,
    /// Label of the file system (`fscontext=`).
    pub fscontext: Option<OsString>,
    /// Label of objects without one (`defcontext=`).
    pub defcontext: Option<OsString>,
    /// Label of the root (`rootcontext=`).
    pub rootcontext: Option<OsString>,
}

/// Something about the options that is worth telling and does not stop the mount.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// A word that has no meaning here.
    UnknownWord(Vec<u8>),
    /// A known option that cannot be had, and what is done without it.
    NotSupported {
        /// The option as it would be written.
        option: &'static str,
        /// What happens instead.
        instead: &'static str,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownWord(word) => write!(f, "unknown argument ignored: {}", word.escape_ascii()),
            Self::NotSupported { option, instead } => {
                write!(f, "{option} is not supported yet, continuing without: {instead}")
            }
        }
    }
}

/// Why the options cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionError {
    option: Vec<u8>,
    reason: String,
}

impl OptionError {
    /// Makes an error about `option`, a word as typed or the name of one that is missing.
    pub(crate) fn new(option: impl AsRef<[u8]>, reason: impl Into<String>) -> Self {
        Self { option: option.as_ref().to_vec(), reason: reason.into() }
    }
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "option \"{}\": {}", self.option.escape_ascii(), self.reason)
    }
}

impl std::error::Error for OptionError {}

impl From<OptionError> for Error {
    fn from(error: OptionError) -> Self {
        Self::new(Errno::INVAL).during("use option", error.option)
    }
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            lowerdir: Vec::new(),
            plugins: None,
            datadir: Vec::new(),
            upperdir: None,
            workdir: None,
            hidden: Vec::new(),
            upper_epoch: None,
            squash_unmapped: false,
            whiteouts: Whiteouts::default(),
            sidecar: SidecarUse::default(),
            redirect_dir: None,
            index: None,
            metacopy: None,
            nfs_export: false,
            verity: Verity::default(),
            uuid: UuidPolicy::default(),
            xino: Xino::default(),
            ino32: false,
            userxattr: false,
            catalog: CatalogPolicy::default(),
            fsync: FsyncPolicy::default(),
            copy_up: CopyUpMode::default(),
            static_nlink: false,
            uid_map: IdMap::default(),
            gid_map: IdMap::default(),
            squash_to_root: false,
            squash_to_uid: None,
            squash_to_gid: None,
            xattr_permissions: XattrPermissions::default(),
            noxattrs: false,
            noacl: false,
            timeout: DEFAULT_TIMEOUT,
            writeback: false,
            max_write: DEFAULT_MAX_WRITE,
            transport: Transport::default(),
            spin: Spin::default(),
            data: DataMode::default(),
            flags: MountFlags::default(),
            allow_other: None,
            allow_root: false,
            auto_unmount: false,
            remount: false,
            default_permissions: true,
            fsname: None,
            subtype: None,
            security: SecurityContexts::default(),
            debug: false,
        }
    }
}

/// A lower layer that a plugin gives: `//NAME/DATA/PATH`. To the kernel two slashes at the beginning are one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginLayer {
    /// The plugin's name.
    pub name: Vec<u8>,
    /// What is for the plugin to understand.
    pub data: Vec<u8>,
    /// Where the layer is, to the plugin.
    pub path: Vec<u8>,
}

impl PluginLayer {
    /// Reads the name of a layer; `None` for that of a directory.
    pub fn named_by(path: &Path) -> Option<Self> {
        let mut parts = path.as_os_str().as_bytes().strip_prefix(b"//")?.splitn(3, |byte| *byte == b'/');
        let mut part = || parts.next().map(<[u8]>::to_vec);
        Some(Self { name: part()?, data: part()?, path: part()? })
    }
}

impl MountOptions {
    /// Makes the options of a mount of `lowerdir`, topmost first, below `upper`: the writable layer and its workdir.
    /// Everything else has its default and may be set field by field.
    pub fn new<L, P>(lowerdir: L, upper: Option<(PathBuf, PathBuf)>) -> Self
    where
        L: IntoIterator<Item = P>,
        P: Into<PathBuf>,
    {
        let (upperdir, workdir) = upper.unzip();
        Self {
            lowerdir: lowerdir.into_iter().map(Into::into).collect(),
            upperdir,
            workdir,
            ..Self::default()
        }
    }

    /// Returns whether nothing can be changed through the mount.
    pub fn is_read_only(&self) -> bool {
        self.flags.read_only || self.upperdir.is_none()
    }

    /// Returns whether redirects that the layers hold are followed.
    pub fn follows_redirects(&self) -> bool {
        self.redirect_dir != Some(RedirectDir::NoFollow)
    }

    /// Returns how user ids are shown and stored; `overflow` is shown for ids that the mapping does not cover.
    pub fn uid_view(&self, overflow: u32) -> IdView {
        let fixed = self.squash_to_uid.or(self.squash_to_root.then_some(0));
        IdView { map: self.uid_map.clone(), fixed, overflow, squash_overflow: false }
    }

    /// Returns how group ids are shown and stored; `overflow` is shown for ids that the mapping does not cover.
    pub fn gid_view(&self, overflow: u32) -> IdView {
        let fixed = self.squash_to_gid.or(self.squash_to_root.then_some(0));
        IdView { map: self.gid_map.clone(), fixed, overflow, squash_overflow: false }
    }

    /// Checks what several options together can get wrong, and tells which of them have no effect.
    ///
    /// # Errors
    ///
    /// A layer option that is missing, or an option that cannot be had and must not be left out silently.
    pub fn validate(&self) -> Result<Vec<Warning>, OptionError> {
        if self.lowerdir.is_empty() {
            return Err(OptionError::new("lowerdir", "lowerdir not specified"));
        }
        match (&self.upperdir, &self.workdir) {
            (Some(_), None) => return Err(OptionError::new("workdir", "workdir not specified")),
            (None, Some(_)) => {
                return Err(OptionError::new("upperdir", "upperdir not specified, but workdir is"));
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        Ok(support::check(self))
    }
}
