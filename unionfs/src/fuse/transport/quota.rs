//! Whether a cgroup limits the processor time of this process.
//!
//! Asked of the files of version 2 (`cpu.max`) and 1 (`cpu.cfs_quota_us`), for the process's own group and all above it
//! that can be seen. Within a cgroup namespace that is the own group at least.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Where the hierarchies are mounted.
const MOUNTS: &str = "/sys/fs/cgroup";

/// Returns whether there is such a limit. What cannot be read limits nothing.
pub(super) fn is_limited() -> bool {
    let Ok(membership) = std::fs::read("/proc/self/cgroup") else { return false };
    membership.split(|byte| *byte == b'\n').any(|line| is_limited_by(Path::new(MOUNTS), line))
}

/// Returns whether the group of one line of /proc/PID/cgroup, `ID:CONTROLLERS:PATH`, or one above it has a limit.
fn is_limited_by(mounts: &Path, line: &[u8]) -> bool {
    let mut fields = line.splitn(3, |byte| *byte == b':').skip(1);
    let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { return false };
    let within = Path::new(OsStr::from_bytes(path)).strip_prefix("/").unwrap_or(Path::new(""));
    if controllers.is_empty() {
        // Version 2 stands alone, or beside version 1.
        [mounts.to_owned(), mounts.join("unified")]
            .iter()
            .any(|mount| above(mount, within, "cpu.max", max_is_set))
    } else if controllers.split(|byte| *byte == b',').any(|controller| controller == b"cpu") {
        above(&mounts.join(OsStr::from_bytes(controllers)), within, "cpu.cfs_quota_us", quota_is_set)
    } else {
        false
    }
}

/// Returns whether `is_set` holds for `file` of the group `within` the hierarchy at `mount`, or of one above it.
fn above(mount: &Path, within: &Path, file: &str, is_set: fn(&str) -> bool) -> bool {
    within
        .ancestors()
        .map(|group| mount.join(group).join(file))
        .any(|path: PathBuf| std::fs::read_to_string(path).is_ok_and(|text| is_set(text.trim())))
}

/// `cpu.max` is `QUOTA PERIOD` in microseconds, or `max PERIOD`.
fn max_is_set(text: &str) -> bool {
    !text.starts_with("max")
}

/// `cpu.cfs_quota_us` is a number of microseconds, or -1.
fn quota_is_set(text: &str) -> bool {
    !text.starts_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_both_versions_and_of_groups_above_are_found() {
        let mounts = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = mounts.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("free/job/cpu.max", "max 100000\n");
        put("slice/cpu.max", "50000 100000\n");
        put("slice/job/cpu.max", "max 100000\n");
        put("unified/hybrid/cpu.max", "1000 100000\n");
        put("cpu,cpuacct/free/cpu.cfs_quota_us", "-1\n");
        put("cpu,cpuacct/slice/cpu.cfs_quota_us", "20000\n");
        put("cpu,cpuacct/slice/job/cpu.cfs_quota_us", "-1\n");
        for (line, limited) in [
            ("0::/free/job", false),
            ("0::/slice", true),
            ("0::/slice/job", true),
            ("0::/hybrid", true),
            ("0::/gone", false),
            ("0::/../../slice", false),
            ("4:cpu,cpuacct:/free", false),
            ("4:cpu,cpuacct:/slice/job", true),
            ("5:memory:/slice", false),
            ("", false),
            ("nonsense", false),
        ] {
            assert_eq!(is_limited_by(mounts.path(), line.as_bytes()), limited, "{line}");
        }
    }
}
