//! The order of jobs by `after`, without circles.

use super::{Jobs, MAX_SHOWN};
use mezcal_common::model::ids::JobNumber;
use mezcal_common::model::job::MAX_AFTER;
use std::collections::{HashMap, HashSet};

/// A job that comes after others, as it was read.
pub(super) struct Dependant {
    pub(super) number: u32,
    pub(super) names: Vec<String>,
    /// Place of those names in the text, in bytes.
    pub(super) at: usize,
    /// The job has a result of another list.
    pub(super) has_run: bool,
}

/// Numbers do not fit: results come in the order in which jobs end.
const NUMBER_OF_ANOTHER_LIST: &str = "the number means a place in the list that this result is of; \
    give the jobs of that list an `id`, or run that list again with --resume or --resume-failed";

/// The predecessors of a job.
#[derive(Default)]
struct Before {
    jobs: Vec<JobNumber>,
    faults: Vec<String>,
    /// The number of predecessors in another list, which count as succeeded.
    gone: u64,
}

impl Jobs {
    /// Finds the jobs that others come after, and the circles among them. Returns the mistakes,
    /// each with its place in the text. Unless all `ids_are_known`, a name that is not found may be
    /// that of a job that cannot be read.
    pub(super) fn put_in_order(
        &mut self,
        earlier: Option<u32>,
        labels: &HashMap<String, u32>,
        wanted: Vec<Dependant>,
        ids_are_known: bool,
    ) -> Vec<(usize, String)> {
        let (mut wrong, mut places) = (Vec::new(), HashMap::new());
        let mut elsewhere = 0u64;
        for Dependant {
            number,
            names,
            at,
            has_run,
        } in wanted
        {
            places.insert(number, at);
            let Before {
                jobs: before,
                faults,
                gone,
            } = self.before(earlier, labels, &names, has_run, ids_are_known);
            wrong.extend(faults.into_iter().map(|why| (at, why)));
            elsewhere += gone;
            if before.len() > MAX_AFTER {
                let count = before.len();
                wrong.push((at, format!("{count} jobs are too many to come after: at most {MAX_AFTER}; let some gather others")));
            }
            self.after.insert(number, before);
        }
        if earlier.is_some() {
            return wrong;
        }
        if elsewhere > 0 {
            let names = if elsewhere == 1 { "name" } else { "names" };
            self.warnings.push(format!("{elsewhere} {names} in `after` of jobs with results: no such job is in this list, so they are taken to have succeeded"));
        }
        wrong.extend(
            self.circle()
                .map(|(first, why)| (places.get(&first).copied().unwrap_or(0), why)),
        );
        wrong
    }

    /// Finds the jobs with these names.
    fn before(
        &self,
        earlier: Option<u32>,
        labels: &HashMap<String, u32>,
        names: &[String],
        has_run: bool,
        ids_are_known: bool,
    ) -> Before {
        let (mut found, mut seen) = (Before::default(), HashSet::new());
        let last = earlier.unwrap_or(self.spans.len() as u32);
        for name in names {
            // As everywhere, an `id` goes before a number. A stream, which has no end, does not
            // keep ids.
            let label = labels.get(name).copied().filter(|_| earlier.is_none());
            if label.is_none() && has_run && earlier.is_none() {
                // The predecessor is in the list that this job ran in.
                match name.parse::<u32>() {
                    Ok(_) => found.faults.push(NUMBER_OF_ANOTHER_LIST.to_owned()),
                    Err(_) => found.gone += 1,
                }
                continue;
            }
            let number = label.or_else(|| name.parse().ok().filter(|n| (1..=last).contains(n)));
            match number {
                Some(number) if !seen.insert(number) => {}
                Some(number) => found.jobs.push(JobNumber(number)),
                None if earlier.is_some() => found.faults.push(format!(
                    "no job with the number {name:?} came before it in this stream, which knows no ids"
                )),
                None if ids_are_known => {
                    found.faults.push(format!("there is no job {name:?} in this list"))
                }
                None => {}
            }
        }
        found
    }

    /// The first job of a circle, and the mistake, if there is a circle.
    fn circle(&self) -> Option<(u32, String)> {
        // Kahn's algorithm (CACM 1962) over the jobs that come after others.
        let mut open: HashMap<u32, usize> = HashMap::new();
        let mut dependants: HashMap<u32, Vec<u32>> = HashMap::new();
        for (number, before) in &self.after {
            let waits = before.iter().filter(|b| self.after.contains_key(&b.0));
            open.insert(*number, waits.clone().count());
            waits.for_each(|b| dependants.entry(b.0).or_default().push(*number));
        }
        let mut free: Vec<u32> = open
            .iter()
            .filter(|(_, n)| **n == 0)
            .map(|(number, _)| *number)
            .collect();
        while let Some(number) = free.pop() {
            open.remove(&number);
            for dependant in dependants.remove(&number).unwrap_or_default() {
                if let Some(left) = open.get_mut(&dependant) {
                    *left -= 1;
                    if *left == 0 {
                        free.push(dependant);
                    }
                }
            }
        }
        let mut circle: Vec<u32> = open.into_keys().collect();
        circle.sort();
        let first = *circle.first()?;
        let members: Vec<String> = circle
            .iter()
            .take(MAX_SHOWN)
            .map(ToString::to_string)
            .collect();
        let why = format!(
            "this job comes after itself, in a circle among jobs {}",
            members.join(", ")
        );
        Some((first, why))
    }
}
