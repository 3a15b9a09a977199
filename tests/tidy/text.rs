//! What may stand in a file.

use crate::{MEMBERS, PRODUCTS, is_test_file, report, sources, without_tests};

/// Longest file, in lines, its tests included.
const LINES: usize = 600;

/// Files whose size is a table that splitting would not make clearer, with their allowance.
const LONG_TABLES: [(&str, usize); 1] = [("fuse/wire/request.rs", 640)];

#[test]
fn no_file_is_longer_than_600_lines() {
    let mut faults = Vec::new();
    for member in MEMBERS {
        for (path, text) in sources(member) {
            let table = LONG_TABLES.iter().find(|(name, _)| path.ends_with(name));
            let allowed = table.map_or(LINES, |(_, lines)| *lines);
            if text.lines().count() > allowed {
                faults.push(format!("{}: {} lines", path.display(), text.lines().count()));
            }
        }
    }
    report(&faults);
}

#[test]
fn sources_are_ascii() {
    let mut faults = Vec::new();
    for member in MEMBERS {
        for (path, text) in sources(member) {
            for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_ascii()) {
                faults.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
    report(&faults);
}

#[test]
fn unsafe_code_and_raw_descriptors_stand_only_in_sys() {
    let mut faults = Vec::new();
    for product in PRODUCTS {
        for (path, text) in sources(product) {
            let in_sys =
                path.components().any(|part| part.as_os_str() == "sys" || part.as_os_str() == "sys.rs");
            if in_sys || is_test_file(&path) {
                continue;
            }
            for (number, line) in without_tests(&text).lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                let forbidden = ["unsafe ", "unsafe{", "allow(unsafe_code)", "RawFd"];
                if forbidden.iter().any(|word| code.contains(word)) {
                    faults.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
                }
            }
        }
    }
    report(&faults);
}

#[test]
fn each_unsafe_block_says_why_it_is_sound() {
    let mut faults = Vec::new();
    for product in PRODUCTS {
        for (path, text) in sources(product) {
            let lines: Vec<&str> = text.lines().collect();
            for (number, line) in lines.iter().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                if code.contains("unsafe {") {
                    let above = &lines[number.saturating_sub(8)..=number];
                    if !above.iter().any(|line| line.contains("SAFETY")) {
                        faults.push(format!("{}:{}: no SAFETY line", path.display(), number + 1));
                    }
                }
            }
        }
    }
    report(&faults);
}

#[test]
fn the_products_do_not_panic_and_do_not_print_names_lossily() {
    let mut faults = Vec::new();
    for product in PRODUCTS {
        for (path, text) in sources(product).into_iter().filter(|(path, _)| !is_test_file(path)) {
            for (number, line) in without_tests(&text).lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                let forbidden = [
                    ".unwrap()",
                    ".expect(",
                    "panic!(",
                    "todo!(",
                    "unimplemented!(",
                    "unreachable!(",
                    "dbg!(",
                ];
                if forbidden.iter().any(|word| code.contains(word)) {
                    faults.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
                }
            }
        }
    }
    report(&faults);
}

#[test]
fn each_file_begins_by_saying_what_it_answers() {
    let mut faults = Vec::new();
    for member in MEMBERS {
        for (path, text) in sources(member) {
            if !text.starts_with("//!") && !is_test_file(&path) {
                faults.push(format!("{}: does not begin with //!", path.display()));
            }
        }
    }
    report(&faults);
}
