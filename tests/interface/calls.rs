//! Calls on names and open files: unnamed files, renameat2, running programs, positions in directories.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use e2e::mounted::over_fuser;
use e2e::require;
use e2e::require::skip;
use e2e::tree::LayerTree;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, RenameFlags, SeekFrom};
use rustix::io::Errno;

use crate::{OWN_TRANSPORT, Seen, same, same_over};

#[test]
fn an_open_directory_without_a_name_can_be_changed() {
    require!(Fuse, Union);
    same(&[LayerTree::new().dir("d").mode("d", 0o755)], |root, seen| {
        let dir = fs::File::open(root.join("d")).unwrap();
        fs::remove_dir(root.join("d")).unwrap();
        seen.note(
            "mode",
            dir.set_permissions(fs::Permissions::from_mode(0o700)).map_err(|e| e.raw_os_error()),
        );
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        seen.note("time", dir.set_modified(time).map_err(|e| e.raw_os_error()));
        let stat = dir.metadata().unwrap();
        seen.note("stat", (stat.mode(), stat.modified().unwrap(), stat.nlink()));
        seen.note("there", root.join("d").exists());
    });
}

#[test]
fn unnamed_files_are_made_and_named() {
    require!(Fuse, Union);
    if over_fuser() {
        return skip("interface::calls", "the fuser crate knows no O_TMPFILE");
    }
    let lowers = [LayerTree::new().dir("d").mode("d", 0o2775).file("d/there", "1")];
    same_over(&OWN_TRANSPORT, &lowers, |root, seen| {
        let flags = OFlags::TMPFILE | OFlags::RDWR;
        let make = |flags| rustix::fs::open(root.join("d"), flags, Mode::from(0o640));
        let name = |fd: &std::os::fd::OwnedFd, to: &str| {
            let magic = format!("/proc/self/fd/{}", fd.as_raw_fd());
            rustix::fs::linkat(CWD, magic, CWD, root.join(to), AtFlags::SYMLINK_FOLLOW)
        };
        let file = make(flags).unwrap();
        rustix::io::write(&file, b"unnamed").unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        seen.note("unnamed", (stat.st_nlink, stat.st_mode, stat.st_size));
        seen.note("over a name", name(&file, "d/there"));
        seen.note("named", name(&file, "d/new"));
        seen.note("named again", name(&file, "second"));
        seen.note("links", rustix::fs::fstat(&file).unwrap().st_nlink);
        seen.note("contents", fs::read(root.join("second")).unwrap());
        let exclusive = make(flags | OFlags::EXCL).unwrap();
        seen.note("exclusive", name(&exclusive, "third"));
        seen.note("read-only", make(OFlags::TMPFILE | OFlags::RDONLY).err());
        seen.note("in a file", rustix::fs::open(root.join("second"), flags, Mode::from(0o640)).err());
    });
}

#[test]
fn renames_replace_exchange_or_refuse() {
    require!(Fuse, Union);
    let lowers = [
        LayerTree::new().file("top", "t").dir("d").file("d/x", "1"),
        LayerTree::new().file("a", "aa").file("b", "bb").file("d/y", "2").symlink("s", "a"),
    ];
    same(&lowers, |root, seen| {
        let go = |from: &str, to: &str, flags| {
            rustix::fs::renameat_with(CWD, root.join(from), CWD, root.join(to), flags)
        };
        seen.note("noreplace over", go("a", "b", RenameFlags::NOREPLACE));
        seen.note("noreplace", go("a", "c", RenameFlags::NOREPLACE));
        seen.note("exchange files", go("b", "c", RenameFlags::EXCHANGE));
        seen.note("exchange with a directory", go("d", "s", RenameFlags::EXCHANGE));
        seen.note("exchange with nothing", go("top", "none", RenameFlags::EXCHANGE));
        seen.note("both", go("top", "b", RenameFlags::EXCHANGE | RenameFlags::NOREPLACE));
        seen.note("into itself", go("s", "s/y", RenameFlags::empty()));
        seen.note("b", fs::read(root.join("b")));
        seen.note("c", fs::read(root.join("c")));
        seen.note("s/y", fs::read(root.join("s/y")));
        seen.note("d", fs::read_link(root.join("d")));
    });
}

#[test]
fn a_running_program_is_busy() {
    require!(Fuse, Union);
    let program = fs::read("/bin/sleep").unwrap();
    let lowers = [LayerTree::new().file("sleep", program).mode("sleep", 0o755)];
    same(&lowers, |root, seen| {
        let errno = |path: &Path| OpenOptions::new().write(true).open(path).err().map(|e| e.raw_os_error());
        for round in ["first", "copied up"] {
            let path = root.join("sleep");
            let mut child = Command::new(&path).arg("60").stdin(Stdio::null()).spawn().unwrap();
            seen.note(round, errno(&path));
            seen.note("truncate", File::options().write(true).truncate(true).open(&path).err().is_some());
            child.kill().unwrap();
            child.wait().unwrap();
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        }
        let writer = OpenOptions::new().write(true).open(root.join("sleep")).unwrap();
        let run = Command::new(root.join("sleep")).arg("0").status();
        seen.note("open for writing", run.err().map(|error| error.raw_os_error()));
        drop(writer);
    });
}

/// Reads a directory from `from` on; `limit` names at most. Returns them and the position after each.
fn read_names(directory: &File, from: u64, limit: usize) -> Vec<(String, u64)> {
    rustix::fs::seek(directory, SeekFrom::Start(from)).unwrap();
    let mut buffer = Vec::with_capacity(512);
    let mut names = Vec::new();
    let mut entries = RawDir::new(directory.as_fd(), buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_str().unwrap().to_owned();
        names.push((name, entry.next_entry_cookie()));
        if names.len() == limit {
            break;
        }
    }
    names
}

#[test]
fn positions_in_a_directory_stay_while_it_changes() {
    require!(Fuse, Union);
    let tree = (0..300).fold(LayerTree::new(), |tree, n| tree.file(format!("d/low-{n:03}"), ""));
    same(&[tree, LayerTree::new().file("d/below", "")], |root, seen| {
        let directory = File::open(root.join("d")).unwrap();
        let first = read_names(&directory, 0, 100);
        let place = first.last().unwrap().1;
        let known: BTreeSet<&String> = first.iter().map(|(name, _)| name).collect();
        // Names that were read go, names that were not stay, others come.
        for name in known.iter().filter(|name| name.starts_with("low-")) {
            fs::remove_file(root.join("d").join(name)).unwrap();
        }
        for n in 0..50 {
            fs::write(root.join(format!("d/new-{n}")), "").unwrap();
        }
        let rest = read_names(&directory, place, usize::MAX);
        let mut all: Vec<&String> = first.iter().chain(&rest).map(|(name, _)| name).collect();
        let total = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), total, "no name twice");
        all.retain(|name| !name.starts_with("new-"));
        seen.note("all old names once", all);
        // From the beginning again: the directory as it is now.
        let mut again: Vec<String> =
            read_names(&directory, 0, usize::MAX).into_iter().map(|(name, _)| name).collect();
        again.sort();
        let count = |prefix: &str| again.iter().filter(|name| name.starts_with(prefix)).count();
        let removed = known.iter().filter(|name| name.starts_with("low-")).count();
        seen.note("rewound", (count("new-"), count("low-") + removed, count("below"), count(".")));
        // Going back to a place of the new listing gives the same names once more.
        let listed = read_names(&directory, 0, usize::MAX);
        let half = &listed[listed.len() / 2 - 1];
        // Also when the kernel drops the names that it keeps, as it does when memory is short.
        rustix::fs::fadvise(&directory, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        assert_eq!(read_names(&directory, half.1, usize::MAX), listed[listed.len() / 2..]);
    });
}

#[test]
fn a_position_that_nobody_was_given_is_not_the_end() {
    require!(Fuse, Union);
    let scratch = e2e::mounted::scratch();
    let tree = (0..300).fold(LayerTree::new(), |tree, n| tree.file(format!("d/f{n}"), ""));
    let mounted = crate::union(scratch.path(), &[tree], "");
    for _ in 0..2 {
        let directory = File::open(mounted.root().join("d")).unwrap();
        let listed = read_names(&directory, 0, usize::MAX);
        let last = listed[listed.len() - 2].1;
        for part in 0..100 {
            rustix::fs::seek(&directory, SeekFrom::Start(last / 100 * part + 7)).unwrap();
            let mut buffer = Vec::with_capacity(512);
            let mut entries = RawDir::new(directory.as_fd(), buffer.spare_capacity_mut());
            // Some name, or an error; the end would hide the names that follow.
            let refused = entries.next().expect("the end").err();
            assert!(matches!(refused, None | Some(rustix::io::Errno::INVAL)), "{refused:?}");
        }
        fs::write(mounted.root().join("d/more"), "").unwrap();
    }
}

#[test]
fn totals_are_those_of_the_upper_and_no_quota_hides_them() {
    require!(Fuse, Union);
    let scratch = e2e::mounted::scratch();
    let mounted = crate::union(scratch.path(), &[LayerTree::new().file("f", "1")], "");
    let shown = rustix::fs::statvfs(mounted.root().join("f")).unwrap();
    let upper = rustix::fs::statvfs(mounted.layers().upper.as_ref().unwrap()).unwrap();
    assert_eq!(
        (shown.f_blocks, shown.f_frsize, shown.f_bsize),
        (upper.f_blocks, upper.f_frsize, upper.f_bsize)
    );
    assert_eq!((shown.f_files, shown.f_namemax), (upper.f_files, upper.f_namemax));
}

#[test]
fn sync_calls_succeed_on_every_kind_of_descriptor() {
    require!(Fuse, Union);
    same(&[LayerTree::new().file("d/f", "1")], |root, seen| {
        let sync = |seen: &mut Seen, path: &Path| {
            let file = File::open(path).unwrap();
            seen.note("fsync", rustix::fs::fsync(&file));
            seen.note("fdatasync", rustix::fs::fdatasync(&file));
            seen.note("syncfs", rustix::fs::syncfs(&file));
        };
        for name in ["d", "d/f"] {
            sync(seen, &root.join(name));
        }
        fs::write(root.join("d/f"), "changed").unwrap();
        sync(seen, &root.join("d/f"));
        sync(seen, &root.join("d"));
    });
}

#[test]
fn no_clone_of_a_whole_file_is_made_but_a_copy_is() {
    require!(Fuse, Union);
    let scratch = e2e::mounted::scratch();
    let mounted = crate::union(scratch.path(), &[LayerTree::new().file("f", "12345")], "");
    let (from, to) =
        (File::open(mounted.root().join("f")).unwrap(), File::create(mounted.root().join("g")).unwrap());
    assert_eq!(rustix::fs::ioctl_ficlone(&to, &from), Err(Errno::OPNOTSUPP));
    assert_eq!(rustix::fs::copy_file_range(&from, None, &to, None, 5), Ok(5));
    assert_eq!(to.metadata().unwrap().size(), 5);
}
