//! What a container is to be: the flags of the command line as a value. Pure; the only input of the mechanisms.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, shown};
use crate::subid::number_of;

/// A container before it exists.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// Read-only layers of the root, topmost first; absolute paths.
    pub rootfs: Vec<PathBuf>,
    /// The command and its arguments; not empty.
    pub command: Vec<OsString>,
    /// `NAME=VALUE`; later ones win.
    pub env: Vec<OsString>,
    /// Where the command starts.
    pub cwd: PathBuf,
    /// Who the command runs as.
    pub user: UserSpec,
    /// The container's host name.
    pub hostname: String,
    /// Directories and files of the host shown inside.
    pub binds: Vec<Bind>,
    /// Empty file systems in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// Whether the root refuses changes.
    pub read_only: bool,
    /// Whether stdin stays open.
    pub interactive: bool,
    /// Whether the command gets a terminal of its own.
    pub terminal: bool,
    /// Which network the container sees.
    pub network: Network,
    /// Whether the seccomp filter is installed.
    pub seccomp: bool,
    /// Limits of resources.
    pub limits: Limits,
    /// Whether the container is deleted when it ends.
    pub remove: bool,
}

/// Which network a container sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// A network of its own with nothing but the loopback interface.
    None,
    /// The network of the host.
    Host,
}

/// A directory or file of the host shown in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Where it is on the host; absolute.
    pub source: PathBuf,
    /// Where it is shown; absolute, in the container.
    pub target: PathBuf,
    /// Whether it refuses changes.
    pub read_only: bool,
}

/// An empty file system in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tmpfs {
    /// Where it is mounted; absolute, in the container.
    pub target: PathBuf,
    /// The value of `size=`.
    pub size: Option<u64>,
    /// The value of `mode=`.
    pub mode: u32,
}

/// A user by name or number, with an optional group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserSpec {
    /// User; none means root.
    pub user: Option<Id>,
    /// Group; none means the user's own.
    pub group: Option<Id>,
}

/// A user or group by name or number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Id {
    /// A number, which needs no entry in the container's files.
    Number(u32),
    /// A name to be found in the container's files.
    Name(Vec<u8>),
}

/// What a container may use at most. None means no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Processor time, in thousandths of one processor.
    pub cpu_milli: Option<u64>,
    /// Relative weight under contention, 2 to 262144, 1024 being usual.
    pub cpu_shares: Option<u64>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
    /// Whether a limit that cannot be enforced is only a warning.
    pub best_effort: bool,
}

impl Limits {
    /// Returns whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        self.memory.is_none() && self.cpu_milli.is_none() && self.cpu_shares.is_none() && self.pids.is_none()
    }
}

/// Default search path for commands.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The smallest memory limit that can hold the first process of a container.
const MINIMUM_MEMORY: u64 = 512 * 1024;

/// The permission bits of a `--tmpfs` without `mode=`.
const TMPFS_MODE: u32 = 0o1777;

/// Parses `TOP:...:BASE`.
pub fn parse_rootfs(text: &OsStr) -> Result<Vec<PathBuf>> {
    let layers: Vec<PathBuf> = text
        .as_bytes()
        .split(|byte| *byte == b':')
        .map(|layer| PathBuf::from(OsStr::from_bytes(layer)))
        .collect();
    if layers.iter().any(|layer| layer.as_os_str().is_empty()) {
        return Err(Error::usage(format!("--rootfs {} has an empty layer", shown(text)))
            .hint("give one directory, or several as TOP:...:BASE"));
    }
    Ok(layers)
}

/// Parses `SRC:DST[:ro|rw]`.
pub fn parse_bind(text: &OsStr) -> Result<Bind> {
    let bad = |why: &str| {
        Error::usage(format!("--volume {}: {why}", shown(text)))
            .hint("the form is SRC:DST[:ro], both absolute paths")
    };
    let fields: Vec<&[u8]> = text.as_bytes().split(|byte| *byte == b':').collect();
    let (source, target, options) = match fields.as_slice() {
        [source, target] => (source, target, &b""[..]),
        [source, target, options] => (source, target, *options),
        _ => return Err(bad("not of the form SRC:DST[:ro]")),
    };
    let mut read_only = false;
    for option in options.split(|byte| *byte == b',').filter(|option| !option.is_empty()) {
        match option {
            b"ro" => read_only = true,
            b"rw" => read_only = false,
            _ => return Err(bad("unknown option")),
        }
    }
    let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
    let bind = Bind { source: path(source), target: path(target), read_only };
    if !bind.source.is_absolute() || !bind.target.is_absolute() {
        return Err(bad("a path is not absolute"));
    }
    Ok(bind)
}

/// Parses `PATH[:size=N,mode=M]`.
pub fn parse_tmpfs(text: &OsStr) -> Result<Tmpfs> {
    let bad = |why: &str| {
        Error::usage(format!("--tmpfs {}: {why}", shown(text))).hint("the form is PATH[:size=64m,mode=1777]")
    };
    let bytes = text.as_bytes();
    let (path, options) = match bytes.iter().position(|byte| *byte == b':') {
        Some(colon) => bytes.split_at(colon),
        None => (bytes, &b""[..]),
    };
    let target = PathBuf::from(OsStr::from_bytes(path));
    if !target.is_absolute() {
        return Err(bad("the path is not absolute"));
    }
    let mut tmpfs = Tmpfs { target, size: None, mode: TMPFS_MODE };
    let options = std::str::from_utf8(options).map_err(|_| bad("unknown option"))?.trim_start_matches(':');
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", size)) => tmpfs.size = Some(parse_size(size)?),
            Some(("mode", mode)) => {
                tmpfs.mode = u32::from_str_radix(mode, 8)
                    .ok()
                    .filter(|mode| *mode <= 0o7777)
                    .ok_or_else(|| bad("bad mode"))?;
            }
            _ => return Err(bad("unknown option")),
        }
    }
    Ok(tmpfs)
}

/// Parses a number of bytes with `b`, `k`, `m` or `g`, in powers of 1024.
pub fn parse_size(text: &str) -> Result<u64> {
    let bad =
        || Error::usage(format!("\"{}\" is no size", text.escape_debug())).hint("examples: 64m, 1g, 4096");
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches('b').trim_end_matches(['k', 'm', 'g']);
    let shift = match lower.strip_prefix(digits).ok_or_else(bad)? {
        "" | "b" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        _ => return Err(bad()),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift)).ok_or_else(bad)
}

/// Parses `--memory`.
pub fn parse_memory(text: &str) -> Result<u64> {
    let size = parse_size(text)?;
    if size < MINIMUM_MEMORY {
        return Err(Error::usage(format!("--memory {size} is too small")).hint("the minimum is 512k"));
    }
    Ok(size)
}

/// Parses `--cpus`: a positive decimal number, to thousandths.
pub fn parse_cpus(text: &str) -> Result<u64> {
    let bad = || {
        Error::usage(format!("--cpus \"{}\" is no number of processors", text.escape_debug()))
            .hint("examples: 0.5, 2; the minimum is 0.01")
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty())
        || !all_digits(whole)
        || !all_digits(fraction)
        || fraction.len() > 3
    {
        return Err(bad());
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
    let fraction: u64 = format!("{fraction:0<3}").parse().map_err(|_| bad())?;
    let milli = whole.checked_mul(1000).and_then(|milli| milli.checked_add(fraction)).ok_or_else(bad)?;
    if milli < 10 { Err(bad()) } else { Ok(milli) }
}

/// Parses `--pids-limit`; 0 and -1 mean no limit.
pub fn parse_pids(text: &str) -> Result<Option<u64>> {
    match text.parse::<i64>() {
        Ok(-1 | 0) => Ok(None),
        Ok(limit) if limit > 0 => Ok(Some(limit.cast_unsigned())),
        _ => Err(Error::usage(format!("--pids-limit \"{}\" is no number of processes", text.escape_debug()))),
    }
}

/// Parses `USER[:GROUP]`. Numbers are strict: `1x` is a name, a number too large is an error.
pub fn parse_user(text: &OsStr) -> Result<UserSpec> {
    let bad = || Error::usage(format!("--user {} is no user", shown(text))).hint("the form is USER[:GROUP]");
    let id = |bytes: &[u8]| -> Result<Option<Id>> {
        if bytes.is_empty() || bytes.contains(&b'-') && bytes.first() == Some(&b'-') {
            return Err(bad());
        }
        if bytes.iter().all(u8::is_ascii_digit) {
            // The last number means "no id" to the kernel.
            return number_of(bytes)
                .filter(|number| *number != u32::MAX)
                .map(|number| Some(Id::Number(number)))
                .ok_or_else(bad);
        }
        Ok(Some(Id::Name(bytes.to_vec())))
    };
    let mut fields = text.as_bytes().split(|byte| *byte == b':');
    let user = id(fields.next().unwrap_or_default())?;
    let group = fields.next().map(id).transpose()?.flatten();
    if fields.next().is_some() {
        return Err(bad());
    }
    Ok(UserSpec { user, group })
}

/// Checks a host name: what the kernel and other programs accept.
pub fn parse_hostname(text: &str) -> Result<String> {
    let valid = !text.is_empty()
        && text.len() <= 64
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.' || byte == b'_')
        && !text.starts_with('-');
    if valid {
        Ok(text.to_owned())
    } else {
        Err(Error::usage(format!("--hostname \"{}\" is no host name", text.escape_debug()))
            .hint("letters, digits, dots and hyphens, at most 64"))
    }
}

/// Checks a container name.
pub fn parse_name(text: &str) -> Result<String> {
    let mut bytes = text.bytes();
    let valid = bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && text.len() >= 2
        && text.len() <= 128
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if valid {
        Ok(text.to_owned())
    } else {
        Err(Error::usage(format!("--name \"{}\" is no container name", text.escape_debug()))
            .hint("letters and digits, then also '_', '.' and '-'; two characters at least"))
    }
}

/// Makes the environment of the command: defaults, then what the user sets; the last value of a name stays.
pub fn environment(hostname: &str, terminal: bool, user: &[OsString]) -> Vec<OsString> {
    let mut env: Vec<OsString> = vec![DEFAULT_PATH.into(), format!("HOSTNAME={hostname}").into()];
    if terminal {
        env.push("TERM=xterm".into());
    }
    for entry in user {
        let name = name_of(entry);
        env.retain(|old| name_of(old) != name);
        env.push(entry.clone());
    }
    env
}

/// Returns the part before `=`.
pub fn name_of(entry: &OsStr) -> &[u8] {
    entry.as_bytes().split(|byte| *byte == b'=').next().unwrap_or_default()
}

/// Returns the value of a variable.
pub fn value_of<'a>(env: &'a [OsString], name: &str) -> Option<&'a OsStr> {
    env.iter().rev().find(|entry| name_of(entry) == name.as_bytes()).map(|entry| {
        let bytes = entry.as_bytes();
        OsStr::from_bytes(bytes.get(name.len() + 1..).unwrap_or_default())
    })
}

/// How deep a path lies, to mount outer directories first.
pub fn depth(path: &Path) -> usize {
    path.components().count()
}

#[cfg(test)]
mod tests;
