//! Where each controller lives: `/proc/self/mountinfo` and `/proc/self/cgroup` as a table.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{During, Result};

/// The interface of a hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy for each controller, or a few together.
    V1,
    /// The unified hierarchy.
    V2,
}

/// A mounted hierarchy and this process's place in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// The directory of the cgroup that this process is in.
    pub own: PathBuf,
    /// Its interface.
    pub version: Version,
    /// Its controllers.
    pub controllers: Vec<String>,
}

impl Home {
    /// Returns whether this is the unified hierarchy.
    pub fn is_unified(&self) -> bool {
        self.version == Version::V2
    }
}

/// All hierarchies of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    homes: Vec<Home>,
}

impl Layout {
    /// Reads the layout of this process.
    pub fn load() -> Result<Self> {
        let mountinfo = fs::read("/proc/self/mountinfo").during("read /proc/self/mountinfo")?;
        let own = fs::read("/proc/self/cgroup").during("read /proc/self/cgroup")?;
        let mut layout = Self::parse(&mountinfo, &own);
        for home in layout.homes.iter_mut().filter(|home| home.version == Version::V2) {
            // The root of the hierarchy names what v2 has; what v1 holds is missing there.
            let text = fs::read_to_string(home.mount.join("cgroup.controllers")).unwrap_or_default();
            home.controllers = text.split_ascii_whitespace().map(str::to_owned).collect();
        }
        Ok(layout)
    }

    /// Builds the table from the two texts; the controllers of v2 are left empty.
    pub fn parse(mountinfo: &[u8], own: &[u8]) -> Self {
        let memberships: Vec<Membership<'_>> =
            own.split(|byte| *byte == b'\n').filter_map(Membership::parse).collect();
        let homes = mountinfo
            .split(|byte| *byte == b'\n')
            .filter_map(Mount::parse)
            .filter_map(|mount| mount.home(&memberships))
            .collect();
        Self { homes }
    }

    /// Finds the hierarchy that a controller can be used in.
    pub fn find(&self, controller: &str) -> Option<&Home> {
        self.homes.iter().find(|home| home.controllers.iter().any(|have| have == controller))
    }

    /// The v2 hierarchy, with or without controllers.
    pub fn unified(&self) -> Option<&Home> {
        self.homes.iter().find(|home| home.version == Version::V2)
    }

    /// All hierarchies.
    pub fn homes(&self) -> &[Home] {
        &self.homes
    }
}

/// A line of `/proc/self/cgroup`.
#[derive(Debug)]
struct Membership<'a> {
    controllers: Vec<&'a [u8]>,
    path: &'a [u8],
}

impl<'a> Membership<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(3, |byte| *byte == b':');
        fields.next()?;
        let controllers =
            fields.next()?.split(|byte| *byte == b',').filter(|name| !name.is_empty()).collect();
        Some(Self { controllers, path: fields.next()? })
    }
}

/// A line of `/proc/self/mountinfo` that mounts cgroups.
#[derive(Debug)]
struct Mount {
    root: PathBuf,
    point: PathBuf,
    version: Version,
    options: Vec<Vec<u8>>,
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let separator = fields.iter().position(|field| *field == b"-")?;
        let version = match *fields.get(separator + 1)? {
            b"cgroup" => Version::V1,
            b"cgroup2" => Version::V2,
            _ => return None,
        };
        let options = fields.get(separator + 3)?.split(|byte| *byte == b',').map(<[u8]>::to_vec).collect();
        Some(Self { root: unescape(fields.get(3)?), point: unescape(fields.get(4)?), version, options })
    }

    fn home(self, memberships: &[Membership<'_>]) -> Option<Home> {
        let membership = memberships.iter().find(|membership| match self.version {
            Version::V2 => membership.controllers.is_empty(),
            Version::V1 => membership
                .controllers
                .iter()
                .any(|name| self.options.iter().any(|option| option.as_slice() == *name)),
        })?;
        let path = Path::new(OsStr::from_bytes(membership.path));
        // A bind mount or a container shows a part of the hierarchy only; a place outside it is shown as its root.
        let below = path.strip_prefix(&self.root).unwrap_or_else(|_| Path::new(""));
        let own = if below.as_os_str().is_empty() { self.point.clone() } else { self.point.join(below) };
        let controllers = membership
            .controllers
            .iter()
            .filter_map(|name| std::str::from_utf8(name).ok())
            .map(str::to_owned)
            .collect();
        Some(Home { mount: self.point, own, version: self.version, controllers })
    }
}

/// Undoes the octal escapes of mountinfo.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let code = (*byte == b'\\').then(|| after.get(..3)).flatten().and_then(|digits| {
            std::str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok())
        });
        match code {
            Some(code) => {
                bytes.push(code);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID_MOUNTS: &[u8] = b"\
        24 1 0:6 / /dev rw - devtmpfs devtmpfs rw\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const HYBRID_OWN: &[u8] = b"9:name=systemd:/x\n4:memory:/a/b\n1:cpu,cpuacct:/\n0::/u\n";

    #[test]
    fn a_hybrid_host_has_each_controller_where_it_lives() {
        let layout = Layout::parse(HYBRID_MOUNTS, HYBRID_OWN);
        let memory = layout.find("memory").unwrap();
        assert_eq!(
            (memory.own.as_path(), memory.version),
            (Path::new("/sys/fs/cgroup/memory/a/b"), Version::V1)
        );
        assert_eq!(layout.find("cpu").unwrap().own, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert!(layout.find("pids").is_none());
        assert_eq!(layout.unified().unwrap().own, Path::new("/sys/fs/cgroup/unified/u"));
    }

    #[test]
    fn a_pure_v2_host_has_one_home() {
        let layout = Layout::parse(
            b"30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n",
            b"0::/user.slice/s\n",
        );
        assert_eq!(layout.homes().len(), 1);
        assert_eq!(layout.unified().unwrap().own, Path::new("/sys/fs/cgroup/user.slice/s"));
    }

    #[test]
    fn a_container_sees_its_own_part_of_the_hierarchy() {
        let layout = Layout::parse(
            b"30 23 0:26 /docker/c1 /sys/fs/cgroup\\040x rw - cgroup cgroup rw,pids\n",
            b"3:pids:/docker/c1/in\n",
        );
        assert_eq!(layout.find("pids").unwrap().own, Path::new("/sys/fs/cgroup x/in"));
        let outside =
            Layout::parse(b"30 23 0:26 /docker/c1 /cg rw - cgroup cgroup rw,pids\n", b"3:pids:/../other\n");
        assert_eq!(outside.find("pids").unwrap().own, Path::new("/cg"));
    }
}
