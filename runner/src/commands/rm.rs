//! `runner rm`: each container by itself; one that fails does not stop the others.

use std::io::Write;
use std::path::Path;

use crate::cli::RmArgs;
use crate::container::{self, WhenRunning};
use crate::error::{During, Result};
use crate::state::Store;

/// Removes containers, and prints the name of each that is gone.
pub fn main(store: &Path, args: &RmArgs) -> Result<u8> {
    let store = Store::open(store)?;
    let when_running = if args.force { WhenRunning::Kill } else { WhenRunning::Refuse };
    let mut code = 0;
    for name in &args.containers {
        let removed = store.find(name).and_then(|place| container::remove(&store, &place, when_running));
        match removed {
            Ok(()) => writeln!(std::io::stdout(), "{name}").during("write the name")?,
            Err(error) => {
                super::complain(&error);
                code = 1;
            }
        }
    }
    Ok(code)
}
