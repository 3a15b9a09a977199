//! `runner diff`: what a container changed, one line for each path.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::cli::DiffArgs;
use crate::container;
use crate::diff;
use crate::error::{During, Result};
use crate::idmap::Caller;
use crate::state::{Store, Text};

/// Prints the changes of a container.
pub fn main(store: &Path, args: &DiffArgs) -> Result<u8> {
    let store = Store::open(store)?;
    let place = store.find(&args.container)?;
    let lowers: Vec<PathBuf> = place.load()?.rootfs.iter().map(Text::to_path).collect();
    let show = || print(&diff::compare(&place.upper(), &lowers)?);
    let caller = Caller::load()?;
    if caller.uid == 0 {
        show()?;
    } else {
        // Directories of other ids may be closed to the caller.
        container::in_user_namespace(&caller, show)?;
    }
    Ok(0)
}

fn print(changes: &[diff::Change]) -> Result<()> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let write = |out: &mut BufWriter<_>| -> std::io::Result<()> {
        for change in changes {
            out.write_all(change.kind.letter())?;
            out.write_all(b" ")?;
            out.write_all(&change.path)?;
            out.write_all(b"\n")?;
        }
        out.flush()
    };
    write(&mut out).during("write the changes")
}
