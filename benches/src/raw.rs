//! `raw.json`: what the runs of one commit have measured so far, so that a long run can be done in pieces.
//!
//! A directory of results has a part for each privilege with which was measured. A run adds to the part of its own:
//! cells that are there already are not measured again.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::criterion_report::Micro;
use crate::failure::{During, Failure, Result};
use crate::samples::Results;

const FILE: &str = "raw.json";
/// Facts in which all parts of a directory agree.
const SAME: [&str; 2] = ["commit", "scale"];
/// The fact that tells parts from each other.
const PART: &str = "privilege";

/// Everything in a directory of results.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Raw {
    /// By privilege.
    pub parts: Vec<Results>,
    /// What the criterion groups measured.
    pub criterion: Vec<Micro>,
}

impl Raw {
    /// What `dir` holds; nothing if there is no such directory.
    pub fn load(dir: &Path) -> Result<Self> {
        let file = dir.join(FILE);
        if !file.exists() {
            return Ok(Self::default());
        }
        let text = std::fs::read(&file).during(format_args!("read {}", file.display()))?;
        serde_json::from_slice(&text).during(format_args!("go on with {}", file.display()))
    }

    /// Writes all into `dir`; a reader sees the old file or the new one.
    pub fn save(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).during(format_args!("make {}", dir.display()))?;
        let text = serde_json::to_string_pretty(self).during("write raw.json")?;
        let new = dir.join("raw.json.new");
        std::fs::write(&new, text).during(format_args!("write {}", new.display()))?;
        std::fs::rename(&new, dir.join(FILE)).during("keep raw.json")
    }

    /// The results with which a run goes on that is described by `next`: those of its part, or `next` itself.
    pub fn go_on(&self, next: Results) -> Result<Results> {
        for (part, fact) in self.parts.iter().flat_map(|p| SAME.map(|fact| (p, fact))) {
            if part.fact(fact) != next.fact(fact) {
                let (old, new) = (part.fact(fact).unwrap_or("none"), next.fact(fact).unwrap_or("none"));
                return Err(Failure::new(format!(
                    "the directory has results of {fact} {old}, this run is {new}: give another one with --out"
                )));
            }
        }
        let Some(part) = self.parts.iter().find(|p| p.fact(PART) == next.fact(PART)) else { return Ok(next) };
        let mut results = part.clone();
        results.go_on(next);
        Ok(results)
    }

    /// Puts `results` in the place of their part.
    pub fn put(&mut self, results: Results) {
        match self.parts.iter_mut().find(|p| p.fact(PART) == results.fact(PART)) {
            Some(part) => *part = results,
            None => self.parts.push(results),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::Sample;

    fn results(commit: &str, privilege: &str, workload: &str) -> Results {
        let facts = [("commit", commit), ("scale", "full"), ("privilege", privilege)];
        let facts = facts.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec();
        let workloads = vec![("section".to_owned(), workload.to_owned())];
        let (workload, subject) = (workload.to_owned(), "unionfs".to_owned());
        let sample = Sample { workload, subject: subject.clone(), round: 0, ns: 1, server_cpu_ns: None };
        Results { facts, workloads, subjects: vec![subject], samples: vec![sample], ..Results::default() }
    }

    #[test]
    fn a_second_run_adds_to_its_part_and_keeps_the_other() {
        let mut raw = Raw::default();
        raw.put(raw.go_on(results("a", "user", "untar")).unwrap());
        raw.put(raw.go_on(results("a", "root", "untar")).unwrap());
        let next = raw.go_on(results("a", "user", "stat_cold")).unwrap();
        assert!(next.is_timed("untar", "unionfs", 0) && !next.is_timed("untar", "unionfs", 1));
        let rows: Vec<&str> = next.workloads.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(rows, ["stat_cold", "untar"]);
        raw.put(next);
        assert_eq!(raw.parts.len(), 2);
    }

    #[test]
    fn results_of_another_commit_are_not_mixed() {
        let mut raw = Raw::default();
        raw.put(results("a", "user", "untar"));
        let error = raw.go_on(results("b", "root", "untar")).unwrap_err();
        assert!(format!("{error}").contains("commit a"), "{error}");
    }
}
