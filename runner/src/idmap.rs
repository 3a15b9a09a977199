//! Which ids a container has, and how the kernel is told.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Pid;

use crate::error::{During, Error, Result};
use crate::subid::{self, Range};

/// A run of ids: `count` ids from `inside` on in the container are those from `outside` on of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First id in the container.
    pub inside: u32,
    /// First id as the caller of the runner sees it.
    pub outside: u32,
    /// How many ids.
    pub count: u32,
}

/// How the maps reach the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Every id of the caller, by writing the files: the caller is root.
    Identity,
    /// Own id and the ranges of `/etc/subuid`, by newuidmap and newgidmap.
    Ranges,
    /// The own id only; `setgroups` must be given up.
    Single,
}

/// The ids of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// How the maps are written.
    pub kind: Kind,
    /// User ids.
    pub uids: Vec<Extent>,
    /// Group ids.
    pub gids: Vec<Extent>,
    /// Whether processes may change their list of groups.
    pub may_set_groups: bool,
}

/// Who starts the container, and what the host grants to them.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Name in the host's user database.
    pub name: Option<Vec<u8>>,
    /// Text of `/proc/self/uid_map`.
    pub uid_map: String,
    /// Text of `/proc/self/gid_map`.
    pub gid_map: String,
    /// Text of `/etc/subuid`.
    pub subuid: Vec<u8>,
    /// Text of `/etc/subgid`.
    pub subgid: Vec<u8>,
    /// Whether the caller's own user namespace has given up changing lists of groups; those in it have then, too.
    pub groups_fixed: bool,
    /// Whether newuidmap and newgidmap are installed with the privilege that they need.
    pub helpers: bool,
}

/// How many ids a complete map has; the last 32-bit number is no id.
const ALL_IDS: u32 = u32::MAX;

/// The helpers that write maps for ordinary users.
const HELPERS: [&str; 2] = ["/usr/bin/newuidmap", "/usr/bin/newgidmap"];

impl Caller {
    /// Reads who calls.
    pub fn load() -> Result<Self> {
        let uid = rustix::process::geteuid().as_raw();
        let text = |path: &str| fs::read_to_string(path).during(format_args!("read {path}"));
        let optional = |path: &str| fs::read(path).unwrap_or_default();
        let mut caller = Self {
            uid,
            gid: rustix::process::getegid().as_raw(),
            uid_map: text("/proc/self/uid_map")?,
            gid_map: text("/proc/self/gid_map")?,
            // A kernel without the file knows no such restriction.
            groups_fixed: optional("/proc/self/setgroups").starts_with(b"deny"),
            ..Self::default()
        };
        if uid != 0 {
            let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid));
            caller.name = user.ok().flatten().map(|user| user.name.into_bytes());
            caller.subuid = optional("/etc/subuid");
            caller.subgid = optional("/etc/subgid");
            caller.helpers = HELPERS.iter().all(|helper| is_privileged(Path::new(helper)));
        }
        Ok(caller)
    }
}

/// Decides the ids of a container.
pub fn plan(caller: &Caller) -> IdMap {
    let may_set_groups = !caller.groups_fixed;
    if caller.uid == 0 {
        let (uids, gids) = (identity(&caller.uid_map), identity(&caller.gid_map));
        return IdMap { kind: Kind::Identity, uids, gids, may_set_groups };
    }
    let name = caller.name.as_deref();
    let uids = subid::parse(&caller.subuid, name, caller.uid);
    let gids = subid::parse(&caller.subgid, name, caller.uid);
    if !caller.helpers || uids.is_empty() || gids.is_empty() {
        return single(caller);
    }
    let (uids, gids) = (with_ranges(caller.uid, &uids), with_ranges(caller.gid, &gids));
    IdMap { kind: Kind::Ranges, uids, gids, may_set_groups }
}

/// What a caller with ranges must know when they cannot be used.
pub fn lost_ranges(caller: &Caller) -> Option<&'static str> {
    let ranges = subid::parse(&caller.subuid, caller.name.as_deref(), caller.uid);
    (caller.uid != 0 && !caller.helpers && !ranges.is_empty()).then_some(
        "the container has one id only: newuidmap and newgidmap are missing from /usr/bin or have lost their \
         set-user-id bits (package uidmap)",
    )
}

/// The map of a caller who has nothing but the own ids.
fn single(caller: &Caller) -> IdMap {
    let one = |id| vec![Extent { inside: 0, outside: id, count: 1 }];
    IdMap { kind: Kind::Single, uids: one(caller.uid), gids: one(caller.gid), may_set_groups: false }
}

/// Every id that the caller has, unchanged.
fn identity(map: &str) -> Vec<Extent> {
    map.lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().map(str::parse::<u32>);
            let inside = fields.next()?.ok()?;
            let count = fields.nth(1)?.ok()?;
            Some(Extent { inside, outside: inside, count })
        })
        .collect()
}

fn with_ranges(own: u32, ranges: &[Range]) -> Vec<Extent> {
    let mut extents = vec![Extent { inside: 0, outside: own, count: 1 }];
    let mut inside = 1_u32;
    for range in ranges {
        // A range that holds the own id would map it twice, which the kernel refuses.
        let holds_own = own >= range.start && own - range.start < range.count;
        let Some(next) = inside.checked_add(range.count).filter(|_| !holds_own) else { continue };
        extents.push(Extent { inside, outside: range.start, count: range.count });
        inside = next;
    }
    extents
}

impl IdMap {
    /// Returns whether an id of the container exists.
    pub fn has_gid(&self, gid: u32) -> bool {
        contains(&self.gids, gid)
    }

    /// Returns whether a user id of the container exists.
    pub fn has_uid(&self, uid: u32) -> bool {
        contains(&self.uids, uid)
    }

    /// Returns whether there are owners on the host that have no id in the container.
    pub fn is_partial(&self) -> bool {
        let complete = |extents: &[Extent]| {
            extents.iter().map(|extent| u64::from(extent.count)).sum::<u64>() >= u64::from(ALL_IDS)
        };
        !(complete(&self.uids) && complete(&self.gids))
    }

    /// Writes the maps of a process that waits in its new user namespace.
    ///
    /// # Errors
    /// The kernel's refusal or the helper's message.
    pub fn apply(&self, pid: Pid) -> Result<()> {
        let pid = pid.as_raw_nonzero().get();
        match self.kind {
            Kind::Identity => {
                write_map(pid, "gid_map", &self.gids)?;
                write_map(pid, "uid_map", &self.uids)
            }
            Kind::Single => {
                // The kernel asks an ordinary user to give up setgroups first: dropping a group may widen access.
                write_file(pid, "setgroups", "deny")?;
                write_map(pid, "gid_map", &self.gids)?;
                write_map(pid, "uid_map", &self.uids)
            }
            Kind::Ranges => {
                let [uid_helper, gid_helper] = HELPERS;
                // Both at once: each is a program start of a millisecond.
                let uids = start_helper(uid_helper, pid, &self.uids)?;
                let gids = start_helper(gid_helper, pid, &self.gids)?;
                let uids = finish_helper(uid_helper, uids);
                finish_helper(gid_helper, gids).and(uids)
            }
        }
    }
}

fn contains(extents: &[Extent], id: u32) -> bool {
    extents.iter().any(|extent| id >= extent.inside && id - extent.inside < extent.count)
}

fn write_map(pid: i32, file: &str, extents: &[Extent]) -> Result<()> {
    let text: String = extents
        .iter()
        .map(|extent| format!("{} {} {}\n", extent.inside, extent.outside, extent.count))
        .collect();
    write_file(pid, file, &text)
}

fn write_file(pid: i32, file: &str, text: &str) -> Result<()> {
    let path = format!("/proc/{pid}/{file}");
    // One write: the kernel accepts a map once.
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .during(format_args!("write {file} of the new user namespace"))
        .map_err(explain_refusal)
}

/// Adds the usual reason why a map is refused.
fn explain_refusal(error: Error) -> Error {
    let restricted = fs::read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
        .is_ok_and(|text| text.starts_with(b"1"));
    if rustix::process::geteuid().is_root() {
        error.hint("root needs CAP_SETUID, CAP_SETGID and CAP_SETFCAP for this, which some outer containers take away")
    } else if restricted {
        error.hint(
            "kernel.apparmor_restrict_unprivileged_userns=1 forbids user namespaces to programs without an AppArmor \
             profile; ask the administrator for a profile with `userns,` for this program or for the value 0",
        )
    } else {
        error
    }
}

fn start_helper(helper: &str, pid: i32, extents: &[Extent]) -> Result<std::process::Child> {
    let mut command = Command::new(helper);
    command.arg(pid.to_string()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    for extent in extents {
        command.args([extent.inside, extent.outside, extent.count].map(|number| number.to_string()));
    }
    command.spawn().during(format_args!("start {helper}"))
}

fn finish_helper(helper: &str, child: std::process::Child) -> Result<()> {
    let output = child.wait_with_output().during(format_args!("wait for {helper}"))?;
    if output.status.success() {
        return Ok(());
    }
    let message = output.stderr.trim_ascii().escape_ascii().to_string();
    Err(Error::setup(format!("{helper} failed: {message}")))
}

/// A helper needs its set-id bit or a file capability, which some images lose.
fn is_privileged(helper: &Path) -> bool {
    fs::metadata(helper).is_ok_and(|meta| meta.mode() & libc::S_ISUID != 0 && meta.uid() == 0)
        || rustix::fs::getxattr(helper, "security.capability", &mut [0_u8; 64]).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(subuid: &str, subgid: &str) -> Caller {
        Caller {
            uid: 1000,
            gid: 100,
            name: Some(b"ann".to_vec()),
            subuid: subuid.into(),
            subgid: subgid.into(),
            helpers: true,
            ..Caller::default()
        }
    }

    #[test]
    fn root_keeps_every_id_it_has() {
        let full = "         0          0 4294967295\n".to_owned();
        let caller = Caller { uid_map: full.clone(), gid_map: full, ..Caller::default() };
        let map = plan(&caller);
        assert_eq!(map.kind, Kind::Identity);
        assert_eq!(map.uids, [Extent { inside: 0, outside: 0, count: ALL_IDS }]);
        assert!(!map.is_partial());
    }

    #[test]
    fn nested_root_keeps_only_its_own_ids() {
        let caller = Caller {
            uid_map: "0 1000 1\n1 100000 65536\n".to_owned(),
            gid_map: "0 1000 1\n".to_owned(),
            ..Caller::default()
        };
        let map = plan(&caller);
        assert_eq!(
            map.uids,
            [Extent { inside: 0, outside: 0, count: 1 }, Extent { inside: 1, outside: 1, count: 65536 }]
        );
        assert!(map.is_partial());
    }

    #[test]
    fn a_user_with_ranges_gets_root_and_the_ranges() {
        let map = plan(&user("ann:100000:65536\n", "ann:200000:5\n"));
        assert_eq!(map.kind, Kind::Ranges);
        assert_eq!(map.uids.last(), Some(&Extent { inside: 1, outside: 100_000, count: 65536 }));
        assert!(map.has_gid(5));
        assert!(!map.has_gid(6));
        assert!(map.has_uid(65536));
    }

    #[test]
    fn without_ranges_or_helpers_only_one_id_is_left() {
        let want = vec![Extent { inside: 0, outside: 1000, count: 1 }];
        let mut no_helpers = user("ann:1:2", "ann:1:2");
        no_helpers.helpers = false;
        assert!(lost_ranges(&no_helpers).is_some());
        for caller in [user("", ""), user("ann:1:2", ""), user("bob:1:2", "bob:1:2"), no_helpers] {
            let map = plan(&caller);
            assert_eq!((map.kind, &map.uids), (Kind::Single, &want));
        }
        assert!(lost_ranges(&user("", "")).is_none());
    }

    #[test]
    fn a_range_with_the_own_id_is_left_out() {
        let map = plan(&user("ann:999:2\nann:5000:7\n", "ann:5000:7\n"));
        assert_eq!(map.uids.last(), Some(&Extent { inside: 1, outside: 5000, count: 7 }));
        assert_eq!(map.uids.len(), 2);
    }
}
