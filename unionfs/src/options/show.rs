//! The meaning of options back to text: only what differs from the default, escaped so that it reads back equal.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use super::{
    AtimeMode, CatalogPolicy, CopyUpMode, DataMode, FsyncPolicy, MountFlags, MountOptions, RedirectDir,
    SidecarUse, Spin, Transport, UuidPolicy, Verity, Whiteouts, XattrPermissions, Xino,
};

/// The values of `redirect_dir`.
pub(super) const REDIRECT_DIR: &[(&str, RedirectDir)] = &[
    ("on", RedirectDir::On),
    ("follow", RedirectDir::Follow),
    ("nofollow", RedirectDir::NoFollow),
    ("off", RedirectDir::Off),
];

/// The values of `whiteouts`.
pub(super) const WHITEOUTS: &[(&str, Whiteouts)] = &[
    ("auto", Whiteouts::Auto),
    ("char", Whiteouts::Char),
    ("xattr", Whiteouts::Xattr),
    ("dot_wh", Whiteouts::DotWh),
];

/// The values of `sidecar`.
pub(super) const SIDECAR: &[(&str, SidecarUse)] = &[
    ("auto", SidecarUse::Auto),
    ("on", SidecarUse::On),
    ("off", SidecarUse::Off),
    ("store", SidecarUse::Store),
];

/// The values of `verity`.
pub(super) const VERITY: &[(&str, Verity)] =
    &[("off", Verity::Off), ("on", Verity::On), ("require", Verity::Require)];

/// The values of `uuid`.
pub(super) const UUID: &[(&str, UuidPolicy)] = &[
    ("auto", UuidPolicy::Auto),
    ("on", UuidPolicy::On),
    ("off", UuidPolicy::Off),
    ("null", UuidPolicy::Null),
];

/// The values of `xino`.
pub(super) const XINO: &[(&str, Xino)] = &[("auto", Xino::Auto), ("on", Xino::On), ("off", Xino::Off)];

/// The values of `fsync`: fuse-overlayfs has 0 and 1, the kernel has words. The first one of each meaning is shown.
pub(super) const FSYNC_VALUES: &[(&str, FsyncPolicy)] = &[
    ("auto", FsyncPolicy::Auto),
    ("strict", FsyncPolicy::Strict),
    ("volatile", FsyncPolicy::Volatile),
    ("0", FsyncPolicy::Never),
    ("1", FsyncPolicy::Auto),
];

/// The values of `xattr_permissions`.
pub(super) const XATTR_PERMISSIONS: &[(&str, XattrPermissions)] =
    &[("0", XattrPermissions::Off), ("1", XattrPermissions::Security), ("2", XattrPermissions::User)];

/// The values of `catalog`.
pub(super) const CATALOG: &[(&str, CatalogPolicy)] =
    &[("auto", CatalogPolicy::Auto), ("off", CatalogPolicy::Off), ("require", CatalogPolicy::Require)];

/// The values of `spin`.
pub(super) const SPIN: &[(&str, Spin)] = &[("auto", Spin::Auto), ("off", Spin::Off)];

/// The values of `transport`.
pub(super) const TRANSPORT: &[(&str, Transport)] = &[
    ("auto", Transport::Auto),
    ("uring", Transport::Uring),
    ("dev", Transport::Dev),
    ("fuser", Transport::Fuser),
];

/// The values of `data`.
pub(super) const DATA: &[(&str, DataMode)] = &[
    ("auto", DataMode::Auto),
    ("cached", DataMode::Cached),
    ("handles", DataMode::Handles),
    ("passthrough", DataMode::Passthrough),
];

impl fmt::Display for MountOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = List { f, empty: true };
        self.show_layers(&mut list)?;
        self.show_features(&mut list)?;
        self.show_ids(&mut list)?;
        self.show_session(&mut list)?;
        show_flags(&self.flags, &mut list)
    }
}

impl MountOptions {
    fn show_layers(&self, list: &mut List<'_, '_>) -> fmt::Result {
        if !self.lowerdir.is_empty() || !self.datadir.is_empty() {
            list.word("lowerdir=")?;
            list.layers("", ":", &self.lowerdir)?;
            list.layers("::", "::", &self.datadir)?;
        }
        if let Some(plugins) = &self.plugins {
            list.word("plugins=")?;
            list.layers("", ":", plugins)?;
        }
        list.text("upperdir", self.upperdir.as_ref())?;
        list.text("workdir", self.workdir.as_ref())?;
        self.hidden.iter().try_for_each(|path| list.text("hidden", Some(path)))
    }

    fn show_features(&self, list: &mut List<'_, '_>) -> fmt::Result {
        let default = Self::default();
        list.choice("redirect_dir", REDIRECT_DIR, self.redirect_dir)?;
        list.choice("index", &[("on", true), ("off", false)], self.index)?;
        list.choice("metacopy", &[("on", true), ("off", false)], self.metacopy)?;
        list.choice("nfs_export", &[("on", true)], Some(self.nfs_export))?;
        list.choice("verity", VERITY, changed(self.verity, default.verity))?;
        list.choice("uuid", UUID, changed(self.uuid, default.uuid))?;
        list.choice("xino", XINO, changed(self.xino, default.xino))?;
        list.choice("fsync", FSYNC_VALUES, changed(self.fsync, default.fsync))?;
        match self.copy_up {
            CopyUpMode::Auto => {}
            CopyUpMode::Full => list.word("copyup=full")?,
            CopyUpMode::Range(size) => list.word(&format!("copyup=range:{size}"))?,
        }
        list.switch("ino32_t", self.ino32)?;
        list.switch("userxattr", self.userxattr)?;
        list.choice("catalog", CATALOG, changed(self.catalog, CatalogPolicy::default()))?;
        list.choice("whiteouts", WHITEOUTS, changed(self.whiteouts, default.whiteouts))?;
        list.choice("sidecar", SIDECAR, changed(self.sidecar, default.sidecar))?;
        list.switch("static_nlink", self.static_nlink)?;
        list.choice("noxattrs", &[("1", true)], Some(self.noxattrs))?;
        list.switch("noacl", self.noacl)
    }

    fn show_ids(&self, list: &mut List<'_, '_>) -> fmt::Result {
        for (key, map) in [("uidmapping=", &self.uid_map), ("gidmapping=", &self.gid_map)] {
            if !map.is_identity() {
                list.word(key)?;
                write!(list.f, "{map}")?;
            }
        }
        list.switch("squash_to_root", self.squash_to_root)?;
        list.number("squash_to_uid", self.squash_to_uid)?;
        list.number("squash_to_gid", self.squash_to_gid)?;
        list.switch("squash_unmapped", self.squash_unmapped)?;
        let default = XattrPermissions::default();
        list.choice("xattr_permissions", XATTR_PERMISSIONS, changed(self.xattr_permissions, default))
    }

    fn show_session(&self, list: &mut List<'_, '_>) -> fmt::Result {
        let default = Self::default();
        list.number("timeout", changed(self.timeout, default.timeout))?;
        list.choice("writeback", &[("1", true)], Some(self.writeback))?;
        list.number("max_write", changed(self.max_write, default.max_write))?;
        list.choice("transport", TRANSPORT, changed(self.transport, default.transport))?;
        list.choice("spin", SPIN, changed(self.spin, default.spin))?;
        list.choice("data", DATA, changed(self.data, default.data))?;
        list.switch("allow_other", self.allow_other == Some(true))?;
        list.switch("allow_root", self.allow_root)?;
        list.switch("auto_unmount", self.auto_unmount)?;
        list.switch("remount", self.remount)?;
        list.text("fsname", self.fsname.as_ref())?;
        list.text("subtype", self.subtype.as_ref())?;
        list.text("context", self.security.context.as_ref())?;
        list.text("fscontext", self.security.fscontext.as_ref())?;
        list.text("defcontext", self.security.defcontext.as_ref())?;
        list.text("rootcontext", self.security.rootcontext.as_ref())?;
        list.switch("debug", self.debug)
    }
}

fn show_flags(flags: &MountFlags, list: &mut List<'_, '_>) -> fmt::Result {
    list.switch("ro", flags.read_only)?;
    list.switch("suid", flags.nosuid == Some(false))?;
    list.switch("nosuid", flags.nosuid == Some(true))?;
    list.switch("dev", flags.nodev == Some(false))?;
    list.switch("nodev", flags.nodev == Some(true))?;
    list.switch("noexec", flags.noexec)?;
    match flags.atime {
        None => {}
        Some(AtimeMode::NoAtime) => list.word("noatime")?,
        Some(AtimeMode::Atime) => list.word("atime")?,
        Some(AtimeMode::Relatime) => list.word("relatime")?,
        Some(AtimeMode::StrictAtime) => list.word("strictatime")?,
    }
    list.switch("nodiratime", flags.nodiratime)?;
    list.switch("sync", flags.sync)?;
    list.switch("dirsync", flags.dirsync)
}

/// Returns `value` where it is not the default.
fn changed<T: PartialEq>(value: T, default: T) -> Option<T> {
    (value != default).then_some(value)
}

/// A list of words, joined by commas as they come.
struct List<'a, 'f> {
    f: &'a mut fmt::Formatter<'f>,
    empty: bool,
}

impl List<'_, '_> {
    fn word(&mut self, text: &str) -> fmt::Result {
        let separator = if self.empty { "" } else { "," };
        self.empty = false;
        write!(self.f, "{separator}{text}")
    }

    fn switch(&mut self, word: &str, set: bool) -> fmt::Result {
        if set { self.word(word) } else { Ok(()) }
    }

    fn number<T: fmt::Display>(&mut self, key: &str, value: Option<T>) -> fmt::Result {
        match value {
            None => Ok(()),
            Some(value) => self.word(&format!("{key}={value}")),
        }
    }

    /// Shows the value's name; nothing where `names` has none for it.
    fn choice<T: PartialEq>(&mut self, key: &str, names: &[(&str, T)], value: Option<T>) -> fmt::Result {
        match names.iter().find(|(_, named)| value.as_ref() == Some(named)) {
            None => Ok(()),
            Some((name, _)) => self.word(&format!("{key}={name}")),
        }
    }

    fn text<T: AsRef<OsStr>>(&mut self, key: &str, value: Option<T>) -> fmt::Result {
        match value {
            None => Ok(()),
            Some(value) => {
                self.word(&format!("{key}="))?;
                self.escaped(value.as_ref())
            }
        }
    }

    fn layers(&mut self, before: &str, between: &str, layers: &[PathBuf]) -> fmt::Result {
        for (index, layer) in layers.iter().enumerate() {
            self.f.write_str(if index == 0 { before } else { between })?;
            self.escaped(layer.as_os_str())?;
        }
        Ok(())
    }

    /// Shows bytes so that every level of reading leaves them as they are: what is special or not printable becomes
    /// `\ooo`.
    fn escaped(&mut self, text: &OsStr) -> fmt::Result {
        for &byte in text.as_bytes() {
            let special = matches!(byte, b'\\' | b',' | b':' | b'"') || !byte.is_ascii_graphic();
            if special {
                write!(self.f, "\\{byte:03o}")?;
            } else {
                write!(self.f, "{}", char::from(byte))?;
            }
        }
        Ok(())
    }
}
