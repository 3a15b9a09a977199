//! Names that come and go: unlinks, hard links, renames of files and of directories, of objects that copy-up is at work on.
//!
//! What stands after a crash is what stood after some number of the calls, in their order. None is undone that came before
//! the last change in a directory whose fsync returned.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Result};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use e2e::random::{Random, data};
use e2e::tree::LayerTree;

/// Names, and the directories that they are spread over.
const NAMES: usize = 240;
const DIRECTORIES: usize = 4;

/// What stands: under each name the number of a content, or nothing; which directories have their other name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Standing {
    names: Vec<Option<usize>>,
    moved: [bool; DIRECTORIES],
}

/// A call that changes what stands.
#[derive(Clone, Copy, Debug)]
enum Call {
    Unlink(usize),
    Link(usize, usize),
    Rename(usize, usize),
    Move(usize),
}

/// The calls since the beginning.
#[derive(Clone, Debug, Default)]
pub struct Log {
    calls: Vec<Call>,
    /// How many of them must not be undone.
    promised: usize,
}

fn content(number: usize) -> Vec<u8> {
    data(number as u64 ^ 0x55_0000_0000, number * 3571 % 30_000 + 1)
}

/// Adds the names to a lower layer; some are hard links of others.
pub fn add_to(mut tree: LayerTree) -> LayerTree {
    let standing = Standing::new();
    for (name, number) in standing.names.iter().enumerate() {
        let path = |name: usize| standing.path(name).into_os_string().into_encoded_bytes();
        tree = match *number {
            Some(number) if number == name => tree.file(path(name), content(number)),
            Some(first) => tree.hardlink(path(name), path(first)),
            None => tree,
        };
    }
    tree
}

impl Standing {
    fn new() -> Self {
        let number = |name: usize| match name % 6 {
            2 | 5 => None,
            1 => Some(name - 1),
            _ => Some(name),
        };
        Self { names: (0..NAMES).map(number).collect(), moved: [false; DIRECTORIES] }
    }

    fn directory(&self, directory: usize) -> PathBuf {
        let letter = if self.moved[directory] { 'e' } else { 'd' };
        format!("names/{letter}{directory}").into()
    }

    fn path(&self, name: usize) -> PathBuf {
        self.directory(name % DIRECTORIES).join(format!("n{name}"))
    }

    fn propose(&self, random: &mut Random) -> Option<Call> {
        let [one, other] = [(); 2].map(|()| random.below(NAMES as u64) as usize);
        let free = self.names[other].is_none();
        self.names[one]?;
        match random.below(8) {
            0 => Some(Call::Unlink(one)),
            1..=3 if free => Some(Call::Link(one, other)),
            4 | 5 => Some(Call::Rename(one, other)),
            7 => Some(Call::Move(one % DIRECTORIES)),
            _ => None,
        }
    }

    fn make(&self, call: Call, root: &Path) -> Result<()> {
        let path = |name: usize| root.join(self.path(name));
        match call {
            Call::Unlink(name) => std::fs::remove_file(path(name)),
            Call::Link(from, to) => std::fs::hard_link(path(from), path(to)),
            Call::Rename(from, to) => std::fs::rename(path(from), path(to)),
            Call::Move(directory) => {
                let mut after = self.clone();
                after.apply(call);
                std::fs::rename(root.join(self.directory(directory)), root.join(after.directory(directory)))
            }
        }
    }

    fn apply(&mut self, call: Call) {
        match call {
            Call::Unlink(name) => self.names[name] = None,
            Call::Link(from, to) => self.names[to] = self.names[from],
            // Names of one file: rename(2) does nothing.
            Call::Rename(from, to) if self.names[from] == self.names[to] => {}
            Call::Rename(from, to) => self.names[to] = self.names[from].take(),
            Call::Move(directory) => self.moved[directory] = !self.moved[directory],
        }
    }

    /// Changes a file so that it is copied up, and holds what it held.
    fn disturb(&self, name: usize, root: &Path, random: &mut Random) -> Result<()> {
        let path = root.join(self.path(name));
        if random.one_in(2) {
            return std::fs::set_permissions(path, PermissionsExt::from_mode(0o640));
        }
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0)?;
        file.write_all_at(&byte, 0)
    }

    /// Returns what stands below `root`.
    fn look(root: &Path) -> std::result::Result<Self, String> {
        let contents: Vec<Vec<u8>> = (0..NAMES).map(content).collect();
        let mut found = Self::new();
        for directory in 0..DIRECTORIES {
            let there = |moved: bool| {
                let mut state = Self::new();
                state.moved[directory] = moved;
                root.join(state.directory(directory)).exists()
            };
            found.moved[directory] = match (there(false), there(true)) {
                (true, false) => false,
                (false, true) => true,
                both => return Err(format!("directory {directory} under its two names: {both:?}")),
            };
        }
        for name in 0..NAMES {
            let path = found.path(name);
            found.names[name] = match std::fs::read(root.join(&path)) {
                Ok(bytes) => {
                    let number = contents.iter().position(|content| *content == bytes);
                    let strange = || format!("{}: {} bytes that never were", path.display(), bytes.len());
                    Some(number.ok_or_else(strange)?)
                }
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(format!("{}: {error}", path.display())),
            };
        }
        Ok(found)
    }
}

impl Log {
    /// Returns how many calls were begun.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Notes that all calls but the last have returned, and that what returned lasts.
    pub fn promise_finished(&mut self) {
        self.promised = self.calls.len().saturating_sub(1);
    }

    /// Notes that the fsync of a directory returned.
    fn promise(&mut self, directory: usize) {
        let touches = |call: &Call| match *call {
            Call::Unlink(name) => name % DIRECTORIES == directory,
            // A link changes the directory of the new name alone; xfs promises nothing for the other one.
            Call::Link(_, to) => to % DIRECTORIES == directory,
            Call::Rename(from, to) => from % DIRECTORIES == directory || to % DIRECTORIES == directory,
            Call::Move(_) => false,
        };
        let last = self.calls.iter().rposition(touches).map_or(0, |last| last + 1);
        self.promised = self.promised.max(last);
    }

    /// Compares what is there with what may be: after all calls that `self` knew as promised, and none that `later` does not
    /// know.
    pub fn check(&self, later: &Self, root: &Path) -> std::result::Result<(), String> {
        let found = Standing::look(root)?;
        let mut standing = Standing::new();
        let mut fits = self.promised == 0 && standing == found;
        for (index, call) in later.calls.iter().enumerate() {
            standing.apply(*call);
            fits |= index + 1 >= self.promised && standing == found;
        }
        if fits {
            return Ok(());
        }
        let (promised, calls) = (self.promised, &later.calls);
        Err(format!("not as after {promised} or more calls of {calls:?}: {found:?}, after all {standing:?}"))
    }
}

/// Makes calls on what [`add_to`] has made, until told to stop, or one fails. Each is noted before it is made.
pub fn load(log: &Mutex<Log>, root: &Path, seed: u64, stop: &AtomicBool) -> Result<()> {
    let mut random = Random::new(seed);
    let mut now = Standing::new();
    while !stop.load(Ordering::Relaxed) {
        let name = random.below(NAMES as u64) as usize;
        if random.one_in(20) {
            let directory = name % DIRECTORIES;
            File::open(root.join(now.directory(directory)))?.sync_all()?;
            log.lock().unwrap().promise(directory);
        } else if random.one_in(3) && now.names[name].is_some() {
            now.disturb(name, root, &mut random)?;
        } else if let Some(call) = now.propose(&mut random) {
            log.lock().unwrap().calls.push(call);
            now.make(call, root)?;
            now.apply(call);
        }
    }
    Ok(())
}
