//! docker with its driver `fuse-overlayfs`, which calls a program of that name, and the way containerd's snapshotter mounts.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use e2e::mounted::{Layers, scratch, union_program, unmount};
use e2e::program::{mount_type, wait_until};
use e2e::require;
use e2e::tree::LayerTree;

use crate::image::base;

/// A daemon of its own, ended on drop.
struct Daemon {
    process: Child,
    socket: String,
    root: PathBuf,
}

impl Daemon {
    fn start(scratch: &Path) -> Self {
        let programs = scratch.join("bin");
        std::fs::create_dir(&programs).unwrap();
        symlink(union_program(), programs.join("fuse-overlayfs")).unwrap();
        let path = std::env::var("PATH").unwrap();
        let socket = format!("unix://{}", scratch.join("docker.sock").display());
        let log = std::fs::File::create(scratch.join("dockerd.log")).unwrap();
        let root = scratch.join("docker");
        let process = Command::new("dockerd")
            .args(["--storage-driver=fuse-overlayfs", "--iptables=false", "--bridge=none", "-H", &socket])
            .arg(format!("--data-root={}", root.display()))
            .arg(format!("--exec-root={}", scratch.join("exec").display()))
            .arg(format!("--pidfile={}", scratch.join("docker.pid").display()))
            .env("PATH", format!("{}:{path}", programs.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let daemon = Self { process, socket, root };
        let up = wait_until(|| daemon.command(&["info"]).status.success());
        assert!(up, "dockerd: {}", std::fs::read_to_string(scratch.join("dockerd.log")).unwrap_or_default());
        daemon
    }

    fn command(&self, arguments: &[&str]) -> std::process::Output {
        Command::new("timeout")
            .args(["300", "docker", "-H", &self.socket])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn docker(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap_or_default();
        assert!(output.status.success(), "docker {arguments:?}: {}\n{stderr}", output.status);
        String::from_utf8(output.stdout).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = i32::try_from(self.process.id()).ok().and_then(rustix::process::Pid::from_raw);
        let ended = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM));
        if let Some(Ok(())) = ended {
            drop(self.process.wait());
        }
        // The daemon leaves a mount of its own data root behind.
        if mount_type(&self.root).is_some() {
            unmount(&self.root);
        }
    }
}

#[test]
#[ignore = "minutes, needs docker: cargo xtask engines"]
fn docker_builds_runs_and_commits() {
    require!(Root, Union, Docker);
    let scratch = scratch();
    let daemon = Daemon::start(scratch.path());
    assert!(daemon.docker(&["info"]).contains("Storage Driver: fuse-overlayfs"));
    daemon.docker(&["import", &base().display().to_string(), "base"]);
    let context = scratch.path().join("context");
    std::fs::create_dir(&context).unwrap();
    let steps = "FROM base\nRUN mv /usr/share/doc /srv/doc && rm /etc/motd && cp /etc/hostname.base /srv/one && ln /srv/one /srv/linked\n\
        RUN chown -R 33:33 /srv/doc && rm -rf /srv/doc/acl\n";
    std::fs::write(context.join("Dockerfile"), steps).unwrap();
    daemon.docker(&["build", "-q", "--network=none", "-t", "built", &context.display().to_string()]);
    let check = "[ ! -e /usr/share/doc ] && [ ! -e /etc/motd ] && [ ! -e /srv/doc/acl ] && stat -c %u /srv/doc/base-files && stat -c %h /srv/linked";
    let run = |flags: &[&str], image: &str, script: &str| {
        daemon.docker(&[&["run", "--network=none"], flags, &[image, "sh", "-c", script]].concat())
    };
    assert_eq!(run(&["--rm"], "built", check).trim(), "33\n2");
    run(&["--name=changed"], "built", "echo hi >/etc/hi; rm /etc/passwd");
    let shown = daemon.docker(&["diff", "changed"]);
    assert!(shown.lines().any(|line| line == "D /etc/passwd"), "{shown}");
    daemon.docker(&["commit", "changed", "committed"]);
    assert_eq!(run(&["--rm"], "committed", "cat /etc/hi; [ ! -e /etc/passwd ]").trim(), "hi");
}

/// containerd's snapshotter hands a mount of type `fuse3.NAME` to mount.fuse3, word by word, and reads both outputs to
/// their end.
#[test]
#[ignore = "needs mount.fuse3: cargo xtask engines"]
fn the_mount_of_containerds_snapshotter() {
    require!(Root, Union, Fuse);
    let scratch = scratch();
    let layers = Layers::below(scratch.path(), 2);
    LayerTree::new().file("f", "below").build(&layers.lowers[1]);
    let name = scratch.path().join("fuse-overlayfs");
    symlink(union_program(), &name).unwrap();
    let [upper, work] = [&layers.upper, &layers.work].map(|path| path.as_ref().unwrap().display());
    let lowers = layers.lowers.iter().map(|lower| lower.display().to_string()).collect::<Vec<_>>().join(":");
    let output = Command::new("mount.fuse3")
        .arg("overlay")
        .arg(&layers.target)
        .args(["-o", &format!("workdir={work}"), "-o", &format!("upperdir={upper}")])
        .args(["-o", &format!("lowerdir={lowers}"), "-o", "uidmapping=0:100000:65536", "-o"])
        .args(["gidmapping=0:100000:65536", "-t"])
        .arg(&name)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let _mount = e2e::program::Unmount(layers.target.clone());
    let seen = std::fs::metadata(layers.target.join("f")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&seen), 100_000);
    std::fs::write(layers.target.join("f"), "above").unwrap();
    assert_eq!(std::fs::read(layers.upper.as_ref().unwrap().join("f")).unwrap(), b"above");
}
