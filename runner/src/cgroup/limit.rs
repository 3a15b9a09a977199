//! One limit: its controller, its files on v1 and v2, and the proof that it is in force.

use std::fs;
use std::path::Path;

use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;

use super::layout::Version;
use crate::error::{During, Error, Result};
use crate::spec::Limits;

/// A limit to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Bytes of memory; swap is not given on top.
    Memory(u64),
    /// Thousandths of a processor.
    CpuMilli(u64),
    /// Relative weight.
    CpuShares(u64),
    /// Processes and threads.
    Pids(u64),
}

/// The kernel's usual accounting period, in microseconds.
const CPU_PERIOD: u64 = 100_000;

/// The range of weights on v1; the kernel clamps what lies outside.
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

/// A memory limit is rounded down to whole pages; no supported page is larger.
const LARGEST_PAGE: u64 = 65_536;

/// Lists the limits to be set.
pub fn plan(limits: &Limits) -> Vec<Limit> {
    [
        limits.memory.map(Limit::Memory),
        limits.cpu_milli.map(Limit::CpuMilli),
        limits.cpu_shares.map(Limit::CpuShares),
        limits.pids.map(Limit::Pids),
    ]
    .into_iter()
    .flatten()
    .collect()
}

impl Limit {
    /// The flag that asks for it.
    pub const fn flag(&self) -> &'static str {
        match self {
            Self::Memory(_) => "--memory",
            Self::CpuMilli(_) => "--cpus",
            Self::CpuShares(_) => "--cpu-shares",
            Self::Pids(_) => "--pids-limit",
        }
    }

    /// The controller that enforces it.
    pub const fn controller(&self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::CpuMilli(_) | Self::CpuShares(_) => "cpu",
            Self::Pids(_) => "pids",
        }
    }

    /// Sets the limit in a group that exists, and reads it back.
    pub fn apply(&self, group: &Path, version: Version) -> Result<()> {
        match *self {
            Self::Memory(bytes) => memory(group, version, bytes),
            Self::CpuMilli(milli) => quota(group, version, milli.saturating_mul(CPU_PERIOD) / 1000),
            Self::CpuShares(shares) => weight(group, version, shares),
            Self::Pids(count) => pids(group, version, count),
        }
    }
}

fn memory(group: &Path, version: Version, bytes: u64) -> Result<()> {
    let (file, swap_file) = match version {
        Version::V1 => ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
        Version::V2 => ("memory.max", "memory.swap.max"),
    };
    must_exist(group, file)?;
    let controller = MemController::new(group.to_owned(), group.to_owned(), version == Version::V2);
    let amount = i64::try_from(bytes).map_err(|_| Error::usage("the memory limit is too large"))?;
    controller.set_limit(amount).map_err(|error| failed(file, &error))?;
    let got = read_number(group, file)?;
    if got > bytes || bytes - got >= LARGEST_PAGE {
        return Err(differs(file, bytes, got));
    }
    // Without this a process over its limit would go on in swap. A kernel without swap accounting lacks the file,
    // and the limit of memory itself is in force all the same.
    if group.join(swap_file).exists() {
        // v1 counts memory and swap together, v2 swap alone.
        let total = if version == Version::V1 { amount } else { 0 };
        controller.set_memswap_limit(total).map_err(|error| failed(swap_file, &error))?;
    }
    Ok(())
}

fn quota(group: &Path, version: Version, quota: u64) -> Result<()> {
    let file = match version {
        Version::V1 => "cpu.cfs_quota_us",
        Version::V2 => "cpu.max",
    };
    must_exist(group, file)?;
    let controller = CpuController::new(group.to_owned(), group.to_owned(), version == Version::V2);
    let amount = i64::try_from(quota).map_err(|_| Error::usage("the number of processors is too large"))?;
    controller
        .set_cfs_quota_and_period(Some(amount), Some(CPU_PERIOD))
        .map_err(|error| failed(file, &error))?;
    let got = read_number(group, file)?;
    if got == quota { Ok(()) } else { Err(differs(file, quota, got)) }
}

fn weight(group: &Path, version: Version, shares: u64) -> Result<()> {
    let (file, value) = match version {
        Version::V1 => ("cpu.shares", shares.clamp(*SHARES.start(), *SHARES.end())),
        Version::V2 => ("cpu.weight", weight_of_shares(shares)),
    };
    must_exist(group, file)?;
    let controller = CpuController::new(group.to_owned(), group.to_owned(), version == Version::V2);
    controller.set_shares(value).map_err(|error| failed(file, &error))?;
    let got = read_number(group, file)?;
    if got == value { Ok(()) } else { Err(differs(file, value, got)) }
}

fn pids(group: &Path, version: Version, count: u64) -> Result<()> {
    let file = "pids.max";
    must_exist(group, file)?;
    let controller = PidController::new(group.to_owned(), group.to_owned(), version == Version::V2);
    let amount = i64::try_from(count).map_err(|_| Error::usage("the number of processes is too large"))?;
    controller.set_pid_max(MaxValue::Value(amount)).map_err(|error| failed(file, &error))?;
    let got = read_number(group, file)?;
    if got == count { Ok(()) } else { Err(differs(file, count, got)) }
}

/// The v2 weight that stands for a v1 share: a curve through 2 -> 1, 1024 -> 100, 262144 -> 10000.
pub fn weight_of_shares(shares: u64) -> u64 {
    if shares <= *SHARES.start() {
        return 1;
    }
    if shares >= *SHARES.end() {
        return 10_000;
    }
    // At most 18 bits: exact in f64.
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10_f64.powf(exponent).ceil() as u64
}

/// The crate opens with O_CREAT, so that a missing file would look like a missing permission.
fn must_exist(group: &Path, file: &str) -> Result<()> {
    fs::metadata(group.join(file)).during(format_args!("find {file} in the cgroup")).map(|_| ())
}

fn read_number(group: &Path, file: &str) -> Result<u64> {
    let text = fs::read_to_string(group.join(file)).during(format_args!("read {file} back"))?;
    let word = text.split_ascii_whitespace().next().unwrap_or_default();
    word.parse().map_err(|_| Error::setup(format!("{file} reads back as \"{}\"", word.escape_debug())))
}

fn differs(file: &str, want: u64, got: u64) -> Error {
    Error::setup(format!("{file} reads back as {got} instead of {want}"))
}

fn failed(file: &str, error: &cgroups_rs::fs::error::Error) -> Error {
    let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    Error::setup(format!("cannot write {file}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_as_in_runc_and_crun() {
        for (shares, want) in [(0, 1), (2, 1), (1024, 100), (262_144, 10_000), (1_000_000, 10_000)] {
            assert_eq!(weight_of_shares(shares), want, "{shares}");
        }
        assert!(weight_of_shares(512) < 100);
        assert!(weight_of_shares(2048) > 100);
    }

    #[test]
    fn a_limit_is_written_and_read_back() {
        let group = tempfile::tempdir().unwrap();
        for file in ["memory.max", "memory.swap.max", "cpu.weight", "pids.max"] {
            fs::write(group.path().join(file), "max").unwrap();
        }
        fs::write(group.path().join("cpu.max"), "max 100000").unwrap();
        for limit in [Limit::Memory(64 << 20), Limit::CpuMilli(500), Limit::CpuShares(1024), Limit::Pids(20)]
        {
            limit.apply(group.path(), Version::V2).unwrap();
        }
        for (file, want) in [
            ("memory.max", "67108864"),
            ("memory.swap.max", "0"),
            ("cpu.max", "50000 100000"),
            ("cpu.weight", "100"),
            ("pids.max", "20"),
        ] {
            assert_eq!(fs::read_to_string(group.path().join(file)).unwrap().trim(), want, "{file}");
        }
    }

    #[test]
    fn a_missing_file_is_called_missing() {
        let group = tempfile::tempdir().unwrap();
        let error = Limit::Pids(20).apply(group.path(), Version::V1).unwrap_err();
        assert!(error.text().contains("No such file"), "{error}");
    }

    #[test]
    fn nothing_is_planned_without_limits() {
        assert!(plan(&Limits::default()).is_empty());
    }
}
