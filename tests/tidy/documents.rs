//! Documents that name a test name one that exists; the changelog has the version.

use crate::{MEMBERS, report, sources, workspace};

/// Returns the names in backquotes after `Test:` or `Tests:`, in a document.
fn named_tests(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for line in text.lines() {
        let Some(at) = line.find("Test: ").or_else(|| line.find("Tests: ")) else { continue };
        let parts: Vec<&str> = line[at..].split('`').collect();
        names.extend(parts.iter().skip(1).step_by(2).map(|name| (*name).to_owned()));
    }
    names
}

#[test]
fn each_test_that_a_document_names_exists() {
    let code: String = MEMBERS.iter().flat_map(|member| sources(member)).map(|(_, text)| text).collect();
    let mut faults = Vec::new();
    for document in ["SEMANTICS.md", "ARCHITECTURE.md"] {
        let text = std::fs::read_to_string(workspace().join(document)).unwrap_or_default();
        for name in named_tests(&text) {
            let function = name.rsplit("::").next().unwrap_or(&name);
            if !code.contains(&format!("fn {function}(")) {
                faults.push(format!("{document}: no test `{name}`"));
            }
        }
    }
    report(&faults);
}

#[test]
fn each_paragraph_of_semantics_names_its_test() {
    let Ok(text) = std::fs::read_to_string(workspace().join("SEMANTICS.md")) else { return };
    let mut faults = Vec::new();
    let mut section = String::new();
    for block in text.split("\n\n") {
        if block.starts_with('#') {
            section = block.lines().next().unwrap_or_default().to_owned();
        }
        let item = block.trim_start().starts_with("- ") || block.trim_start().starts_with("**");
        if item && !block.contains("Test: ") && !block.contains("Tests: ") {
            faults.push(format!("{section}: {}", block.lines().next().unwrap_or_default()));
        }
    }
    report(&faults);
}

#[test]
fn the_changelog_has_the_version_or_what_is_unreleased() {
    let Ok(text) = std::fs::read_to_string(workspace().join("CHANGELOG.md")) else { return };
    let version = env!("CARGO_PKG_VERSION");
    assert!(
        text.contains(version) || text.contains("Unreleased"),
        "CHANGELOG.md: neither {version} nor Unreleased"
    );
}
