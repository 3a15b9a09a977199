//! Who a user of the container is: its `/etc/passwd` and `/etc/group`. Parsing is pure.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::idmap::IdMap;
use crate::root::Root;
use crate::spec::{Id, UserSpec};
use crate::subid::number_of;

/// A user with everything that a process needs to become it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// All groups, the main one too.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: PathBuf,
}

/// Larger user databases are not read.
const LARGEST: u64 = 4 << 20;

/// Finds the user in the container's files.
///
/// # Errors
/// A name without entry, or an id that the container does not have.
pub fn load(root: &Root, user: &UserSpec, ids: &IdMap) -> Result<Account> {
    let passwd = root.read_regular(Path::new("/etc/passwd"), LARGEST).unwrap_or_default();
    let named =
        matches!(user.group, Some(Id::Name(_))) || matches!(user.user, Some(Id::Name(_) | Id::Number(1..)));
    let group = if named {
        root.read_regular(Path::new("/etc/group"), LARGEST).unwrap_or_default()
    } else {
        Vec::new()
    };
    let account = find(user, &passwd, &group)?;
    let missing = |kind: &str, id: u32| {
        Error::usage(format!("--user: {kind} id {id} does not exist in this container")).hint(
            "an ordinary user without ranges in /etc/subuid and /etc/subgid has one id only; with ranges, as many as \
             they hold",
        )
    };
    if !ids.has_uid(account.uid) {
        return Err(missing("user", account.uid));
    }
    if !ids.has_gid(account.gid) {
        return Err(missing("group", account.gid));
    }
    Ok(account)
}

/// Finds a user in the texts of the two files.
pub fn find(user: &UserSpec, passwd: &[u8], group: &[u8]) -> Result<Account> {
    let wanted = user.user.clone().unwrap_or(Id::Number(0));
    let entry = lines(passwd).find(|fields| match &wanted {
        Id::Number(number) => fields.get(2).copied().and_then(number_of) == Some(*number),
        Id::Name(name) => fields.first() == Some(&name.as_slice()),
    });
    let uid = match &wanted {
        Id::Number(number) => *number,
        Id::Name(name) => {
            entry.as_ref().and_then(|fields| fields.get(2).copied()).and_then(number_of).ok_or_else(|| {
                Error::usage(format!("--user: the container has no user \"{}\"", name.escape_ascii()))
            })?
        }
    };
    let own_gid = entry.as_ref().and_then(|fields| fields.get(3).copied()).and_then(number_of).unwrap_or(0);
    let gid = match &user.group {
        None => own_gid,
        Some(Id::Number(number)) => *number,
        Some(Id::Name(name)) => group_number(group, name)?,
    };
    let mut groups = vec![gid];
    // As with docker, a user's other groups come only when no group is asked for.
    if let (None, Some(name)) = (&user.group, entry.as_ref().and_then(|fields| fields.first().copied())) {
        groups.extend(memberships(group, name).filter(|number| *number != gid));
    }
    let home = entry.as_ref().and_then(|fields| fields.get(5)).filter(|home| home.starts_with(b"/"));
    let home =
        home.map_or_else(|| PathBuf::from("/"), |home| PathBuf::from(OsString::from_vec(home.to_vec())));
    Ok(Account { uid, gid, groups, home })
}

fn group_number(group: &[u8], name: &[u8]) -> Result<u32> {
    lines(group)
        .find(|fields| fields.first() == Some(&name))
        .and_then(|fields| fields.get(2).copied().and_then(number_of))
        .ok_or_else(|| {
            Error::usage(format!("--user: the container has no group \"{}\"", name.escape_ascii()))
        })
}

fn memberships<'a>(group: &'a [u8], name: &'a [u8]) -> impl Iterator<Item = u32> + 'a {
    lines(group)
        .filter(move |fields| {
            fields
                .get(3)
                .is_some_and(|members| members.split(|byte| *byte == b',').any(|member| member == name))
        })
        .filter_map(|fields| fields.get(2).copied().and_then(number_of))
}

fn lines(text: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    text.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse_user;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/sh\nann:x:1000:100:Ann:/home/ann:/bin/sh\nodd:x:x:1::rel:\n";
    const GROUP: &[u8] = b"root:x:0:\nusers:x:100:\naudio:x:29:bob,ann\nvideo:x:44:ann\n";

    fn found(user: &str) -> Account {
        find(&parse_user(user.as_ref()).unwrap(), PASSWD, GROUP).unwrap()
    }

    #[test]
    fn names_and_numbers_find_the_same_user() {
        assert_eq!(found("ann"), found("1000"));
        assert_eq!(found("ann").groups, [100, 29, 44]);
        assert_eq!(found("ann").home, Path::new("/home/ann"));
        assert_eq!(found("ann:audio").groups, [29]);
    }

    #[test]
    fn a_number_needs_no_entry() {
        let account = found("4242");
        assert_eq!((account.uid, account.gid, account.home.as_path()), (4242, 0, Path::new("/")));
        assert_eq!(found("0").home, Path::new("/root"));
        assert_eq!(found("7:8").gid, 8);
    }

    #[test]
    fn a_name_without_entry_is_an_error() {
        for user in ["bob", "ann:nobody", "odd", "1x"] {
            assert!(find(&parse_user(user.as_ref()).unwrap(), PASSWD, GROUP).is_err(), "{user}");
        }
    }
}
