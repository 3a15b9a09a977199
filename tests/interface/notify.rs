//! inotify and fanotify hear of what happens in the mount.

use std::fs::{self, File};
use std::path::Path;

use e2e::require;
use e2e::sys::Fanotify;
use e2e::tree::LayerTree;
use rustix::fs::inotify;

use crate::same;

fn lowers() -> [LayerTree; 1] {
    [LayerTree::new().file("d/f", "1").file("d/g", "2").dir("e")]
}

/// Makes a change of each kind below `d`.
fn change(root: &Path) {
    let d = root.join("d");
    assert_eq!(fs::read(d.join("f")).unwrap(), b"1");
    fs::write(d.join("f"), "changed").unwrap();
    fs::set_permissions(d.join("g"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::rename(d.join("g"), d.join("h")).unwrap();
    fs::rename(d.join("h"), root.join("e/h")).unwrap();
    fs::hard_link(d.join("f"), d.join("i")).unwrap();
    fs::create_dir(d.join("sub")).unwrap();
    fs::remove_dir(d.join("sub")).unwrap();
    fs::remove_file(d.join("f")).unwrap();
}

#[test]
fn inotify_hears_of_every_change() {
    require!(Fuse, Union);
    same(&lowers(), |root, seen| {
        let queue = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&queue, root.join("d"), inotify::WatchFlags::ALL_EVENTS).unwrap();
        change(root);
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&queue, &mut buffer);
        while let Ok(event) = events.next() {
            seen.note("event", (event.events(), event.file_name().map(|name| name.to_owned())));
        }
        assert!(seen.0.len() > 12, "{seen:?}");
        // A process that another test starts just then holds files open for a moment: closing is told later.
        seen.0.sort();
    });
}

#[test]
fn fanotify_hears_of_opens_and_changes() {
    require!(Fuse, Union, Root);
    same(&lowers(), |root, seen| {
        let mask = libc::FAN_OPEN | libc::FAN_ACCESS | libc::FAN_MODIFY | libc::FAN_CLOSE_WRITE;
        let group = Fanotify::on(File::open(root.join("d")).unwrap(), mask).unwrap();
        change(root);
        let events = group.events();
        assert!(!events.is_empty());
        seen.note("events", events.iter().fold(0, |all, event| all | event));
    });
}
