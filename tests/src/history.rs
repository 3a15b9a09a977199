//! Random histories: a seed in, a list of calls out, on few names so that they meet often.

use crate::operation::{How, Name, Op, Over, SLOTS, Space, Special, Step};
use crate::random::Random;
use crate::rehearsal::Rehearsal;
use crate::tree::{Kind, LayerTree};

/// What a history may contain.
#[derive(Clone, Copy, Debug)]
pub struct Flavour {
    /// Calls by an ordinary user and chown to other ids (needs root of the host).
    pub two_users: bool,
    /// Steps between two remounts.
    pub remount_every: usize,
    /// Steps between two rotations of the upper.
    pub rotate_every: usize,
    /// Held handles and mappings, which some peers get wrong.
    pub handles: bool,
    /// Extended attributes and ACLs.
    pub xattrs: bool,
}

impl Flavour {
    /// Everything that this process can do.
    pub fn full() -> Self {
        Self {
            two_users: crate::user::is_real_root(),
            remount_every: 250,
            rotate_every: usize::MAX,
            handles: true,
            xattrs: true,
        }
    }
}

const NAMES: [&[u8]; 8] = [b"a", b"b", b"c", b"d", b"e", b"f", b"long name with spaces", b"\xff\xfe"];
const OFFSETS: [u64; 10] = [0, 0, 1, 100, 4095, 4096, 8192, 65_536, 100_000, 200_000];
const LENGTHS: [usize; 8] = [0, 1, 10, 100, 4096, 5000, 20_000, 70_000];
const SIZES: [u64; 9] = [0, 1, 6, 100, 4096, 10_000, 65_536, 150_000, 300_000];
const MODES: [u32; 11] = [0o644, 0o600, 0o755, 0o777, 0o700, 0o444, 0o000, 0o4755, 0o2755, 0o6711, 0o1777];
const IDS: [Option<u32>; 5] = [None, Some(0), Some(crate::operation::USER), Some(1001), None];
const XATTRS: [&str; 6] = [
    "user.one",
    "user.two",
    "user.one",
    "trusted.three",
    "system.posix_acl_access",
    "system.posix_acl_default",
];

/// Generates histories.
#[derive(Debug)]
pub struct Generator {
    random: Random,
    flavour: Flavour,
    made: usize,
    rehearsal: Rehearsal,
    without: Vec<String>,
    own_rights_only: bool,
}

impl Generator {
    /// Returns the generator of a seed.
    ///
    /// `start` is the tree that the history begins with.
    pub fn new(seed: u64, flavour: Flavour, start: &LayerTree) -> Self {
        let without = std::env::var("E2E_WITHOUT").unwrap_or_default();
        let mut without: Vec<String> = without.split(',').map(str::to_owned).collect();
        let own_rights_only = !rustix::process::geteuid().is_root();
        if own_rights_only {
            // The server of an ordinary user writes pages back by write(2), which clears set-uid; mmap does not.
            without.push("MapWrite".to_owned());
        }
        Self {
            random: Random::new(seed),
            flavour,
            made: 0,
            rehearsal: Rehearsal::new(start),
            without,
            own_rights_only,
        }
    }

    /// Returns the next `count` steps.
    pub fn steps(&mut self, count: usize) -> Vec<Step> {
        (0..count).map(|_| self.step()).collect()
    }

    fn step(&mut self) -> Step {
        self.made += 1;
        if self.made.is_multiple_of(self.flavour.remount_every) {
            let step = Step { op: Op::Remount, as_user: false };
            self.rehearsal.execute(&step);
            return step;
        }
        if self.made.is_multiple_of(self.flavour.rotate_every) {
            return Step { op: Op::Rotate, as_user: false };
        }
        let op = match self.random.below(100) {
            0..30 => self.data_call(),
            30..60 => self.name_call(),
            60..80 => self.attribute_call(),
            80..95 if self.flavour.handles => self.handle_call(),
            _ => self.special_call(),
        };
        let op = if self.left_out(&op) { Op::Stat { path: self.path() } } else { op };
        // Taking away an ACL that is not there clears set-gid on kernel overlayfs, for a stranger to the group.
        let acl = matches!(&op, Op::RemoveXattr { name, .. } if name.0.starts_with(b"system."));
        let step = Step { op, as_user: self.flavour.two_users && self.random.one_in(5) && !acl };
        self.rehearsal.execute(&step);
        step
    }

    /// Returns whether `E2E_WITHOUT`, a list of names of calls, has this one; `Acl` is every call about ACLs, `Trusted`
    /// every call about a `trusted.*` attribute, `Exchange` every rename that exchanges.
    fn left_out(&self, op: &Op) -> bool {
        let text = format!("{op:?}");
        let name = text.split(' ').next().unwrap_or_default();
        let acl = text.contains("system.posix_acl");
        let trusted = text.contains("trusted.");
        let exchange = text.contains("over: Exchange");
        self.without.iter().any(|left_out| match left_out.as_str() {
            "Acl" => acl,
            "Trusted" => trusted,
            "Exchange" => exchange,
            left_out => left_out == name,
        })
    }

    /// Returns a path at which something probably stands, mostly.
    fn path(&mut self) -> Name {
        let known = if self.random.one_in(8) { None } else { self.rehearsal.existing(&mut self.random) };
        known.unwrap_or_else(|| self.new_path())
    }

    /// Returns a path at which probably nothing stands, in a directory that exists, mostly.
    fn new_path(&mut self) -> Name {
        let parent = if self.random.one_in(6) { None } else { self.rehearsal.directory(&mut self.random) };
        if let Some(parent) = parent.filter(|parent| parent.len() < 60) {
            return Name([&parent, b"/".as_slice(), self.name()].concat());
        }
        let depth = *self.random.pick(&[1, 1, 2, 2, 2, 3, 3, 4]);
        let parts: Vec<&[u8]> = (0..depth).map(|_| self.name()).collect();
        Name(parts.join(&b'/'))
    }

    fn name(&mut self) -> &'static [u8] {
        let choices = if self.random.one_in(12) { &NAMES[..] } else { &NAMES[..6] };
        self.random.pick::<&[u8]>(choices)
    }

    fn data_call(&mut self) -> Op {
        let path = self.path();
        let (offset, len, seed) =
            (*self.random.pick(&OFFSETS), *self.random.pick(&LENGTHS), self.random.draw());
        match self.random.below(12) {
            0 => Op::Put { path, len, seed },
            1 => Op::Put { path: self.new_path(), len, seed },
            2..5 => Op::Write { path, offset, len, seed },
            5 => Op::Append { path, len, seed },
            6 | 7 => Op::Truncate { path, size: *self.random.pick(&SIZES) },
            8 => Op::Holes { path },
            9 => {
                let space = *self.random.pick(&[Space::Grow, Space::Keep, Space::Punch, Space::Zero]);
                Op::Allocate { path, space, offset, len: len as u64 }
            }
            _ => Op::Read { path, offset, len },
        }
    }

    fn name_call(&mut self) -> Op {
        let path = self.path();
        let mode = *self.random.pick(&MODES[..6]);
        match self.random.below(14) {
            0 => Op::Create { path: self.new_path(), mode },
            1 | 2 => Op::Unlink { path },
            3..5 => Op::Mkdir {
                path: self.new_path(),
                mode: *self.random.pick(&[0o755, 0o755, 0o777, 0o2775, 0o1777]),
            },
            5 | 6 => Op::Rmdir { path },
            7 if self.random.one_in(4) => Op::RemoveAll { path },
            7 => Op::Mkdir { path: self.new_path(), mode: 0o755 },
            8..11 => {
                let over =
                    *self.random.pick(&[Over::Replace, Over::Replace, Over::NoReplace, Over::Exchange]);
                let to = if self.random.one_in(2) { self.new_path() } else { self.path() };
                Op::Rename { from: path, to, over }
            }
            11 => Op::Link { from: path, to: self.new_path() },
            12 => Op::Symlink { path: self.new_path(), target: self.path() },
            _ => Op::List { path },
        }
    }

    fn attribute_call(&mut self) -> Op {
        let path = self.path();
        match self.random.below(12) {
            0 => Op::Chmod { path, mode: self.mode() },
            1 if self.flavour.two_users => {
                let (uid, gid) = (*self.random.pick(&IDS), *self.random.pick(&IDS));
                // FUSE does not tell a server of chown(-1, -1), which clears set-uid elsewhere.
                Op::Chown { path, uid, gid: if uid.is_none() { gid.or(Some(0)) } else { gid } }
            }
            2 => {
                let seconds = 1_100_000_000 + self.random.below(1000).cast_signed();
                Op::Times { path, seconds: (!self.random.one_in(4)).then_some(seconds) }
            }
            3 | 4 if self.flavour.xattrs => self.set_xattr(path),
            5 if self.flavour.xattrs => Op::RemoveXattr { path, name: (*self.random.pick(&XATTRS)).into() },
            6 if self.flavour.xattrs => Op::Xattrs { path },
            7 => Op::Readlink { path },
            8 => Op::Access { path, bits: *self.random.pick(&[4, 2, 1, 6, 0]) as u32 },
            9 => Op::List { path },
            _ => Op::Stat { path },
        }
    }

    /// Returns permission bits; the owner keeps all rights where the server has no others on disk than hers.
    fn mode(&mut self) -> u32 {
        let mode = *self.random.pick(&MODES);
        if self.own_rights_only { mode | 0o700 } else { mode }
    }

    fn set_xattr(&mut self, path: Name) -> Op {
        let name = *self.random.pick(&XATTRS);
        let value = if name.starts_with("system.") {
            acl(if self.own_rights_only { 1 + self.random.below(2) } else { self.random.below(3) })
        } else {
            self.value()
        };
        let flag = *self.random.pick(&[Over::Replace, Over::Replace, Over::NoReplace, Over::Exchange]);
        Op::SetXattr { path, name: name.into(), value, flag }
    }

    fn value(&mut self) -> Name {
        let len = *self.random.pick(&[0, 1, 5, 40]);
        Name(crate::random::data(self.random.draw(), len))
    }

    fn handle_call(&mut self) -> Op {
        let slot = self.rehearsal.slot(&mut self.random);
        let (offset, len) = (*self.random.pick(&OFFSETS), *self.random.pick(&LENGTHS));
        match self.random.below(14) {
            0..4 => {
                let how =
                    [How::Read, How::Read, How::Write, How::Both, How::Truncate, How::Append, How::Create];
                Op::Open {
                    slot: self.random.below(SLOTS as u64) as usize,
                    path: self.path(),
                    how: *self.random.pick(&how),
                }
            }
            4..7 => Op::ReadHandle { slot, offset, len },
            7..9 => Op::WriteHandle { slot, offset, len, seed: self.random.draw() },
            9 => Op::TruncateHandle { slot, size: *self.random.pick(&SIZES) },
            10 => Op::StatHandle { slot },
            11 => Op::ChmodHandle { slot, mode: self.mode() },
            12 => Op::SyncHandle { slot },
            _ => Op::CloseHandle { slot },
        }
    }

    fn special_call(&mut self) -> Op {
        let path = self.path();
        let (len, seed) = (*self.random.pick(&LENGTHS), self.random.draw());
        match self.random.below(9) {
            0 | 1 => {
                let special =
                    *self.random.pick(&[Special::Fifo, Special::Socket, Special::Device, Special::File]);
                Op::Mknod { path: self.new_path(), special, mode: *self.random.pick(&MODES[..6]) }
            }
            2..4 => Op::CopyRange {
                from: path,
                to: self.path(),
                source: *self.random.pick(&OFFSETS[..6]),
                target: *self.random.pick(&OFFSETS),
                len,
            },
            4 | 5 if self.flavour.handles => {
                Op::MapWrite { path, offset: self.random.below(9000) as usize, len, seed }
            }
            6 if self.flavour.handles => Op::MapRead { path, offset: self.random.below(9000) as usize, len },
            7 => Op::Tmpfile { directory: path, to: self.new_path(), len, seed },
            _ => Op::Stat { path },
        }
    }
}

/// Returns the bytes of a small POSIX ACL, as the xattr holds it: version 2, then (tag, permissions, id).
fn acl(which: u64) -> Name {
    let entries: &[(u16, u16, u32)] = match which {
        0 => &[
            (1, 6, u32::MAX),
            (2, 7, crate::operation::USER),
            (4, 4, u32::MAX),
            (16, 7, u32::MAX),
            (32, 4, u32::MAX),
        ],
        1 => &[(1, 7, u32::MAX), (4, 5, u32::MAX), (32, 0, u32::MAX)],
        _ => &[(1, 7, u32::MAX), (4, 7, u32::MAX), (8, 5, 1001), (16, 5, u32::MAX), (32, 5, u32::MAX)],
    };
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    Name(bytes)
}

/// Returns random layers, topmost first, on the same few names, with whiteouts and opaque directories above
/// the lowest one.
pub fn layers(seed: u64, count: usize) -> Vec<LayerTree> {
    let mut stack: Vec<LayerTree> = Vec::new();
    for index in (0..count).rev() {
        let mut top = layer(seed ^ ((index as u64) << 32), index + 1 < count);
        drop_idle_whiteouts(&mut top, &crate::flatten::flatten(&stack));
        stack.insert(0, top);
    }
    // Links in the top layer only, where no other layer hides one of the names: then the link count of the layer
    // is the one to show.
    if seed.is_multiple_of(2)
        && let Some(top) = stack.first_mut()
    {
        add_links(top, seed);
    }
    stack
}

/// Gives some files of a layer further names, in any of its directories.
fn add_links(top: &mut LayerTree, seed: u64) {
    let mut random = Random::new(seed ^ 0x6c69_6e6b);
    let is_file = |item: &crate::tree::Item| matches!(item.kind, Kind::File(_) | Kind::Sparse(..));
    let files: Vec<_> =
        top.items.iter().filter(|(_, item)| is_file(item)).map(|(path, _)| path.clone()).collect();
    let directories = crate::flatten::directories(top);
    for _ in 0..files.len() / 3 {
        let (file, directory) = (random.pick(&files), random.pick(&directories));
        let name = *random.pick::<&[u8]>(&NAMES[..6]);
        let path =
            if directory.is_empty() { name.to_vec() } else { [directory, b"/".as_slice(), name].concat() };
        // A tree is built in the order of names, the first name of an object first.
        if path > *file && !top.items.contains_key(&path) {
            *top = std::mem::take(top).hardlink(&path, file);
        }
    }
}

/// Removes the whiteouts that stand in a directory with nothing below it: kernel overlayfs would list them.
fn drop_idle_whiteouts(top: &mut LayerTree, below: &LayerTree) {
    let directory = |path: &[u8]| below.items.get(path).is_some_and(|item| item.kind == Kind::Directory);
    let idle = |path: &[u8]| {
        let parent = crate::tree::split(path).0;
        !parent.is_empty() && !directory(parent)
    };
    top.items.retain(|path, item| item.kind != Kind::Whiteout || !idle(path));
}

fn layer(seed: u64, marks: bool) -> LayerTree {
    let mut random = Random::new(seed);
    let mut tree = LayerTree::new();
    for first in &NAMES[..6] {
        if random.one_in(4) {
            tree = leaf(tree, first.to_vec(), &mut random, marks);
            continue;
        }
        let opaque = marks && random.one_in(6);
        tree = tree.with(first, if opaque { Kind::Opaque } else { Kind::Directory }, 0o755);
        for second in &NAMES[..6] {
            let path = [first, second].map(|part| part.to_vec()).join(&b'/');
            if random.one_in(2) {
                // Nothing below an opaque directory needs a mark: kernel overlayfs would list it.
                tree = leaf(tree, path, &mut random, marks && !opaque);
            } else if random.one_in(2) {
                tree = tree.dir(&path);
                for third in &NAMES[..3] {
                    let path = [path.as_slice(), third].join(&b'/');
                    tree = leaf(tree, path, &mut random, marks && !opaque);
                }
            }
        }
    }
    tree
}

fn leaf(tree: LayerTree, path: Vec<u8>, random: &mut Random, marks: bool) -> LayerTree {
    let mode = *random.pick(&[0o644, 0o644, 0o600, 0o755, 0o4755, 0o444, 0o666]);
    let seed = random.draw();
    match random.below(12) {
        0 | 1 if marks => tree.whiteout(path),
        2 => tree.symlink(path, *random.pick(&NAMES[..6])),
        3 => tree.with(path, Kind::Fifo, 0o644),
        4 => {
            let pieces =
                vec![(0, crate::random::data(seed, 100)), (150_000, crate::random::data(seed, 5000))];
            tree.with(path, Kind::Sparse(400_000, pieces), mode)
        }
        5 => tree
            .with(&path, Kind::File(crate::random::data(seed, 70_000)), mode)
            .xattr(&path, "user.one", "low"),
        6 => tree.with(path, Kind::Directory, 0o777),
        _ => tree.with(path, Kind::File(crate::random::data(seed, (seed % 9000) as usize)), mode),
    }
}
