//! A real root file system, made once with mmdebstrap, and how it is cut into layers.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{During, Failure, Result};
use crate::process;

const SUITE: &str = "bookworm";
const PACKAGES: &str = "gcc,libc6-dev,make,python3,git,ca-certificates";

/// What the real tree is.
#[derive(Clone, Debug)]
pub struct Rootfs {
    /// A tar of it.
    pub tar: PathBuf,
    /// One line for the report.
    pub description: String,
    /// Whether programs can run in it: a complete system, not a part of `/usr`.
    pub complete: bool,
}

/// The cached tar below `cache`, made if need be. Without mmdebstrap or its mirror: a part of this machine's `/usr`.
pub fn ensure(cache: &Path) -> Result<Rootfs> {
    std::fs::create_dir_all(cache).during(format_args!("make {}", cache.display()))?;
    let tar = cache.join(format!("rootfs-{SUITE}.tar"));
    let description = format!("Debian {SUITE}, mmdebstrap --variant=minbase --include={PACKAGES}");
    if tar.exists() {
        return Ok(Rootfs { tar, description, complete: true });
    }
    let making = cache.join("rootfs-making.tar");
    let mut debstrap = Command::new("mmdebstrap");
    debstrap.args(["--variant=minbase", "--quiet", "--skip=output/dev"]).arg(format!("--include={PACKAGES}"));
    debstrap.arg(SUITE).arg(&making);
    println!("making a Debian root file system (once; cached in {})", cache.display());
    match process::check(debstrap) {
        Ok(_) => {
            std::fs::rename(&making, &tar).during("keep the root file system")?;
            Ok(Rootfs { tar, description, complete: true })
        }
        Err(e) => part_of_usr(cache, &e),
    }
}

fn part_of_usr(cache: &Path, why: &Failure) -> Result<Rootfs> {
    println!("no Debian root file system, a part of /usr serves instead: {why}");
    let tar = cache.join("usr-part.tar");
    let script = format!(
        "set --; for d in usr/bin usr/lib/python3 usr/lib/git-core usr/include usr/share/perl usr/share/doc usr/share/zoneinfo; \
         do [ -d /$d ] && set -- \"$@\" $d; done; tar -C / -cf '{}' \"$@\"",
        tar.display()
    );
    process::shell(cache, &script)?;
    Ok(Rootfs { tar, description: format!("part of this machine's /usr, because {why}"), complete: false })
}

/// Unpacks the tree into `count` layers below `dir` and returns them, topmost first. Packages, in alphabetical order,
/// are dealt to layers of about equal numbers of files; what belongs to no package is the base's. A directory is in
/// each layer that has something in it, so that lookups have real merging to do.
pub fn split(rootfs: &Rootfs, dir: &Path, count: usize) -> Result<Vec<PathBuf>> {
    let mut list = Command::new("tar");
    list.arg("--quoting-style=literal").arg("-tf").arg(&rootfs.tar);
    let names = process::check(list)?.stdout;
    let names: Vec<&[u8]> = names.split(|b| *b == b'\n').filter(|n| !n.is_empty()).collect();
    let owners = owners(rootfs, dir)?;
    let package = |name: &[u8]| owners.get(key(name)).map_or("", String::as_str);
    let mut by_package: HashMap<&str, usize> = HashMap::new();
    for name in names.iter().filter(|n| !n.ends_with(b"/")) {
        *by_package.entry(package(name)).or_default() += 1;
    }
    let mut sizes: Vec<(&str, usize)> = by_package.into_iter().collect();
    sizes.sort_unstable();
    let layer_of = deal(&sizes, count);
    let layer = |name: &[u8]| layer_of.get(package(name)).copied().unwrap_or(0);
    let lists: Vec<Vec<u8>> = (0..count).map(|i| layer_list(&names, i, &layer)).collect();
    unpack(rootfs, dir, &lists)
}

/// The lines of `names` that layer `wanted` gets: its files, and the directories above them. The base has every
/// directory.
fn layer_list(names: &[&[u8]], wanted: usize, layer: &dyn Fn(&[u8]) -> usize) -> Vec<u8> {
    let mut directories: BTreeSet<&[u8]> = BTreeSet::new();
    for name in names.iter().filter(|n| !n.ends_with(b"/") && layer(n) == wanted) {
        for (i, _) in name.iter().enumerate().filter(|(_, b)| **b == b'/') {
            directories.insert(name.get(..=i).unwrap_or_default());
        }
    }
    let mut list = Vec::new();
    for name in names {
        let here = if name.ends_with(b"/") {
            wanted == 0 || directories.contains(name)
        } else {
            layer(name) == wanted
        };
        if here {
            list.extend_from_slice(name);
            list.push(b'\n');
        }
    }
    list
}

fn unpack(rootfs: &Rootfs, dir: &Path, lists: &[Vec<u8>]) -> Result<Vec<PathBuf>> {
    let mut layers = Vec::new();
    for (i, names) in lists.iter().enumerate() {
        let layer = dir.join(format!("layer-{i}"));
        std::fs::create_dir_all(&layer).during(format_args!("make {}", layer.display()))?;
        if names.is_empty() {
            // tar takes an empty list for all.
            layers.push(layer);
            continue;
        }
        let list = dir.join(format!("layer-{i}.list"));
        std::fs::write(&list, names).during("write a layer's list")?;
        let mut extract = Command::new("tar");
        extract.args(["--verbatim-files-from", "--no-recursion", "-xf"]).arg(&rootfs.tar);
        extract.arg("-C").arg(&layer).arg("-T").arg(&list);
        process::check(extract)?;
        layers.push(layer);
    }
    layers.reverse();
    Ok(layers)
}

/// The layer of each package: 0 is the base. None is left empty while there are packages enough.
fn deal<'a>(sizes: &[(&'a str, usize)], count: usize) -> HashMap<&'a str, usize> {
    let total: usize = sizes.iter().map(|(_, n)| n).sum();
    let (mut seen, mut next) = (0, 0);
    let mut layers = HashMap::new();
    for (i, (package, files)) in sizes.iter().enumerate() {
        let by_size = (seen * count).checked_div(total).unwrap_or(0).min(count.saturating_sub(1));
        let least = count.saturating_sub(sizes.len() - i);
        let layer = by_size.max(least).min(next);
        layers.insert(*package, layer);
        seen += files;
        next = layer + 1;
    }
    layers
}

/// A path as both dpkg and the archive would write it: no leading `./` or `/`, and below `usr` after the merge.
fn key(path: &[u8]) -> &[u8] {
    let path = path.strip_prefix(b".").unwrap_or(path);
    let path = path.strip_prefix(b"/").unwrap_or(path);
    path.strip_prefix(b"usr/").unwrap_or(path)
}

/// Which package each path belongs to, from dpkg's own lists in the archive.
fn owners(rootfs: &Rootfs, dir: &Path) -> Result<HashMap<Vec<u8>, String>> {
    let mut owners = HashMap::new();
    if !rootfs.complete {
        return Ok(owners);
    }
    let info = dir.join("dpkg");
    std::fs::create_dir_all(&info).during(format_args!("make {}", info.display()))?;
    let mut extract = Command::new("tar");
    extract
        .arg("-C")
        .arg(&info)
        .arg("-xf")
        .arg(&rootfs.tar)
        .args(["--wildcards", "./var/lib/dpkg/info/*.list"]);
    process::check(extract)?;
    let lists = info.join("var/lib/dpkg/info");
    for entry in std::fs::read_dir(&lists).during(format_args!("list {}", lists.display()))? {
        let entry = entry.during("list dpkg's files")?;
        let text = std::fs::read(entry.path()).during("read a package's list")?;
        let name = entry.file_name().into_vec();
        let package: String = name.iter().take_while(|b| **b != b'.').map(|b| char::from(*b)).collect();
        for path in text.split(|b| *b == b'\n') {
            owners.insert(key(path).to_vec(), package.clone());
        }
    }
    std::fs::remove_dir_all(&info).during("remove dpkg's lists")?;
    Ok(owners)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_dealt_to_layers_of_equal_size_in_order() {
        let layers = deal(&[("", 10), ("a", 10), ("b", 10), ("c", 10), ("d", 20)], 3);
        assert_eq!(layers.get(""), Some(&0));
        assert_eq!(layers.get("b"), Some(&1));
        assert_eq!(layers.get("d"), Some(&2));
    }

    #[test]
    fn a_large_package_leaves_no_layer_empty() {
        let layers = deal(&[("", 1), ("a", 90), ("b", 1), ("c", 1), ("d", 7)], 4);
        let mut used: Vec<usize> = layers.into_values().collect();
        used.sort_unstable();
        used.dedup();
        assert_eq!(used, [0, 1, 2, 3]);
    }

    #[test]
    fn paths_before_and_after_the_usr_merge_are_the_same_key() {
        for path in [&b"./usr/bin/sh"[..], b"/bin/sh", b"/usr/bin/sh", b"bin/sh"] {
            assert_eq!(key(path), b"bin/sh");
        }
    }
}
