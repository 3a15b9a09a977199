//! Trees written by fuse-overlayfs, of any version that is installed, and read by the union.
//!
//! In some histories fuse-overlayfs 1.10 waits for ever, having opened a fifo. For many histories set `E2E_HANG_SECONDS=20`:
//! what it did not finish counts as what it does not keep.

use std::path::{Path, PathBuf};

use e2e::execute::Session;
use e2e::flatten::flatten;
use e2e::history::{Flavour, Generator, layers};
use e2e::mounted::{Layers, Mounted, scratch};
use e2e::operation::Op;
use e2e::oracle::KernelOverlay;
use e2e::require;
use e2e::require::say;
use e2e::snapshot::Snapshot;
use e2e::tree::at;
use unionfs::ondisk::record::FORMS;

/// Whom the kernel shows for an owner that it cannot show.
const NOBODY: u32 = 65_534;

/// Operations of one history.
const OPERATIONS: usize = 300;

/// Returns the programs of `E2E_PEERS`, or every `fuse-overlayfs` in the search path.
pub(crate) fn programs() -> Vec<PathBuf> {
    if let Some(list) = std::env::var_os("E2E_PEERS") {
        return std::env::split_paths(&list).collect();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|directory| directory.join("fuse-overlayfs"));
    let mut programs: Vec<PathBuf> = found.filter_map(|program| program.canonicalize().ok()).collect();
    programs.sort();
    programs.dedup();
    programs
}

/// Takes what both must show alike.
///
/// fuse-overlayfs counts the names that it has met instead of links, and times of directories change in its copy-up.
pub(crate) fn seen(root: &Path) -> std::io::Result<Snapshot> {
    let mut snapshot = Snapshot::take(root)?;
    snapshot.faults.clear();
    snapshot.forget_directory_times();
    snapshot.forget_links();
    Ok(snapshot)
}

/// Reads layers without any union, as the judge of who is right: names, types and data are what kernel overlayfs shows,
/// owners and modes what the records say, as containers-storage defines them (`UID:GID:MODE:TYPE`; older ones have the
/// type in the mode, or none).
///
/// The topmost layer is not of use to fuse-overlayfs afterwards.
pub(crate) fn by_kernel_and_records(layers: &Layers) -> Snapshot {
    // Marks that fuse-overlayfs writes beside the kernel's own; in a directory of one layer the kernel would list them.
    let top = &layers.lowers[0];
    for path in Snapshot::take(top).unwrap().paths() {
        if path.rsplit(|byte| *byte == b'/').next().is_some_and(|name| name.starts_with(b".wh.")) {
            std::fs::remove_file(at(top, path)).unwrap();
        }
    }
    let mut overlay = KernelOverlay::new(layers.clone());
    let mut snapshot = seen(overlay.root()).unwrap();
    overlay.unmount();
    snapshot.forget_xattr(b"user.fuseoverlayfs.origin");
    snapshot.forget_xattr(b"user.fuseoverlayfs.opaque");
    snapshot.owners_from(|node| {
        let mut records = FORMS.into_iter().filter_map(|form| node.xattrs.remove(form.name()));
        let text = String::from_utf8(records.next()?).unwrap();
        let fields: Vec<&str> = text.split(':').collect();
        let mode = u32::from_str_radix(fields[2], 8).unwrap();
        let kind = match fields.get(3) {
            None if mode & libc::S_IFMT == 0 => node.mode & libc::S_IFMT,
            None => mode & libc::S_IFMT,
            Some(&"file") => libc::S_IFREG,
            Some(&"dir") => libc::S_IFDIR,
            Some(other) => panic!("a record with the type {other}"),
        };
        // fuse-overlayfs 1.10 writes -1 for what a chown(2) leaves alone; nobody has that number.
        let [uid, gid] =
            [fields[0], fields[1]].map(|id| if id == "-1" { NOBODY } else { id.parse().unwrap() });
        Some((uid, gid, mode & !libc::S_IFMT | kind))
    });
    snapshot
}

/// Lets `program` make a random history; the union then shows what the program shows after a remount, as the live
/// upper and as the top one of read-only layers. Returns false if the program does not show its own tree then as it did
/// before, or if it is kernel overlayfs that shows what the union shows.
fn read_what_was_written(program: &Path, seed: u64) -> Result<bool, String> {
    let scratch = scratch();
    let count = 1 + (seed % 3) as usize;
    let trees = layers(seed, count);
    let places = Layers { extra: String::new(), ..Layers::below(scratch.path(), count) };
    trees.iter().zip(&places.lowers).for_each(|(tree, lower)| tree.build(lower));
    let flavour = Flavour { handles: false, ..Flavour::full() };
    let steps = Generator::new(seed, flavour, &flatten(&trees)).steps(OPERATIONS);
    let mut writer = Mounted::with(program, places.clone());
    let mut session = Session::new(&places.target);
    for step in steps.iter().filter(|step| step.op != Op::Remount) {
        session.execute(step);
    }
    session.close_all();
    let before = seen(&places.target);
    writer.remount();
    let (Ok(before), Ok(written)) = (before, seen(&places.target)) else { return Ok(false) };
    if !before.diff(&written, ("before", "after")).is_empty() {
        return Ok(false);
    }
    writer.unmount();
    let stacked = places.read_only();
    for (how, layers) in [("live", &places), ("read-only", &stacked)] {
        let mut reader = Mounted::new(layers.clone());
        let read = seen(&layers.target).unwrap();
        reader.unmount();
        let lines = written.diff(&read, ("written", "read"));
        if !lines.is_empty() {
            let stored = read.diff(&by_kernel_and_records(&stacked), ("read", "stored"));
            if stored.is_empty() {
                return Ok(false);
            }
            let lines = [lines, stored].concat().join("\n");
            return Err(format!("{}, seed {seed}, {how}:\n{lines}", program.display()));
        }
    }
    Ok(true)
}

#[test]
fn the_union_shows_what_fuse_overlayfs_wrote() {
    require!(Fuse, Union, KernelOverlay, FuseOverlayfs);
    for program in programs() {
        // Odd seeds make no hard links in lowers: fuse-overlayfs shows wrong data of those after a remount.
        let seeds = (0..super::histories()).map(|number| 2 * number + 1);
        let results: Vec<_> = seeds.map(|seed| read_what_was_written(&program, seed)).collect();
        let equal = results.iter().filter(|result| **result == Ok(true)).count();
        let all = results.len();
        say(&format!(
            "interop: {equal} of {all} histories of {}, others it does not keep",
            program.display()
        ));
        let faults: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        assert!(faults.is_empty(), "{} differ:\n{}", faults.len(), faults.join("\n"));
    }
}
