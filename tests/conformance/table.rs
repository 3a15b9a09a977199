//! The table of who passes what: `cargo xtask conformance`.

use std::path::{Path, PathBuf};

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::oracle::KernelOverlay;
use e2e::require;
use e2e::suites::{fsx, pjdfstest};
use e2e::tree::{Kind, LayerTree};
use e2e::user::Role;

/// Who is measured: the name in the table, and the program unless it is the plain file system or the kernel.
fn subjects() -> Vec<(String, Option<PathBuf>)> {
    let mut found = vec![("plain".to_owned(), None)];
    if e2e::require::Need::KernelOverlay.missing().is_none() {
        found.push(("kernel overlayfs".to_owned(), None));
    }
    for directory in std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()) {
        let program = directory.join("fuse-overlayfs");
        let output = std::process::Command::new(&program).arg("--version").output();
        if let Ok(output) = output {
            let text = String::from_utf8(output.stdout).unwrap_or_default();
            let mut lines = text.lines();
            let version = lines
                .find_map(|line| line.strip_prefix("fuse-overlayfs: version "))
                .unwrap_or("of unknown version");
            let name = format!("fuse-overlayfs {version}");
            if !found.iter().any(|(known, _)| *known == name) {
                found.push((name, Some(program)));
            }
        }
    }
    found.push(("unionfs".to_owned(), Some(e2e::mounted::union_program())));
    found
}

fn measure(root: &Path, count: u64) -> (String, Vec<String>) {
    let (verdict, _) = pjdfstest(root);
    let cases = match &verdict.broken {
        Some(_) => "does not end".to_owned(),
        None => format!("{} / {} / {}", verdict.passed, verdict.failed.len(), verdict.skipped),
    };
    let runs: Vec<bool> = [(1, "lower"), (2, "lower"), (3, "new")]
        .iter()
        .map(|(seed, name)| fsx(root, name, count, *seed).is_ok())
        .collect();
    let good = runs.iter().filter(|good| **good).count();
    (format!("{cases} | {good} of {}", runs.len()), verdict.failed.into_iter().collect())
}

fn row(name: &str, program: Option<&Path>, count: u64) -> (String, Vec<String>) {
    let scratch = scratch();
    let layers = Layers::below(scratch.path(), 1);
    let tree = LayerTree::new().file("lower", vec![b'x'; 100_000]).with("pjd", Kind::Directory, 0o777);
    tree.build(&layers.lowers[0]);
    match (name, program) {
        ("plain", _) => measure(&layers.lowers[0], count),
        (_, Some(program)) => measure(Mounted::with(program, layers).root(), count),
        _ => measure(KernelOverlay::new(layers).root(), count),
    }
}

/// Writes the rows of this role to `E2E_ROWS`.
#[test]
#[ignore = "a measurement, run by cargo xtask conformance"]
fn rows() {
    require!(Fuse, Union, Suites);
    let count = std::env::var("E2E_FSX_OPS").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000);
    let who = if Role::current().is_some() { "user namespace" } else { "root" };
    let (mut lines, mut failures) = (Vec::new(), Vec::new());
    let mut plain = Vec::new();
    for (name, program) in subjects() {
        let (text, failed) = row(&name, program.as_deref(), count);
        e2e::require::say(&format!("{name} ({who}): {text}"));
        lines.push(format!("| {name} | {who} | {text} |"));
        if name == "plain" {
            plain = failed;
            continue;
        }
        let beyond: Vec<String> = failed.into_iter().filter(|case| !plain.contains(case)).collect();
        let (devices, others): (Vec<_>, Vec<_>) =
            beyond.into_iter().partition(|case| case.ends_with("::char"));
        let others = if others.is_empty() { "none".to_owned() } else { others.join(", ") };
        failures.push(format!("- {name}, {who}: {} of `*::char`; others: {others}", devices.len()));
    }
    let Some(target) = std::env::var_os("E2E_ROWS") else { return };
    std::fs::write(target, format!("{}\n\n{}\n", lines.join("\n"), failures.join("\n"))).unwrap();
}

/// Writes the document named by `E2E_CONFORMANCE_TABLE`, relative to the workspace.
#[test]
#[ignore = "a measurement, run by cargo xtask conformance"]
fn table() {
    require!(Fuse, Union, Suites, Root);
    let Some(target) = std::env::var_os("E2E_CONFORMANCE_TABLE") else { return };
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let scratch = scratch();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(scratch.path(), mode).unwrap();
    let mut parts = Vec::new();
    for role in [None, Some(Role::Namespace)] {
        let rows_file = scratch.path().join(format!("rows-{}", role.is_some()));
        e2e::user::run_measurement(role, "table::rows", &rows_file);
        parts.push(std::fs::read_to_string(&rows_file).unwrap());
    }
    let split =
        |part: &String| part.split_once("\n\n").map(|(a, b)| (a.to_owned(), b.trim().to_owned())).unwrap();
    let (rows, failures): (Vec<_>, Vec<_>) = parts.iter().map(split).unzip();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let text = format!(
        "# Conformance\n\nWritten by `cargo xtask conformance`. Linux {}, layers on the file system of the temporary \
         directory.\npjdfstest 0.2.2: cases passed / failed / skipped. fsx 0.3.2: runs without a wrong byte.\n\n\
         | file system | as | pjdfstest | fsx |\n| --- | --- | --- | --- |\n{}\n\n## Cases that fail beyond those of the plain file system\n\n\
         The cases `*::char` make a character device 0:0, which is a whiteout: EPERM on unions that keep it safe.\n\n{}\n",
        release.trim(),
        rows.join("\n"),
        failures.join("\n").trim()
    );
    let path = workspace.join(target);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}
