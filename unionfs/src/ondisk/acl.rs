//! POSIX ACLs as the kernel hands them out and takes them: the value of `system.posix_acl_*`. Pure.

/// Attribute of the ACL that decides who may use an object.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// Attribute of the ACL that new objects in a directory get.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Version of the format that every kernel speaks.
const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// An access control list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

impl Acl {
    /// Reads the value of an attribute; `None` if it is not one of the known form.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (version, rest) = value.split_first_chunk::<4>()?;
        let (entries, rest) = rest.as_chunks::<8>();
        if u32::from_le_bytes(*version) != VERSION || !rest.is_empty() {
            return None;
        }
        let entries = entries.iter().map(|&[t0, t1, p0, p1, i0, i1, i2, i3]| Entry {
            tag: u16::from_le_bytes([t0, t1]),
            perm: u16::from_le_bytes([p0, p1]),
            id: u32::from_le_bytes([i0, i1, i2, i3]),
        });
        Some(Self { entries: entries.collect() })
    }

    /// Returns the value of the attribute.
    pub fn encode(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            value.extend_from_slice(&entry.tag.to_le_bytes());
            value.extend_from_slice(&entry.perm.to_le_bytes());
            value.extend_from_slice(&entry.id.to_le_bytes());
        }
        value
    }

    /// Translates the users and groups that have entries of their own; `None` if one of them has no translation.
    pub fn map_ids(
        mut self,
        user: impl Fn(u32) -> Option<u32>,
        group: impl Fn(u32) -> Option<u32>,
    ) -> Option<Self> {
        for entry in &mut self.entries {
            match entry.tag {
                USER => entry.id = user(entry.id)?,
                GROUP => entry.id = group(entry.id)?,
                _ => {}
            }
        }
        Some(self)
    }

    /// Returns whether it says no more than permission bits can.
    pub fn is_minimal(&self) -> bool {
        self.entries.iter().all(|entry| matches!(entry.tag, USER_OBJ | GROUP_OBJ | OTHER))
    }

    /// Returns the permission bits, `mode & 0777`, of an object that has this ACL.
    pub fn mode(&self) -> u32 {
        let perm =
            |tag| self.entries.iter().find(|entry| entry.tag == tag).map(|entry| u32::from(entry.perm & 7));
        let group = perm(MASK).or(perm(GROUP_OBJ));
        perm(USER_OBJ).unwrap_or(0) << 6 | group.unwrap_or(0) << 3 | perm(OTHER).unwrap_or(0)
    }

    /// Returns it as chmod(2) to `mode` leaves it: the owner's entry, the mask or else the group's, and the others'.
    #[must_use]
    pub fn with_mode(mut self, mode: u32) -> Self {
        let group_class = if self.entries.iter().any(|entry| entry.tag == MASK) { MASK } else { GROUP_OBJ };
        let bits = |shift: u32| u16::try_from(mode >> shift & 7).unwrap_or(0);
        for entry in &mut self.entries {
            match entry.tag {
                USER_OBJ => entry.perm = bits(6),
                OTHER => entry.perm = bits(0),
                tag if tag == group_class => entry.perm = bits(3),
                _ => {}
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: u32 = u32::MAX;

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl { entries: entries.iter().map(|&(tag, perm, id)| Entry { tag, perm, id }).collect() }
    }

    fn example() -> Acl {
        let named = [(USER, 6, 1000), (GROUP_OBJ, 4, NONE), (GROUP, 5, 50), (MASK, 5, NONE)];
        acl(&[&[(USER_OBJ, 7, NONE)], &named[..], &[(OTHER, 1, NONE)]].concat())
    }

    #[test]
    fn what_is_written_reads_back() {
        let value = example().encode();
        assert_eq!(
            (value.len(), &value[..12]),
            (4 + 6 * 8, &[2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255][..])
        );
        assert_eq!(Acl::parse(&value), Some(example()));
        for bad in [&b""[..], b"\x01\0\0\0", &value[..value.len() - 1]] {
            assert_eq!(Acl::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn only_named_users_and_groups_are_translated() {
        let up = |id: u32| id.checked_add(7);
        let mapped = example().map_ids(up, |group| (group == 50).then_some(51)).unwrap();
        assert_eq!((mapped.entries[1].id, mapped.entries[3].id, mapped.entries[0].id), (1007, 51, NONE));
        assert_eq!(example().map_ids(up, |_| None), None);
    }

    #[test]
    fn permission_bits_come_from_the_mask_and_go_there() {
        assert_eq!(example().mode(), 0o751);
        let changed = example().with_mode(0o623);
        assert_eq!(changed.mode(), 0o623);
        // What the owning group may is kept behind the mask.
        assert_eq!((changed.entries[2].perm, changed.entries[4].perm), (4, 2));
        let minimal = acl(&[(USER_OBJ, 6, NONE), (GROUP_OBJ, 4, NONE), (OTHER, 0, NONE)]);
        assert!(minimal.is_minimal() && !example().is_minimal());
        assert_eq!((minimal.mode(), minimal.with_mode(0o777).mode()), (0o640, 0o777));
    }
}
