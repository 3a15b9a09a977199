//! Lowers on idmapped mounts: their ids arrive mapped already.
//!
//! containers-storage gives a mount program both: lowers on an idmapped mount, and the same mapping as `uidmapping` and
//! `gidmapping`, for the upper. Mapping the lowers' ids twice would show every owner as nobody. So what such a mount
//! shows is turned back into what it would show without its mapping; everything above then treats all layers alike.

use std::os::fd::BorrowedFd;

use crate::idmap::IdMap;
use crate::ondisk::acl::{self, Acl};
use crate::ondisk::capability;
use crate::options::MountOptions;
use crate::sys::{self, Stat};

/// The mapping that a layer's mount has applied.
#[derive(Debug)]
pub(crate) struct MountIds {
    users: IdMap,
    groups: IdMap,
}

impl MountIds {
    /// Returns the mapping to take back, if `layer` lies on an idmapped mount and `options` map ids.
    ///
    /// Which mapping the mount has cannot be asked of older kernels; the one that the caller names is taken.
    pub(crate) fn of(layer: BorrowedFd<'_>, options: &MountOptions, mounts: &mut MountTable) -> Option<Self> {
        if options.uid_map.is_identity() && options.gid_map.is_identity() {
            return None;
        }
        let info = std::fs::read_to_string(sys::proc_path(layer).replace("/fd/", "/fdinfo/")).ok()?;
        is_idmapped(mounts.text(), mount_number(&info)?)
            .then(|| Self { users: options.uid_map.clone(), groups: options.gid_map.clone() })
    }

    /// Returns `stat` with the ids that are on disk; what the mapping does not cover stays.
    pub(crate) fn on_disk(&self, mut stat: Stat) -> Stat {
        stat.uid = self.users.to_disk(stat.uid).unwrap_or(stat.uid);
        stat.gid = self.groups.to_disk(stat.gid).unwrap_or(stat.gid);
        stat
    }

    /// Returns the value of an attribute with the ids that are on disk.
    pub(crate) fn value_on_disk(&self, name: &[u8], value: Vec<u8>) -> Vec<u8> {
        let user = |id| Some(self.users.to_disk(id).unwrap_or(id));
        let group = |id| Some(self.groups.to_disk(id).unwrap_or(id));
        let on_disk = match name {
            acl::ACCESS | acl::DEFAULT => {
                Acl::parse(&value).and_then(|list| list.map_ids(user, group)).map(|list| list.encode())
            }
            capability::NAME => capability::map_root(&value, user),
            _ => None,
        };
        on_disk.unwrap_or(value)
    }
}

/// The text of the mount table, read when it is first asked for.
#[derive(Debug, Default)]
pub(crate) struct MountTable(Option<Vec<u8>>);

impl MountTable {
    fn text(&mut self) -> &[u8] {
        // Where it cannot be read, no mount is known to be idmapped.
        self.0.get_or_insert_with(|| std::fs::read("/proc/self/mountinfo").unwrap_or_default())
    }
}

/// Reads the number of the mount from the text of a descriptor's fdinfo.
fn mount_number(info: &str) -> Option<&str> {
    info.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim)
}

/// Tells whether the mount of this number is idmapped, by the text of mountinfo.
fn is_idmapped(mounts: &[u8], number: &str) -> bool {
    let fields = |line: &[u8]| -> bool {
        let mut fields = line.split(|&byte| byte == b' ');
        fields.next() == Some(number.as_bytes())
            && fields.nth(4).is_some_and(|flags| flags.split(|&byte| byte == b',').any(|f| f == b"idmapped"))
    };
    mounts.split(|&byte| byte == b'\n').any(fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idmap::IdMap;
    use std::os::fd::AsFd;

    #[test]
    fn the_mount_table_tells_which_mount_is_idmapped() {
        let mounts = b"28 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
            166 28 254:0 /home/idmapped /s/mapped/0 rw,relatime,idmapped shared:1 - ext4 /dev/vda rw\n\
            167 28 254:0 /home /idmapped rw - ext4 idmapped rw,idmapped\n";
        for (number, want) in [("28", false), ("166", true), ("167", false), ("16", false)] {
            assert_eq!(is_idmapped(mounts, number), want, "{number}");
        }
        assert_eq!(mount_number("pos:\t0\nflags:\t012\nmnt_id:\t166\nino:\t2\n"), Some("166"));
    }

    #[test]
    fn ids_are_turned_back_and_others_stay() {
        let map = IdMap::parse(b"0:100000:5000").unwrap();
        let ids = MountIds { users: map.clone(), groups: map };
        let mut stat = crate::sys::stat_fd(std::fs::File::open("/").unwrap().as_fd()).unwrap();
        (stat.uid, stat.gid) = (101_000, 42);
        let stat = ids.on_disk(stat);
        assert_eq!((stat.uid, stat.gid), (1000, 42));
    }

    #[test]
    fn without_a_mapping_nothing_is_asked() {
        let root = std::fs::File::open("/").unwrap();
        assert!(MountIds::of(root.as_fd(), &MountOptions::default(), &mut MountTable::default()).is_none());
    }
}
