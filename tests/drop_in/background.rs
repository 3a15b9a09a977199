//! Mounting in the background: the exit status, the end of the output, the end of the server.

use std::path::PathBuf;
use std::process::Command;

use e2e::mounted::{Layers, mounted_elsewhere, scratch, unmount};
use e2e::program::{Unmount, mount_type, run, servers_of, wait_until};
use e2e::require;
use e2e::tree::LayerTree;

mod auto_unmount;
mod remount;

struct Place {
    layers: Layers,
    device: std::cell::Cell<u64>,
    scratch: tempfile::TempDir,
}

fn place(lowers: usize) -> Place {
    let scratch = scratch();
    let layers = Layers::below(scratch.path(), lowers);
    for (index, lower) in layers.lowers.iter().enumerate() {
        LayerTree::new().file(format!("f{index}"), format!("from {index}")).build(lower);
    }
    Place { layers, device: std::cell::Cell::new(0), scratch }
}

impl Place {
    fn mount(&self, arguments: &[&str]) -> (Unmount, String) {
        let options = self.layers.options().into_string().unwrap();
        let target = self.layers.target.display().to_string();
        let words: Vec<String> = arguments
            .iter()
            .map(|word| word.replace("OPTIONS", &options).replace("TARGET", &target))
            .collect();
        let output = run(self.scratch.path(), &words);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{words:?}: {}: {stderr}", output.status);
        assert!(mount_type(&self.layers.target).is_some(), "exit 0 without a mount");
        let meta = std::fs::metadata(&self.layers.target).unwrap();
        self.device.set(std::os::unix::fs::MetadataExt::dev(&meta));
        (Unmount(self.layers.target.clone()), stderr)
    }

    fn gone(&self) {
        let target = &self.layers.target;
        let ended = wait_until(|| servers_of(target).is_empty() || mounted_elsewhere(self.device.get()));
        assert!(ended, "the server did not end");
        assert_eq!(mount_type(target), None);
    }
}

#[test]
fn exit_0_means_that_the_mount_is_live_and_the_output_ends() {
    require!(Fuse, Union);
    let place = place(2);
    let started = std::time::Instant::now();
    let (mount, _) = place.mount(&["-o", "OPTIONS", "TARGET"]);
    assert!(started.elapsed().as_secs() < 10, "the output did not end with the command");
    assert_eq!(std::fs::read(place.layers.target.join("f1")).unwrap(), b"from 1");
    std::fs::write(place.layers.target.join("new"), b"x").unwrap();
    assert_eq!(std::fs::read(place.scratch.path().join("upper/new")).unwrap(), b"x");
    unmount(&place.layers.target);
    place.gone();
    drop(mount);
}

#[test]
fn what_the_caller_left_open_is_closed_by_the_daemon() {
    require!(Fuse, Union);
    let place = place(1);
    // The output has another name, which no program knows of; it ends when nobody holds that any more.
    let output = Command::new("timeout")
        .args(["20", "sh", "-c", "exec 7>&1; exec \"$@\" 9<&0", "sh"])
        .arg(e2e::mounted::union_program())
        .arg("-o")
        .arg(place.layers.options())
        .arg(&place.layers.target)
        .output()
        .unwrap();
    let mount = Unmount(place.layers.target.clone());
    assert!(output.status.success(), "{output:?}");
    // Live although the output has ended.
    assert_eq!(std::fs::read(place.layers.target.join("f0")).unwrap(), b"from 0");
    drop(mount);
}

#[test]
fn every_form_of_the_command_line_mounts() {
    require!(Fuse, Union);
    for words in [
        &["-oOPTIONS", "TARGET"][..],
        &["overlay", "TARGET", "-o", "OPTIONS"],
        &["TARGET", "-o", "OPTIONS"],
        &["-o", "noatime", "-o", "OPTIONS,nodev", "TARGET"],
        &["-o", "OPTIONS,dev,suid", "none", "TARGET"],
        &["-o", "OPTIONS", "--", "TARGET"],
        &["-o", "OPTIONS,private,fsync=0,volatile,x-test=1,context=\"a:b:c0,c1\"", "TARGET"],
    ] {
        let place = place(1);
        let (mount, _) = place.mount(words);
        assert_eq!(std::fs::read(place.layers.target.join("f0")).unwrap(), b"from 0", "{words:?}");
        drop(mount);
        place.gone();
    }
}

#[test]
fn an_unknown_word_is_named_and_ignored() {
    require!(Fuse, Union);
    let place = place(1);
    let (_mount, stderr) = place.mount(&["-o", "OPTIONS,no_such_word", "TARGET"]);
    assert!(stderr.contains("unknown argument ignored: no_such_word"), "{stderr:?}");
}

#[test]
fn a_terminating_signal_unmounts() {
    require!(Fuse, Union);
    for signal in ["TERM", "INT", "HUP"] {
        let place = place(1);
        let (_mount, _) = place.mount(&["-o", "OPTIONS", "TARGET"]);
        let servers = servers_of(&place.layers.target);
        assert_eq!(servers.len(), 1, "{servers:?}");
        let status = Command::new("kill").arg(format!("-{signal}")).arg(servers[0].to_string()).status();
        assert!(status.unwrap().success());
        assert!(wait_until(|| mount_type(&place.layers.target).is_none()), "{signal} did not unmount");
        place.gone();
    }
}

#[test]
fn relative_paths_belong_to_the_directory_of_the_start() {
    require!(Fuse, Union);
    let place = place(1);
    let (mount, _) = place.mount(&["-o", "lowerdir=upper/../lower0,upperdir=./upper,workdir=work", "merged"]);
    assert_eq!(std::fs::read(place.layers.target.join("f0")).unwrap(), b"from 0");
    std::fs::write(place.layers.target.join("new"), b"x").unwrap();
    assert!(place.scratch.path().join("upper/new").exists());
    drop(mount);
}

#[test]
fn a_colon_in_a_path_is_written_with_a_backslash() {
    require!(Fuse, Union);
    for escaped in [r"odd\:name", r"odd\\:name"] {
        let place = place(1);
        let odd: PathBuf = place.scratch.path().join("odd:name");
        LayerTree::new().file("odd", "1").build(&odd);
        let (mount, _) = place.mount(&["-o", &format!("lowerdir={escaped}:lower0"), "TARGET"]);
        assert_eq!(std::fs::read(place.layers.target.join("odd")).unwrap(), b"1", "{escaped}");
        assert_eq!(std::fs::read(place.layers.target.join("f0")).unwrap(), b"from 0");
        drop(mount);
    }
}

#[test]
fn without_an_upper_the_mount_is_read_only() {
    require!(Fuse, Union);
    let place = place(2);
    let (_mount, _) = place.mount(&["-o", "lowerdir=lower0:lower1", "TARGET"]);
    let error = std::fs::write(place.layers.target.join("f0"), b"x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    let error = std::fs::create_dir(place.layers.target.join("d")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    assert_eq!(std::fs::read(place.layers.target.join("f1")).unwrap(), b"from 1");
}

#[test]
fn the_type_of_the_mount_is_fuse_unionfs() {
    require!(Fuse, Union);
    let place = place(1);
    let (_mount, _) = place.mount(&["-o", "OPTIONS", "TARGET"]);
    let kind = mount_type(&place.layers.target).unwrap();
    assert_eq!(kind, "fuse.unionfs");
    let magic = rustix::fs::statfs(&place.layers.target).unwrap().f_type;
    assert_eq!(magic, 0x6573_5546, "container engines look for this number");
}

#[test]
fn a_lower_that_contains_the_mount_point_does_not_hang() {
    require!(Fuse, Union);
    let place = place(1);
    std::fs::create_dir(place.layers.lowers[0].join("m")).unwrap();
    let target = place.layers.lowers[0].join("m");
    let text = target.display().to_string();
    let output = run(place.scratch.path(), &["-o", "lowerdir=lower0,upperdir=upper,workdir=work", &text]);
    let _unmount = Unmount(target.clone());
    assert_ne!(output.status.code(), Some(124), "the command hangs");
    if output.status.success() {
        let listed = Command::new("timeout").args(["10", "ls", "-lR", &text]).output().unwrap();
        assert!(listed.status.success(), "{listed:?}");
    } else {
        assert!(!output.stderr.is_empty());
    }
}
