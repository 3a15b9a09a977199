//! What survives: marks of files that are not on the disk yet, syncing by option, volatile workdirs.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use e2e::mounted::{Layers, Mounted};
use e2e::oracle::KernelOverlay;
use e2e::require;
use e2e::tree::LayerTree;

use crate::{Fixture, mark};

/// Appends to a file, which copies it up.
fn append(path: impl AsRef<std::path::Path>, text: &[u8]) -> fs::File {
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(text).unwrap();
    file
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
    let mut union = Fixture::new(&[LayerTree::new().file("f", vec![b'o'; 50_000])], "");
    fs::set_permissions(union.at("f"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    union.mounted.unmount();
    let upper = union.upper("f");
    let space = if mark(&upper, "metacopy").is_some() && rustix::process::geteuid().is_root() {
        "trusted"
    } else {
        "user"
    };
    let name = format!("{space}.overlay.unfinished");
    // As after a power cut: some data, another size, and a mark of another boot.
    fs::write(&upper, vec![0; 70_000]).unwrap();
    rustix::fs::setxattr(
        &upper,
        name.as_str(),
        &[[1, 1].as_slice(), &[9; 32]].concat(),
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    union.mounted.mount();
    assert_eq!(fs::read(union.at("f")).unwrap(), vec![b'o'; 50_000]);
    assert_eq!(mark(&upper, "unfinished"), None);
    assert!(mark(&upper, "metacopy").is_some());
    assert_eq!(fs::metadata(&upper).unwrap().len(), 50_000);
    drop(append(union.at("f"), b"n"));
    union.mounted.remount();
    assert_eq!(fs::read(union.at("f")).unwrap(), [vec![b'o'; 50_000].as_slice(), b"n"].concat());
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
