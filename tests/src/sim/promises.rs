//! The promises: each is one function, and its error is printed by a failing run.
//!
//! [`World::check`] checks those that the state of a run shows, after every step. The others are
//! checked at their event: a result, or the placement of a job.

use super::World;
use super::host::Host;
use super::plan::{LOCALITY_WAIT, SLACK};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, JobKey};
use mezcal_common::model::outcome::{Ended, JobResult};
use mezcal_coordinator::scheduler;
use std::collections::BTreeMap;
use std::time::Duration;

impl World {
    /// All properties that hold after every step.
    pub(super) fn check(&self) -> Result<(), String> {
        self.nothing_of_a_batch_that_is_given_up_is_placed()?;
        self.a_wide_job_starts_within_its_bound()?;
        self.no_job_has_two_live_processes()?;
        self.nothing_lives_that_was_said_to_be_over()?;
        self.no_slot_is_idle_in_vain()?;
        self.nothing_is_placed_far_in_vain()?;
        self.nothing_runs_where_it_may_not()?;
        self.no_host_runs_more_than_it_has_slots_for()
    }

    /// P1.
    fn no_job_has_two_live_processes(&self) -> Result<(), String> {
        let mut live: BTreeMap<JobKey, AttemptId> = BTreeMap::new();
        for attempt in self.live() {
            if let Some(other) = live.insert(attempt.key, attempt) {
                return Err(format!("P1: {attempt} lives beside {other}"));
            }
        }
        Ok(())
    }

    /// P2, for results that clients get.
    fn nothing_has_two_results(&self, job: u32) -> Result<(), String> {
        match self.results.contains_key(&job) {
            true => Err(format!("P2: job {job} has two results")),
            false => Ok(()),
        }
    }

    /// P2, for placements: a job that has ended on a connected host does not run again. The
    /// arguments have its last attempt, and the host, slot and life of the engine where that ended.
    pub(super) fn what_has_ended_does_not_run_again(
        &self,
        (job, last): (JobKey, u32),
        (n, slot, life): (usize, usize, u64),
    ) -> Result<(), String> {
        let host = &self.hosts[n];
        let is_there = self.now - self.heard[n] <= host.lease;
        if !self.of_original && host.slots[slot].life == life && is_there {
            return Err(format!(
                "P2: {}.{last} had ended on h{n}, which is there, and its job runs again",
                job.job
            ));
        }
        Ok(())
    }

    /// P3.
    fn nothing_lives_that_was_said_to_be_over(&self) -> Result<(), String> {
        let over = |attempt: &AttemptId| self.proven.contains(&attempt.key.job.0);
        match self.live().find(over) {
            Some(attempt) => Err(format!("P3: {attempt} lives and was said to be over")),
            None => Ok(()),
        }
    }

    /// P4, for slots that wait for jobs that prefer them.
    fn no_slot_is_idle_in_vain(&self) -> Result<(), String> {
        let wait = LOCALITY_WAIT + Duration::from_millis(1);
        let scheduler = &self.serving.scheduler;
        let vain = scheduler.idle_in_vain(wait, BootInstant(self.now));
        match vain.filter(|_| !self.serving.down) {
            Some(vain) => Err(format!("P4: {vain}")),
            None => Ok(()),
        }
    }

    /// P4, for jobs that prefer slots.
    fn nothing_is_placed_far_in_vain(&self) -> Result<(), String> {
        match self.serving.scheduler.placed_far_in_vain() {
            Some(far) => Err(format!("P4: {far}")),
            None => Ok(()),
        }
    }

    /// P4, for jobs that may run on one host only.
    fn nothing_runs_where_it_may_not(&self) -> Result<(), String> {
        for (n, host) in self.hosts.iter().enumerate() {
            let required = |attempt: &AttemptId| self.required.get(&attempt.key.job.0);
            let elsewhere = |attempt: &AttemptId| required(attempt).is_some_and(|h| *h != n);
            if let Some(attempt) = host.attempts().find(elsewhere) {
                return Err(format!("P4: {attempt} runs on h{n}, where it may not"));
            }
        }
        Ok(())
    }

    /// P7.
    fn a_result_is_of_an_attempt_that_has_ended(
        &self,
        job: u32,
        result: &JobResult,
    ) -> Result<(), String> {
        let attempt = (self.key(job), result.attempt);
        if result.outcome.ended == Ended::Exited && !self.ended.contains(&attempt) {
            return Err(format!(
                "P7: {job}.{} has a result, and never ended by itself",
                result.attempt
            ));
        }
        Ok(())
    }

    fn no_host_runs_more_than_it_has_slots_for(&self) -> Result<(), String> {
        for (n, host) in self.hosts.iter().enumerate() {
            let slots_of = |attempt: AttemptId| self.slots_by_job[&attempt.key.job.0];
            let taken: usize = host.attempts().map(|a| usize::from(slots_of(a))).sum();
            if taken > self.plan.slots {
                return Err(format!(
                    "slots: h{n} runs jobs that take {taken} and has {}",
                    self.plan.slots
                ));
            }
        }
        Ok(())
    }

    fn nothing_of_a_batch_that_is_given_up_is_placed(&self) -> Result<(), String> {
        self.placed_in_vain.clone().map_or(Ok(()), Err)
    }

    fn a_wide_job_starts_within_its_bound(&self) -> Result<(), String> {
        let late = |until: Duration| self.now > until + SLACK;
        if self.wide_until.is_some_and(late) && self.wide_waits() {
            return Err(format!(
                "wide: it waits longer than {} times {:?}",
                scheduler::WIDE_WAIT,
                self.longest
            ));
        }
        Ok(())
    }

    /// Checked when a run has lasted for as long as anything may take.
    pub(super) fn in_the_end_every_job_has_a_result(&self) -> Result<(), String> {
        let open: Vec<u32> = (1..=self.plan.jobs)
            .filter(|n| !self.results.contains_key(n))
            .collect();
        match open.is_empty() {
            true => Ok(()),
            false => Err(format!("in the end these jobs have no result: {open:?}")),
        }
    }

    /// Checked at the same time, in a run whose jobs are all over.
    pub(super) fn in_the_end_no_idle_engine_is_old(&self) -> Result<(), String> {
        let hosts = self.hosts_with_old_engines();
        match hosts.is_empty() {
            true => Ok(()),
            false => Err(format!(
                "in the end these hosts have old engines: {hosts:?}"
            )),
        }
    }

    /// Checked when a keeper ends and newer engines take their place.
    pub(super) fn engines_that_are_replaced_run_nothing(&self, n: usize) -> Result<(), String> {
        match self.hosts[n].attempts().next() {
            Some(attempt) => Err(format!(
                "replaced: {attempt} ran on h{n} when its engines were replaced"
            )),
            None => Ok(()),
        }
    }

    /// The attempts with a process, without those on suspended hosts, which do nothing.
    fn live(&self) -> impl Iterator<Item = AttemptId> {
        let awake = self.hosts.iter().filter(|h| h.up && !h.suspended);
        awake.flat_map(Host::attempts)
    }

    /// A client gets the result of its job.
    pub(super) fn result(&mut self, job: u32, result: JobResult) -> Result<(), String> {
        self.log.line(
            self.now,
            format_args!(
                "result of {job}.{}: {:?}",
                result.attempt, result.outcome.ended
            ),
        );
        if self.of_original {
            // The client is gone.
            return Ok(());
        }
        self.a_result_is_of_an_attempt_that_has_ended(job, &result)?;
        self.nothing_has_two_results(job)?;
        // A later attempt, which the copy does not know, may still have its lease.
        let ignorant = self.is_copy() && !self.is_released();
        let error = result.outcome.error.as_deref();
        let unreachable = ignorant || error.is_some_and(|e| e.contains("out of reach"));
        if !unreachable {
            self.proven.insert(job);
        }
        self.results.insert(job, result);
        Ok(())
    }
}
