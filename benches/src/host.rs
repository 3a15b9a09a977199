//! Facts about the machine that belong beside every number.

use std::path::Path;
use std::process::Command;

use crate::process;

/// The first line that a command prints, or why there is none.
fn says(program: &str, arguments: &[&str]) -> String {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => {
            output.stdout.split(|b| *b == b'\n').next().map(process::text).unwrap_or_default()
        }
        Ok(output) => format!("{program} failed: {}", process::text(&output.stderr)),
        Err(e) => format!("no {program}: {e}"),
    }
}

/// The content of a small file, or a dash.
fn holds(path: &str) -> String {
    std::fs::read(path).map_or_else(|_| "-".to_owned(), |text| process::text(&text))
}

/// Load averages over 1, 5 and 15 minutes.
pub fn load_average() -> String {
    holds("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// The day, as the name of a directory.
pub fn day() -> String {
    says("date", &["-u", "+%Y-%m-%d"])
}

/// The commit measured, with a word if the tree had changes.
pub fn commit(project: &Path) -> String {
    let dir = project.display().to_string();
    let commit = says("git", &["-C", &dir, "rev-parse", "--short=12", "HEAD"]);
    let changed = says("git", &["-C", &dir, "status", "--porcelain", "--untracked-files=no"]);
    if changed.is_empty() { commit } else { format!("{commit} with uncommitted changes") }
}

/// Everything about the machine.
pub fn facts() -> Vec<(String, String)> {
    let cpu = says("sh", &["-c", "sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1"]);
    let pipe = says(
        "sh",
        &[
            "-c",
            "perf bench -f simple sched pipe -l 100000 2>/dev/null | sed 's/$/ s for 100000 round trips/'",
        ],
    );
    let halt = "/sys/module/haltpoll/parameters/guest_halt_poll_ns";
    let facts = [
        ("date", says("date", &["-u", "+%Y-%m-%d %H:%M UTC"])),
        ("kernel", says("uname", &["-srv"])),
        ("processor", format!("{} x {cpu}", says("nproc", &[]))),
        ("memory", says("sh", &["-c", "sed -n 's/MemTotal: *//p' /proc/meminfo"])),
        ("idle driver", holds("/sys/devices/system/cpu/cpuidle/current_driver")),
        ("guest_halt_poll_ns", holds(halt)),
        ("perf bench sched pipe", pipe),
        ("fuse enable_uring", holds("/sys/module/fuse/parameters/enable_uring")),
        ("rustc", says("rustc", &["--version"])),
        ("load average at start", load_average()),
    ];
    facts.map(|(name, value)| (name.to_owned(), value)).to_vec()
}
