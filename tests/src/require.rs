//! What a test needs of the host; what is missing is told, and in CI it is a failure.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::user;

/// Something that not every host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A FUSE device this process may open.
    Fuse,
    /// The rights of the initial user namespace's root.
    Root,
    /// Leave to create user namespaces.
    UserNamespace,
    /// Kernel overlayfs may be mounted (root, or a user namespace with it).
    KernelOverlay,
    /// The user `tester`, with subordinate ids.
    Tester,
    /// The union program of this workspace is built.
    Union,
    /// The external suites are installed below target/tools.
    Suites,
    /// fuse-overlayfs is installed.
    FuseOverlayfs,
    /// stress-ng is installed.
    StressNg,
    /// podman, buildah, crun and mmdebstrap are installed.
    Podman,
    /// exFAT can be made and mounted, by the kernel or by `mount.exfat-fuse`.
    Exfat,
    /// docker and its daemon are installed.
    Docker,
    /// A C compiler is installed.
    Compiler,
}

impl Need {
    /// Returns what is missing, or None.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Fuse => {
                let open = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
                open.err().map(|error| format!("/dev/fuse: {error}"))
            }
            Self::Root => (!user::is_real_root()).then(|| "needs root of the host".into()),
            Self::UserNamespace => (!quiet(&["unshare", "-Urm", "true"]))
                .then(|| "user namespaces are not allowed (unshare -Urm true fails)".into()),
            Self::KernelOverlay => {
                let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
                let known = known.contains("\toverlay") || quiet(&["modprobe", "overlay"]);
                (!(known && rustix::process::geteuid().is_root()))
                    .then(|| "kernel overlayfs is not there or may not be mounted".into())
            }
            Self::Tester => {
                let ranges = std::fs::read_to_string("/etc/subuid").unwrap_or_default();
                (!ranges.contains("tester:")).then(|| "no user `tester` with subuid ranges".into())
            }
            Self::Union => {
                let program = crate::mounted::union_program();
                (!Path::new(&program).exists()).then(|| format!("{} is not built", program.display()))
            }
            Self::Suites => {
                let there = crate::suites::NAMES.iter().all(|name| crate::suites::program(name).exists());
                (!there).then(|| "the suites are not installed: cargo xtask external-suites".into())
            }
            Self::FuseOverlayfs => not_installed(&["fuse-overlayfs"]),
            Self::Podman => not_installed(&["podman", "buildah", "crun", "mmdebstrap"]),
            Self::Docker => not_installed(&["docker", "dockerd", "mmdebstrap"]),
            Self::Exfat => crate::stick::Kind::here().is_empty().then(|| {
                "no driver for exFAT, the kernel's or mount.exfat-fuse, or no mkfs.exfat (packages exfat-fuse, exfatprogs)"
                    .into()
            }),
            Self::StressNg => not_installed(&["stress-ng"]),
            Self::Compiler => not_installed(&["cc"]),
        }
    }
}

/// Returns the first two numbers of the kernel's release.
pub fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers =
        release.split(|digit: char| !digit.is_ascii_digit()).map_while(|text| text.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

fn not_installed(programs: &[&str]) -> Option<String> {
    let missing = programs.iter().find(|program| !quiet(&[program, "--version"]))?;
    Some(format!("{missing} is not installed"))
}

fn quiet(command: &[&str]) -> bool {
    let status = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

/// Tells that `test` does not run because `need` is missing. In another role a test that needs root is not one that is left
/// out: it ran as root.
pub fn skip_lacking(need: Need, test: &str, reason: &str) {
    if need == Need::Root && user::Role::current().is_some() {
        say(&format!("SKIP {test}: {reason}"));
    } else {
        skip(test, reason);
    }
}

/// Tells that `test` does not run, past the capture of the test harness; panics under `E2E_STRICT=1`.
pub fn skip(test: &str, reason: &str) {
    let strict = std::env::var_os("E2E_STRICT").is_some_and(|value| value == "1");
    assert!(!strict, "E2E_STRICT: {test} would be skipped: {reason}");
    say(&format!("SKIP {test}: {reason}"));
}

/// Writes a line to standard error past the capture of the test harness.
pub fn say(line: &str) {
    let written = std::io::stderr().write_all(format!("{line}\n").as_bytes());
    drop(written);
}

/// Returns from the test, visibly, unless the host has each of the needs: `require!(Fuse, Union);`.
#[macro_export]
macro_rules! require {
    ($($need:ident),+ $(,)?) => {
        $(if let Some(reason) = $crate::require::Need::$need.missing() {
            let name = std::thread::current().name().unwrap_or("test").to_owned();
            let test = format!("{}::{name}", env!("CARGO_CRATE_NAME"));
            $crate::require::skip_lacking($crate::require::Need::$need, &test, &reason);
            return;
        })+
    };
}
