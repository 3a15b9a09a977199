//! What can be asked for and cannot be had: told in one line, since leaving it out loses nothing.

use super::{MountOptions, UuidPolicy, Warning};

/// One line of the table: the option, whether it is asked for, and what is done without it.
type Gap = (&'static str, fn(&MountOptions) -> bool, &'static str);

/// Options with a typed meaning that has no effect yet.
const GAPS: &[Gap] = &[
    ("nfs_export=on", |options| options.nfs_export, "the mount cannot be exported"),
    (
        "uuid=on",
        |options| options.uuid == UuidPolicy::On,
        "a FUSE file system shows no identifier; records of origin have that of their layer",
    ),
    (
        "allow_root",
        |options| options.allow_root && !rustix::process::geteuid().is_root(),
        "only the mounting user may enter; allow_other lets root and everybody in",
    ),
];

/// Tells what of `options` has no effect.
pub(super) fn check(options: &MountOptions) -> Vec<Warning> {
    let asked = GAPS.iter().filter(|(_, asked_for, _)| asked_for(options));
    asked.map(|&(option, _, instead)| Warning::NotSupported { option, instead }).collect()
}
