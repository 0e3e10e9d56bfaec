//! The records that have to survive the coordinator, and how the scheduler takes them back.
//!
//! A [`Record`] comes out as [`super::Effect::Persist`] before any effect that depends on it. After
//! a restart a new scheduler is given the records of all batches that have not ended, by
//! [`Scheduler::replay`], and then continues with [`Scheduler::restored`]. Records of one batch
//! come in this order: `Opened`, `HostSets`, `Submitted`, then the others, of which each kind keeps
//! its own order.

use super::{Effect, JobState, Scheduler, Timer};
use mezcal_common::message::client::{BatchTerms, Submission};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, BatchSerial, EngineId, JobKey, JobNumber};
use mezcal_common::model::job::Stop;
use mezcal_common::model::outcome::{Ended, JobResult, Outcome};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// A fact that the store keeps.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A new batch.
    Opened {
        /// Its number, which is never used again.
        batch: BatchSerial,
        /// The user whose batch it is.
        user: String,
        /// The terms of the batch.
        terms: Box<BatchTerms>,
        /// How long ago it was opened; zero when it is new.
        age: Duration,
    },
    /// Host sets that follow those that the batch has.
    HostSets {
        /// The serial number of the batch.
        batch: BatchSerial,
        /// The names of the hosts in each set.
        sets: Vec<Vec<String>>,
    },
    /// Jobs that follow those that the batch has.
    Submitted {
        /// The serial number of the batch.
        batch: BatchSerial,
        /// The jobs, in the order of their numbers.
        jobs: Vec<Submission>,
    },
    /// No more jobs will come.
    Closed {
        /// The serial number of the batch.
        batch: BatchSerial,
    },
    /// Nothing of a batch starts any more.
    Stopped {
        /// The serial number of the batch.
        batch: BatchSerial,
        /// How its running jobs are ended; none: they may go on (`--halt soon`).
        stop: Option<Stop>,
        /// Who or what stopped it.
        why: Option<Arc<str>>,
    },
    /// These attempts may run on a host from now on. One record per message.
    Placed {
        /// The full name of the host.
        host: Arc<str>,
        /// How long they may run without a heartbeat; none: the host shares our fate.
        lease: Option<Duration>,
        /// The ids of the attempts.
        attempts: Vec<AttemptId>,
    },
    /// An attempt is over, and its job is not.
    Again {
        /// The id of the attempt.
        attempt: AttemptId,
        /// How many retries its job has left.
        retries: u32,
        /// How many attempts of its job were lost so far.
        losses: u8,
        /// How it ended; none: it was given back.
        outcome: Option<Box<Outcome>>,
    },
    /// A job is over for good.
    Ended {
        /// The serial number of the batch.
        batch: BatchSerial,
        /// The position of this result among those of the batch, from 1.
        seq: u64,
        /// The number of the job in its batch.
        job: JobNumber,
        /// How it ended.
        result: Box<JobResult>,
    },
    /// All jobs of a closed batch are over.
    Done {
        /// The serial number of the batch.
        batch: BatchSerial,
    },
    /// A drain of a host has begun or ended.
    Drained {
        /// The full name of the host.
        host: Arc<str>,
        /// Why; none: the drain has ended.
        reason: Option<Arc<str>>,
        /// When the jobs that still run there are taken away, counted from this record on.
        deadline: Option<Duration>,
    },
    /// A host has been forgotten.
    HostForgotten {
        /// The full name of the host.
        host: Arc<str>,
    },
    /// The numbers of a host's engines.
    Engines {
        /// The full name of the host.
        host: Arc<str>,
        /// The first number.
        first: EngineId,
        /// How many numbers.
        slots: u16,
    },
    /// Batches that were copied from another store may be placed from now on.
    Released,
}

/// State that is needed only while records are replayed.
#[derive(Debug, Default)]
pub(super) struct Restoring {
    /// The last attempt of each job, with the longest lease that was recorded with it.
    placements: BTreeMap<JobKey, (AttemptId, Option<Duration>)>,
    comes_after: HashMap<JobKey, Vec<JobNumber>>,
    /// Jobs whose last attempt has failed, so that the next one has to wait.
    failed: HashSet<JobKey>,
}

impl Scheduler {
    /// Records every decision from now on. The store then keeps the job specs: placements come
    /// without them.
    ///
    /// A batch that is not detached is cancelled when it has been unattended for `client_lease`.
    #[must_use]
    pub fn durable(mut self, client_lease: Duration) -> Self {
        (self.durable, self.client_lease) = (true, client_lease);
        self
    }

    pub(super) fn persist(&mut self, record: impl FnOnce() -> Record) {
        if !self.durable {
            return;
        }
        let mut record = record();
        let stored = |batch: BatchSerial| self.is_stored(batch);
        let worth = match &mut record {
            Record::Opened { terms, .. } => !terms.once,
            Record::HostSets { batch, .. }
            | Record::Submitted { batch, .. }
            | Record::Closed { batch }
            | Record::Stopped { batch, .. }
            | Record::Ended { batch, .. }
            | Record::Done { batch } => stored(*batch),
            Record::Again { attempt, .. } => stored(attempt.key.batch),
            Record::Placed { attempts, .. } => {
                attempts.retain(|attempt| stored(attempt.key.batch));
                !attempts.is_empty()
            }
            Record::Engines { .. }
            | Record::Drained { .. }
            | Record::HostForgotten { .. }
            | Record::Released => true,
        };
        if worth {
            self.effects.push_back(Effect::Persist(record));
        }
    }

    /// Whether a batch is recorded. A job that runs once on a host, as with `exec`, ends with its
    /// client, and so with us.
    pub(super) fn is_stored(&self, batch: BatchSerial) -> bool {
        self.durable && self.batches.get(&batch).is_some_and(|batch| !batch.once)
    }

    /// Numbers up to this one have been used, also by batches that are forgotten.
    pub fn numbers_in_use(&mut self, last: BatchSerial) {
        self.batches.number_is_used(last);
    }

    /// Applies a record of an earlier life.
    pub fn replay(&mut self, record: Record, now: BootInstant) {
        match record {
            Record::Opened {
                batch,
                user,
                terms,
                age,
            } => {
                self.numbers_in_use(batch);
                self.add_batch(batch, user, *terms, age, now);
            }
            Record::HostSets { batch, sets } => {
                if let Some(batch) = self.batches.get_mut(&batch) {
                    batch.add_host_sets(&sets);
                }
            }
            Record::Submitted { batch, jobs } => self.replay_jobs(batch, jobs),
            Record::Closed { batch } => {
                if let Some(batch) = self.batches.get_mut(&batch) {
                    batch.close();
                }
            }
            Record::Stopped { batch, stop, why } => {
                if let Some(batch) = self.batches.get_mut(&batch) {
                    batch.was_stopped(stop, why);
                }
            }
            Record::Placed {
                host,
                lease,
                attempts,
            } => self.replay_placed(&host, lease, attempts, now),
            Record::Again {
                attempt,
                retries,
                losses,
                ..
            } => self.replay_again(attempt, retries, losses),
            Record::Ended {
                batch, job, result, ..
            } => self.replay_end(JobKey { batch, job }, &result),
            // These are not among the records that are replayed.
            Record::Done { .. } | Record::HostForgotten { .. } | Record::Released => {}
            Record::Drained {
                host,
                reason,
                deadline,
            } => {
                let index = self.host_becomes_known(&host, now);
                self.set_drained(&host, reason);
                if let Some(limit) = deadline {
                    self.timers.set(Timer::Eviction(index), now + limit);
                }
            }
            Record::Engines { host, first, slots } => {
                self.hosts.engines_are_numbered(first, slots);
                self.host_becomes_known(&host, now);
                if let Some(known) = self.hosts.get_mut(&host) {
                    known.had_engines(first, slots);
                }
            }
        }
    }

    fn replay_placed(
        &mut self,
        host: &Arc<str>,
        lease: Option<Duration>,
        attempts: Vec<AttemptId>,
        now: BootInstant,
    ) {
        // Attempts may still run under an earlier, longer lease, which has to end first.
        self.lease = self.lease.max(lease);
        self.placed_under(lease);
        let index = self.host_becomes_known(host, now);
        for attempt in attempts {
            if let Some(job) = self.batches.job_mut(attempt.key)
                && attempt.attempt > job.attempt
                && job.state != JobState::Done
            {
                job.was_placed(attempt.attempt, index);
                self.restoring
                    .placements
                    .insert(attempt.key, (attempt, lease));
            } else if let Some((_, known)) = self
                .restoring
                .placements
                .get_mut(&attempt.key)
                .filter(|(a, _)| *a == attempt)
            {
                // A later life gave longer leases.
                *known = (*known).max(lease);
            }
        }
    }

    fn replay_again(&mut self, attempt: AttemptId, retries: u32, losses: u8) {
        if let Some(job) = self
            .batches
            .job_mut(attempt.key)
            .filter(|job| job.state != JobState::Done)
        {
            let failed = job.had_left(retries, losses);
            if job.attempt == attempt.attempt {
                job.set_queued();
                match failed {
                    true => self.restoring.failed.insert(attempt.key),
                    false => self.restoring.failed.remove(&attempt.key),
                };
            }
        }
    }

    fn replay_end(&mut self, key: JobKey, result: &JobResult) {
        self.restoring.placements.remove(&key);
        if let Some(batch) = self.batches.get_mut(&key.batch) {
            batch.had_ended(key.job, result);
        }
    }

    fn replay_jobs(&mut self, batch: BatchSerial, jobs: Vec<Submission>) {
        for mut submission in jobs {
            let key = JobKey {
                batch,
                job: submission.job,
            };
            let after = std::mem::take(&mut submission.after);
            if !after.is_empty() {
                self.restoring.comes_after.insert(key, after);
            }
            if let Some(batch) = self.batches.get_mut(&batch) {
                batch.add_job(key.batch, submission, self.durable);
            }
        }
    }

    /// All records are replayed: jobs that surely do not run may start, and attempts that may run
    /// are waited for.
    pub fn restored(&mut self, now: BootInstant) {
        let Restoring {
            placements,
            mut comes_after,
            failed,
        } = std::mem::take(&mut self.restoring);
        if !placements.is_empty() {
            self.timers.set(Timer::Return, now + super::cancel::RETURN);
        }
        self.replay_what_is_placed(placements);
        self.lease_begins(now);
        self.hold_begins(now);
        for batch in self.batches.in_order() {
            self.begin_restored(batch, &mut comes_after, &failed, now);
            if self.batches.get(&batch).is_some_and(|b| !b.open) {
                self.order_is_complete(batch);
            }
            self.unattended(batch, now);
            self.check_halt(batch, now);
            self.end_batch_if_done(batch);
        }
        self.unserved = true;
        self.settle(now);
    }

    /// Puts the attempts that may run back on their hosts.
    fn replay_what_is_placed(
        &mut self,
        placements: BTreeMap<JobKey, (AttemptId, Option<Duration>)>,
    ) {
        let mut longer: BTreeMap<Arc<str>, Vec<AttemptId>> = BTreeMap::new();
        for (key, (attempt, recorded)) in placements {
            let placed = self
                .batches
                .job(key)
                .filter(|job| job.state == JobState::Placed)
                .map(|job| (job.host, job.queue));
            let Some((host, queue)) = placed else {
                continue;
            };
            self.users.take(queue.user, queue.slots());
            if let Some(batch) = self.batches.get_mut(&key.batch) {
                batch.has_placed();
            }
            if let Some(host) = self.hosts.at_mut(host) {
                host.attempts.add(attempt, queue.user, queue.slots(), None);
                if recorded < self.lease {
                    longer.entry(host.name.clone()).or_default().push(attempt);
                }
            }
            // The cancel is sent when the host has sent its inventory.
            if let Some(stop) = self
                .batches
                .get(&key.batch)
                .and_then(|batch| batch.cancelled)
            {
                self.cancels.begin_silently(key, stop);
            }
        }
        // Agents renew their attempts for longer from now on, and the life after us has to wait for
        // that.
        self.leases_grow = !longer.is_empty();
        for (host, attempts) in longer {
            let lease = self.lease;
            self.persist(|| Record::Placed {
                host,
                lease,
                attempts,
            });
        }
    }

    /// Lets the waiting jobs of a batch start, or wait again.
    fn begin_restored(
        &mut self,
        batch: BatchSerial,
        comes_after: &mut HashMap<JobKey, Vec<JobNumber>>,
        failed: &HashSet<JobKey>,
        now: BootInstant,
    ) {
        let Some(b) = self.batches.get(&batch) else {
            return;
        };
        let (given_up, held) = (b.is_given_up(), b.is_held());
        let queued = (1..)
            .zip(&b.jobs)
            .filter(|(_, job)| job.state == JobState::Queued)
            .map(|(number, _)| JobNumber(number));
        for job in queued.collect::<Vec<_>>() {
            let key = JobKey { batch, job };
            let before = comes_after.remove(&key).unwrap_or_default();
            let pause = self.batches.get(&batch).map(|batch| batch.pause_of(job));
            let pause = pause.filter(|pause| failed.contains(&key) && !pause.is_zero());
            if given_up {
                self.finish(key, None, Outcome::never_ran(Ended::Cancelled, None), now);
            } else if let Some(pause) = pause {
                // How much of the pause has passed is not known: it begins again.
                self.delay(key, now + pause);
            } else {
                self.may_start(key, &before, held);
            }
        }
    }
}
