//! Jobs that wait: for others of their batch to succeed (`after`), or for their next attempt
//! (`retry_delay`).
//!
//! The effects of a job's end on other jobs are worked off from a list, not by recursion: chains
//! may be as long as a batch.

use super::{JobState, Scheduler, Timer};
use mezcal_common::message::client::RetryOn;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{BatchSerial, JobKey, JobNumber};
use mezcal_common::model::outcome::{Ended, Outcome, WaitStatus};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// Which jobs of a batch wait for which others.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// How many jobs each waiting job still waits for.
    waiting: HashMap<JobNumber, usize>,
    /// The jobs that wait for each job, which may be still to come.
    dependants: BTreeMap<JobNumber, Vec<JobNumber>>,
}

impl Order {
    /// Removes a job that is over and so does not wait any more.
    pub(super) fn forget(&mut self, job: JobNumber) {
        self.waiting.remove(&job);
    }

    /// Whether the job waits for others.
    pub(super) fn has(&self, job: JobNumber) -> bool {
        self.waiting.contains_key(&job)
    }

    /// The jobs that a job waits for.
    pub(super) fn before(&self, job: JobNumber) -> Vec<JobNumber> {
        self.dependants
            .iter()
            .filter(|(_, dependants)| dependants.contains(&job))
            .map(|(before, _)| *before)
            .collect()
    }
}

/// Decisions about jobs that are still to be carried out.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// These jobs can be queued now.
    released: VecDeque<JobKey>,
    /// These jobs are skipped, since another one has not succeeded.
    to_skip: VecDeque<(JobKey, JobNumber)>,
    /// These jobs are tried again, in the order of their times.
    delayed: BTreeSet<(BootInstant, JobKey)>,
}

impl Pending {
    /// Whether a job is about to be queued.
    pub(super) fn is_released(&self, job: JobKey) -> bool {
        self.released.contains(&job)
    }

    /// When the pause of a job before its next attempt ends, if it has one.
    pub(super) fn delayed_until(&self, job: JobKey) -> Option<BootInstant> {
        let delayed = self.delayed.iter().find(|(_, delayed)| *delayed == job)?;
        Some(delayed.0)
    }

    /// When the first of the delayed jobs is tried again.
    fn next_retry(&self) -> Option<BootInstant> {
        self.delayed.first().map(|(at, _)| *at)
    }
}

/// Whether these rules allow another attempt after this failure.
pub(super) fn worth_another(rules: &[RetryOn], outcome: &Outcome) -> bool {
    let matches = |rule: &RetryOn| match rule {
        RetryOn::Code(code) => outcome.status.map(WaitStatus::code) == Some(*code),
        RetryOn::Outcome(ended) => outcome.ended == *ended,
    };
    rules.is_empty() || rules.iter().any(matches)
}

impl Scheduler {
    /// Notes which jobs a new job comes after. True if it has to wait, or will be skipped.
    pub(super) fn must_wait(&mut self, key: JobKey, after: &[JobNumber]) -> bool {
        if after.is_empty() {
            return false;
        }
        let Some(batch) = self.batches.get_mut(&key.batch) else {
            return false;
        };
        let mut open = 0;
        for before in after {
            let job = batch.job(*before);
            match job.map(|job| (job.state, job.succeeded)) {
                Some((JobState::Done, true)) => {}
                Some((JobState::Done, false)) => {
                    self.pending.to_skip.push_back((key, *before));
                    open += 1;
                }
                Some(_) | None => {
                    batch
                        .order
                        .dependants
                        .entry(*before)
                        .or_default()
                        .push(key.job);
                    open += 1;
                }
            }
        }
        if open > 0
            && let Some(job) = batch.job_mut(key.job)
        {
            job.set_waiting();
            batch.order.waiting.insert(key.job, open);
        }
        open > 0
    }

    /// A job is over: the jobs that come after it may start, or are skipped.
    pub(super) fn order_ended(&mut self, key: JobKey, succeeded: bool) {
        let Some(batch) = self.batches.get_mut(&key.batch) else {
            return;
        };
        for job in batch.order.dependants.remove(&key.job).unwrap_or_default() {
            let dependant = JobKey {
                batch: key.batch,
                job,
            };
            let Some(open) = batch.order.waiting.get_mut(&job) else {
                continue;
            };
            if !succeeded {
                self.pending.to_skip.push_back((dependant, key.job));
                continue;
            }
            *open -= 1;
            if *open == 0 {
                batch.order.waiting.remove(&job);
                self.pending.released.push_back(dependant);
            }
        }
    }

    /// Lets a job be tried again at `at`.
    pub(super) fn delay(&mut self, key: JobKey, at: BootInstant) {
        self.pending.delayed.insert((at, key));
        self.timers.set_no_later(Timer::Retries, at);
        if let Some(job) = self.batches.job_mut(key) {
            job.set_waiting();
        }
    }

    /// Queues the jobs whose pause is over.
    pub(super) fn retry_in_turn(&mut self, now: BootInstant) {
        let Pending {
            released, delayed, ..
        } = &mut self.pending;
        while let Some((at, key)) = delayed.first().copied().filter(|(at, _)| *at <= now) {
            delayed.remove(&(at, key));
            released.push_back(key);
        }
        self.timers
            .set_or_clear(Timer::Retries, self.pending.next_retry());
    }

    /// Drops all delayed jobs of a batch.
    pub(super) fn forget_delayed(&mut self, serial: BatchSerial) {
        self.pending.delayed.retain(|(_, key)| key.batch != serial);
        self.timers
            .set_or_clear(Timer::Retries, self.pending.next_retry());
    }

    /// A detached batch is whole: its jobs may start, except those that come after others.
    pub(super) fn release_the_whole(&mut self, serial: BatchSerial) {
        let Some(batch) = self.batches.get(&serial) else {
            return;
        };
        let held = (1..)
            .map(JobNumber)
            .zip(&batch.jobs)
            .filter(|(_, job)| job.state == JobState::Waiting)
            .map(|(number, _)| number);
        let held = held.filter(|number| !batch.order.has(*number));
        self.pending
            .released
            .extend(held.map(|job| JobKey { batch: serial, job }));
    }

    /// No more jobs will come: jobs that wait for one that never came are skipped.
    pub(super) fn order_is_complete(&mut self, serial: BatchSerial) {
        let Some(batch) = self.batches.get_mut(&serial) else {
            return;
        };
        let first_missing = JobNumber(batch.jobs.len() as u32 + 1);
        for (missing, dependants) in batch.order.dependants.split_off(&first_missing) {
            self.pending.to_skip.extend(
                dependants
                    .into_iter()
                    .map(|job| (JobKey { batch: serial, job }, missing)),
            );
        }
    }

    /// Carries out the decisions that follow from the last ends.
    pub(super) fn settle_order(&mut self, now: BootInstant) {
        loop {
            if let Some(key) = self.pending.released.pop_front() {
                self.release(key);
            } else if let Some((key, before)) = self.pending.to_skip.pop_front() {
                if self
                    .batches
                    .job(key)
                    .is_some_and(|job| job.state == JobState::Waiting)
                {
                    let why = format!("job {before}, which it comes after, did not succeed");
                    self.finish(key, None, Outcome::never_ran(Ended::Skipped, why), now);
                }
            } else {
                break;
            }
        }
    }

    fn release(&mut self, key: JobKey) {
        let job = self.batches.job_mut(key);
        if let Some(job) = job.filter(|job| job.state == JobState::Waiting) {
            job.set_queued();
            self.enqueue(key);
        }
    }
}
