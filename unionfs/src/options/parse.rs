//! The text of `-o` to its meaning.
//!
//! Text is split at commas first; a backslash protects the next byte, and a value that begins with a double quote
//! runs to the closing one. Escapes are removed once, where a value is used, so that a path list can still tell an
//! escaped colon from a separator.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use super::{
    AtimeMode, CopyUpMode, FsyncPolicy, MountOptions, OptionError, PluginLayer, Warning, Whiteouts, show,
};
use crate::idmap::IdMap;

/// Words that mean something to mount(8) or to other programs of this kind, and nothing to a mount of this one.
/// Each is harmless to leave out.
const IGNORED: &[&[u8]] = &[
    b"_netdev",
    b"async",
    b"auto",
    b"bind",
    b"clone_fd",
    b"default_permissions",
    b"defaults",
    b"diratime",
    b"fast_ino",
    b"fast_ino_check",
    b"iversion",
    b"kernel_cache",
    b"lazytime",
    b"max_read",
    b"noauto",
    b"nofail",
    b"nolazytime",
    b"nooverride_creds",
    b"nouser",
    b"override_creds",
    b"private",
    b"rbind",
    b"rprivate",
    b"rshared",
    b"rslave",
    b"shared",
    b"slave",
    b"splice_move",
    b"splice_read",
    b"splice_write",
    b"threaded",
    b"user",
    b"users",
];

impl MountOptions {
    /// Reads the text of one or several `-o`, as if they were joined by commas.
    ///
    /// # Errors
    ///
    /// A value of a known option that is not one. A word that is not known is a warning.
    pub fn parse<I, S>(pieces: I) -> Result<(Self, Vec<Warning>), OptionError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut parsed = (Self::default(), Vec::new());
        for piece in pieces {
            for word in split(piece.as_ref().as_bytes()) {
                parsed.0.apply(word, &mut parsed.1)?;
            }
        }
        Ok(parsed)
    }

    /// Applies one word.
    fn apply(&mut self, word: &[u8], warnings: &mut Vec<Warning>) -> Result<(), OptionError> {
        let word = Word::new(word);
        let known = match word.value {
            Some(_) => self.set_layers(&word)? || self.set_feature(&word)? || self.set_session(&word)?,
            None => self.set_switch(word.key) || self.set_flag(word.key),
        };
        if known || IGNORED.contains(&word.key) || word.key.starts_with(b"x-") {
            return Ok(());
        }
        warnings.push(Warning::UnknownWord(word.text.to_vec()));
        Ok(())
    }

    /// Takes an option that names layers.
    fn set_layers(&mut self, word: &Word<'_>) -> Result<bool, OptionError> {
        match word.key {
            b"lowerdir" => {
                (self.lowerdir, self.datadir) = word.layers()?;
            }
            b"lowerdir+" => self.lowerdir.push(word.single_layer()?),
            b"datadir+" => self.datadir.push(word.single_layer()?),
            b"plugins" => self.plugins = Some(word.files()),
            b"upperdir" => self.upperdir = Some(word.path()?),
            b"workdir" => self.workdir = Some(word.path()?),
            b"hidden" => self.hidden.push(word.path()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Takes an option about what is stored and shown.
    fn set_feature(&mut self, word: &Word<'_>) -> Result<bool, OptionError> {
        match word.key {
            b"redirect_dir" => self.redirect_dir = Some(word.one_of(show::REDIRECT_DIR)?),
            b"whiteouts" => self.whiteouts = word.one_of(show::WHITEOUTS)?,
            b"sidecar" => self.sidecar = word.one_of(show::SIDECAR)?,
            b"index" => self.index = Some(word.on_off()?),
            b"metacopy" => self.metacopy = Some(word.on_off()?),
            b"nfs_export" => self.nfs_export = word.on_off()?,
            b"verity" => self.verity = word.one_of(show::VERITY)?,
            b"uuid" => self.uuid = word.one_of(show::UUID)?,
            b"xino" => self.xino = word.one_of(show::XINO)?,
            b"catalog" => self.catalog = word.one_of(show::CATALOG)?,
            b"fsync" | b"sync" => self.fsync = word.one_of(show::FSYNC_VALUES)?,
            b"copyup" => self.copy_up = word.copy_up()?,
            b"uidmapping" => self.uid_map = word.id_map()?,
            b"gidmapping" => self.gid_map = word.id_map()?,
            b"squash_to_uid" => self.squash_to_uid = Some(word.id()?),
            b"squash_to_gid" => self.squash_to_gid = Some(word.id()?),
            b"xattr_permissions" => self.xattr_permissions = word.one_of(show::XATTR_PERMISSIONS)?,
            b"noxattrs" => self.noxattrs = word.zero_one()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Takes an option about the mount and the connection to the kernel.
    fn set_session(&mut self, word: &Word<'_>) -> Result<bool, OptionError> {
        match word.key {
            b"timeout" => self.timeout = word.seconds()?,
            b"writeback" => self.writeback = word.zero_one()?,
            b"max_write" => self.max_write = word.max_write()?,
            b"transport" => self.transport = word.one_of(show::TRANSPORT)?,
            b"spin" => self.spin = word.one_of(show::SPIN)?,
            b"data" => self.data = word.one_of(show::DATA)?,
            b"fsname" => self.fsname = Some(word.text_value()),
            b"subtype" => self.subtype = Some(word.text_value()),
            b"context" => self.security.context = Some(word.text_value()),
            b"fscontext" => self.security.fscontext = Some(word.text_value()),
            b"defcontext" => self.security.defcontext = Some(word.text_value()),
            b"rootcontext" => self.security.rootcontext = Some(word.text_value()),
            b"max_read" => {
                word.id()?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Takes a word without value that is not a flag of the mount.
    fn set_switch(&mut self, key: &[u8]) -> bool {
        match key {
            b"ino32_t" => self.ino32 = true,
            b"userxattr" => self.userxattr = true,
            b"dot_wh_whiteouts" => self.whiteouts = Whiteouts::DotWh,
            b"volatile" => self.fsync = FsyncPolicy::Volatile,
            b"static_nlink" => self.static_nlink = true,
            b"squash_to_root" => self.squash_to_root = true,
            b"squash_unmapped" => self.squash_unmapped = true,
            b"noxattrs" => self.noxattrs = true,
            b"noacl" => self.noacl = true,
            b"writeback" => self.writeback = true,
            b"fsync" => self.fsync = FsyncPolicy::Auto,
            b"allow_root" => self.allow_root = true,
            b"auto_unmount" => self.auto_unmount = true,
            b"remount" => self.remount = true,
            b"allow_other" => self.allow_other = Some(true),
            b"debug" => self.debug = true,
            b"max_write" => {}
            _ => return false,
        }
        true
    }

    /// Takes a flag of the mount.
    fn set_flag(&mut self, key: &[u8]) -> bool {
        let flags = &mut self.flags;
        match key {
            b"ro" => flags.read_only = true,
            b"rw" => flags.read_only = false,
            b"suid" => flags.nosuid = Some(false),
            b"nosuid" => flags.nosuid = Some(true),
            b"dev" => flags.nodev = Some(false),
            b"nodev" => flags.nodev = Some(true),
            b"exec" => flags.noexec = false,
            b"noexec" => flags.noexec = true,
            b"atime" | b"norelatime" | b"nostrictatime" => flags.atime = Some(AtimeMode::Atime),
            b"noatime" => flags.atime = Some(AtimeMode::NoAtime),
            b"relatime" => flags.atime = Some(AtimeMode::Relatime),
            b"strictatime" => flags.atime = Some(AtimeMode::StrictAtime),
            b"diratime" => flags.nodiratime = false,
            b"nodiratime" => flags.nodiratime = true,
            b"sync" => flags.sync = true,
            b"async" => (flags.sync, flags.dirsync) = (false, false),
            b"dirsync" => flags.dirsync = true,
            _ => return false,
        }
        true
    }
}

/// One option, still escaped.
struct Word<'a> {
    text: &'a [u8],
    key: &'a [u8],
    value: Option<Vec<u8>>,
}

impl<'a> Word<'a> {
    /// Divides a word at its first `=` and takes the quotes off the value.
    fn new(text: &'a [u8]) -> Self {
        match text.iter().position(|&byte| byte == b'=') {
            None => Self { text, key: text, value: None },
            Some(at) => {
                let (key, value) =
                    (text.get(..at).unwrap_or_default(), text.get(at + 1..).unwrap_or_default());
                Self { text, key, value: Some(unquote(value)) }
            }
        }
    }

    fn error(&self, reason: impl Into<String>) -> OptionError {
        OptionError::new(self.text, reason)
    }

    fn raw(&self) -> &[u8] {
        self.value.as_deref().unwrap_or_default()
    }

    fn text_value(&self) -> OsString {
        OsString::from_vec(unescape(self.raw()))
    }

    fn path(&self) -> Result<PathBuf, OptionError> {
        match self.text_value() {
            path if path.is_empty() => Err(self.error("expected a path")),
            path => Ok(path.into()),
        }
    }

    /// Reads the value of `lowerdir+` and `datadir+`: only what protects a comma is removed.
    fn single_layer(&self) -> Result<PathBuf, OptionError> {
        let raw = self.raw();
        if raw.is_empty() {
            return Err(self.error("expected a path"));
        }
        let mut path = Vec::with_capacity(raw.len());
        let mut bytes = raw.iter().copied().peekable();
        while let Some(byte) = bytes.next() {
            if byte != b'\\' || bytes.peek() != Some(&b',') {
                path.push(byte);
            }
        }
        Ok(directory(path))
    }

    /// Reads `FILE:FILE`.
    fn files(&self) -> Vec<PathBuf> {
        let files = split_layers(self.raw()).into_iter();
        files.map(|(_, raw)| PathBuf::from(OsString::from_vec(unescape(raw)))).collect()
    }

    /// Reads `A:B::C`: layers, then data-only layers.
    fn layers(&self) -> Result<(Vec<PathBuf>, Vec<PathBuf>), OptionError> {
        let (mut names, mut data) = (Vec::new(), Vec::new());
        let mut in_data = false;
        for (colons, raw) in split_layers(self.raw()) {
            match colons {
                0 | 1 if in_data => return Err(self.error("a single colon after \"::\"")),
                0 | 1 => {}
                2 => in_data = true,
                _ => return Err(self.error("more than two colons in a row")),
            }
            let path = if raw.starts_with(b"//") {
                let layer = PathBuf::from(OsString::from_vec(unescape(raw)));
                if in_data || PluginLayer::named_by(&layer).is_none() {
                    return Err(self.error("a layer by a plugin is //NAME/DATA/PATH, and has names"));
                }
                layer
            } else {
                directory(unescape(raw))
            };
            if in_data { data.push(path) } else { names.push(path) }
        }
        Ok((names, data))
    }

    fn one_of<T: Copy>(&self, values: &[(&str, T)]) -> Result<T, OptionError> {
        let found = values.iter().find(|(name, _)| name.as_bytes() == self.raw());
        found.map(|&(_, value)| value).ok_or_else(|| {
            let names: Vec<_> = values.iter().map(|(name, _)| *name).collect();
            self.error(format!("expected one of {}", names.join(", ")))
        })
    }

    fn on_off(&self) -> Result<bool, OptionError> {
        self.one_of(&[("on", true), ("off", false)])
    }

    fn zero_one(&self) -> Result<bool, OptionError> {
        self.one_of(&[("0", false), ("1", true)])
    }

    fn id(&self) -> Result<u32, OptionError> {
        let digits = self.raw();
        let text = std::str::from_utf8(digits).ok().filter(|_| digits.iter().all(u8::is_ascii_digit));
        text.and_then(|text| text.parse().ok()).ok_or_else(|| self.error("expected a number"))
    }

    fn copy_up(&self) -> Result<CopyUpMode, OptionError> {
        match self.raw() {
            b"auto" => Ok(CopyUpMode::Auto),
            b"full" => Ok(CopyUpMode::Full),
            b"range" => Ok(CopyUpMode::Range(CopyUpMode::LARGE)),
            value => {
                let size = value.strip_prefix(b"range:").and_then(|size| std::str::from_utf8(size).ok());
                let size = size.and_then(|size| size.parse::<u64>().ok()).filter(|&size| size > 0);
                size.map(CopyUpMode::Range)
                    .ok_or_else(|| self.error("expected auto, full, range or range:BYTES"))
            }
        }
    }

    fn max_write(&self) -> Result<u32, OptionError> {
        match self.id()? {
            0..4096 => Err(self.error("expected at least 4096 bytes")),
            size => Ok(size),
        }
    }

    fn seconds(&self) -> Result<f64, OptionError> {
        let number = std::str::from_utf8(self.raw()).ok().and_then(|text| text.parse::<f64>().ok());
        number
            .filter(|seconds| seconds.is_finite() && *seconds >= 0.0)
            .ok_or_else(|| self.error("expected a number of seconds, 0 or more"))
    }

    fn id_map(&self) -> Result<IdMap, OptionError> {
        IdMap::parse(self.raw()).map_err(|error| self.error(error.to_string()))
    }
}

/// Splits the text of `-o` at its commas; empty words are dropped.
fn split(text: &[u8]) -> Vec<&[u8]> {
    let mut words = Vec::new();
    let (mut start, mut at) = (0, 0);
    while let Some(&byte) = text.get(at) {
        let rest = text.get(at..).unwrap_or_default();
        at += match byte {
            b'\\' => 2,
            b'=' if !text.get(start..at).unwrap_or_default().contains(&b'=') => 1 + quoted_len(rest),
            b',' => {
                words.push(text.get(start..at).unwrap_or_default());
                start = at + 1;
                1
            }
            _ => 1,
        };
    }
    words.push(text.get(start..).unwrap_or_default());
    words.retain(|word| !word.is_empty());
    words
}

/// Returns how many bytes after the `=` that `text` begins with belong to a quoted part, quotes included.
fn quoted_len(text: &[u8]) -> usize {
    let value = text.get(1..).unwrap_or_default();
    closing_quote(value).map_or(0, |close| close + 1)
}

/// Returns where the quote that `value` begins with is closed. One that is never closed is an ordinary byte.
fn closing_quote(value: &[u8]) -> Option<usize> {
    if value.first() != Some(&b'"') {
        return None;
    }
    let mut at = 1;
    loop {
        match value.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Takes the quotes off a value that begins with one.
fn unquote(value: &[u8]) -> Vec<u8> {
    match closing_quote(value) {
        None => value.to_vec(),
        Some(close) => {
            [value.get(1..close).unwrap_or_default(), value.get(close + 1..).unwrap_or_default()].concat()
        }
    }
}

/// Splits a list of layers at its bare colons. Each element comes with the number of colons before it; empty ones
/// are dropped.
fn split_layers(text: &[u8]) -> Vec<(usize, &[u8])> {
    let mut layers = Vec::new();
    let (mut start, mut at, mut colons) = (0, 0, 0);
    loop {
        match text.get(at) {
            Some(b'\\') => at += escape_len(text.get(at..).unwrap_or_default()),
            Some(b':') | None => {
                let layer = text.get(start..at).unwrap_or_default();
                if !layer.is_empty() {
                    layers.push((colons, layer));
                    colons = 0;
                }
                if at >= text.len() {
                    return layers;
                }
                colons += 1;
                at += 1;
                start = at;
            }
            Some(_) => at += 1,
        }
    }
}

/// Returns the path of a layer that is a directory: it begins with one slash at most, unlike one that a plugin gives.
fn directory(mut path: Vec<u8>) -> PathBuf {
    let slashes = path.iter().take_while(|byte| **byte == b'/').count();
    path.drain(..slashes.saturating_sub(1));
    OsString::from_vec(path).into()
}

/// Removes escapes: `\ooo` is a byte, `\\:` and `\:` a colon, and a backslash before any other byte that byte.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'\\' {
            let (escape, after) = rest.split_at(escape_len(rest).min(rest.len()));
            plain.push(escaped_byte(escape));
            rest = after;
        } else {
            plain.push(byte);
            rest = tail;
        }
    }
    plain
}

/// Returns the length of the escape that `text` begins with.
fn escape_len(text: &[u8]) -> usize {
    match text {
        [b'\\', b'0'..=b'3', b'0'..=b'7', b'0'..=b'7', ..] => 4,
        // fuse-overlayfs needs two backslashes before a colon: its option library takes one off first.
        [b'\\', b'\\', b':', ..] => 3,
        [b'\\', _, ..] => 2,
        _ => 1,
    }
}

/// Returns the byte that one whole escape stands for. A backslash at the very end stands for itself.
fn escaped_byte(escape: &[u8]) -> u8 {
    match *escape {
        [_, high @ b'0'..=b'3', middle, low] => ((high - b'0') << 6) | ((middle - b'0') << 3) | (low - b'0'),
        [.., last] => last,
        [] => b'\\',
    }
}
