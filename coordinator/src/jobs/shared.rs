//! Jobs of a list that write the same file, and may do so at the same time.

use super::Job;
use mezcal_common::model::ids::JobNumber;
use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::path::{Component, Path, PathBuf};

/// The most pairs that are examined: enough to report that there are many.
const MAX_PAIRS: usize = 1000;
/// The most jobs that are examined to find out whether one comes after another.
const MAX_STEPS: usize = 100_000;

/// The files that jobs write. A million jobs cost twelve bytes each.
#[derive(Debug, Default)]
pub(super) struct SharedOutputs {
    /// The last job that writes a path, by the path's hash.
    writers: HashMap<u64, u32>,
    /// Pairs of successive writers of a file, and its path.
    pairs: Vec<(u32, u32, String)>,
}

impl SharedOutputs {
    pub(super) fn add(&mut self, number: u32, job: &Job) {
        let own: HashSet<PathBuf> = [&job.spec.out, &job.spec.err]
            .into_iter()
            .flatten()
            .map(|path| file_of(job, path))
            .collect();
        for path in own {
            let mut hasher = DefaultHasher::new();
            // The same path on another host may be another file.
            (&path, job.hosts.as_ref().filter(|hosts| hosts.len() == 1)).hash(&mut hasher);
            if let Some(before) = self.writers.insert(hasher.finish(), number)
                && self.pairs.len() < MAX_PAIRS
            {
                self.pairs
                    .push((before, number, path.display().to_string()));
            }
        }
    }

    /// A warning that names two of them, if any may run at the same time. `after`: the jobs that
    /// each job comes after.
    pub(super) fn warning(&self, after: &HashMap<u32, Vec<JobNumber>>) -> Option<String> {
        let mut together = self
            .pairs
            .iter()
            .filter(|(a, b, _)| !comes_after(*b, *a, after) && !comes_after(*a, *b, after));
        let (first, second, path) = together.next()?;
        let path = mezcal_common::model::octets::shown(path);
        let path = mezcal_common::model::escape::for_terminal(&path);
        let more = match together.count() {
            0 => String::new(),
            more => format!(", and {more} more pairs of jobs share files"),
        };
        Some(format!(
            "jobs {first} and {second} both write {path} and may run at the same time: output will be lost{more}"
        ))
    }
}

/// The path of the file, as far as it is known here.
fn file_of(job: &Job, path: &str) -> PathBuf {
    let path = Path::new(job.spec.cd.as_deref().unwrap_or_default()).join(path);
    path.components()
        .filter(|part| *part != Component::CurDir)
        .collect()
}

fn comes_after(job: u32, before: u32, after: &HashMap<u32, Vec<JobNumber>>) -> bool {
    let (mut open, mut seen) = (vec![job], HashSet::new());
    while let Some(job) = open.pop() {
        for JobNumber(earlier) in after.get(&job).into_iter().flatten() {
            if *earlier == before {
                return true;
            }
            if seen.len() < MAX_STEPS && seen.insert(*earlier) {
                open.push(*earlier);
            }
        }
    }
    false
}
