//! The layout rules that the compiler does not check: file sizes, the order of files, where unsafe code and raw
//! descriptors may stand, names as bytes, ASCII, the tests that documents name.

mod documents;
mod order;
mod text;

use std::path::{Path, PathBuf};

/// Returns the root of the workspace.
fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Returns the Rust files below a directory of the workspace with their text.
fn sources(directory: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut rest = vec![workspace().join(directory)];
    while let Some(path) = rest.pop() {
        for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && entry.file_name() != "target" {
                rest.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text =
                    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                found.push((path, text));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no sources in {directory}");
    found
}

/// Returns the directories of all members.
const MEMBERS: [&str; 5] = ["unionfs", "runner", "tests", "benches", "xtask"];

/// Returns the directories of the two products.
const PRODUCTS: [&str; 2] = ["unionfs/src", "runner/src"];

/// Returns the text without its test module, which is the rest of a file from `#[cfg(test)]` on.
fn without_tests(text: &str) -> &str {
    text.find("\n#[cfg(test)]").map_or(text, |at| &text[..at])
}

/// Returns whether a file holds only tests.
fn is_test_file(path: &Path) -> bool {
    path.file_stem().is_some_and(|stem| stem == "tests")
        || path.components().any(|part| part.as_os_str() == "tests")
}

/// Panics with all faults, one a line.
fn report(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
