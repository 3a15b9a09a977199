//! Which capabilities a container has, and in which order the sets are written.

use std::collections::BTreeSet;
use std::str::FromStr;

use caps::{CapSet, Capability, CapsHashSet};

use crate::error::{During, Error, Result};

/// The capabilities that a container's root holds: bounding, permitted and effective.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    indices: BTreeSet<u8>,
}

/// What docker gives by default.
const DEFAULT: [Capability; 14] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FSETID,
    Capability::CAP_FOWNER,
    Capability::CAP_MKNOD,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETPCAP,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_KILL,
    Capability::CAP_AUDIT_WRITE,
];

/// One more than the highest number a 64-bit set can hold.
const MAXIMUM: u8 = 64;

/// Merges the default with what the user adds and drops; `ALL` in either list starts from everything or nothing.
///
/// # Errors
/// A name that is no capability.
pub fn plan(add: &[String], drop: &[String]) -> Result<Capabilities> {
    let is_all = |name: &String| name.eq_ignore_ascii_case("all");
    let named = |names: &[String]| {
        names.iter().filter(|name| !is_all(name)).map(|name| parse(name)).collect::<Result<BTreeSet<u8>>>()
    };
    let (added, dropped) = (named(add)?, named(drop)?);
    let mut indices = if add.iter().any(is_all) {
        caps::all().iter().map(Capability::index).collect()
    } else if drop.iter().any(is_all) {
        BTreeSet::new()
    } else {
        DEFAULT.iter().map(Capability::index).collect::<BTreeSet<u8>>()
    };
    indices.retain(|index| !dropped.contains(index));
    indices.extend(added);
    Ok(Capabilities { indices })
}

fn parse(name: &str) -> Result<u8> {
    Capability::from_str(&caps::to_canonical(name)).map(|capability| capability.index()).map_err(|_| {
        Error::usage(format!("unknown capability \"{}\"", name.escape_debug()))
            .hint("names are those of capabilities(7), with or without CAP_, or ALL")
    })
}

impl Capabilities {
    /// Returns whether a capability is held.
    pub fn contains(&self, capability: Capability) -> bool {
        self.indices.contains(&capability.index())
    }

    /// Reduces this process to these capabilities. Root in the container keeps them across exec, another user none.
    ///
    /// Preconditions: the process is root in its user namespace and has not yet changed its user.
    pub fn apply_before_user_change(&self) -> Result<()> {
        // Bounding first: dropping from it needs CAP_SETPCAP, which the other sets may lose.
        for index in 0..MAXIMUM {
            if self.indices.contains(&index) {
                continue;
            }
            match crate::sys::drop_bounding(index) {
                // The kernel knows no capability from here on.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                result => result.during(format_args!("drop capability {index} from the bounding set"))?,
            }
        }
        caps::clear(None, CapSet::Ambient).map_err(|error| failed("ambient", &error))?;
        caps::clear(None, CapSet::Inheritable).map_err(|error| failed("inheritable", &error))
    }

    /// Gives up everything that is not in the set, once the user is the final one.
    pub fn apply_after_user_change(&self, uid: u32) -> Result<()> {
        let wanted: CapsHashSet = if uid == 0 {
            caps::all().into_iter().filter(|capability| self.contains(*capability)).collect()
        } else {
            CapsHashSet::new()
        };
        // Effective before permitted: a permitted set below the effective one is refused.
        caps::set(None, CapSet::Effective, &wanted).map_err(|error| failed("effective", &error))?;
        caps::set(None, CapSet::Permitted, &wanted).map_err(|error| failed("permitted", &error))
    }
}

fn failed(set: &str, error: &caps::errors::CapsError) -> Error {
    Error::setup(format!("cannot write the {set} capabilities: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(add: &[&str], drop: &[&str]) -> Capabilities {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        plan(&own(add), &own(drop)).unwrap()
    }

    #[test]
    fn the_default_is_the_fourteen_of_docker() {
        let mask = planned(&[], &[]).indices.iter().fold(0_u64, |mask, index| mask | 1 << index);
        assert_eq!(mask, 0xa804_25fb);
    }

    #[test]
    fn names_come_in_any_case_with_or_without_prefix() {
        for name in ["sys_admin", "CAP_SYS_ADMIN", "cap_sys_admin", "SYS_ADMIN"] {
            assert!(planned(&[name], &[]).contains(Capability::CAP_SYS_ADMIN), "{name}");
        }
        assert!(plan(&["nonsense".to_owned()], &[]).is_err());
    }

    #[test]
    fn all_starts_from_everything_or_nothing() {
        assert_eq!(planned(&[], &["all"]).indices.len(), 0);
        assert_eq!(planned(&["chown"], &["ALL"]).indices.len(), 1);
        assert_eq!(planned(&["ALL"], &["mknod"]).indices.len(), caps::all().len() - 1);
        assert!(!planned(&[], &["mknod"]).contains(Capability::CAP_MKNOD));
    }
}
