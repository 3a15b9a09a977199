//! A store of podman and buildah in a scratch directory, on the union or on plain copies.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::image::base;

/// How an engine keeps its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// Driver overlay with the union as `mount_program`.
    Union,
    /// Driver vfs: a copy of the whole tree for each layer.
    Vfs,
}

impl Driver {
    const fn name(self) -> &'static str {
        match self {
            Self::Union => "overlay",
            Self::Vfs => "vfs",
        }
    }
}

/// A store and how its engines are called.
#[derive(Debug)]
pub(crate) struct Store {
    directory: PathBuf,
    driver: Driver,
}

/// Engines without a network, cgroups or a journal: what every test host has.
const CONTAINERS: &str = "[containers]\nnetns = \"none\"\ncgroups = \"disabled\"\nlog_driver = \"k8s-file\"\n\
    default_sysctls = []\ndefault_ulimits = [\"nofile=4096:4096\", \"nproc=4096:4096\"]\n\
    [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"crun\"\n";

impl Store {
    /// Makes an empty store below `scratch`.
    pub(crate) fn new(scratch: &Path, driver: Driver) -> Self {
        // A short name: podman takes 50 characters for the path of its `run`.
        let directory = scratch.join(driver.name());
        let run = directory.join("xdg");
        std::fs::create_dir_all(&run).unwrap();
        std::fs::create_dir_all(directory.join("tmp")).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&run, private).unwrap();
        let storage = format!(
            "[storage]\ndriver = \"{0}\"\ngraphroot = \"{1}/root\"\nrunroot = \"{1}/run\"\n",
            driver.name(),
            directory.display()
        );
        std::fs::write(directory.join("storage.conf"), storage).unwrap();
        std::fs::write(directory.join("containers.conf"), CONTAINERS).unwrap();
        Self { directory, driver }
    }

    /// Makes a store on the union that holds the base image.
    pub(crate) fn with_base(scratch: &Path) -> Self {
        let store = Self::new(scratch, Driver::Union);
        store.podman(&["import", "-q", &base().display().to_string(), "localhost/base"]);
        store
    }

    /// The words that lead an engine to this store. The file of settings alone would not do: an ordinary user's engine
    /// takes another place than root's.
    fn flags(&self) -> Vec<String> {
        let at = |name: &str| self.directory.join(name).display().to_string();
        let mut flags = vec!["--root".into(), at("root"), "--runroot".into(), at("run")];
        flags.extend(["--storage-driver".into(), self.driver.name().into()]);
        if self.driver == Driver::Union {
            let program = e2e::mounted::union_program();
            flags.extend(["--storage-opt".into(), format!("overlay.mount_program={}", program.display())]);
        }
        flags
    }

    fn call(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new("timeout")
            .args(["-k", "5", "600", program])
            .args(arguments)
            .env("CONTAINERS_STORAGE_CONF", self.directory.join("storage.conf"))
            .env("CONTAINERS_CONF", self.directory.join("containers.conf"))
            .env("XDG_RUNTIME_DIR", self.directory.join("xdg"))
            .env("TMPDIR", self.directory.join("tmp"))
            .env("BUILDAH_ISOLATION", "chroot")
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap_or_default();
        assert!(
            output.status.success(),
            "{:?}: {program} {arguments:?}: {}\n{stderr}",
            self.driver,
            output.status
        );
        String::from_utf8(output.stdout).unwrap_or_default()
    }

    /// Runs podman and returns what it prints.
    pub(crate) fn podman(&self, arguments: &[&str]) -> String {
        let flags = self.flags();
        let mut words = vec!["--log-level=error"];
        words.extend(flags.iter().map(String::as_str));
        self.call("podman", &[&words, arguments].concat())
    }

    /// Runs buildah with the words of a shell line; an ordinary user's in a user namespace.
    pub(crate) fn buildah(&self, line: &str) -> String {
        let line = format!("buildah {} {line}", self.flags().join(" "));
        if rustix::process::geteuid().is_root() {
            self.call("sh", &["-c", &line])
        } else {
            self.podman(&["unshare", "sh", "-c", &line])
        }
    }

    /// Runs a shell script in a container.
    pub(crate) fn run(&self, flags: &[&str], image: &str, script: &str) -> String {
        let words = [&["run", "--network=none"], flags, &[image, "sh", "-c", script]].concat();
        self.podman(&words)
    }

    /// Returns the mount points below the store that are still there.
    pub(crate) fn mounts_left(&self) -> Vec<String> {
        let table = if rustix::process::geteuid().is_root() {
            std::fs::read_to_string("/proc/self/mountinfo").unwrap()
        } else {
            self.podman(&["unshare", "cat", "/proc/self/mountinfo"])
        };
        let below = self.directory.join("root").display().to_string();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4).map(str::to_owned));
        points.filter(|point| point.starts_with(&below) && point.ends_with("/merged")).collect()
    }

    /// Removes everything, also what belongs to other ids of an ordinary user's range.
    pub(crate) fn remove(&self) {
        self.podman(&["system", "reset", "--force"]);
    }
}
