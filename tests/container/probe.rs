//! A static program that looks at the container from inside. Built by the tier itself: it needs nothing but std.
#![allow(unsafe_code)]

use std::fs;

unsafe extern "C" {
    fn syscall(number: i64, ...) -> i64;
    fn setsid() -> i32;
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    match words.as_slice() {
        ["report"] => report(),
        ["syscall", name] => call(name),
        ["cat", path] => match fs::read(path) {
            Ok(text) => print!("{}", String::from_utf8_lossy(&text)),
            Err(error) => fail(&error),
        },
        ["write", path, text] => check(fs::write(path, text)),
        ["mkdir", path] => check(fs::create_dir(path)),
        ["rm", path] => check(fs::remove_file(path)),
        ["chown", path, id] => check(std::os::unix::fs::chown(path, id.parse().ok(), id.parse().ok())),
        ["ls", path] => list(path),
        ["readlink", path] => match fs::read_link(path) {
            Ok(target) => println!("{}", target.display()),
            Err(error) => fail(&error),
        },
        ["memory", mebibytes] => {
            let size: usize = mebibytes.parse().unwrap();
            let block = vec![1_u8; size << 20];
            println!("took {} bytes", block.iter().filter(|byte| **byte == 1).count());
        }
        ["fork", count] => fork(count.parse().unwrap()),
        ["burn", milliseconds] => burn(milliseconds.parse().unwrap()),
        ["sleep"] => std::thread::sleep(std::time::Duration::from_secs(1000)),
        ["tree"] => tree(),
        ["exit", code] => std::process::exit(code.parse().unwrap()),
        other => {
            eprintln!("probe: what is {other:?}?");
            std::process::exit(99);
        }
    }
}

fn fail(error: &std::io::Error) -> ! {
    println!("errno {}", error.raw_os_error().unwrap_or(-1));
    std::process::exit(1)
}

fn check(result: std::io::Result<()>) {
    match result {
        Ok(()) => println!("ok"),
        Err(error) => fail(&error),
    }
}

fn list(path: &str) {
    match fs::read_dir(path) {
        Ok(entries) => {
            let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
            names.sort();
            for name in names {
                println!("{}", name.display());
            }
        }
        Err(error) => fail(&error),
    }
}

/// Everything worth knowing, as `key value` lines.
fn report() {
    println!("pid {}", std::process::id());
    for line in fs::read_to_string("/proc/self/status").unwrap_or_default().lines() {
        let wanted = ["Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp", "SigBlk", "SigIgn", "Umask"];
        if wanted.iter().any(|key| line.starts_with(key)) {
            println!("{}", line.replacen(':', "", 1).split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    println!("hostname {}", fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim());
    println!("cwd {}", std::env::current_dir().map(|path| path.display().to_string()).unwrap_or_default());
    for entry in fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        // The descriptor that lists.
        if !target.starts_with("/proc") {
            println!("fd {} {}", entry.file_name().display(), target.display());
        }
    }
    for line in fs::read_to_string("/proc/net/dev").unwrap_or_default().lines().skip(2) {
        println!("interface {}", line.split(':').next().unwrap_or_default().trim());
    }
    let flags = fs::read_to_string("/sys/class/net/lo/flags").unwrap_or_default();
    println!("lo_flags {}", flags.trim());
    for name in ["user", "mnt", "pid", "net", "uts", "ipc", "cgroup"] {
        println!("ns_{name} {}", fs::read_link(format!("/proc/self/ns/{name}")).unwrap_or_default().display());
    }
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let separator = fields.iter().position(|field| *field == "-").unwrap_or(0);
        println!("mount {} {} {}", fields[4], fields[separator + 1], fields[5]);
    }
    for (name, value) in std::env::vars() {
        println!("env {name}={value}");
    }
    let cmdline = fs::read("/proc/1/cmdline").unwrap_or_default();
    println!("init {}", String::from_utf8_lossy(&cmdline).trim_end_matches('\0'));
    println!("init_exe {}", i32::from(fs::read_link("/proc/1/exe").is_ok()));
    println!("init_environ {}", i32::from(fs::read("/proc/1/environ").is_ok()));
    println!("uid_map {}", fs::read_to_string("/proc/self/uid_map").unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" "));
}

/// Makes one system call and prints its errno.
fn call(name: &str) {
    #[cfg(target_arch = "x86_64")]
    let numbers = [("mount", 165), ("unshare", 272), ("clone3", 435), ("keyctl", 250), ("bpf", 321), ("clone", 56), ("socket", 41), ("add_key", 248), ("swapon", 167), ("personality", 135), ("chroot", 161), ("getpid", 39)];
    #[cfg(target_arch = "aarch64")]
    let numbers = [("mount", 40), ("unshare", 97), ("clone3", 435), ("keyctl", 219), ("bpf", 280), ("clone", 220), ("socket", 198), ("add_key", 217), ("swapon", 224), ("personality", 92), ("chroot", 51), ("getpid", 172)];
    let (number, argument): (i64, i64) = match name {
        "unknown" => (4000, 0),
        // CLONE_NEWUSER
        "unshare" | "clone" => (numbers.iter().find(|(known, _)| *known == name).unwrap().1, 0x1000_0000),
        // AF_VSOCK
        "socket" => (numbers.iter().find(|(known, _)| *known == name).unwrap().1, 40),
        // ADDR_COMPAT_LAYOUT
        "personality" => (numbers.iter().find(|(known, _)| *known == name).unwrap().1, 0x0020_0000),
        _ => (numbers.iter().find(|(known, _)| *known == name).unwrap().1, 0),
    };
    // SAFETY: the calls get null pointers and zero sizes, which the kernel refuses.
    let result = unsafe { syscall(number, argument, 0_i64, 0_i64, 0_i64, 0_i64, 0_i64) };
    let errno = if result < 0 { std::io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 };
    println!("errno {errno}");
}

/// Starts processes until one fails, and tells how many there were.
fn fork(count: usize) {
    let mut children = Vec::new();
    for _ in 0..count {
        match std::process::Command::new("/probe").arg("sleep").spawn() {
            Ok(child) => children.push(child),
            Err(error) => {
                println!("stopped after {} by errno {}", children.len(), error.raw_os_error().unwrap_or(-1));
                break;
            }
        }
    }
    println!("forked {}", children.len());
    for child in &mut children {
        child.kill().unwrap();
    }
}

/// Uses the processor for some wall time and prints how many milliseconds it got.
fn burn(milliseconds: u64) {
    let end = std::time::Instant::now() + std::time::Duration::from_millis(milliseconds);
    let mut sum = 0_u64;
    while std::time::Instant::now() < end {
        for number in 0..10_000_u64 {
            sum = std::hint::black_box(sum.wrapping_add(number));
        }
    }
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let after = stat.rsplit(')').next().unwrap();
    let fields: Vec<u64> = after.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // utime and stime, in hundredths of a second.
    println!("used {}", (fields[10] + fields[11]) * 10);
}

/// Starts a child and a grandchild in sessions of their own, and waits for ever.
fn tree() {
    let child = std::process::Command::new("/probe").arg("sleep").spawn().unwrap();
    // SAFETY: setsid takes no argument.
    unsafe { setsid() };
    println!("ready {}", child.id());
    std::thread::sleep(std::time::Duration::from_secs(1000));
}
