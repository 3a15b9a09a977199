//! The goals: for each group of workloads, the largest ratio to each peer that is acceptable.

/// One line of the goals.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// What the line is about.
    pub name: &'static str,
    /// The workloads it covers; each has to meet it.
    pub workloads: &'static [&'static str],
    /// The option of ours that it is about; empty for all.
    pub option: &'static str,
    /// At most this many times kernel overlayfs.
    pub kernel_overlay: f64,
    /// At most this many times fuse-overlayfs 2.
    pub fuse_overlayfs: f64,
}

const fn target(
    name: &'static str,
    kernel_overlay: f64,
    fuse_overlayfs: f64,
    workloads: &'static [&'static str],
) -> Target {
    Target { name, workloads, option: "", kernel_overlay, fuse_overlayfs }
}

const fn with(option: &'static str, target: Target) -> Target {
    Target { option, ..target }
}

/// The goals of the project.
pub const TARGETS: &[Target] = &[
    target("warm stat, find, ls -l, ls", 0.8, 0.9, &["stat_warm", "find_warm", "ls_l_warm", "ls_warm"]),
    target("cold stat storm, one client", 1.7, 0.4, &["stat_cold"]),
    target("cold stat storm, two clients", 1.5, 0.2, &["stat_cold_2_clients"]),
    target("cold ls -l, find, git status", 0.7, 0.5, &["ls_l_cold", "find_cold", "git_status_cold"]),
    target("warm small open, read, close", 0.9, 0.25, &["read_warm", "grep_warm", "python_import_warm"]),
    target("cold grep -r, tar out", 1.1, 0.35, &["grep_cold", "tar_out_cold"]),
    target("untar, create and unlink", 2.2, 0.3, &["untar", "create_unlink"]),
    target("rm -rf of a lower tree", 0.8, 0.1, &["rm_lower"]),
    target("chmod -R, chown -R of a lower tree, tmpfs", 0.3, 0.2, &["chmod_r", "chown_r"]),
    target("chmod -R, chown -R of a lower tree, disk", 0.3, 0.2, &["chmod_r_disk", "chown_r_disk"]),
    target("append one byte to many lower files", 0.3, 0.5, &["append_many"]),
    target("first write to a huge lower file", 0.01, 0.01, &["append_huge"]),
    target("sequential read warm, cached", 1.5, 1.0, &["seq_read_warm"]),
    target("sequential write, cached", 3.0, 0.7, &["seq_write_1m"]),
    with(
        "data=passthrough",
        target(
            "sequential read and write, passthrough (root)",
            1.1,
            1.0,
            &["seq_read_warm", "seq_read_new", "seq_write_1m"],
        ),
    ),
    target("4 KiB writes", 1.0, 0.3, &["seq_write_4k", "rand_write_4k"]),
    target("sqlite, fsync-heavy", 1.3, 0.6, &["sqlite", "fsync_4k"]),
    target(
        "git add and commit, gcc build, dpkg -i",
        1.3,
        0.5,
        &["git_add_commit", "gcc_build", "dpkg_install"],
    ),
];

/// The goal for the geometric mean of all workloads, to kernel overlayfs and to fuse-overlayfs 2.
pub const GEOMETRIC_MEAN: (f64, f64) = (1.0, 0.35);

/// The goal for the memory of a server that knows a million inodes, in bytes.
pub const MEMORY: (usize, u64) = (1_000_000, 150_000_000);

/// The goal for the mount of 500 layers with a million files, with catalogs, in milliseconds.
pub const LARGE_MOUNT: f64 = 50.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::WORKLOADS;

    #[test]
    fn every_target_names_workloads_that_exist() {
        for name in TARGETS.iter().flat_map(|t| t.workloads) {
            assert!(WORKLOADS.iter().any(|w| w.name == *name), "{name}");
        }
    }
}
