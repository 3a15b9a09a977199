//! The store: one directory for each container, with its changes and its record.
//!
//! Layout: `containers/ID/{state.json, upper, work, merged, etc}` and `names/NAME -> ID`. A process that works on a
//! container holds a lock on its directory; the kernel drops the lock with the process, so that a record never
//! claims to run what has died.

use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::error::{Class, During, Error, Result, best_effort, shown};

/// All containers of one user.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
}

/// A container's place in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The container's id.
    pub id: String,
    path: PathBuf,
}

/// Bytes in a record: text where they are text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Text {
    /// Valid UTF-8.
    Utf8(String),
    /// Anything else.
    Bytes(Vec<u8>),
}

/// What is known about a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The version of this format.
    pub version: u32,
    /// 64 hexadecimal digits.
    pub id: String,
    /// The name, unique in the store.
    pub name: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Layers, topmost first.
    pub rootfs: Vec<Text>,
    /// Command and arguments.
    pub command: Vec<Text>,
    /// Whether the container goes away when it ends.
    pub remove: bool,
    /// Groups to be removed with it.
    pub cgroups: Vec<Text>,
    /// The boot that its processes belong to.
    pub boot_id: String,
    /// Its first process.
    pub process: Option<Process>,
    /// How it ended.
    pub outcome: Option<Outcome>,
}

/// A process, known beyond the reuse of its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number on the host.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
}

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The exit code, 128 + n after signal n.
    pub code: u8,
    /// Seconds since 1970.
    pub finished: u64,
}

/// Whether a container runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Something holds its lock.
    Running,
    /// It ended with this outcome.
    Exited(Outcome),
    /// It was killed together with what would have written its outcome.
    Lost,
}

/// The version of the record's format.
pub const RECORD_VERSION: u32 = 1;

/// Digits of a short id.
pub const SHORT_ID: usize = 12;

const STATE: &str = "state.json";

impl From<&std::ffi::OsStr> for Text {
    fn from(value: &std::ffi::OsStr) -> Self {
        match std::str::from_utf8(value.as_bytes()) {
            Ok(text) => Self::Utf8(text.to_owned()),
            Err(_) => Self::Bytes(value.as_bytes().to_vec()),
        }
    }
}

impl Text {
    /// The bytes as a path.
    pub fn to_path(&self) -> PathBuf {
        match self {
            Self::Utf8(text) => PathBuf::from(text),
            Self::Bytes(bytes) => PathBuf::from(std::ffi::OsString::from_vec(bytes.clone())),
        }
    }
}

impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Utf8(text) => f.write_str(text),
            Self::Bytes(bytes) => write!(f, "{}", bytes.escape_ascii()),
        }
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The identity of this boot.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// A new id: 64 hexadecimal digits.
pub fn new_id() -> Result<String> {
    let mut bytes = [0_u8; 32];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .during("get random bytes")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Process {
    /// Reads the identity of a living process.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold spaces and parentheses: fields count from the last one.
        let after = stat.iter().rposition(|byte| *byte == b')')?;
        let mut fields = stat.get(after + 2..)?.split(|byte| *byte == b' ');
        let start_time = std::str::from_utf8(fields.nth(19)?).ok()?.parse().ok()?;
        Some(Self { pid, start_time })
    }

    /// Returns whether the process still lives.
    pub fn lives(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }
}

impl Store {
    /// Opens the store, making it when it does not exist.
    pub fn open(path: &Path) -> Result<Self> {
        let cannot = |error: Error| error.hint("choose another place with --store DIR");
        let make = |path: &Path| {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .during(format_args!("make the store {}", shown(path)))
        };
        if fs::symlink_metadata(path.join("names")).is_err() {
            make(&path.join("containers")).and_then(|()| make(&path.join("names"))).map_err(cannot)?;
        }
        let path = path.canonicalize().during(format_args!("resolve the store {}", shown(path)))?;
        let meta = fs::metadata(&path).during(format_args!("look at the store {}", shown(&path)))?;
        if meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(cannot(Error::setup(format!("the store {} belongs to another user", shown(&path)))));
        }
        if meta.mode() & 0o077 != 0 {
            // Others could use set-id files of a container's changes.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
                .during(format_args!("close the store {} to other users", shown(&path)))?;
        }
        Ok(Self { path })
    }

    /// Where the store is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn place(&self, id: &str) -> Place {
        Place { id: id.to_owned(), path: self.path.join("containers").join(id) }
    }

    /// Takes a place and a name for a new container, and its lock.
    ///
    /// # Errors
    /// The name is taken.
    pub fn create(&self, id: &str, name: &str) -> Result<(Place, OwnedFd)> {
        let place = self.place(id);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&place.path)
            .during(format_args!("make {}", shown(&place.path)))?;
        let lock = place.lock()?.ok_or_else(|| Error::setup("another process took the new container"))?;
        if let Err(error) = self.take_name(id, name) {
            best_effort(fs::remove_dir(&place.path), "the next start of this store ignores it");
            return Err(error);
        }
        Ok((place, lock))
    }

    fn take_name(&self, id: &str, name: &str) -> Result<()> {
        let link = self.path.join("names").join(name);
        match symlink(id, &link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result.during(format_args!("take the name {}", shown(name))),
        }
        let owner = fs::read_link(&link).during(format_args!("read {}", shown(&link)))?;
        if self.path.join("containers").join(&owner).exists() {
            return Err(Error::new(
                Class::InUse,
                format!("the name \"{name}\" is taken by container {}", owner.display()),
            )
            .hint(format!("remove it first with `runner rm {name}`")));
        }
        // Its container is gone: somebody was killed between the two.
        fs::remove_file(&link).during(format_args!("free the name {}", shown(name)))?;
        symlink(id, &link).during(format_args!("take the name {}", shown(name)))
    }

    /// Lists all containers, broken ones too.
    pub fn list(&self) -> Result<Vec<Place>> {
        let directory = self.path.join("containers");
        let mut places = Vec::new();
        for entry in fs::read_dir(&directory).during(format_args!("list {}", shown(&directory)))? {
            let name = entry.during(format_args!("list {}", shown(&directory)))?.file_name();
            if let Ok(id) = name.into_string() {
                places.push(self.place(&id));
            }
        }
        Ok(places)
    }

    /// Finds a container by name, id or a prefix of its id that no other has.
    pub fn find(&self, word: &str) -> Result<Place> {
        let missing =
            || Error::new(Class::NoSuchContainer, format!("no such container: {}", word.escape_debug()));
        if word.is_empty() || word.contains('/') || word.starts_with('.') {
            return Err(missing());
        }
        if let Ok(id) = fs::read_link(self.path.join("names").join(word)) {
            let place = self.place(&id.into_os_string().into_string().map_err(|_| missing())?);
            if place.path.exists() {
                return Ok(place);
            }
        }
        let mut found = self.list()?.into_iter().filter(|place| place.id.starts_with(word));
        let first = found.next().ok_or_else(missing)?;
        if found.next().is_some() {
            return Err(Error::usage(format!("more than one container has an id that starts with {word}")));
        }
        Ok(first)
    }

    /// Frees the names of containers that are gone.
    pub fn free_dead_names(&self) -> Result<()> {
        let directory = self.path.join("names");
        for entry in fs::read_dir(&directory).during(format_args!("list {}", shown(&directory)))? {
            let link = entry.during(format_args!("list {}", shown(&directory)))?.path();
            // A container takes its place before its name, so that a new name always leads somewhere.
            let dead = fs::read_link(&link).is_ok_and(|id| !self.path.join("containers").join(id).exists());
            if dead {
                best_effort(fs::remove_file(&link), "the next that wants the name takes it over");
            }
        }
        Ok(())
    }

    /// Frees a name.
    pub fn free_name(&self, name: &str) {
        let link = self.path.join("names").join(name);
        best_effort(
            fs::remove_file(link),
            "a name without container is taken over by the next that wants it",
        );
    }
}

impl Place {
    /// The container's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the changes are.
    pub fn upper(&self) -> PathBuf {
        self.path.join("upper")
    }

    /// The union's private directory.
    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// Where the container mounts its root, in its own mount namespace only.
    pub fn merged(&self) -> PathBuf {
        self.path.join("merged")
    }

    /// Where the generated files of `/etc` are.
    pub fn etc(&self) -> PathBuf {
        self.path.join("etc")
    }

    /// Takes the lock; none when somebody has it.
    pub fn lock(&self) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&self.path, flags, Mode::empty())
            .during(format_args!("open {}", shown(&self.path)))?;
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(fd)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error).during(format_args!("lock {}", shown(&self.path))),
        }
    }

    /// Writes the record, whole or not at all.
    pub fn save(&self, record: &Record) -> Result<()> {
        let path = self.path.join(STATE);
        let temporary = self.path.join(".state.json.new");
        let text = serde_json::to_vec(record).during("encode the record")?;
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, &path))
            .during(format_args!("write {}", shown(&path)))
    }

    /// Reads the record.
    pub fn load(&self) -> Result<Record> {
        let path = self.path.join(STATE);
        let text = fs::read(&path).during(format_args!("read {}", shown(&path)))?;
        let record: Record = serde_json::from_slice(&text).during(format_args!("decode {}", shown(&path)))?;
        if record.version != RECORD_VERSION {
            return Err(Error::setup(format!("{} is of another version of runner", shown(&path))));
        }
        Ok(record)
    }

    /// Tells whether this was given up while it was being made: no record, nobody at work, and not just begun.
    pub fn is_unfinished(&self) -> bool {
        /// Between making the directory and locking it lies one system call.
        const OLD_ENOUGH: u64 = 10;
        let made =
            fs::metadata(&self.path).map_or(u64::MAX, |meta| meta.ctime().try_into().unwrap_or(u64::MAX));
        !self.path.join(STATE).exists()
            && now().saturating_sub(made) > OLD_ENOUGH
            && matches!(self.lock(), Ok(Some(_)))
    }

    /// Tells whether the container of a record runs.
    pub fn status(&self, record: &Record) -> Status {
        if let Some(outcome) = record.outcome {
            return Status::Exited(outcome);
        }
        let same_boot = record.boot_id == boot_id();
        match self.lock() {
            Ok(None) if same_boot => Status::Running,
            _ => Status::Lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, name: &str) -> Record {
        Record {
            version: RECORD_VERSION,
            id: id.to_owned(),
            name: name.to_owned(),
            created: 1,
            rootfs: vec![Text::from(std::ffi::OsStr::from_bytes(b"/a\xff"))],
            command: vec![Text::from(std::ffi::OsStr::new("true"))],
            remove: false,
            cgroups: Vec::new(),
            boot_id: boot_id(),
            process: None,
            outcome: None,
        }
    }

    #[test]
    fn a_record_survives_writing_with_any_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("s")).unwrap();
        let (place, lock) = store.create("aa11", "web").unwrap();
        let record = record("aa11", "web");
        place.save(&record).unwrap();
        assert_eq!(place.load().unwrap(), record);
        assert_eq!(place.status(&record), Status::Running);
        drop(lock);
        assert_eq!(place.status(&record), Status::Lost);
        let mode = fs::metadata(store.path()).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn names_are_unique_until_their_container_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (place, _lock) = store.create("aa11", "web").unwrap();
        assert_eq!(store.create("aa22", "web").unwrap_err().class(), Class::InUse);
        fs::remove_dir_all(place.path()).unwrap();
        store.create("aa33", "web").unwrap();
    }

    #[test]
    fn containers_are_found_by_name_and_unique_prefix() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.create("aa11", "web").unwrap();
        store.create("aa22", "db").unwrap();
        assert_eq!(store.find("web").unwrap().id, "aa11");
        assert_eq!(store.find("aa2").unwrap().id, "aa22");
        assert_eq!(store.find("aa").unwrap_err().class(), Class::Usage);
        for none in ["x", "", "../containers", "."] {
            assert_eq!(store.find(none).unwrap_err().class(), Class::NoSuchContainer, "{none}");
        }
    }

    #[test]
    fn a_process_is_known_by_its_start() {
        let own = Process::of(std::process::id().cast_signed()).unwrap();
        assert!(own.lives());
        assert!(!Process { start_time: own.start_time + 1, ..own }.lives());
    }
}
