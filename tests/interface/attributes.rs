//! Attributes: statx, ACLs, extended attributes, flags of inodes.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use e2e::mounted::{over_fuser, scratch};
use e2e::require;
use e2e::require::skip;
use e2e::sys::{extended_flags, generation, set_extended_flags};
use e2e::tree::{Kind, LayerTree};
use rustix::fs::{AtFlags, CWD, IFlags, StatxFlags, XattrFlags};
use rustix::io::Errno;

use crate::{Seen, same, union};

#[test]
fn birth_times_are_shown_and_stay() {
    require!(Fuse, Union);
    if over_fuser() {
        return skip("interface::attributes", "the fuser crate knows no times of birth");
    }
    if e2e::require::kernel() < (6, 6) {
        return skip(
            "interface::attributes",
            "before Linux 6.6 the kernel asks no FUSE server for times of birth",
        );
    }
    let scratch = scratch();
    let mut mounted = union(scratch.path(), &[LayerTree::new().file("f", "1").dir("d")], "");
    let birth = |path: &Path| {
        let stat = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BTIME).unwrap();
        let shown = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
        shown.then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec))
    };
    let lower = mounted.layers().lowers[0].clone();
    for name in ["f", "d"] {
        assert_eq!(birth(&mounted.root().join(name)), birth(&lower.join(name)), "{name}");
    }
    fs::write(mounted.root().join("new"), "2").unwrap();
    let upper = mounted.layers().upper.clone().unwrap();
    let made = birth(&mounted.root().join("new"));
    assert_eq!(made, birth(&upper.join("new")));
    mounted.remount();
    assert_eq!(birth(&mounted.root().join("new")), made);
}

fn acl(path: &Path) -> String {
    let output = Command::new("getfacl").args(["-cpn", "--"]).arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn default_acls_are_inherited_by_what_is_made() {
    require!(Fuse, Union);
    let lowers = [LayerTree::new().file("d/low", "1").dir("d/sub").dir("plain").mode("plain", 0o2775)];
    same(&lowers, |root, seen| {
        for dir in ["d", "plain", "made"] {
            let path = root.join(dir);
            fs::create_dir_all(&path).unwrap();
            let set = ["-m", "d:u:65534:rwx,d:g::r-x,d:o::-,u:65534:r", "--"];
            let done = Command::new("setfacl").args(set).arg(&path).status().unwrap();
            seen.note("set", done.success());
            fs::write(path.join("file"), "").unwrap();
            fs::create_dir(path.join("dir")).unwrap();
            let made =
                rustix::fs::mknodat(CWD, path.join("fifo"), rustix::fs::FileType::Fifo, 0o666.into(), 0);
            seen.note("fifo", made);
            std::os::unix::fs::symlink("file", path.join("link")).unwrap();
            for name in ["", "file", "dir", "fifo"] {
                seen.note(
                    name,
                    (acl(&path.join(name)), fs::metadata(path.join(name)).unwrap().permissions()),
                );
            }
            let chmod = std::os::unix::fs::PermissionsExt::from_mode(0o604);
            fs::set_permissions(path.join("file"), chmod).unwrap();
            seen.note("after chmod", acl(&path.join("file")));
        }
        seen.note("an old one has none", acl(&root.join("d/low")));
        let gone = Command::new("setfacl").args(["-k", "-b", "--"]).arg(root.join("d")).status().unwrap();
        seen.note("removed", (gone.success(), acl(&root.join("d"))));
    });
}

fn names_of(path: &Path) -> Vec<String> {
    let mut buffer = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut buffer[..]).unwrap();
    let names = buffer[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut names: Vec<String> = names.map(|name| name.escape_ascii().to_string()).collect();
    // A label of the host's security module is nobody's of these.
    names.retain(|name| name != "security.selinux");
    names.sort();
    names
}

#[test]
fn extended_attributes_of_every_namespace_are_set_listed_and_removed() {
    require!(Fuse, Union);
    let tree = LayerTree::new().file("f", "1").xattr("f", "user.low", "x").dir("d").symlink("s", "f");
    let lowers = [tree.with("fifo", Kind::Fifo, 0o644)];
    same(&lowers, |root, seen| {
        for path in ["f", "d", "s", "fifo"].map(|name| root.join(name)) {
            for name in [
                "user.a",
                "trusted.a",
                "security.a",
                "user.overlay.opaque",
                "user.overlay.x",
                "odd.a",
                "user.",
            ] {
                let set = |value: &[u8], flags| rustix::fs::lsetxattr(&path, name, value, flags);
                seen.note(name, set(b"", XattrFlags::empty()));
                seen.note(name, set(b"value", XattrFlags::CREATE));
                seen.note(name, set(b"value", XattrFlags::REPLACE));
                let mut value = [0; 64];
                let len = rustix::fs::lgetxattr(&path, name, &mut value[..]);
                seen.note(name, len.map(|len| value[..len].to_vec()));
                seen.note("too small", rustix::fs::lgetxattr(&path, name, &mut value[..2]));
            }
            seen.note("names", names_of(&path));
            for name in ["user.a", "user.low", "trusted.a", "user.none", "security.none", "odd.none"] {
                seen.note(name, rustix::fs::lremovexattr(&path, name));
            }
            seen.note("names", names_of(&path));
        }
    });
}

#[test]
fn a_lower_without_attributes_has_none_and_its_files_can_be_opened() {
    require!(Fuse, Union, Root);
    let scratch = scratch();
    let lower = scratch.path().join("lower0");
    fs::create_dir(&lower).unwrap();
    let none = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &lower, "ramfs", none, None).unwrap();
    struct Lower(std::path::PathBuf);
    impl Drop for Lower {
        fn drop(&mut self) {
            e2e::mounted::unmount(&self.0);
        }
    }
    let _unmounted_last = Lower(lower.clone());
    let tree = LayerTree::new().file("f", "1").mode("f", 0o640).symlink("s", "f");
    let mounted = union(scratch.path(), &[tree], "");
    let f = mounted.root().join("f");
    assert_eq!(fs::read(&f).unwrap(), b"1");
    assert_eq!(names_of(&f), [""; 0]);
    let mut value = [0; 8];
    for name in ["user.x", "system.posix_acl_access", "trusted.x", "security.x"] {
        assert_eq!(rustix::fs::getxattr(&f, name, &mut value[..]), Err(Errno::NODATA), "{name}");
        assert_eq!(rustix::fs::removexattr(&f, name), Err(Errno::NODATA), "{name}");
    }
    rustix::fs::setxattr(&f, "user.x", b"1", XattrFlags::empty()).unwrap();
    assert_eq!(names_of(&f), ["user.x"]);
    assert_eq!(fs::read(&f).unwrap(), b"1");
}

/// Notes the flags that a program may set, of both interfaces.
fn note_flags(seen: &mut Seen, path: &Path) {
    let file = File::open(path).unwrap();
    let settable = IFlags::NODUMP | IFlags::NOATIME | IFlags::SYNC | IFlags::IMMUTABLE | IFlags::APPEND;
    seen.note("flags", rustix::fs::ioctl_getflags(&file).map(|flags| flags & settable));
    seen.note("extended", extended_flags(&file));
}

#[test]
fn flags_of_inodes_are_shown_and_set() {
    require!(Fuse, Union);
    let lowers = [LayerTree::new().file("f", "1").file("g", "2").dir("d")];
    same(&lowers, |root, seen| {
        fs::write(root.join("new"), "").unwrap();
        for name in ["f", "g", "d", "new"] {
            let path = root.join(name);
            note_flags(seen, &path);
            let file = File::open(&path).unwrap();
            match rustix::fs::ioctl_getflags(&file) {
                Ok(flags) if name != "g" => {
                    let set = flags | IFlags::NODUMP | IFlags::NOATIME;
                    seen.note("set", rustix::fs::ioctl_setflags(&file, set));
                }
                Ok(_) => seen.note("set", set_extended_flags(&file, 0x80)),
                Err(errno) => seen.note("no flags here", errno),
            }
            note_flags(seen, &path);
            seen.note("contents", fs::read(&path).is_ok());
        }
        let pipe = rustix::fs::ioctl_getflags(File::open("/dev/null").unwrap());
        seen.note("a device", pipe.is_err());
    });
}

#[test]
fn flags_that_bind_are_refused() {
    require!(Fuse, Union);
    let scratch = scratch();
    let mounted = union(scratch.path(), &[LayerTree::new().file("f", "1")], "");
    let file = File::open(mounted.root().join("f")).unwrap();
    let Ok(flags) = rustix::fs::ioctl_getflags(&file) else { return };
    for bind in [IFlags::IMMUTABLE, IFlags::APPEND] {
        let done = rustix::fs::ioctl_setflags(&file, flags | bind);
        let expected = if e2e::user::is_real_root() { Errno::OPNOTSUPP } else { Errno::PERM };
        assert_eq!(done, Err(expected), "{bind:?}");
    }
    assert!(!mounted.layers().upper.as_ref().unwrap().join("f").exists(), "nothing was copied up for it");
    fs::write(mounted.root().join("f"), "2").unwrap();
}

#[test]
fn the_generation_of_an_inode_is_that_of_the_object_that_serves_it() {
    require!(Fuse, Union);
    let scratch = scratch();
    let mounted = union(scratch.path(), &[LayerTree::new().file("f", "1")], "");
    let of = |path: &Path| generation(File::open(path).unwrap());
    assert_eq!(of(&mounted.root().join("f")), of(&mounted.layers().lowers[0].join("f")));
    fs::write(mounted.root().join("f"), "2").unwrap();
    assert_eq!(of(&mounted.root().join("f")), of(&mounted.layers().upper.as_ref().unwrap().join("f")));
}
