//! The trees that the workloads of a report run on, made once for each run.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use crate::failure::{During, Result};
use crate::process;
use crate::rootfs::{self, Rootfs};
use crate::sandbox::Places;
use crate::tree::{self, Take};
use crate::workload::{Case, LAYERS, Storage};

/// How big everything is.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Files of the flat directory.
    pub flat: usize,
    /// Files of the tree of small files.
    pub small: usize,
    /// Files created and unlinked.
    pub create: usize,
    /// Lower files that are appended to.
    pub append: usize,
    /// The file for sequential and random access, on the tmpfs.
    pub big_mib: u64,
    /// The lower file on the disk that is appended to.
    pub huge_mib: u64,
    /// Random accesses.
    pub random: usize,
    /// Sources of the C project.
    pub units: usize,
    /// Writes that are each followed by fdatasync.
    pub syncs: usize,
    /// Inodes for the measurement of memory, and files of the largest stack that is mounted.
    pub inodes: usize,
    /// Files of the tree of JavaScript modules.
    pub npm: usize,
    /// Debian packages that are installed.
    pub packages: usize,
    /// Paths of the real tree that are looked up.
    pub paths: usize,
}

impl Scale {
    /// The scale of results that are published.
    pub const FULL: Self = Self {
        flat: 10_000,
        small: 10_000,
        create: 10_000,
        append: 4_000,
        big_mib: 512,
        huge_mib: 1024,
        random: 50_000,
        units: 40,
        syncs: 200,
        inodes: 1_000_000,
        npm: 50_000,
        packages: 100,
        paths: 20_000,
    };

    /// For a look in a few minutes.
    pub const QUICK: Self = Self {
        flat: 10_000,
        small: 3_000,
        create: 3_000,
        append: 1_000,
        big_mib: 128,
        huge_mib: 256,
        random: 10_000,
        units: 12,
        syncs: 50,
        inodes: 100_000,
        npm: 10_000,
        packages: 20,
        paths: 10_000,
    };

    /// The numbers under the names that the workloads' scripts use.
    pub fn variables(&self) -> [(&'static str, String); 6] {
        [
            ("CREATE", self.create.to_string()),
            ("BIG_MIB", self.big_mib.to_string()),
            ("RANDOM_OPS", self.random.to_string()),
            ("SYNCS", self.syncs.to_string()),
            ("SMALL", self.small.to_string()),
            ("APPEND", self.append.to_string()),
        ]
    }
}

/// The trees.
#[derive(Debug)]
pub struct Fixture {
    /// The real tree on the tmpfs by its number of layers, each topmost first; `bench/` is in the base.
    pub layers: BTreeMap<usize, Vec<PathBuf>>,
    /// A plain merged copy of these layers.
    pub merged: PathBuf,
    /// The one lower layer on the disk; none if no workload needs it.
    pub disk_lower: PathBuf,
    /// Path lists and archives.
    pub files: PathBuf,
    /// One line about the real tree.
    pub description: String,
    /// Whether programs can run inside the real tree.
    pub complete: bool,
}

/// Makes the trees that `cases` run on.
pub fn make(rootfs: &Rootfs, places: &Places, scale: &Scale, cases: &[Case]) -> Result<Fixture> {
    let layers = rootfs::split(rootfs, &directory(&places.memory, "lower")?, LAYERS)?;
    let files = directory(&places.memory, "files")?;
    let bench = layers.last().map(|base| base.join("bench")).unwrap_or_default();
    bench_tree(&bench, &files, scale, cases)?;
    let merged = directory(&places.memory, "merged")?;
    for layer in layers.iter().rev() {
        process::shell(layer, &format!("cp -a . '{}'", merged.display()))?;
    }
    tree::path_list(&merged.join("usr"), Take::All, scale.paths, &files.join("usr.list"))?;
    tree::path_list(&merged.join("bench/small"), Take::Files, scale.small, &files.join("small.list"))?;
    let mut by_count = BTreeMap::from([(LAYERS, layers)]);
    for count in cases.iter().map(|c| c.layers) {
        if let Entry::Vacant(vacant) = by_count.entry(count) {
            vacant.insert(more_layers(rootfs, places, count, &bench)?);
        }
    }
    let disk_lower = directory(&places.disk, "lower")?;
    if cases.iter().any(|c| c.workload.storage == Storage::Disk) {
        disk_tree(&disk_lower, &files, scale)?;
    }
    let complete = rootfs.complete;
    Ok(Fixture {
        layers: by_count,
        merged,
        disk_lower,
        files,
        description: rootfs.description.clone(),
        complete,
    })
}

/// The real tree in another number of layers, with what runs on those of `bench`.
fn more_layers(rootfs: &Rootfs, places: &Places, count: usize, bench: &Path) -> Result<Vec<PathBuf>> {
    let layers = rootfs::split(rootfs, &directory(&places.memory, &format!("lower-{count}"))?, count)?;
    let base = layers.last().map(|base| base.join("bench")).unwrap_or_default();
    process::shell(bench, &format!("mkdir '{0}' && cp -a small project '{0}'", base.display()))?;
    Ok(layers)
}

fn directory(base: &Path, name: &str) -> Result<PathBuf> {
    let dir = base.join(name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir).during(format_args!("empty {}", dir.display()))?;
    }
    std::fs::create_dir_all(&dir).during(format_args!("make {}", dir.display()))?;
    Ok(dir)
}

fn bench_tree(bench: &Path, files: &Path, scale: &Scale, cases: &[Case]) -> Result<()> {
    let runs = |name: &str| cases.iter().any(|c| c.workload.name.starts_with(name));
    if runs("npm") {
        tree::nested(&bench.join("npm"), scale.npm)?;
    }
    if runs("dpkg") {
        tree::packages(&bench.join("debs"), files, scale.packages)?;
    }

    tree::flat(&bench.join("flat"), scale.flat, 4096)?;
    tree::nested(&bench.join("small"), scale.small)?;
    tree::nested(&bench.join("moved"), scale.small)?;
    tree::nested(&bench.join("repo"), scale.small / 2)?;
    tree::c_project(&bench.join("project"), scale.units)?;
    tree::big(&bench.join("big.bin"), scale.big_mib << 20)?;
    // Old files, compared by size and time alone: git never has to read one again, on whatever inode it finds it.
    let repository = "git init -q; git config core.checkStat minimal; git config core.trustctime false; \
        find . -type f -exec touch -d 2020-01-01 {} +; git add -A; git commit -qm all";
    process::shell(&bench.join("repo"), &format!("{GIT}; {repository}"))?;
    process::shell(bench, &format!("tar -cf '{}/small.tar' small", files.display()))?;
    let rows: String = (0..100).map(|i| format!("INSERT INTO t VALUES({i}, 'row {i}');\n")).collect();
    let sql = format!(
        "CREATE TABLE t(a INTEGER, b TEXT);\n{rows}BEGIN;\n\
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)\n\
         INSERT INTO t SELECT i, 'many ' || i FROM n;\nCOMMIT;\nCREATE INDEX x ON t(b);\nSELECT count(*) FROM t;\n"
    );
    std::fs::write(files.join("sqlite.sql"), sql).during("write the database script")
}

fn disk_tree(lower: &Path, files: &Path, scale: &Scale) -> Result<()> {
    let append = lower.join("append");
    tree::flat(&append, scale.append, 16 << 10)?;
    tree::path_list(&append, Take::Files, scale.append, &files.join("append.list"))?;
    tree::nested(&lower.join("small"), scale.small)?;
    tree::big(&lower.join("huge.bin"), scale.huge_mib << 20)?;
    process::shell(lower, "sync -f .").map(|_| ())
}

/// Makes git deaf to the settings of the person who measures.
pub const GIT: &str = "export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=p GIT_AUTHOR_EMAIL=p@p \
    GIT_COMMITTER_NAME=p GIT_COMMITTER_EMAIL=p@p GIT_CONFIG_COUNT=2 GIT_CONFIG_KEY_0=gc.auto GIT_CONFIG_VALUE_0=0 \
    GIT_CONFIG_KEY_1=maintenance.auto GIT_CONFIG_VALUE_1=false";
