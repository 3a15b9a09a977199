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
/// The largest stack once more, with all the files of the scale; ours has catalogs of its layers.
pub const LARGE: &str = "mount_500_layers_large";
/// Files of each layer in the directory that all have.
const FILES_PER_LAYER: usize = 10;
/// A mount may not take longer.
const LIMIT: Duration = Duration::from_secs(60);

/// The name of a mount measurement in tables.
pub fn mount_name(layers: usize) -> String {
    format!("mount_{layers}_layers")
}

/// One stack that is mounted.
struct Stack {
    workload: String,
    dir: PathBuf,
    layers: usize,
}

/// Times the mount of 1 to 500 layers: the start of the mount program, its return, and a first listing of the root.
pub fn mounts(bench: &Bench<'_>, subjects: &[Subject], rounds: usize, results: &mut Results) -> Result<()> {
    let stacks = stacks(bench, subjects)?;
    results.add_rows(stacks.iter().map(|s| ("mount".to_owned(), s.workload.clone())).collect());
    for round in 0..rounds {
        for stack in &stacks {
            for subject in subjects.iter().filter(|s| **s != Subject::Native) {
                let (workload, name) = (stack.workload.clone(), format!("{subject}"));
                if results.is_gap(&workload, &name) || results.is_timed(&workload, &name, round) {
                    continue;
                }
                // A mount point of its own for each: fuse-overlayfs 2.0 unmounts by path once more when it ends, and
                // would take away what the next one has mounted there by then.
                let place = bench.places.memory.join(format!("mounts/{round}-{workload}-{name}"));
                match mount_once(bench, subject, stack, &place) {
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
    for stack in [bench.places.memory.join("stack"), bench.places.memory.join("large")] {
        std::fs::remove_dir_all(&stack).during("remove the layers")?;
    }
    Ok(())
}

/// Makes the layers of all stacks.
fn stacks(bench: &Bench<'_>, subjects: &[Subject]) -> Result<Vec<Stack>> {
    let most = LAYERS.iter().copied().max().unwrap_or(0);
    let (plain, large) = (bench.places.memory.join("stack"), bench.places.memory.join("large"));
    println!("mount: making {} files in {most} layers", bench.scale.inodes);
    for layer in 0..most {
        make_layer(&plain, layer, 0)?;
        make_layer(&large, layer, bench.scale.inodes / most)?;
    }
    if subjects.iter().any(|s| matches!(s, Subject::Unionfs(_))) {
        let mut catalog = Command::new(crate::sandbox::sibling("perf-unionfs")?);
        catalog.arg("catalog").args((0..most).map(|l| large.join(l.to_string())));
        process::check(catalog)?;
    }
    let plain = LAYERS.map(|layers| Stack { workload: mount_name(layers), dir: plain.clone(), layers });
    let large = Stack { workload: LARGE.to_owned(), dir: large, layers: most };
    Ok(plain.into_iter().chain([large]).collect())
}

/// A layer with files in the directory that all layers have, and `more` in one of its own.
fn make_layer(stack: &Path, layer: usize, more: usize) -> Result<()> {
    let common = stack.join(layer.to_string()).join("common");
    let own = common.join(format!("own-{layer}"));
    std::fs::create_dir_all(&own).during(format_args!("make {}", own.display()))?;
    for file in 1..FILES_PER_LAYER {
        std::fs::write(common.join(format!("{layer}-{file}")), b"x").during("fill a layer")?;
    }
    for file in 0..more {
        std::fs::File::create(own.join(format!("a-name-of-usual-length-{file}"))).during("fill a layer")?;
    }
    Ok(())
}

fn mount_once(bench: &Bench<'_>, subject: &Subject, stack: &Stack, place: &Path) -> Result<Duration> {
    let lowers = (0..stack.layers).map(|l| stack.dir.join(l.to_string())).collect();
    let layers = Layers::fresh(place, lowers)?;
    let mut command = match bench.peers.server(subject, &layers)? {
        Some(server) => server,
        None => bench.peers.kernel_command(&layers),
    };
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
    let wanted = stack.layers * FILES_PER_LAYER;
    if (names, listed) != (1, wanted) {
        return Err(Failure::new(format!("{listed} of {wanted} names are shown")));
    }
    Ok(elapsed)
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
        let known = |m: &Memory| m.inodes == inodes && m.subject == format!("{subject}");
        if results.memory.iter().any(known) {
            continue;
        }
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
