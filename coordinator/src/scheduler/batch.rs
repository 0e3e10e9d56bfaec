//! A batch and its jobs, as the scheduler knows them.

use super::queues::{HostSet, QueueKey};
use super::{Hosts, Text, after, halt, quarantine, shortage, text};
use mezcal_common::message::client::{BatchTerms, Halt, RetryOn, Submission};
use mezcal_common::model::hosts;
use mezcal_common::model::ids::{BatchId, BatchSerial, Generation, JobKey, JobNumber};
use mezcal_common::model::job::{BatchContext, Stop};
use mezcal_common::model::outcome::{JobResult, Outcome};
use rustc_hash::FxHashMap;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// The longest pause between two attempts of a job that fails.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JobState {
    /// For other jobs to succeed, or for the pause before its next attempt to end.
    Waiting,
    Queued,
    Placed,
    Done,
}

/// Kept small: there may be millions.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) text: Text,
    /// The length of its text in bytes, wherever the text is.
    pub(super) spec_length: u32,
    pub(super) queue: QueueKey,
    pub(super) attempt: u32,
    /// How many retries it has left.
    retries: u32,
    /// The host of its present or last attempt, as an index into the names of hosts.
    pub(super) host: u32,
    /// How often it was lost with its host.
    losses: u8,
    pub(super) state: JobState,
    pub(super) succeeded: bool,
}

/// How a job is tried again.
#[derive(Debug)]
struct RetryRule {
    /// The failures after which it is tried again; empty: all of them.
    on: Vec<RetryOn>,
    /// The pause after the first failure, which doubles each time.
    delay: Duration,
    /// The most retries.
    retries: u32,
}

#[derive(Debug)]
pub(super) struct Batch {
    pub(super) id: BatchId,
    pub(super) user: u32,
    pub(super) context: BatchContext,
    pub(super) host_timeout: Duration,
    pub(super) once: bool,
    pub(super) host_sets: Vec<HostSet>,
    pub(super) jobs: Vec<Job>,
    /// How many of its jobs are on hosts.
    pub(super) placed: u64,
    pub(super) done: usize,
    pub(super) open: bool,
    /// The jobs that wait for others of the batch.
    pub(super) order: after::Order,
    /// Rules of jobs that are not simply tried again at once after any failure.
    retry_rules: HashMap<JobNumber, RetryRule>,
    /// The last ends of its jobs, by which hosts are judged.
    pub(super) ends: quarantine::Ends,
    pub(super) short: shortage::Shortages,
    /// For each job, where and why attempts of it were lost.
    lost: HashMap<JobNumber, Vec<String>>,
    /// Jobs by the `id` that their user gave them.
    pub(super) labels: HashMap<Box<str>, JobNumber>,
    /// Set when it is cancelled: nothing of it starts any more.
    pub(super) cancelled: Option<Stop>,
    /// Who or what has cancelled or halted it.
    pub(super) why: Option<Arc<str>>,
    pub(super) halt: Option<Halt>,
    /// How many of its jobs have succeeded and failed by themselves so far.
    pub(super) counts: halt::Counts,
    /// Its halt has come about: nothing of it starts any more, and the jobs that run may go on.
    pub(super) halted: bool,
    pub(super) time_limit: Option<Duration>,
    pub(super) detached: bool,
}

impl Job {
    /// The job waits for other jobs, or for its next attempt.
    pub(super) fn set_waiting(&mut self) {
        self.state = JobState::Waiting;
    }

    /// The job waits for a host.
    pub(super) fn set_queued(&mut self) {
        self.state = JobState::Queued;
    }

    /// How many retries it has left.
    pub(super) fn retries(&self) -> u32 {
        self.retries
    }

    /// How often it was lost with its host.
    pub(super) fn losses(&self) -> u8 {
        self.losses
    }

    /// After an attempt in an earlier life, it had so many retries left and had been lost so often.
    /// True if the attempt had used up a retry.
    pub(super) fn had_left(&mut self, retries: u32, losses: u8) -> bool {
        let failed = retries < self.retries;
        (self.retries, self.losses) = (self.retries.min(retries), self.losses.max(losses));
        failed
    }

    /// An earlier life has placed the job.
    pub(super) fn was_placed(&mut self, attempt: u32, host: u32) {
        (self.attempt, self.host, self.state) = (attempt, host, JobState::Placed);
    }
}

/// The job with this number, of all jobs of a batch.
fn job_of(jobs: &mut [Job], number: JobNumber) -> Option<&mut Job> {
    jobs.get_mut((number.0 as usize).checked_sub(1)?)
}

impl Batch {
    /// An open batch of a user, without jobs.
    pub(super) fn new(user: u32, terms: BatchTerms) -> Self {
        Self {
            id: terms.context.batch,
            user,
            context: terms.context,
            host_timeout: terms.host_timeout,
            once: terms.once,
            host_sets: Vec::new(),
            jobs: Vec::new(),
            placed: 0,
            done: 0,
            open: true,
            order: after::Order::default(),
            retry_rules: HashMap::new(),
            ends: quarantine::Ends::default(),
            short: shortage::Shortages::default(),
            lost: HashMap::new(),
            labels: HashMap::new(),
            cancelled: None,
            why: None,
            halt: terms.halt,
            counts: halt::Counts::default(),
            halted: false,
            time_limit: terms.time_limit,
            detached: terms.detached,
        }
    }

    pub(super) fn job(&self, number: JobNumber) -> Option<&Job> {
        self.jobs.get((number.0 as usize).checked_sub(1)?)
    }

    pub(super) fn job_mut(&mut self, number: JobNumber) -> Option<&mut Job> {
        job_of(&mut self.jobs, number)
    }

    pub(super) fn add_job(&mut self, serial: BatchSerial, submission: Submission, stored: bool) {
        let queue = QueueKey::new(self.user, serial, &submission);
        if !submission.retry_on.is_empty() || !submission.retry_delay.is_zero() {
            let rule = RetryRule {
                on: submission.retry_on,
                delay: submission.retry_delay,
                retries: submission.retries,
            };
            self.retry_rules.insert(submission.job, rule);
        }
        if let Some(label) = submission.label {
            self.labels.insert(label.into(), submission.job);
        }
        self.jobs.push(Job {
            spec_length: submission.spec.len() as u32,
            text: if stored {
                Text::Stored
            } else {
                Text::Here(submission.spec)
            },
            queue,
            attempt: 0,
            retries: submission.retries,
            host: 0,
            losses: 0,
            state: JobState::Queued,
            succeeded: false,
        });
    }

    /// A job's next attempt is on a host from now on.
    pub(super) fn place(
        &mut self,
        number: JobNumber,
        host: u32,
        generation: Generation,
    ) -> Option<&Job> {
        let job = job_of(&mut self.jobs, number)?;
        job.state = JobState::Placed;
        job.host = host;
        // A job that waits always has a number left.
        job.attempt = generation.next_attempt(job.attempt).unwrap_or(u32::MAX);
        self.placed += 1;
        Some(job)
    }

    /// A job is on no host any more, and has not ended.
    pub(super) fn comes_back(&mut self, number: JobNumber) -> Option<&Job> {
        let job = job_of(&mut self.jobs, number)?;
        job.state = JobState::Queued;
        self.placed -= 1;
        Some(job)
    }

    /// Ends a job for good; returns its state before. None if it had ended already.
    pub(super) fn end(&mut self, number: JobNumber, outcome: &Outcome) -> Option<JobState> {
        let job = job_of(&mut self.jobs, number)?;
        let was = std::mem::replace(&mut job.state, JobState::Done);
        match was {
            JobState::Done => return None,
            JobState::Waiting => self.order.forget(number),
            JobState::Placed => self.placed -= 1,
            JobState::Queued => {}
        }
        // The rest of its text is kept for clients that ask for its output.
        if let Text::Here(text) = &mut job.text {
            *text = text::ended(text);
        }
        job.succeeded = outcome.succeeded();
        self.done += 1;
        self.lost.remove(&number);
        self.counts.add(outcome);
        Some(was)
    }

    /// A job was lost with its host: adds where and why to its reason. Returns how often it has
    /// been lost so far.
    pub(super) fn is_lost(
        &mut self,
        number: JobNumber,
        hosts: &Hosts,
        outcome: &mut Outcome,
    ) -> u32 {
        let Some(job) = job_of(&mut self.jobs, number) else {
            return 0;
        };
        let host = hosts.at(job.host).map_or("a host", |host| &host.name);
        job.losses += 1;
        let why = outcome.error.as_deref().unwrap_or_default();
        let lost = self.lost.entry(number).or_default();
        lost.push(format!("attempt {} on {host}: {why}", job.attempt));
        if lost.len() > 1 {
            outcome.error = Some(lost.join("; "));
        }
        u32::from(job.losses)
    }

    /// Uses up one of a job's retries, if it has one left for this outcome.
    pub(super) fn uses_a_retry(&mut self, number: JobNumber, outcome: &Outcome) -> bool {
        let rule = self.retry_rules.get(&number);
        let worth = rule.is_none_or(|rule| after::worth_another(&rule.on, outcome));
        let Some(job) = job_of(&mut self.jobs, number) else {
            return false;
        };
        let retry = !outcome.succeeded() && job.retries > 0 && worth;
        job.retries -= u32::from(retry);
        retry
    }

    /// One of its jobs was placed on a host by an earlier life.
    pub(super) fn has_placed(&mut self) {
        self.placed += 1;
    }

    /// A job has ended in an earlier life.
    pub(super) fn had_ended(&mut self, number: JobNumber, result: &JobResult) {
        let Some(job) = job_of(&mut self.jobs, number) else {
            return;
        };
        (job.state, job.succeeded) = (JobState::Done, result.outcome.succeeded());
        job.attempt = result.attempt;
        self.done += 1;
        self.counts.add(&result.outcome);
    }

    /// Closes it: no more jobs will come. True if it was open.
    pub(super) fn close(&mut self) -> bool {
        std::mem::take(&mut self.open)
    }

    /// Sets who or what ends it.
    pub(super) fn set_why(&mut self, why: Arc<str>) {
        self.why = Some(why);
    }

    /// Cancels it: nothing of it starts any more, and its running jobs are stopped.
    pub(super) fn cancel(&mut self, stop: Stop) {
        self.cancelled = Some(stop);
    }

    /// Its halt has come about.
    pub(super) fn set_halted(&mut self, why: Arc<str>) {
        self.halted = true;
        self.set_why(why);
    }

    /// It was cancelled, or halted, in an earlier life.
    pub(super) fn was_stopped(&mut self, stop: Option<Stop>, why: Option<Arc<str>>) {
        self.halted |= stop.is_none();
        self.cancelled = self.cancelled.or(stop);
        self.why = self.why.take().or(why);
    }

    /// None of its jobs starts any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.cancelled.is_some() || self.halted
    }

    /// Nothing of it starts before it is whole: if its client left, nobody could submit the rest.
    pub(super) fn is_held(&self) -> bool {
        self.detached && self.open
    }

    /// The pause of a job that has just failed. Attempts that were lost or given back do not count.
    pub(super) fn pause_of(&self, number: JobNumber) -> Duration {
        let job = self.job(number);
        let Some((rule, job)) = self.retry_rules.get(&number).zip(job) else {
            return Duration::ZERO;
        };
        let failures = rule.retries.saturating_sub(job.retries);
        rule.delay
            .saturating_mul(2u32.saturating_pow(failures.saturating_sub(1)))
            .min(MAX_RETRY_DELAY)
    }

    pub(super) fn add_host_sets(&mut self, sets: &[Vec<String>]) {
        for set in sets {
            let mut seen = HashSet::new();
            let names = set
                .iter()
                .filter_map(|n| hosts::normalise(n).ok())
                .map(Arc::<str>::from);
            self.host_sets
                .push(names.filter(|name| seen.insert(name.clone())).collect());
        }
    }
}

/// Batches that have not ended, by our own number and by their id.
#[derive(Debug)]
pub(super) struct Batches {
    by_serial: FxHashMap<BatchSerial, Batch>,
    serials: HashMap<BatchId, BatchSerial>,
    next: u32,
}

impl Default for Batches {
    fn default() -> Self {
        Self {
            by_serial: FxHashMap::default(),
            serials: HashMap::new(),
            next: 1,
        }
    }
}

impl Batches {
    pub(super) fn get(&self, serial: &BatchSerial) -> Option<&Batch> {
        self.by_serial.get(serial)
    }

    pub(super) fn get_mut(&mut self, serial: &BatchSerial) -> Option<&mut Batch> {
        self.by_serial.get_mut(serial)
    }

    /// The serial number of a batch.
    pub(super) fn serial(&self, id: BatchId) -> Option<BatchSerial> {
        self.serials.get(&id).copied()
    }

    /// All batches, in no order.
    pub(super) fn values(&self) -> impl Iterator<Item = &Batch> {
        self.by_serial.values()
    }

    /// The numbers of all batches, ascending.
    pub(super) fn in_order(&self) -> Vec<BatchSerial> {
        let mut serials: Vec<BatchSerial> = self.by_serial.keys().copied().collect();
        serials.sort();
        serials
    }

    /// The number that the next batch gets.
    pub(super) fn next_number(&self) -> BatchSerial {
        BatchSerial(self.next)
    }

    /// Numbers up to this one have been used.
    pub(super) fn number_is_used(&mut self, last: BatchSerial) {
        self.number_from(BatchSerial(last.0.saturating_add(1)));
    }

    /// No number below this one is given from now on.
    pub(super) fn number_from(&mut self, first: BatchSerial) {
        self.next = self.next.max(first.0);
    }

    pub(super) fn add(&mut self, serial: BatchSerial, batch: Batch) {
        self.serials.insert(batch.id, serial);
        self.by_serial.insert(serial, batch);
    }

    pub(super) fn remove(&mut self, serial: BatchSerial) {
        if let Some(batch) = self.by_serial.remove(&serial) {
            self.serials.remove(&batch.id);
        }
    }

    pub(super) fn job(&self, key: JobKey) -> Option<&Job> {
        self.by_serial.get(&key.batch)?.job(key.job)
    }

    pub(super) fn job_mut(&mut self, key: JobKey) -> Option<&mut Job> {
        self.by_serial.get_mut(&key.batch)?.job_mut(key.job)
    }

    /// The hosts that the jobs of a queue require; none: any host will do.
    pub(super) fn set_of(&self, key: QueueKey) -> Option<HostSet> {
        let sets = &self.by_serial.get(&key.batch)?.host_sets;
        sets.get(key.hosts? as usize).cloned()
    }

    /// The hosts that the jobs of a queue prefer, best first.
    pub(super) fn preferred_by(&self, key: QueueKey) -> Option<HostSet> {
        let sets = &self.by_serial.get(&key.batch)?.host_sets;
        sets.get(key.prefer? as usize).cloned()
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&BatchSerial, &Batch)> {
        self.by_serial.iter()
    }
}
