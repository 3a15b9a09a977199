//! The container programs whose start is timed, on one small root file system.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{During, Failure, Result};
use crate::process;
use crate::sandbox;

/// One way to start a container that runs `true` and ends.
#[derive(Debug)]
pub struct Starter {
    /// Name in tables.
    pub name: &'static str,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Where it is started.
    pub directory: PathBuf,
}

/// All of them, with a root file system and a bundle made below `scratch`. What cannot be prepared is named.
pub fn starters(scratch: &Path) -> Result<Vec<Starter>> {
    let rootfs = scratch.join("rootfs");
    small_rootfs(&rootfs)?;
    let root = rootfs.clone().into_os_string();
    let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let new = |name, program: &str, arguments| Starter {
        name,
        program: program.into(),
        arguments,
        directory: scratch.to_path_buf(),
    };
    let mut all = vec![
        new("native", "/bin/true", Vec::new()),
        new("chroot", "chroot", vec![root.clone(), "/bin/true".into()]),
        new(
            "bwrap",
            "bwrap",
            [words(&["--unshare-all", "--bind"]), vec![root.clone()], words(&["/", "/bin/true"])].concat(),
        ),
    ];
    let bundle = scratch.join("bundle");
    match make_bundle(&bundle, &rootfs) {
        Ok(()) => {
            for name in ["runc", "crun"] {
                let id = format!("perf-{}", std::process::id());
                let arguments = vec!["run".into(), "--bundle".into(), bundle.clone().into(), id.into()];
                all.push(new(name, name, arguments));
            }
        }
        Err(e) => println!("not measured: runc, crun: {e}"),
    }
    match sandbox::sibling("perf-runner") {
        Ok(runner) => {
            for (name, root) in [("runner", root), ("runner_host_root", "/".into())] {
                let arguments =
                    [words(&["run", "--rm", "--rootfs"]), vec![root], words(&["--", "/bin/true"])].concat();
                let directory = scratch.to_path_buf();
                all.push(Starter { name, program: runner.clone(), arguments, directory });
            }
        }
        Err(e) => println!("not measured: runner: {e}"),
    }
    Ok(all)
}

/// A static busybox is all it has.
fn small_rootfs(rootfs: &Path) -> Result<()> {
    for dir in ["bin", "dev", "etc", "proc", "sys", "tmp", "usr", "var"] {
        std::fs::create_dir_all(rootfs.join(dir)).during("make a small root file system")?;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().map(Path::new).find(|p| p.exists());
    let busybox = busybox.ok_or_else(|| Failure::new("no busybox: install busybox-static"))?;
    std::fs::copy(busybox, rootfs.join("bin/busybox")).during("copy busybox")?;
    for name in ["true", "sh"] {
        let link = rootfs.join("bin").join(name);
        if !link.exists() {
            std::os::unix::fs::symlink("busybox", &link).during("link a busybox command")?;
        }
    }
    Ok(())
}

/// An OCI bundle, as `runc spec` writes it, without a terminal and with `true` as its process.
fn make_bundle(bundle: &Path, rootfs: &Path) -> Result<()> {
    std::fs::create_dir_all(bundle).during("make a bundle")?;
    let config = bundle.join("config.json");
    if !config.exists() {
        let mut spec = Command::new("runc");
        spec.arg("spec").current_dir(bundle);
        process::check(spec)?;
    }
    let text = std::fs::read(&config).during("read config.json")?;
    let mut value: serde_json::Value = serde_json::from_slice(&text).during("understand config.json")?;
    value["process"]["terminal"] = false.into();
    value["process"]["args"] = serde_json::json!(["/bin/true"]);
    value["root"]["path"] = rootfs.display().to_string().into();
    std::fs::write(&config, value.to_string()).during("write config.json")
}
