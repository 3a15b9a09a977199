//! Seeded trees: the same names and bytes on every machine.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{During, Result};
use crate::process;

/// SplitMix64: small, seeded, good enough for sizes and orders.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts the sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit` (0 if that is 0).
    pub fn below(&mut self, limit: u64) -> u64 {
        self.draw().checked_rem(limit).unwrap_or(0)
    }

    /// `len` bytes of printable text, lines of 64.
    pub fn text(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            for byte in self.draw().to_le_bytes() {
                bytes.push(if bytes.len() % 64 == 63 { b'\n' } else { b'a' + byte % 26 });
            }
        }
        bytes.truncate(len);
        bytes
    }

    /// Puts `items` in random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u64 + 1) as usize;
            items.swap(i, j);
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).during(format_args!("write {}", path.display()))
}

fn mkdir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).during(format_args!("make {}", path.display()))
}

/// `count` files of 1 to `max` bytes in one directory.
pub fn flat(dir: &Path, count: usize, max: u64) -> Result<()> {
    mkdir(dir)?;
    let mut random = Random::new(count as u64);
    for i in 0..count {
        let len = 1 + random.below(max) as usize;
        write(&dir.join(format!("file-{i:05}.txt")), &random.text(len))?;
    }
    Ok(())
}

/// `count` small files in packages, as a tree of JavaScript modules: 20 files a directory, 5 directories a package,
/// most of 100 to 4,000 bytes and a few of 30,000.
pub fn nested(dir: &Path, count: usize) -> Result<()> {
    let mut random = Random::new(7 + count as u64);
    for i in 0..count {
        let parent = dir.join(format!("package-{:03}/lib-{}", i / 100, i / 20 % 5));
        if i % 20 == 0 {
            mkdir(&parent)?;
        }
        let len = if i % 50 == 0 { 30_000 } else { 100 + random.below(3_900) as usize };
        write(&parent.join(format!("module-{i:05}.js")), &random.text(len))?;
    }
    Ok(())
}

/// A small C project: `units` sources that include one another's headers, and a Makefile.
pub fn c_project(dir: &Path, units: usize) -> Result<()> {
    mkdir(dir)?;
    let objects: String = (0..units).map(|i| format!(" u{i}.o")).collect();
    let makefile = format!(
        "OUT ?= prog\nall: $(OUT)\n$(OUT): main.o{objects}\n\tcc -o $@ $^\n%.o: %.c\n\tcc -O0 -c -o $@ $<\n"
    );
    write(&dir.join("Makefile"), makefile.as_bytes())?;
    let mut main = String::from("#include <stdio.h>\n");
    for i in 0..units {
        let previous = i.saturating_sub(1);
        write(&dir.join(format!("u{i}.h")), format!("#pragma once\nint f{i}(int);\n").as_bytes())?;
        let source = format!(
            "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n#include <sys/stat.h>\n\
             #include \"u{i}.h\"\n#include \"u{previous}.h\"\n\
             int f{i}(int x) {{ char b[64]; snprintf(b, sizeof b, \"%d\", x); return (int)strlen(b) + {i}; }}\n"
        );
        write(&dir.join(format!("u{i}.c")), source.as_bytes())?;
        main.push_str(&format!("#include \"u{i}.h\"\n"));
    }
    main.push_str("int main(void) { int s = 0;\n");
    for i in 0..units {
        main.push_str(&format!("s += f{i}(s);\n"));
    }
    main.push_str("printf(\"%d\\n\", s); return 0; }\n");
    write(&dir.join("main.c"), main.as_bytes())
}

/// `count` Debian packages of 20 small files each in `dir`, made below `scratch`.
pub fn packages(dir: &Path, scratch: &Path, count: usize) -> Result<()> {
    mkdir(dir)?;
    for i in 0..count {
        let (package, tree) = (format!("perf-{i:03}"), scratch.join("package"));
        mkdir(&tree.join("DEBIAN"))?;
        let control = format!(
            "Package: {package}\nVersion: 1\nArchitecture: all\nMaintainer: perf <perf@localhost>\n\
             Description: files for a benchmark\n"
        );
        write(&tree.join("DEBIAN/control"), control.as_bytes())?;
        flat(&tree.join("usr/share").join(&package), 20, 8192)?;
        let mut build = Command::new("dpkg-deb");
        build.args(["--build", "--root-owner-group", "-Zgzip"]).arg(&tree);
        build.arg(dir.join(format!("{package}.deb")));
        process::check(build)?;
        fs::remove_dir_all(&tree).during("remove the tree of a package")?;
    }
    Ok(())
}

/// A file of `len` bytes that no file system can compress away.
pub fn big(path: &Path, len: u64) -> Result<()> {
    let mut file = File::create(path).during(format_args!("make {}", path.display()))?;
    let mut random = Random::new(len);
    let mut block: Vec<u8> = (0..(1 << 17)).flat_map(|_| random.draw().to_le_bytes()).collect();
    let mut left = len;
    while left > 0 {
        let part = left.min(block.len() as u64) as usize;
        file.write_all(block.get(..part).unwrap_or(&block))
            .during(format_args!("fill {}", path.display()))?;
        left -= part as u64;
        block.rotate_left(1);
    }
    Ok(())
}

/// A file of `len` bytes with 64 KiB of data at the start of each MiB and holes between.
pub fn sparse(path: &Path, len: u64) -> Result<()> {
    let file = File::create(path).during(format_args!("make {}", path.display()))?;
    file.set_len(len).during(format_args!("grow {}", path.display()))?;
    let block = Random::new(len).text(64 << 10);
    let step = len.clamp(1, 1 << 20);
    for offset in (0..len).step_by(step as usize) {
        let part = (len - offset).min(block.len() as u64) as usize;
        let data = block.get(..part).unwrap_or(&block);
        std::os::unix::fs::FileExt::write_all_at(&file, data, offset)
            .during(format_args!("fill {}", path.display()))?;
    }
    Ok(())
}

/// What a path list takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// Everything but directories and special files.
    Files,
    /// Everything.
    All,
}

/// Writes the relative paths below `root` to `list`, one a line, in seeded random order, at most `limit` of them.
pub fn path_list(root: &Path, take: Take, limit: usize, list: &Path) -> Result<usize> {
    let mut paths = Vec::new();
    collect(root, &PathBuf::new(), take, &mut paths)?;
    paths.sort();
    Random::new(1).shuffle(&mut paths);
    paths.truncate(limit);
    let mut text = Vec::new();
    for path in &paths {
        text.extend_from_slice(path.as_os_str().as_bytes());
        text.push(b'\n');
    }
    write(list, &text)?;
    Ok(paths.len())
}

/// Reads a path list.
pub fn read_list(list: &Path) -> Result<Vec<PathBuf>> {
    let text = fs::read(list).during(format_args!("read {}", list.display()))?;
    let lines = text.split(|b| *b == b'\n').filter(|l| !l.is_empty());
    Ok(lines.map(|l| PathBuf::from(OsStr::from_bytes(l))).collect())
}

fn collect(root: &Path, below: &Path, take: Take, paths: &mut Vec<PathBuf>) -> Result<()> {
    let dir = root.join(below);
    for entry in fs::read_dir(&dir).during(format_args!("list {}", dir.display()))? {
        let entry = entry.during(format_args!("list {}", dir.display()))?;
        let kind = entry.file_type().during(format_args!("stat in {}", dir.display()))?;
        let path = below.join(entry.file_name());
        let newline = path.as_os_str().as_bytes().contains(&b'\n');
        if !newline && (take == Take::All || kind.is_file()) {
            paths.push(path.clone());
        }
        if kind.is_dir() {
            collect(root, &path, take, paths)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_gives_the_same_bytes() {
        assert_eq!(Random::new(3).text(40), Random::new(3).text(40));
        assert_ne!(Random::new(3).text(40), Random::new(4).text(40));
    }

    #[test]
    fn text_has_the_length_asked_for() {
        for len in [0, 1, 7, 8, 63, 64, 65, 4096] {
            assert_eq!(Random::new(1).text(len).len(), len);
        }
    }

    #[test]
    fn a_sparse_file_has_data_in_every_mebibyte() {
        let path = std::env::temp_dir().join(format!("perf-sparse-{}", std::process::id()));
        sparse(&path, 4 << 20).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        for mib in 0..4 {
            assert_ne!(bytes[(mib << 20) + 5], 0, "{mib}");
            assert_eq!(bytes[(mib << 20) + (100 << 10)], 0, "{mib}");
        }
        assert_eq!(bytes.len(), 4 << 20);
    }

    #[test]
    fn shuffling_loses_nothing() {
        let mut items: Vec<u32> = (0..100).collect();
        Random::new(9).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
