//! The layout rules, which are tests of the `tidy` tier, as a task.

use crate::Outcome;

/// Runs the tidy tier.
pub(crate) fn run() -> Outcome {
    crate::ci::call("cargo", &["test", "--quiet", "--package", "e2e", "--test", "tidy"], &[])
}
