//! Reads what the criterion groups left in `target/criterion`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::failure::{During, Result};

/// One criterion measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Micro {
    /// Group.
    pub group: String,
    /// Subject.
    pub subject: String,
    /// Parameter, such as a size; may be empty.
    pub parameter: String,
    /// Median time of one iteration.
    pub median_ns: f64,
    /// Confidence interval of the median, 95 %.
    pub interval_ns: (f64, f64),
    /// Bytes or operations of one iteration, if given.
    pub elements: Option<u64>,
}

/// Every measurement below `dir` newer than `since`; an absent directory has none.
pub fn read(dir: &Path, since: std::time::SystemTime) -> Result<Vec<Micro>> {
    let mut found = Vec::new();
    if dir.exists() {
        walk(dir, since, &mut found)?;
    }
    found.sort_by(|a, b| (&a.group, &a.subject).cmp(&(&b.group, &b.subject)));
    Ok(found)
}

fn walk(dir: &Path, since: std::time::SystemTime, found: &mut Vec<Micro>) -> Result<()> {
    let (estimates, benchmark) = (dir.join("estimates.json"), dir.join("benchmark.json"));
    if dir.ends_with("new") && estimates.exists() && benchmark.exists() {
        let changed =
            std::fs::metadata(&estimates).and_then(|m| m.modified()).during("stat criterion's estimates")?;
        if changed >= since {
            found.push(one(&estimates, &benchmark)?);
        }
        return Ok(());
    }
    for entry in std::fs::read_dir(dir).during(format_args!("list {}", dir.display()))? {
        let path = entry.during(format_args!("list {}", dir.display()))?.path();
        if path.is_dir() {
            walk(&path, since, found)?;
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Benchmark {
    group_id: String,
    function_id: Option<String>,
    value_str: Option<String>,
    throughput: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
    confidence_interval: Interval,
}

#[derive(Deserialize)]
struct Interval {
    lower_bound: f64,
    upper_bound: f64,
}

fn one(estimates: &Path, benchmark: &Path) -> Result<Micro> {
    let read = |path: &Path| std::fs::read(path).during(format_args!("read {}", path.display()));
    let found: Benchmark =
        serde_json::from_slice(&read(benchmark)?).during("understand criterion's benchmark.json")?;
    let times: Estimates =
        serde_json::from_slice(&read(estimates)?).during("understand criterion's estimates.json")?;
    let interval = times.median.confidence_interval;
    let elements = found.throughput.as_ref().and_then(|t| t.as_object()?.values().next()?.as_u64());
    Ok(Micro {
        group: found.group_id,
        subject: found.function_id.unwrap_or_default(),
        parameter: found.value_str.unwrap_or_default(),
        median_ns: times.median.point_estimate,
        interval_ns: (interval.lower_bound, interval.upper_bound),
        elements,
    })
}
