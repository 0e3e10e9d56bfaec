//! What has to hold after every step.

use super::plan::{LOCALITY_WAIT, SLACK};
use super::world::World;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, JobKey};
use mezcal_common::model::outcome::{Ended, JobResult};
use mezcal_coordinator::scheduler;
use std::collections::BTreeMap;
use std::time::Duration;

impl World {
    pub(super) fn check(&self) -> Result<(), String> {
        if let Some(placed) = &self.placed_in_vain {
            return Err(placed.clone());
        }
        if self
            .wide_until
            .is_some_and(|until| self.now > until + SLACK)
            && self.wide_waits()
        {
            return Err(format!(
                "wide: it waits longer than {} times {:?}",
                scheduler::WIDE_WAIT,
                self.longest
            ));
        }
        let mut live: BTreeMap<JobKey, AttemptId> = BTreeMap::new();
        // What is suspended does nothing.
        for attempt in self
            .hosts
            .iter()
            .filter(|h| h.up && !h.suspended)
            .flat_map(|h| &h.slots)
            .filter_map(|s| s.alive)
        {
            if let Some(other) = live.insert(attempt.key, attempt) {
                return Err(format!("P1: {attempt} lives beside {other}"));
            }
            if self.proven.contains(&attempt.key.job.0) {
                return Err(format!("P3: {attempt} lives and was said to be over"));
            }
        }
        let vain = self.serving.scheduler.idle_in_vain(
            LOCALITY_WAIT + Duration::from_millis(1),
            BootInstant(self.now),
        );
        if let Some(vain) = vain.filter(|_| !self.serving.down) {
            return Err(format!("P4: {vain}"));
        }
        if let Some(far) = self.serving.scheduler.placed_far_in_vain() {
            return Err(format!("P4: {far}"));
        }
        for (n, host) in self.hosts.iter().enumerate() {
            for attempt in host.slots.iter().filter_map(|slot| slot.alive) {
                if self
                    .required
                    .get(&attempt.key.job.0)
                    .is_some_and(|required| *required != n)
                {
                    return Err(format!("P4: {attempt} runs on h{n}, where it may not"));
                }
            }
            let live = host.slots.iter().filter_map(|slot| slot.alive);
            let taken: usize = live
                .map(|attempt| usize::from(self.slots_by_job[&attempt.key.job.0]))
                .sum();
            if taken > self.plan.slots {
                return Err(format!(
                    "slots: h{n} runs jobs that take {taken} and has {}",
                    self.plan.slots
                ));
            }
        }
        Ok(())
    }

    pub(super) fn result(&mut self, job: u32, result: JobResult) -> Result<(), String> {
        self.log.push(format!(
            "{:?} result of {job}.{}: {:?}",
            self.now, result.attempt, result.outcome.ended
        ));
        if self.of_original {
            // Nobody asks it any more.
            return Ok(());
        }
        // A later attempt, which the copy does not know of, may have its lease yet.
        let ignorant = self.is_copy() && !self.is_released();
        let unreachable = ignorant
            || result
                .outcome
                .error
                .as_deref()
                .is_some_and(|e| e.contains("out of reach"));
        if result.outcome.ended == Ended::Exited
            && !self.ended.contains(&(self.key(job), result.attempt))
        {
            return Err(format!(
                "P7: {job}.{} has a result, and never ended by itself",
                result.attempt
            ));
        }
        if self.results.insert(job, result).is_some() {
            return Err(format!("P2: job {job} has two results"));
        }
        if !unreachable {
            self.proven.insert(job);
        }
        Ok(())
    }
}
