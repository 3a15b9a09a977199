//! What survives: marks of files that are not on the disk yet, syncing by option, volatile workdirs.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::oracle::KernelOverlay;
use e2e::program::repair;
use e2e::require;
use e2e::tree::LayerTree;

use crate::{Fixture, InMemory, errno, mark, names_in};

/// Appends to a file, which copies it up.
fn append(path: impl AsRef<std::path::Path>, text: &[u8]) -> fs::File {
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(text).unwrap();
    file
}

/// How an unfinished file is marked.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// By a note in the mark `metacopy`.
    Note,
    /// By a mark beside that.
    Beside,
}

const FORMS: [Form; 2] = [Form::Note, Form::Beside];

/// Marks a metacopy as one that a server of another boot left unfinished.
fn leave_unfinished(file: &Path, form: Form) {
    let space = if rustix::process::geteuid().is_root() { "trusted" } else { "user" };
    let value = [[1, 1].as_slice(), &[9; 32]].concat();
    let (mark, value) = match form {
        Form::Note => ("metacopy", [&[0, 38, 0, 0], value.as_slice()].concat()),
        Form::Beside => ("unfinished", value),
    };
    let name = format!("{space}.overlay.{mark}");
    rustix::fs::setxattr(file, name.as_str(), &value, rustix::fs::XattrFlags::empty()).unwrap();
}

/// Returns whether a file has the mark of a metacopy and says nothing more.
fn is_metacopy_alone(file: &Path) -> bool {
    mark(file, "metacopy").is_some_and(|value| value.is_empty()) && mark(file, "unfinished").is_none()
}

#[test]
fn a_volatile_mount_that_did_not_end_cleanly_is_not_mounted_again() {
    require!(Fuse, Union);
    let mut union = Fixture::new(&[LayerTree::new()], ",volatile");
    let mark = union.mounted.layers().work.clone().unwrap().join("work/incompat/volatile/dirty");
    fs::write(union.at("f"), "1").unwrap();
    assert!(mark.exists());
    union.mounted.unmount();
    assert!(!mark.exists());
    union.mounted.mount();
    assert_eq!(fs::read(union.at("f")).unwrap(), b"1");
    union.mounted.kill_server();
    union.mounted.clear();
    let refused = union.mounted.try_mount().unwrap_err();
    assert!(refused.contains("\"volatile\": Invalid argument") && refused.contains("hint: "), "{refused}");
    assert!(mark.exists(), "the workdir was swept");
    fs::remove_dir_all(mark.parent().unwrap().parent().unwrap()).unwrap();
    union.mounted.mount();
    assert_eq!(fs::read(union.at("f")).unwrap(), b"1");
}

#[test]
fn kernel_overlayfs_and_the_union_refuse_each_others_volatile_workdirs() {
    require!(Fuse, Union, Root, KernelOverlay);
    let mut union = Fixture::new(&[LayerTree::new()], ",volatile");
    union.mounted.kill_server();
    union.mounted.clear();
    let layers = union.mounted.layers().clone();
    let plain = Layers { extra: String::new(), ..layers.clone() }.options();
    let text = std::ffi::CString::new(plain.as_bytes()).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    let refused = rustix::mount::mount("overlay", &layers.target, "overlay", flags, text.as_c_str());
    assert_eq!(refused, Err(rustix::io::Errno::INVAL));
    let work = layers.work.clone().unwrap();
    fs::remove_dir_all(work.join("work")).unwrap();
    drop(KernelOverlay::new(Layers { extra: ",volatile".to_owned(), ..layers }));
    assert!(union.mounted.try_mount().unwrap_err().contains("volatile"));
    fs::remove_dir_all(work.join("work")).unwrap();
    union.mounted.mount();
}

#[test]
fn a_copied_up_file_is_a_metacopy_to_others_until_it_is_finished() {
    require!(Fuse, Union);
    let content = vec![b'x'; 100_000];
    let tree =
        || LayerTree::new().file("f", content.clone()).file("g", content.clone()).file("h", content.clone());
    for option in ["", ",copyup=range:4096"] {
        let mut union = Fixture::new(&[tree()], option);
        for name in ["f", "g", "h"] {
            let file = append(union.at(name), b"y");
            match name {
                // Whoever wants it safe has it finished.
                "f" => file.sync_all().unwrap(),
                "g" => fs::rename(union.at("g"), union.at("moved")).unwrap(),
                _ => {}
            }
        }
        for name in ["f", "moved"] {
            assert_eq!(
                (mark(&union.upper(name), "metacopy"), mark(&union.upper(name), "unfinished")),
                (None, None),
                "{name}"
            );
            assert_eq!(fs::read(union.upper(name)).unwrap().len(), content.len() + 1);
        }
        union.mounted.unmount();
        assert_eq!(
            (mark(&union.upper("h"), "metacopy"), mark(&union.upper("h"), "unfinished")),
            (None, None)
        );
        assert_eq!(fs::read(union.upper("h")).unwrap(), [content.as_slice(), b"y"].concat());
        let work = union.mounted.layers().work.clone().unwrap();
        assert!(!work.join("unfinished").exists());
    }
}

#[test]
fn a_file_that_was_left_unfinished_is_the_old_one_and_its_mark_goes() {
    require!(Fuse, Union);
    for form in FORMS {
        let mut union = Fixture::new(&[LayerTree::new().file("f", vec![b'o'; 50_000])], "");
        fs::set_permissions(union.at("f"), PermissionsExt::from_mode(0o600)).unwrap();
        union.mounted.unmount();
        let upper = union.upper("f");
        // As after a power cut: some data and another size.
        fs::write(&upper, vec![0; 70_000]).unwrap();
        leave_unfinished(&upper, form);
        union.mounted.mount();
        assert_eq!(fs::read(union.at("f")).unwrap(), vec![b'o'; 50_000], "{form:?}");
        assert!(is_metacopy_alone(&upper), "{form:?}");
        assert_eq!(fs::metadata(&upper).unwrap().len(), 50_000, "{form:?}");
        drop(append(union.at("f"), b"n"));
        union.mounted.remount();
        assert_eq!(fs::read(union.at("f")).unwrap(), [vec![b'o'; 50_000].as_slice(), b"n"].concat());
    }
}

#[test]
fn kernel_overlayfs_sees_the_old_file_in_one_that_was_left_unfinished() {
    require!(Fuse, Union, Root, KernelOverlay);
    for form in FORMS {
        let mut union = Fixture::new(&[LayerTree::new().file("f", "old")], "");
        fs::set_permissions(union.at("f"), PermissionsExt::from_mode(0o600)).unwrap();
        union.mounted.unmount();
        let upper = union.upper("f");
        fs::write(&upper, "new").unwrap();
        leave_unfinished(&upper, form);
        let extra = ",redirect_dir=on,index=on,metacopy=on".to_owned();
        let kernel = KernelOverlay::new(Layers { extra, ..union.mounted.layers().clone() });
        assert_eq!(fs::read(kernel.root().join("f")).unwrap(), b"old", "{form:?}");
        drop(append(kernel.root().join("f"), b"er"));
        drop(kernel);
        assert_eq!(mark(&upper, "metacopy"), None, "{form:?}");
        union.mounted.mount();
        assert_eq!(fs::read(union.at("f")).unwrap(), b"older", "{form:?}");
    }
}

/// A server that is killed while it throws data away leaves it empty, for the moment.
#[test]
fn a_file_that_was_left_unfinished_and_empty_is_the_old_one_to_everybody() {
    require!(Fuse, Union);
    FORMS.into_iter().for_each(left_empty);
}

fn left_empty(form: Form) {
    let old = vec![b'o'; 50_000];
    let mut union = Fixture::new(&[LayerTree::new().file("f", old.clone())], "");
    fs::set_permissions(union.at("f"), PermissionsExt::from_mode(0o600)).unwrap();
    union.mounted.unmount();
    let upper = union.upper("f");
    fs::write(&upper, "").unwrap();
    leave_unfinished(&upper, form);
    let layers = union.mounted.layers().clone();
    let lowers = vec![layers.upper.clone().unwrap(), layers.lowers[0].clone()];
    let [target, second_upper, work] = ["second", "second-upper", "second-work"].map(|name| {
        let path = layers.target.with_file_name(name);
        fs::create_dir(&path).unwrap();
        path
    });
    let as_lower = Layers { lowers, upper: Some(second_upper), work: Some(work), target, ..layers };
    let second = Mounted::new(as_lower);
    let shown = second.root().join("f");
    assert_eq!(fs::metadata(&shown).unwrap().len(), 50_000);
    assert_eq!(fs::read(&shown).unwrap(), old);
    fs::set_permissions(&shown, PermissionsExt::from_mode(0o640)).unwrap();
    assert_eq!((fs::metadata(&shown).unwrap().len(), fs::read(&shown).unwrap()), (50_000, old.clone()));
    drop(append(&shown, b"n"));
    assert_eq!(fs::read(&shown).unwrap(), [old.as_slice(), b"n"].concat());
    assert!(!is_metacopy_alone(&upper), "a lower was written");
    let (status, text) = repair(union.mounted.layers());
    assert_eq!((status, is_metacopy_alone(&upper)), (Some(1), true), "{text}");
    assert_eq!(fs::metadata(&upper).unwrap().len(), 50_000);
    union.mounted.mount();
    assert_eq!(fs::read(union.at("f")).unwrap(), old);
}

#[test]
fn a_hard_link_that_was_left_unfinished_is_the_old_one_under_every_name() {
    require!(Fuse, Union);
    let old = vec![b'o'; 50_000];
    for (form, checked) in FORMS.into_iter().flat_map(|form| [(form, false), (form, true)]) {
        let tree = LayerTree::new().file("f", old.clone()).hardlink("g", "f").hardlink("h", "f");
        let mut union = Fixture::new(&[tree], "");
        fs::set_permissions(union.at("f"), PermissionsExt::from_mode(0o600)).unwrap();
        // Only the index has the file then.
        fs::remove_file(union.at("f")).unwrap();
        union.mounted.unmount();
        let index = union.mounted.layers().work.clone().unwrap().join("index");
        let entry = index.join(&names_in(&index)[0]);
        assert!(mark(&entry, "metacopy").is_some());
        fs::write(&entry, "").unwrap();
        leave_unfinished(&entry, form);
        if checked {
            let (status, text) = repair(union.mounted.layers());
            assert_eq!((status, is_metacopy_alone(&entry)), (Some(1), true), "{text}");
            assert_eq!(fs::metadata(&entry).unwrap().len(), 50_000);
        }
        union.mounted.mount();
        for name in ["g", "h"] {
            assert_eq!(fs::metadata(union.at(name)).unwrap().len(), 50_000, "{name}");
            assert_eq!(fs::read(union.at(name)).unwrap(), old, "{name}");
        }
        drop(append(union.at("g"), b"n"));
        union.mounted.remount();
        assert_eq!(fs::read(union.at("h")).unwrap(), [old.as_slice(), b"n"].concat());
    }
}

/// A copy-up of data for which there is no room leaves what was there before.
#[test]
fn a_metacopy_that_could_not_be_filled_is_still_the_old_one() {
    require!(Fuse, Union, Root);
    let scratch = scratch();
    let small = scratch.path().join("small");
    fs::create_dir(&small).unwrap();
    let _small = InMemory::new("tmpfs", &small, "size=1m");
    let mut layers = Layers::below(scratch.path(), 1);
    let [upper, work] = ["upper", "work"].map(|name| small.join(name));
    [&upper, &work].into_iter().for_each(|directory| fs::create_dir(directory).unwrap());
    (layers.upper, layers.work) = (Some(upper.clone()), Some(work));
    let old = e2e::random::data(1, 4 << 20);
    LayerTree::new().file("f", old.clone()).build(&layers.lowers[0]);
    let mounted = Mounted::new(layers);
    let file = mounted.root().join("f");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o4755)).unwrap();
    // Before Linux 6.6 tmpfs holds none in `user.*`.
    rustix::fs::setxattr(&file, "trusted.kept", b"value", rustix::fs::XattrFlags::empty()).unwrap();
    for attempt in 0..3 {
        let refused =
            fs::OpenOptions::new().append(true).open(&file).and_then(|mut file| file.write_all(b"n"));
        assert_eq!(errno(refused), libc::ENOSPC, "{attempt}");
        // What the server knew of the file is forgotten with it.
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        assert!(fs::read(&file).unwrap() == old, "{attempt}");
        let meta = fs::metadata(&file).unwrap();
        assert_eq!((meta.len(), meta.mode() & 0o7777), (4 << 20, 0o4755), "{attempt}");
        assert!(is_metacopy_alone(&upper.join("f")), "{attempt}");
        assert_eq!(fs::metadata(upper.join("f")).unwrap().blocks(), 0, "room is taken");
    }
}

#[test]
fn strict_leaves_nothing_unfinished() {
    require!(Fuse, Union);
    let union =
        Fixture::new(&[LayerTree::new().file("d/f", vec![b'x'; 100_000])], ",fsync=strict,copyup=range:4096");
    drop(append(union.at("d/f"), b"n"));
    assert_eq!(
        (mark(&union.upper("d/f"), "metacopy"), mark(&union.upper("d/f"), "unfinished")),
        (None, None)
    );
    assert_eq!(fs::read(union.upper("d/f")).unwrap().len(), 100_001);
}

#[test]
fn a_reader_of_the_upper_right_after_umount_waits_for_the_server() {
    require!(Fuse, Union);
    let old = e2e::random::data(1, 32 << 20);
    let new = [old.as_slice(), b"new"].concat();
    let names = ["small", "large"];
    let tree = LayerTree::new().file("small", &old[..100_000]).file("large", old.clone());
    let union = Fixture::new(&[tree], ",copyup=range:1000000");
    names.iter().for_each(|name| drop(append(union.at(name), b"new")));
    // As engines do it: the server is not waited for.
    e2e::mounted::unmount(union.mounted.root());
    let layers = union.mounted.layers();
    let target = layers.target.with_file_name("second");
    fs::create_dir(&target).unwrap();
    let lowers = vec![layers.upper.clone().unwrap(), layers.lowers[0].clone()];
    let second = Mounted::new(Layers { lowers, upper: None, work: None, target, extra: String::new() });
    assert!(fs::read(second.root().join("large")).unwrap() == new);
    assert!(fs::read(second.root().join("small")).unwrap() == [&old[..100_000], b"new"].concat());
}
