//! Starting the union program as a user or a container engine does: in the background, by its command line.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::mounted::Layers;

/// How long a condition is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` holds; returns whether it does.
pub fn wait_until(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Runs the union program with `arguments` in `directory` and waits for its exit and for the end of its output,
/// as callers that capture it do.
pub fn run<S: AsRef<OsStr>>(directory: &Path, arguments: &[S]) -> Output {
    Command::new("timeout")
        .arg("20")
        .arg(crate::mounted::union_program())
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Runs `unionfs check --repair` on layers that no mount uses; returns its exit status and what it said.
pub fn repair(layers: &Layers) -> (Option<i32>, String) {
    let options = layers.options();
    let arguments = ["check".as_ref(), "--repair".as_ref(), "-o".as_ref(), options.as_os_str()];
    let output = run(Path::new("/"), &arguments);
    let text = [output.stdout, output.stderr].concat().escape_ascii().to_string();
    (output.status.code(), text.replace("\\n", "\n"))
}

/// Returns the processes whose command line has `path` as one of its words.
pub fn servers_of(path: &Path) -> Vec<i32> {
    let wanted = path.as_os_str().as_encoded_bytes();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().into_string().ok().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.split(|byte| *byte == 0).any(|word| word == wanted) {
            found.push(pid);
        }
    }
    found
}

/// Returns whether something is mounted at `path`, and its type.
pub fn mount_type(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let wanted = path.display().to_string();
    let line = text.lines().find(|line| line.split(' ').nth(4) == Some(&wanted))?;
    line.split(" - ").nth(1)?.split(' ').next().map(str::to_owned)
}

/// Unmounts on drop whatever is mounted at a path.
#[derive(Debug)]
pub struct Unmount(pub PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        if mount_type(&self.0).is_some() {
            crate::mounted::unmount(&self.0);
        }
    }
}
