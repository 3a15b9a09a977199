//! Which system calls a container may make.
//!
//! The rules are those docker users know: calls that ordinary programs need are allowed, calls that administer the
//! machine answer EPERM, and calls that the list does not know answer ENOSYS, so that a C library that probes for a
//! new call falls back to the old one.

use caps::Capability;
use rustix::thread::set_no_new_privs;

use crate::capabilities::Capabilities;
use crate::error::{During, Result};

mod bpf;
mod names;

/// What one system call gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Allow,
    /// Known, and forbidden.
    Eperm,
    /// Not known here.
    Enosys,
    /// `clone` without new namespaces.
    CheckClone,
    /// `socket` without the families that reach the kernel's crypto and the hypervisor.
    CheckSocket,
    /// `personality` with harmless values only.
    CheckPersonality,
}

/// A filter ready to be installed.
#[derive(Clone, Debug)]
pub struct Filter {
    program: Vec<libc::sock_filter>,
}

/// Builds the default filter for a set of capabilities: a capability unlocks the calls that need it.
pub fn plan(capabilities: &Capabilities) -> Filter {
    Filter { program: bpf::assemble(&actions(capabilities)) }
}

impl Filter {
    /// Installs the filter for this thread for good, with no_new_privs.
    pub fn apply(&self) -> Result<()> {
        set_no_new_privs(true).during("set no_new_privs")?;
        crate::sys::seccomp::install(&self.program).during("install the seccomp filter")
    }
}

/// The action of each call, indexed by number.
fn actions(capabilities: &Capabilities) -> Vec<Action> {
    let mut table = vec![Action::Enosys; names::NEWEST + 1];
    let mut set = |numbers: &[libc::c_long], action| {
        for number in numbers {
            if let Some(slot) = usize::try_from(*number).ok().and_then(|number| table.get_mut(number)) {
                *slot = action;
            }
        }
    };
    set(names::FORBIDDEN, Action::Eperm);
    for (_, numbers) in names::WITH_CAPABILITY {
        set(numbers, Action::Eperm);
    }
    set(names::ALLOWED, Action::Allow);
    for (capability, numbers) in names::WITH_CAPABILITY {
        if capabilities.contains(*capability) {
            set(numbers, Action::Allow);
        }
    }
    set(&[libc::SYS_socket], Action::CheckSocket);
    set(&[libc::SYS_personality], Action::CheckPersonality);
    if capabilities.contains(Capability::CAP_SYS_ADMIN) {
        set(&[libc::SYS_clone, libc::SYS_clone3], Action::Allow);
    } else {
        set(&[libc::SYS_clone], Action::CheckClone);
        // Its flags lie in memory that a filter cannot read; ENOSYS makes the C library use clone.
        set(&[libc::SYS_clone3], Action::Enosys);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities;

    fn action(numbers: libc::c_long, capabilities: &Capabilities) -> Action {
        actions(capabilities)[usize::try_from(numbers).unwrap()]
    }

    #[test]
    fn known_calls_are_allowed_or_eperm_and_unknown_ones_enosys() {
        let default = capabilities::plan(&[], &[]).unwrap();
        for (number, want) in [
            (libc::SYS_read, Action::Allow),
            (libc::SYS_mount, Action::Eperm),
            (libc::SYS_unshare, Action::Eperm),
            (libc::SYS_keyctl, Action::Eperm),
            (libc::SYS_io_uring_setup, Action::Eperm),
            (libc::SYS_clone3, Action::Enosys),
            (libc::SYS_clone, Action::CheckClone),
            (libc::SYS_chroot, Action::Allow),
            (libc::SYS_reboot, Action::Eperm),
            (400, Action::Enosys),
        ] {
            assert_eq!(action(number, &default), want, "{number}");
        }
    }

    #[test]
    fn a_capability_unlocks_its_calls() {
        let admin = capabilities::plan(&["sys_admin".to_owned()], &[]).unwrap();
        assert_eq!(action(libc::SYS_mount, &admin), Action::Allow);
        assert_eq!(action(libc::SYS_clone3, &admin), Action::Allow);
        assert_eq!(action(libc::SYS_reboot, &admin), Action::Eperm);
        let bare = capabilities::plan(&[], &["ALL".to_owned()]).unwrap();
        assert_eq!(action(libc::SYS_chroot, &bare), Action::Eperm);
    }
}
