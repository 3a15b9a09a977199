//! The order of files: each file uses only those listed below it in its crate's lib.rs.

use std::collections::BTreeMap;

use crate::{is_test_file, report, sources, without_tests, workspace};

/// What begins the list in lib.rs.
const BEGINNING: &str = "Order of files";

/// The rank of each top-level module, 0 on top, and the pairs of one rank that may know each other.
#[derive(Debug, Default)]
struct Order {
    ranks: BTreeMap<String, usize>,
    exceptions: Vec<(String, String)>,
}

/// Reads the list: a sentence "a; b, c; d." or items "- 7 `a`", "- 6 `b` (knows `c`), `c`".
fn order(lib: &str) -> Option<Order> {
    let docs: String = lib.lines().filter_map(|line| line.strip_prefix("//!")).collect::<Vec<_>>().join("\n");
    let list = docs.split_once(BEGINNING)?.1.split_once(':')?.1;
    if list.contains("\n - ") { items(list) } else { sentence(list.split_once('.')?.0) }
}

fn sentence(list: &str) -> Option<Order> {
    let groups = list.split(';').enumerate();
    let names =
        groups.flat_map(|(rank, group)| group.split(',').map(move |name| (name.trim().to_owned(), rank)));
    Some(Order { ranks: names.collect(), exceptions: Vec::new() })
}

fn items(list: &str) -> Option<Order> {
    let mut order = Order::default();
    for (rank, item) in list.split("\n - ").skip(1).enumerate() {
        let mut last = String::new();
        let mut depth = 0;
        for (index, part) in item.split('`').enumerate() {
            if index % 2 == 0 {
                depth += part.matches('(').count();
                depth -= part.matches(')').count();
            } else if depth == 0 {
                part.clone_into(&mut last);
                order.ranks.insert(last.clone(), rank);
            } else {
                let known = part.split("::").next()?;
                order.exceptions.push((last.clone(), known.to_owned()));
            }
        }
    }
    Some(order)
}

/// Returns the modules of this crate that the text names, with the line.
fn uses(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for (at, _) in code.match_indices("crate::") {
            let rest = &code[at + "crate::".len()..];
            let inner = rest.strip_prefix('{').unwrap_or(rest);
            let names = if rest.starts_with('{') { inner.split([',', '}']).collect() } else { vec![inner] };
            for name in names {
                let name: String =
                    name.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                if name.starts_with(|c: char| c.is_ascii_lowercase()) {
                    found.push((number + 1, name));
                }
            }
        }
    }
    found
}

fn check(product: &str) {
    let lib = std::fs::read_to_string(workspace().join(product).join("src/lib.rs")).unwrap();
    let Order { ranks, exceptions } =
        order(&lib).unwrap_or_else(|| panic!("{product}/src/lib.rs: no line \"{BEGINNING}\""));
    let root = workspace().join(product).join("src");
    let mut faults = Vec::new();
    for (path, text) in sources(&format!("{product}/src")) {
        let first = path.strip_prefix(&root).unwrap().components().next().unwrap();
        let module = std::path::Path::new(first.as_os_str()).file_stem().unwrap().display().to_string();
        if ["lib", "main"].contains(&module.as_str()) || is_test_file(&path) {
            continue;
        }
        let Some(rank) = ranks.get(&module) else {
            faults.push(format!("{}: {module} is not in the list of lib.rs", path.display()));
            continue;
        };
        for (line, used) in uses(without_tests(&text)) {
            let below = ranks.get(&used).is_none_or(|used| used > rank);
            let known = exceptions.contains(&(module.clone(), used.clone()));
            if used != module && !below && !known {
                faults
                    .push(format!("{}:{line}: {module} uses {used}, which is not below it", path.display()));
            }
        }
    }
    faults.dedup();
    report(&faults);
}

#[test]
fn files_of_unionfs_use_only_what_is_below_them() {
    check("unionfs");
}

#[test]
fn files_of_the_runner_use_only_what_is_below_them() {
    check("runner");
}

#[test]
fn the_list_is_read_as_written() {
    let lib = "//! A.\n//!\n//! Order of files, each using only those below it: a; b,\n//! c; d. More.\n";
    let sentence = order(lib).unwrap();
    assert_eq!(sentence.ranks.get("c"), Some(&1));
    assert_eq!(sentence.ranks.get("d"), Some(&2));
    let items =
        order("//! Order of files: x.\n//!\n//! - 1 `a` (`b`)\n//! - 0 `c` (knows `d::e`),\n//!   `d`\n")
            .unwrap();
    assert_eq!(items.ranks.keys().collect::<Vec<_>>(), ["a", "c", "d"]);
    assert!(items.exceptions.contains(&("c".to_owned(), "d".to_owned())));
    assert_eq!(uses("use crate::{a::X, b};\nlet x = crate::c::y(); // crate::d::z")[2], (2, "c".to_owned()));
}
