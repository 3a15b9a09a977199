//! Trees whose owners and modes are in records (`xattr_permissions=2`), written by one program and read by the other.

use std::path::Path;

use e2e::execute::Session;
use e2e::flatten::flatten;
use e2e::history::{Flavour, Generator, layers};
use e2e::mounted::{Layers, Mounted, scratch, union_program};
use e2e::operation::{Op, Special, Step};
use e2e::require;
use e2e::require::say;
use e2e::snapshot::Snapshot;
use e2e::tree::{Kind, at};
use unionfs::ondisk::record::RecordForm;

use crate::peers::{by_kernel_and_records, programs, seen};

/// Operations of one history.
const OPERATIONS: usize = 300;

/// Owners in records, and nothing that fuse-overlayfs cannot read.
const OURS: &str = ",xattr_permissions=2,redirect_dir=off,metacopy=off,index=off";

/// Returns whether both store the step alike: fuse-overlayfs 1.10 knows no types in records, and shows the ACL of the inode.
fn is_shared(step: &Step) -> bool {
    match &step.op {
        Op::Remount => false,
        Op::Mknod { special, .. } => *special == Special::File,
        Op::SetXattr { name, .. } | Op::RemoveXattr { name, .. } => name.0.starts_with(b"user."),
        _ => true,
    }
}

/// Removes symbolic links that lead in a circle. Where owners are in records, fuse-overlayfs 1.10 opens each object, and also what
/// a lower layer has beneath such a link where another has a directory: it answers ENOMEM.
fn remove_circles(root: &Path) {
    for path in Snapshot::take(root).unwrap().paths().map(|path| at(root, path)) {
        if std::fs::metadata(&path).is_err_and(|error| error.raw_os_error() == Some(libc::ELOOP)) {
            std::fs::remove_file(path).unwrap();
        }
    }
}

/// As [`seen`], without the records themselves, which fuse-overlayfs does not hide.
fn shown(root: &Path) -> std::io::Result<Snapshot> {
    let mut snapshot = seen(root)?;
    snapshot.forget_xattr(RecordForm::Containers.name());
    Ok(snapshot)
}

/// Takes the records away from all objects below a directory.
fn forget_records(upper: &Path) {
    let name = RecordForm::Containers.name();
    for path in Snapshot::take(upper).unwrap().paths().map(|path| at(upper, path)) {
        match rustix::fs::lremovexattr(&path, name) {
            Ok(()) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::PERM) => {}
            Err(error) => panic!("removing the record of {}: {error}", path.display()),
        }
    }
}

/// Returns what differs in what a program shows of layers; one line if it cannot list them.
fn differences(program: &Path, layers: &Layers, want: &Snapshot) -> Vec<String> {
    let mut mounted = Mounted::with(program, layers.clone());
    let read = shown(&layers.target);
    mounted.unmount();
    read.map_or_else(|error| vec![error.to_string()], |read| want.diff(&read, ("written", "read")))
}

/// Lets the union make a random history, and reads the upper as the top of read-only layers: kernel overlayfs and the
/// records, and the union, show the same. Returns whether `program` does. If it does not, it does not show these layers
/// without records either, so that the fault is its own.
fn peer_reads(program: &Path, seed: u64) -> Result<bool, String> {
    let scratch = scratch();
    let count = 1 + (seed % 3) as usize;
    let mut trees = layers(seed, count);
    // fuse-overlayfs 1.10 waits for ever at a pipe.
    trees.iter_mut().for_each(|tree| tree.retain(|_, kind| *kind != Kind::Fifo));
    let places = Layers { extra: OURS.to_owned(), ..Layers::below(scratch.path(), count) };
    trees.iter().zip(&places.lowers).for_each(|(tree, lower)| tree.build(lower));
    places.lowers.iter().for_each(|lower| remove_circles(lower));
    let flavour = Flavour { handles: false, ..Flavour::full() };
    let steps = Generator::new(seed, flavour, &flatten(&trees)).steps(OPERATIONS);
    let mut writer = Mounted::new(places.clone());
    let mut session = Session::new(&places.target);
    steps.iter().filter(|step| is_shared(step)).for_each(|step| drop(session.execute(step)));
    session.close_all();
    remove_circles(&places.target);
    let written = shown(&places.target).unwrap();
    writer.unmount();
    let stacked = places.read_only();
    let stored = written.diff(&by_kernel_and_records(&stacked), ("written", "stored"));
    let read = differences(&union_program(), &stacked, &written);
    if !stored.is_empty() || !read.is_empty() {
        return Err(format!("seed {seed}:\n{}\n{}", stored.join("\n"), read.join("\n")));
    }
    let theirs = differences(program, &stacked, &written);
    if theirs.is_empty() {
        return Ok(true);
    }
    forget_records(&stacked.lowers[0]);
    if differences(program, &stacked, &by_kernel_and_records(&stacked)).is_empty() {
        return Err(format!("{}, seed {seed}:\n{}", program.display(), theirs.join("\n")));
    }
    Ok(false)
}

/// Lets `program` keep owners in records in a random history, in its old form; the union shows the same and goes on with
/// it, and the program shows that. Returns false where the program does not show what is on the disk.
fn take_turns(program: &Path, seed: u64) -> Result<bool, String> {
    let scratch = scratch();
    let mut trees = layers(seed, 2);
    trees.iter_mut().for_each(|tree| tree.retain(|_, kind| *kind != Kind::Fifo));
    let theirs = Layers { extra: ",xattr_permissions=2".to_owned(), ..Layers::below(scratch.path(), 2) };
    let ours = Layers { extra: OURS.to_owned(), ..theirs.clone() };
    trees.iter().zip(&theirs.lowers).for_each(|(tree, lower)| tree.build(lower));
    let flavour = Flavour { handles: false, ..Flavour::full() };
    let mut generator = Generator::new(seed, flavour, &flatten(&trees));
    for (writes, reads) in
        [((program, &theirs), (&*union_program(), &ours)), ((&union_program(), &ours), (program, &theirs))]
    {
        let mut writer = Mounted::with(writes.0, writes.1.clone());
        let mut session = Session::new(&theirs.target);
        let steps = generator.steps(OPERATIONS / 2);
        steps.iter().filter(|step| is_shared(step)).for_each(|step| drop(session.execute(step)));
        session.close_all();
        writer.remount();
        // fuse-overlayfs 1.10 cannot look at what it made without a record.
        let Ok(written) = shown(&theirs.target) else { return Ok(false) };
        writer.unmount();
        let mut reader = Mounted::with(reads.0, reads.1.clone());
        let read = shown(&theirs.target);
        reader.unmount();
        let read = read.map_err(|error| format!("{}, seed {seed}: {error}", reads.0.display()))?;
        let lines = written.diff(&read, ("written", "read"));
        if lines.is_empty() {
            continue;
        }
        let ours = if writes.0 == program { read } else { written };
        let stored = ours.diff(&by_kernel_and_records(&theirs.read_only()), ("ours", "stored"));
        if stored.is_empty() {
            return Ok(false);
        }
        let lines = [lines, stored].concat().join("\n");
        return Err(format!("{} wrote, seed {seed}:\n{lines}", writes.0.display()));
    }
    Ok(true)
}

#[test]
fn the_union_goes_on_with_the_records_of_fuse_overlayfs() {
    require!(Fuse, Union, Root, KernelOverlay, FuseOverlayfs);
    for program in programs() {
        let seeds = (0..super::histories()).map(|number| 2 * number + 1);
        let results: Vec<_> = seeds.map(|seed| take_turns(&program, seed)).collect();
        let equal = results.iter().filter(|result| **result == Ok(true)).count();
        say(&format!(
            "interop: {equal} of {} histories with records of {} taken over",
            results.len(),
            program.display()
        ));
        let faults: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        assert!(faults.is_empty(), "{} differ:\n{}", faults.len(), faults.join("\n"));
    }
}

#[test]
fn fuse_overlayfs_shows_the_owners_that_the_union_keeps_in_records() {
    require!(Fuse, Union, Root, KernelOverlay, FuseOverlayfs);
    for program in programs() {
        let results: Vec<_> =
            (0..super::histories()).map(|number| peer_reads(&program, 2 * number + 1)).collect();
        let equal = results.iter().filter(|result| **result == Ok(true)).count();
        let all = results.len();
        say(&format!(
            "interop: {equal} of {all} histories with records shown by {}, others not without records either",
            program.display()
        ));
        let faults: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        assert!(faults.is_empty(), "{} differ:\n{}", faults.len(), faults.join("\n"));
        assert!(equal > all / 2, "{} shows next to nothing", program.display());
    }
}
