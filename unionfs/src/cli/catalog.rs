//! `unionfs catalog`: writes down what is in lower layers.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use super::{Failure, NAME, print};
use crate::stack::catalog;

const USAGE: &str = "\
usage: unionfs catalog LAYER...

Writes the names and attributes of everything in a layer to LAYER.catalog, beside it. Mounts answer from it. For layers
that do not change any more; after a change make it again. To be run as the user, and in the user namespace, that mounts.
";

/// Makes the catalog of each layer, and says so in a line.
pub(super) fn run(layers: &[OsString]) -> Result<ExitCode, Failure> {
    if layers.iter().any(|word| word == "-h" || word == "--help") {
        return print(USAGE.as_bytes());
    }
    if layers.is_empty() {
        return Err(format!("name the layers (see {NAME} catalog --help)").into());
    }
    for layer in layers {
        let made = catalog::build(Path::new(layer))?;
        let (path, objects, len) = (made.path.display(), made.objects, made.len);
        writeln!(std::io::stdout(), "{path}: {objects} objects, {len} bytes")?;
    }
    Ok(ExitCode::SUCCESS)
}
