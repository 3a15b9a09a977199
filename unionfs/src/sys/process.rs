//! What a process that asks may do, where the request does not say: from `/proc`.

/// The rights of a process that decide about set-group-id bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    /// Its groups, the file system group first.
    groups: Vec<u32>,
    /// It has CAP_FSETID.
    fsetid: bool,
}

/// Number of CAP_FSETID.
const CAP_FSETID: u32 = 4;

impl Rights {
    /// Reads the rights of a process, or thread; `None` if it is not to be seen.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        if pid == 0 {
            return None;
        }
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
    }

    /// Reads the text of `status`.
    fn parse(status: &str) -> Option<Self> {
        let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
        let numbers =
            |text: &str| text.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<u32>>();
        // Real, effective, saved, file system.
        let own = *numbers(line("Gid:")?).get(3)?;
        let groups = [vec![own], numbers(line("Groups:")?)].concat();
        let effective = u64::from_str_radix(line("CapEff:")?.trim(), 16).ok()?;
        Some(Self { groups, fsetid: effective >> CAP_FSETID & 1 == 1 })
    }

    /// Returns whether a file of this group may keep its set-group-id bit.
    pub(crate) fn keep_set_gid(&self, group: u32) -> bool {
        self.fsetid || self.groups.contains(&group)
    }
}

/// Returns whether some ids of the host have no place in the user namespace of this process.
pub(crate) fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_ascii_whitespace().ne(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_the_capability_are_read() {
        let text = |capabilities: &str| {
            format!("Name:\tx\nGid:\t1\t2\t3\t4\nFDSize:\t64\nGroups:\t10 20 \nCapEff:\t{capabilities}\n")
        };
        let plain = Rights::parse(&text("0000000000000000")).unwrap();
        assert_eq!(plain, Rights { groups: vec![4, 10, 20], fsetid: false });
        assert_eq!([1, 4, 20, 30].map(|group| plain.keep_set_gid(group)), [false, true, true, false]);
        assert!(Rights::parse(&text("0000000000000010")).unwrap().keep_set_gid(30));
        assert_eq!((Rights::parse("Name:\tx\n"), Rights::of(0)), (None, None));
        assert!(Rights::of(std::process::id()).is_some());
    }
}
