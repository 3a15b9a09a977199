//! What can be asked for and cannot be had yet: told in one line where leaving it out loses nothing, refused where
//! the mount would show or store something else than was asked for.

use super::{MountOptions, OptionError, UuidPolicy, Verity, Warning, Xino};

/// What happens with an option that cannot be had.
#[derive(Clone, Copy)]
enum Without {
    /// The mount goes on; this is the difference.
    Continues(&'static str),
    /// There is no mount; this is why.
    Refused(&'static str),
}

/// One line of the table: the option, whether it is asked for, and what happens.
type Gap = (&'static str, fn(&MountOptions) -> bool, Without);

/// Options with a typed meaning that has no effect yet.
const GAPS: &[Gap] = &[
    (
        "data-only lower layers",
        |options| !options.datadir.is_empty(),
        Without::Refused("not supported yet; files that refer to them would have no contents"),
    ),
    (
        "verity",
        |options| options.verity != Verity::Off,
        Without::Refused("not supported yet; contents would not be checked"),
    ),
    ("nfs_export=on", |options| options.nfs_export, Without::Continues("the mount cannot be exported")),
    (
        "xino=off",
        |options| options.xino == Xino::Off,
        Without::Continues("inode numbers are kept apart where layers lie on several file systems"),
    ),
    ("uuid", |options| options.uuid != UuidPolicy::Auto, Without::Continues("as uuid=auto")),
    (
        "static_nlink",
        |options| options.static_nlink,
        Without::Continues("merged directories have a link count of 1, others their own"),
    ),
];

/// Words without a typed meaning whose absence is worth telling.
const WORDS: &[(&str, &str)] = &[
    ("allow_root", "use allow_other to let other users in"),
    ("auto_unmount", "the server unmounts when it is told to end, not when it is killed"),
    ("plugins", "layers come from directories only"),
];

/// Tells what of `options` has no effect.
///
/// # Errors
///
/// An option that must not be left out silently.
pub(super) fn check(options: &MountOptions) -> Result<Vec<Warning>, OptionError> {
    let mut warnings = Vec::new();
    for &(option, asked_for, without) in GAPS {
        match without {
            _ if !asked_for(options) => {}
            Without::Refused(reason) => return Err(OptionError::new(option, reason)),
            Without::Continues(instead) => warnings.push(Warning::NotSupported { option, instead }),
        }
    }
    Ok(warnings)
}

/// Returns the warning for a word that is known to have no effect.
pub(super) fn of_word(key: &[u8]) -> Option<Warning> {
    let &(option, instead) = WORDS.iter().find(|(word, _)| word.as_bytes() == key)?;
    Some(Warning::NotSupported { option, instead })
}
