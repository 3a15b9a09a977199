//! The table of workloads: what runs, on which tree, and what it needs.
//!
//! A script sees `$M` (the tree's root), `$F` (path lists and archives), `$LOAD` (the program `perf-load`) and the
//! numbers of the scale. `prepare` runs on the fresh mount and is not timed; a workload whose name ends in `_warm`
//! repeats its script there. Cold means: fresh mount, lower data and lower dentries in memory.

/// Which file system holds layers and upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// The tmpfs.
    Memory,
    /// The one with a device below it.
    Disk,
    /// The layers on the tmpfs, the upper on the one with a device below it.
    UpperOnDisk,
}

/// On what `native` runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// On the merged copy that all rounds share; the script cleans up after it.
    Shared(&'static str),
    /// On a fresh copy of these paths (none: an empty directory).
    Copy(&'static [&'static str]),
}

/// One workload.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Name in tables.
    pub name: &'static str,
    /// Section of the tables.
    pub section: &'static str,
    /// Where it runs.
    pub storage: Storage,
    /// Script before the timed one.
    pub prepare: &'static str,
    /// The timed script.
    pub run: &'static str,
    /// What `native` runs on.
    pub plain: Plain,
    /// Whether a program inside the real tree is run, so that only a complete system will do.
    pub chroot: bool,
    /// Whether it goes through the real tree, so that the number of layers counts.
    pub layered: bool,
}

/// Layers of the real tree, unless a case says otherwise.
pub const LAYERS: usize = 3;

/// One workload on one number of layers: a row of the tables.
#[derive(Clone, Debug)]
pub struct Case {
    /// What runs.
    pub workload: Workload,
    /// On how many layers.
    pub layers: usize,
    /// The workload's name, with the number of layers unless that is the usual one: `find_cold@20`.
    pub name: String,
    /// The section, likewise.
    pub section: String,
}

impl Case {
    fn new(workload: &Workload, layers: usize) -> Self {
        let (mut name, mut section) = (workload.name.to_owned(), workload.section.to_owned());
        if layers != LAYERS {
            name = format!("{name}@{layers}");
            section = format!("{section}, {layers} layers");
        }
        Self { workload: *workload, layers, name, section }
    }
}

/// Every case: all workloads on the usual number of layers or, those for which it counts, on each of `counts`.
pub fn cases(counts: &[usize]) -> Vec<Case> {
    let all = counts.iter().chain((!counts.contains(&LAYERS)).then_some(&LAYERS));
    let on = |layers: usize| {
        let here = WORKLOADS.iter().filter(move |w| match w.layered {
            true => counts.contains(&layers),
            false => layers == LAYERS,
        });
        here.map(move |w| Case::new(w, layers))
    };
    all.copied().flat_map(on).collect()
}

/// Where a row of this name stands in the tables.
pub fn place(name: &str) -> (usize, usize) {
    let (workload, layers) = name.split_once('@').unwrap_or((name, ""));
    let position = WORKLOADS.iter().position(|w| w.name == workload);
    position.map_or((usize::MAX, 0), |p| (layers.parse().unwrap_or(0), p))
}

const fn read(section: &'static str, name: &'static str, run: &'static str) -> Workload {
    let storage = Storage::Memory;
    let plain = Plain::Shared("");
    Workload { name, section, storage, prepare: "", run, plain, chroot: false, layered: false }
}

const fn warm(section: &'static str, name: &'static str, run: &'static str) -> Workload {
    Workload { prepare: run, ..read(section, name, run) }
}

const fn layered(workload: Workload) -> Workload {
    Workload { layered: true, ..workload }
}

const fn chroot(workload: Workload) -> Workload {
    Workload { chroot: true, ..workload }
}

const fn change(
    section: &'static str,
    name: &'static str,
    on: &'static [&'static str],
    run: &'static str,
) -> Workload {
    Workload { plain: Plain::Copy(on), ..read(section, name, run) }
}

const fn prepared(prepare: &'static str, workload: Workload) -> Workload {
    Workload { prepare, ..workload }
}

const fn disk(workload: Workload) -> Workload {
    Workload { storage: Storage::Disk, ..workload }
}

const STAT: &str = r#"exec "$LOAD" stat "$M/usr" "$F/usr.list" 1"#;
const STAT_2: &str = r#"exec "$LOAD" stat "$M/usr" "$F/usr.list" 2"#;
const READ: &str = r#"exec "$LOAD" read "$M/bench/small" "$F/small.list" 1"#;
const READ_2: &str = r#"exec "$LOAD" read "$M/bench/small" "$F/small.list" 2"#;
const LS: &str = r#"ls -U "$M/bench/flat" | cat > /dev/null"#;
const LS_L: &str = r#"ls -lU "$M/bench/flat" | cat > /dev/null"#;
const FIND: &str = r#"find "$M/usr" "$M/bench/small" -size +4G"#;
const GREP: &str = r#"grep -r 'no such text anywhere' "$M/usr/share" "$M/usr/include" "$M/usr/lib/python3" "$M/bench/small" || true"#;
const TAR: &str =
    r#"tar -C "$M" -cf - usr/bin usr/share usr/lib/python3 usr/include bench/small | cat > /dev/null"#;
const IMPORT: &str = r#"chroot "$M" /usr/bin/python3 -BSc 'import asyncio, concurrent.futures, ctypes, decimal, email.mime.text, http.client, json, logging, multiprocessing, sqlite3, ssl, unittest, urllib.request, xml.etree.ElementTree'"#;
const STATUS: &str = r#"cd "$M/bench/repo" && git status --porcelain"#;
const SEQ_READ: &str = r#"exec "$LOAD" seq-read "$M/bench/big.bin" 1048576"#;
const RAND_READ: &str = r#"exec "$LOAD" rand-read "$M/bench/big.bin" 4096 "$RANDOM_OPS""#;
const COPIED: &str = r#"cp -r "$M/bench/small" "$M/copy""#;
const NPM: &str = r#"cp -r "$M/bench/npm" "$M/npm""#;
const WRITE: &str = r#"exec "$LOAD" seq-write "$M/new.bin" 1048576 "$BIG_MIB""#;
const WRITE_64: &str = r#"exec "$LOAD" seq-write "$M/new.bin" 1048576 64"#;
const SEQ_READ_4K: &str = r#"exec "$LOAD" seq-read "$M/bench/big.bin" 4096"#;
const RAND_READ_1M: &str = r#"exec "$LOAD" rand-read "$M/bench/big.bin" 1048576 $((RANDOM_OPS / 50))"#;

/// What a Debian system needs to install packages.
const SYSTEM: &[&str] = &["bin", "etc", "lib*", "root", "sbin", "tmp", "usr", "var", "bench/debs"];

/// Every workload, in the order of the tables.
pub const WORKLOADS: &[Workload] = &[
    layered(read("metadata", "stat_cold", STAT)),
    layered(warm("metadata", "stat_warm", STAT)),
    layered(read("metadata", "stat_cold_2_clients", STAT_2)),
    layered(warm("metadata", "stat_warm_2_clients", STAT_2)),
    read("directories", "ls_cold", LS),
    warm("directories", "ls_warm", LS),
    read("directories", "ls_l_cold", LS_L),
    warm("directories", "ls_l_warm", LS_L),
    layered(read("directories", "find_cold", FIND)),
    layered(warm("directories", "find_warm", FIND)),
    read("small files", "read_cold", READ),
    warm("small files", "read_warm", READ),
    warm("small files", "read_warm_2_clients", READ_2),
    layered(read("small files", "grep_cold", GREP)),
    layered(warm("small files", "grep_warm", GREP)),
    layered(read("small files", "tar_out_cold", TAR)),
    chroot(layered(read("programs", "python_import_cold", IMPORT))),
    chroot(layered(warm("programs", "python_import_warm", IMPORT))),
    layered(chroot(Workload {
        plain: Plain::Shared(r#"rm -f "$M"/bench/project/*.o "$M/bench/project/prog""#),
        ..read("programs", "gcc_build", r#"chroot "$M" make -s -C /bench/project"#)
    })),
    read("programs", "git_status_cold", STATUS),
    change(
        "programs",
        "git_add_commit",
        &["bench/small"],
        r#"cd "$M/bench/small" && git init -q && git add -A && git commit -qm all"#,
    ),
    chroot(Workload {
        storage: Storage::UpperOnDisk,
        ..change("programs", "dpkg_install", SYSTEM, r#"chroot "$M" sh -c 'dpkg -i /bench/debs/*.deb'"#)
    }),
    change("new files", "create_unlink", &[], r#"exec "$LOAD" create-unlink "$M/new" "$CREATE" 1024"#),
    change("new files", "untar", &[], r#"tar -C "$M" -xf "$F/small.tar""#),
    change("new files", "cp_r", &["bench/small"], COPIED),
    prepared(COPIED, change("new files", "rm_upper", &["bench/small"], r#"rm -rf "$M/copy""#)),
    change("new files", "npm_copy", &["bench/npm"], NPM),
    prepared(NPM, change("new files", "npm_remove", &["bench/npm"], r#"rm -rf "$M/npm""#)),
    change("changed lowers", "rm_lower", &["bench/small"], r#"rm -rf "$M/bench/small""#),
    change("changed lowers", "chmod_r", &["bench/small"], r#"chmod -R g+w,o-r "$M/bench/small""#),
    change("changed lowers", "chown_r", &["bench/small"], r#"chown -R 7:7 "$M/bench/small""#),
    // What was copied up outlives a power cut everywhere: kernel overlayfs syncs each file for that.
    disk(change("changed lowers", "chmod_r_disk", &["small"], r#"chmod -R g+w,o-r "$M/small""#)),
    disk(change("changed lowers", "chown_r_disk", &["small"], r#"chown -R 7:7 "$M/small""#)),
    change("changed lowers", "rename_dir", &["bench/moved"], r#"mv "$M/bench/moved" "$M/bench/renamed""#),
    disk(change(
        "changed lowers",
        "append_many",
        &["append"],
        r#"exec "$LOAD" append "$M/append" "$F/append.list""#,
    )),
    disk(change(
        "changed lowers",
        "append_huge",
        &["huge.bin"],
        r#"echo huge.bin > "$F/huge.list"; exec "$LOAD" append "$M" "$F/huge.list""#,
    )),
    read("data", "seq_read_cold", SEQ_READ),
    warm("data", "seq_read_warm", SEQ_READ),
    warm("data", "seq_read_4k_warm", SEQ_READ_4K),
    warm("data", "rand_read_4k_warm", RAND_READ),
    warm("data", "rand_read_1m_warm", RAND_READ_1M),
    prepared(WRITE, change("data", "seq_read_new", &[], r#"exec "$LOAD" seq-read "$M/new.bin" 1048576"#)),
    change("data", "seq_write_1m", &[], WRITE),
    change("data", "seq_write_4k", &[], r#"exec "$LOAD" seq-write "$M/new.bin" 4096 $((BIG_MIB / 8))"#),
    prepared(
        WRITE_64,
        change("data", "rand_write_4k", &[], r#"exec "$LOAD" rand-write "$M/new.bin" 4096 "$RANDOM_OPS" 64"#),
    ),
    prepared(
        WRITE_64,
        change(
            "data",
            "rand_write_1m",
            &[],
            r#"exec "$LOAD" rand-write "$M/new.bin" 1048576 $((RANDOM_OPS / 50)) 64"#,
        ),
    ),
    disk(change("durability", "fsync_4k", &[], r#"exec "$LOAD" fsync "$M/log" "$SYNCS""#)),
    disk(change("durability", "sqlite", &[], r#"sqlite3 "$M/db" < "$F/sqlite.sql""#)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = WORKLOADS.iter().map(|w| w.name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn the_number_of_layers_stands_in_names_where_it_counts() {
        let names: Vec<String> = cases(&[20, 3]).into_iter().map(|c| c.name).collect();
        let has = |name: &str| names.iter().filter(|n| *n == name).count();
        assert_eq!((has("find_cold"), has("find_cold@20"), has("untar"), has("untar@20")), (1, 1, 1, 0));
        assert_eq!(cases(&[20]).iter().filter(|c| c.name == "find_cold" || c.name == "untar").count(), 1);
    }

    #[test]
    fn rows_are_in_order_of_layers_then_of_workloads_with_others_last() {
        let mut names = ["mount_1_layers", "find_cold@20", "untar", "stat_cold@20", "stat_cold"];
        names.sort_by_key(|n| place(n));
        assert_eq!(names, ["stat_cold", "untar", "stat_cold@20", "find_cold@20", "mount_1_layers"]);
    }

    #[test]
    fn a_warm_workload_repeats_its_script_and_a_cold_one_prepares_nothing() {
        for w in WORKLOADS {
            assert!(!w.name.contains("_warm") || w.prepare == w.run, "{}", w.name);
            assert!(!w.name.contains("_cold") || w.prepare.is_empty(), "{}", w.name);
        }
    }
}
