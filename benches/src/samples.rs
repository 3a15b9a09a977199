//! The raw data of a run, as committed in `raw.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::stats::Summary;

/// One timed execution.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// The workload's name.
    pub workload: String,
    /// The subject's name.
    pub subject: String,
    /// Which round, from 0.
    pub round: usize,
    /// Wall time.
    pub ns: u64,
    /// Processor time that the server used meanwhile, if there is one.
    pub server_cpu_ns: Option<u64>,
}

/// FUSE requests of one execution, by kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Requests {
    /// The workload's name.
    pub workload: String,
    /// The subject's name.
    pub subject: String,
    /// Requests by opcode.
    pub by_kind: BTreeMap<String, u64>,
}

/// Memory of one server that has shown many inodes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// The subject's name.
    pub subject: String,
    /// Inodes walked.
    pub inodes: usize,
    /// Anonymous memory before the walk.
    pub before_kib: u64,
    /// Anonymous memory after it.
    pub after_kib: u64,
    /// Open descriptors after it.
    pub descriptors: usize,
}

/// Something that could not be measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The workload, or `all`.
    pub workload: String,
    /// The subject.
    pub subject: String,
    /// Why.
    pub reason: String,
}

/// Everything a run found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// Facts about machine and configuration, in the order shown.
    pub facts: Vec<(String, String)>,
    /// The subjects, in the order shown.
    pub subjects: Vec<String>,
    /// Section and name of each workload, in the order shown.
    pub workloads: Vec<(String, String)>,
    /// Timed executions.
    pub samples: Vec<Sample>,
    /// Counted executions; these are not timed.
    pub requests: Vec<Requests>,
    /// Memory of servers.
    pub memory: Vec<Memory>,
    /// What is missing.
    pub gaps: Vec<Gap>,
    /// Load average at the start of each round.
    pub load: Vec<String>,
}

impl Results {
    /// A fact by its name.
    pub fn fact(&self, name: &str) -> Option<&str> {
        self.facts.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Whether the cell could not be measured.
    pub fn is_gap(&self, workload: &str, subject: &str) -> bool {
        self.gaps.iter().any(|g| g.workload == workload && g.subject == subject)
    }

    /// Whether the cell was measured in this round.
    pub fn is_timed(&self, workload: &str, subject: &str, round: usize) -> bool {
        let found = |s: &Sample| s.round == round && s.workload == workload && s.subject == subject;
        self.samples.iter().any(found)
    }

    /// Goes on with what `next` is about to measure: its subjects, its rows, its word about itself. What could not be
    /// measured before is tried again.
    pub fn go_on(&mut self, next: Self) {
        for subject in next.subjects {
            if !self.subjects.contains(&subject) {
                self.subjects.push(subject);
            }
        }
        let again = |gap: &Gap| next.workloads.iter().any(|(_, name)| *name == gap.workload);
        self.gaps.retain(|gap| !again(gap) && !next.gaps.contains(gap));
        self.gaps.extend(next.gaps);
        self.add_rows(next.workloads);
        let says = |name: &str| next.facts.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value);
        let words = ["date", "load average at start", "command", "note"].map(says);
        self.facts.push(("continued".to_owned(), words.join("; ")));
    }

    /// Adds rows to the tables, in the order of all.
    pub fn add_rows(&mut self, rows: Vec<(String, String)>) {
        self.workloads.extend(rows);
        let mut seen = std::collections::BTreeSet::new();
        self.workloads.retain(|row| seen.insert(row.clone()));
        self.workloads.sort_by_key(|(_, name)| crate::workload::place(name));
    }

    /// The times of one cell of the table, in nanoseconds.
    pub fn summary(&self, workload: &str, subject: &str) -> Option<Summary> {
        let cell = self.samples.iter().filter(|s| s.workload == workload && s.subject == subject);
        Summary::of(&cell.map(|s| s.ns as f64).collect::<Vec<_>>())
    }

    /// Median processor time of the server in one cell, in nanoseconds.
    pub fn server_cpu(&self, workload: &str, subject: &str) -> Option<f64> {
        let cell = self.samples.iter().filter(|s| s.workload == workload && s.subject == subject);
        Some(Summary::of(&cell.filter_map(|s| s.server_cpu_ns).map(|n| n as f64).collect::<Vec<_>>())?.median)
    }

    /// Median of `subject` divided by the median of `peer`.
    pub fn ratio(&self, workload: &str, subject: &str, peer: &str) -> Option<f64> {
        let (ours, theirs) = (self.summary(workload, subject)?, self.summary(workload, peer)?);
        (theirs.median > 0.0).then(|| ours.median / theirs.median)
    }

    /// All requests of one cell.
    pub fn requests(&self, workload: &str, subject: &str) -> Option<u64> {
        let cell = self.requests.iter().find(|r| r.workload == workload && r.subject == subject)?;
        Some(cell.by_kind.values().sum())
    }
}
