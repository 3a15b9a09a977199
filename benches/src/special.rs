//! The two measurements that are not a script on a mount: mounting many layers, and memory after many inodes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::failure::{During, Failure, Result};
use crate::process;
use crate::rounds::Bench;
use crate::samples::{Gap, Memory, Results, Sample};
use crate::subject::{Layers, Subject, is_mounted, unmount};

/// Layers of the mounts that are timed.
pub const LAYERS: [usize; 4] = [1, 20, 100, 500];
/// Files of each of these layers.
const FILES_PER_LAYER: usize = 10;
/// A mount may not take longer.
const LIMIT: Duration = Duration::from_secs(60);

/// The name of a mount measurement in tables.
pub fn mount_name(layers: usize) -> String {
    format!("mount_{layers}_layers")
}

/// Times the mount of 1 to 500 layers: the start of the mount program, its return, and a first listing of the root.
pub fn mounts(bench: &Bench<'_>, subjects: &[Subject], rounds: usize, results: &mut Results) -> Result<()> {
    let stack = bench.places.memory.join("stack");
    make_stack(&stack)?;
    for round in 0..rounds {
        for count in LAYERS {
            for subject in subjects.iter().filter(|s| **s != Subject::Native) {
                let (workload, name) = (mount_name(count), format!("{subject}"));
                if results.gaps.iter().any(|g| g.workload == workload && g.subject == name) {
                    continue;
                }
                // A mount point of its own for each: fuse-overlayfs 2.0 unmounts by path once more when it ends, and
                // would take away what the next one has mounted there by then.
                let place = bench.places.memory.join(format!("mounts/{round}-{count}-{name}"));
                match mount_once(bench, subject, &stack, &place, count) {
                    Ok(time) => {
                        println!("  {workload:24} {name:20} {:10.3} ms", time.as_secs_f64() * 1e3);
                        let ns = u64::try_from(time.as_nanos()).during("count nanoseconds")?;
                        results.samples.push(Sample {
                            workload,
                            subject: name,
                            round,
                            ns,
                            server_cpu_ns: None,
                        });
                    }
                    Err(e) => {
                        println!("  {workload:24} {name:20} failed: {e}");
                        results.gaps.push(Gap { workload, subject: name, reason: format!("{e}") });
                    }
                }
            }
        }
    }
    Ok(())
}

fn make_stack(stack: &Path) -> Result<()> {
    for layer in 0..LAYERS.iter().copied().max().unwrap_or(0) {
        let dir = stack.join(layer.to_string()).join("common");
        std::fs::create_dir_all(&dir).during(format_args!("make {}", dir.display()))?;
        for file in 0..FILES_PER_LAYER {
            std::fs::write(dir.join(format!("{layer}-{file}")), b"x").during("fill a layer")?;
        }
    }
    Ok(())
}

/// The layers are named relative to their directory: the kernel takes no more than one page of options.
fn mount_once(
    bench: &Bench<'_>,
    subject: &Subject,
    stack: &Path,
    place: &Path,
    count: usize,
) -> Result<Duration> {
    let fresh = Layers::fresh(place, Vec::new())?;
    let layers = Layers { lowers: (0..count).map(|l| PathBuf::from(l.to_string())).collect(), ..fresh };
    let mut command = match bench.peers.server(subject, &layers)? {
        Some(server) => server,
        None => kernel_command(bench, &layers)?,
    };
    command.current_dir(stack);
    command.stdout(std::process::Stdio::null());
    let start = Instant::now();
    let finished = process::timed(command, LIMIT, || {})?;
    if !finished.output.status.success() {
        return Err(Failure::new(process::text(&finished.output.stderr)));
    }
    if !is_mounted(&layers.mountpoint)? {
        return Err(Failure::new("the mount program returned 0 but nothing is mounted"));
    }
    let names = std::fs::read_dir(&layers.mountpoint).during("list the root")?.count();
    let elapsed = start.elapsed();
    let listed =
        std::fs::read_dir(layers.mountpoint.join("common")).during("list the merged directory")?.count();
    unmount(&layers.mountpoint)?;
    if (names, listed) != (1, count * FILES_PER_LAYER) {
        return Err(Failure::new(format!("{listed} of {} files are shown", count * FILES_PER_LAYER)));
    }
    Ok(elapsed)
}

fn kernel_command(bench: &Bench<'_>, layers: &Layers) -> Result<Command> {
    let lowers: Vec<String> = layers.lowers.iter().map(|l| l.display().to_string()).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}{}",
        lowers.join(":"),
        layers.upper.display(),
        layers.work.display(),
        bench.peers.kernel_options()
    );
    let mut command = Command::new("mount");
    command.args(["-t", "overlay", "-o"]).arg(options).arg("overlay").arg(&layers.mountpoint);
    Ok(command)
}

/// Walks `inodes` files with every server and reads how much memory of its own it holds afterwards.
pub fn memory(bench: &Bench<'_>, subjects: &[Subject], results: &mut Results) -> Result<()> {
    let lower = bench.places.memory.join("inodes");
    let inodes = bench.scale.inodes;
    println!("memory: making {inodes} files");
    for i in 0..inodes {
        let dir = lower.join(format!("d{}", i / 1000));
        if i % 1000 == 0 {
            std::fs::create_dir_all(&dir).during("make a directory of inodes")?;
        }
        std::fs::File::create(dir.join(format!("a-name-of-usual-length-{i}"))).during("make an inode")?;
    }
    for subject in subjects {
        match memory_of(bench, subject, &lower, inodes) {
            Ok(Some(memory)) => {
                println!("  {}: {} -> {} KiB", memory.subject, memory.before_kib, memory.after_kib);
                results.memory.push(memory);
            }
            Ok(None) => {}
            Err(e) => {
                let (workload, subject) = ("memory".to_owned(), format!("{subject}"));
                results.gaps.push(Gap { workload, subject, reason: format!("{e}") });
            }
        }
    }
    std::fs::remove_dir_all(&lower).during("remove the inodes")
}

fn memory_of(bench: &Bench<'_>, subject: &Subject, lower: &Path, inodes: usize) -> Result<Option<Memory>> {
    let layers = Layers::fresh(&bench.places.memory.join("run"), vec![lower.to_path_buf()])?;
    if matches!(subject, Subject::Native | Subject::KernelOverlay) {
        return Ok(None);
    }
    let mounted = bench.peers.mount(subject, &layers)?;
    let Some(pid) = mounted.server_pid() else { return Ok(None) };
    let before_kib = anonymous_kib(pid)?;
    let connection = mounted.connection();
    let mut find = Command::new("find");
    find.arg(mounted.path()).args(["-size", "+4G"]);
    process::timed(find, LIMIT * 5, || {
        if let Some(connection) = connection {
            crate::subject::abort_connection(connection);
        }
    })?;
    let after_kib = anonymous_kib(pid)?;
    let descriptors =
        std::fs::read_dir(format!("/proc/{pid}/fd")).during("list a server's descriptors")?.count();
    mounted.unmount()?;
    Ok(Some(Memory { subject: format!("{subject}"), inodes, before_kib, after_kib, descriptors }))
}

fn anonymous_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read(format!("/proc/{pid}/status")).during("read a server's status")?;
    let line = status.split(|b| *b == b'\n').find_map(|l| l.strip_prefix(b"RssAnon:"));
    let text = process::text(line.ok_or_else(|| Failure::new("no RssAnon in a server's status"))?);
    text.trim_end_matches(" kB").trim().parse().during("read a server's memory")
}
