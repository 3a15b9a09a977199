//! A writer that knows, for each of its files, what must be there, and after a failed call what may be there.

use std::fs::{File, OpenOptions};
use std::io::Result;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use e2e::random::{Random, data};
use e2e::tree::LayerTree;

/// Files of one writer.
const FILES: usize = 24;

/// The version of a file without content.
const EMPTY: u64 = 0;

/// What stands under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Absent,
    /// A file: version of its content, its length, permission bits.
    File(u64, usize, u32),
    /// A directory with one file `inside` of this version, or without.
    Directory(Option<u64>),
}

/// One writer and what it knows.
pub struct Worker {
    number: usize,
    random: Random,
    next_version: u64,
    known: Vec<(String, State)>,
    /// The names that the unfinished call touches, and the states, together, that each may leave.
    pending: Option<(Vec<String>, Vec<Vec<State>>)>,
}

fn seed(worker: usize, version: u64) -> u64 {
    (worker as u64) << 48 ^ version.wrapping_mul(0x1234_5677)
}

fn length(version: u64) -> usize {
    (version.wrapping_mul(7919) % 200_000) as usize + 1
}

/// Returns the two lowers of all writers: directories over both layers, a third of the files in the top one.
pub fn trees(workers: usize) -> [LayerTree; 2] {
    let mut layers = [LayerTree::new(), LayerTree::new()];
    for worker in 0..workers {
        for (index, (name, state)) in start(worker).into_iter().enumerate() {
            let layer = &mut layers[usize::from(index % 3 != 0)];
            *layer = match state {
                State::File(version, len, _) => layer.clone().file(&name, data(seed(worker, version), len)),
                State::Directory(Some(version)) => {
                    layer.clone().file(format!("{name}/inside"), data(seed(worker, version), length(version)))
                }
                _ => layer.clone(),
            };
        }
    }
    layers
}

fn start(worker: usize) -> Vec<(String, State)> {
    let file = |index: usize| {
        let version = index as u64 + 1;
        let state = match index % 6 {
            4 => State::Absent,
            5 => State::Directory(Some(version)),
            _ => State::File(version, length(version), 0o644),
        };
        (format!("w{worker}/d{}/f{index}", index % 4), state)
    };
    (0..FILES).map(file).collect()
}

impl Worker {
    /// Returns the writer of this number.
    pub fn new(number: usize) -> Self {
        let random = Random::new(number as u64 + 77);
        Self { number, random, next_version: 1000, known: start(number), pending: None }
    }

    /// Makes calls until one fails, and returns how many were finished.
    pub fn run_until_failure(&mut self, root: &Path) -> u64 {
        let mut finished = 0;
        while self.call(root).is_ok() {
            self.pending = None;
            finished += 1;
        }
        finished
    }

    fn version(&mut self) -> u64 {
        self.next_version += 1;
        self.next_version
    }

    fn call(&mut self, root: &Path) -> Result<()> {
        let index = self.random.below(FILES as u64) as usize;
        let (name, state) = self.known[index].clone();
        match state {
            State::Absent if self.random.one_in(2) => self.replace(root, index, &name),
            State::Absent => self.make_directory(root, index, &name),
            State::Directory(_) => self.change_directory(root, index, &name, &state),
            State::File(version, len, mode) => match self.random.below(8) {
                0 | 1 => self.replace(root, index, &name),
                2 => self.remove(root, index, &name, &state),
                3 => self.chmod(root, index, &name, (version, len, mode)),
                4 if len > 0 => self.touch(root, index, &name, &state),
                5 => self.shorten(root, index, &name, (version, len, mode)),
                6 => self.empty(root, index, &name, &state),
                _ => self.swap_or_move(root, index, &name, &state),
            },
        }
    }

    fn begin(&mut self, name: &str, states: &[State]) {
        self.pending =
            Some((vec![name.to_owned()], states.iter().map(|state| vec![state.clone()]).collect()));
    }

    /// Writes a new file beside and renames it over, as editors and package managers do.
    fn replace(&mut self, root: &Path, index: usize, name: &str) -> Result<()> {
        let version = self.version();
        let new = State::File(version, length(version), 0o644);
        let old = self.known[index].1.clone();
        self.begin(name, &[old, new.clone()]);
        let temporary = root.join(format!("{name}.tmp"));
        let file = File::create(&temporary)?;
        file.write_all_at(&data(seed(self.number, version), length(version)), 0)?;
        file.sync_all()?;
        drop(file);
        std::fs::rename(&temporary, root.join(name))?;
        self.known[index].1 = new;
        Ok(())
    }

    fn remove(&mut self, root: &Path, index: usize, name: &str, old: &State) -> Result<()> {
        self.begin(name, &[old.clone(), State::Absent]);
        std::fs::remove_file(root.join(name))?;
        self.known[index].1 = State::Absent;
        Ok(())
    }

    fn chmod(&mut self, root: &Path, index: usize, name: &str, file: (u64, usize, u32)) -> Result<()> {
        let mode = *self.random.pick(&[0o600, 0o640, 0o644]);
        let new = State::File(file.0, file.1, mode);
        self.begin(name, &[State::File(file.0, file.1, file.2), new.clone()]);
        std::fs::set_permissions(root.join(name), PermissionsExt::from_mode(mode))?;
        self.known[index].1 = new;
        Ok(())
    }

    /// Opens for writing, which copies up, and writes the same bytes again.
    fn touch(&mut self, root: &Path, _index: usize, name: &str, state: &State) -> Result<()> {
        self.begin(name, std::slice::from_ref(state));
        let file = OpenOptions::new().read(true).write(true).open(root.join(name))?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0)?;
        file.write_all_at(&byte, 0)?;
        file.sync_all()
    }

    fn shorten(&mut self, root: &Path, index: usize, name: &str, file: (u64, usize, u32)) -> Result<()> {
        let new = State::File(file.0, file.1.div_ceil(2), file.2);
        self.begin(name, &[State::File(file.0, file.1, file.2), new.clone()]);
        let handle = OpenOptions::new().write(true).open(root.join(name))?;
        handle.set_len(file.1.div_ceil(2) as u64)?;
        self.known[index].1 = new;
        Ok(())
    }

    /// Throws the content away.
    fn empty(&mut self, root: &Path, index: usize, name: &str, old: &State) -> Result<()> {
        let State::File(_, _, mode) = *old else { return Ok(()) };
        let new = State::File(EMPTY, 0, mode);
        self.begin(name, &[old.clone(), new.clone()]);
        OpenOptions::new().write(true).truncate(true).open(root.join(name))?;
        self.known[index].1 = new;
        Ok(())
    }

    /// Moves onto another of the names: onto nothing, over a file, or exchanging the two.
    fn swap_or_move(&mut self, root: &Path, index: usize, name: &str, state: &State) -> Result<()> {
        let other = self.random.below(FILES as u64) as usize;
        let (to, there) = self.known[other].clone();
        if other == index || matches!(there, State::Directory(_)) {
            return Ok(());
        }
        let exchange = there != State::Absent && self.random.one_in(2);
        let after =
            if exchange { vec![there.clone(), state.clone()] } else { vec![State::Absent, state.clone()] };
        let before = vec![state.clone(), there];
        self.pending = Some((vec![name.to_owned(), to.clone()], vec![before, after.clone()]));
        let flags =
            if exchange { rustix::fs::RenameFlags::EXCHANGE } else { rustix::fs::RenameFlags::empty() };
        let cwd = rustix::fs::CWD;
        rustix::fs::renameat_with(cwd, root.join(name), cwd, root.join(&to), flags)?;
        [self.known[index].1, self.known[other].1] =
            after.try_into().unwrap_or([State::Absent, State::Absent]);
        Ok(())
    }

    fn make_directory(&mut self, root: &Path, index: usize, name: &str) -> Result<()> {
        self.begin(name, &[State::Absent, State::Directory(None)]);
        std::fs::create_dir(root.join(name))?;
        self.known[index].1 = State::Directory(None);
        Ok(())
    }

    fn change_directory(&mut self, root: &Path, index: usize, name: &str, old: &State) -> Result<()> {
        if *old == State::Directory(None) {
            self.begin(name, &[State::Directory(None), State::Absent]);
            std::fs::remove_dir(root.join(name))?;
            self.known[index].1 = State::Absent;
        } else {
            self.begin(name, &[old.clone(), State::Directory(None)]);
            std::fs::remove_file(root.join(name).join("inside"))?;
            self.known[index].1 = State::Directory(None);
        }
        Ok(())
    }

    /// Compares what is there with what is known, and learns how the unfinished call ended.
    pub fn check(&mut self, root: &Path) -> std::result::Result<(), String> {
        if let Some((names, allowed)) = self.pending.take() {
            let found: Vec<State> =
                names.iter().map(|name| self.look(root, name)).collect::<std::result::Result<_, _>>()?;
            if !allowed.contains(&found) {
                return Err(format!("{names:?} are {found:?}, allowed: {allowed:?}"));
            }
            for (name, state) in names.iter().zip(found) {
                let known = self.known.iter_mut().find(|(known, _)| known == name);
                known.ok_or("an unknown name")?.1 = state;
            }
        }
        for (name, state) in &self.known {
            let found = self.look(root, name)?;
            if found != *state {
                return Err(format!("{name} is {found:?}, must be {state:?}"));
            }
            let temporary = root.join(format!("{name}.tmp"));
            if temporary.exists() {
                std::fs::remove_file(&temporary)
                    .map_err(|error| format!("{}: {error}", temporary.display()))?;
            }
        }
        Ok(())
    }

    fn look(&self, root: &Path, name: &str) -> std::result::Result<State, String> {
        let path = root.join(name);
        let meta = match std::fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(State::Absent),
            Err(error) => return Err(format!("{name}: {error}")),
        };
        if meta.is_dir() {
            let listed = std::fs::read_dir(&path).map_err(|error| format!("{name}: {error}"))?.count();
            if listed == 0 {
                return Ok(State::Directory(None));
            }
            return Ok(State::Directory(Some(self.version_of(&path.join("inside"))?)));
        }
        let version = self.version_of(&path)?;
        Ok(State::File(version, meta.size() as usize, meta.mode() & 0o7777))
    }

    /// Finds which version a file's bytes are the beginning of; anything else is a torn file.
    fn version_of(&self, path: &Path) -> std::result::Result<u64, String> {
        let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        if bytes.is_empty() {
            return Ok(EMPTY);
        }
        let candidates = (1..=FILES as u64).chain(1000..=self.next_version);
        let matches = |version: &u64| {
            let head = data(seed(self.number, *version), bytes.len().min(16));
            bytes.starts_with(&head) && bytes.len() <= length(*version)
        };
        for version in candidates.filter(matches) {
            if data(seed(self.number, version), bytes.len()) == bytes {
                return Ok(version);
            }
        }
        Err(format!("{}: {} bytes that were never written", path.display(), bytes.len()))
    }
}
