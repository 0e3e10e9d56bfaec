//! What has to survive the coordinator, as the scheduler tells it and takes it back.
//!
//! A [`Record`] comes out as [`super::Effect::Persist`] before whatever depends on it. After a
//! restart a new scheduler is given the records of all batches that have not ended, by
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

/// One thing to remember.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A new batch.
    Opened {
        /// Its number; never used again.
        batch: BatchSerial,
        /// Whose it is.
        user: String,
        /// Its terms.
        terms: Box<BatchTerms>,
        /// How long ago; zero when it has just come.
        age: Duration,
    },
    /// Host sets that follow those that the batch has.
    HostSets {
        /// The batch.
        batch: BatchSerial,
        /// The sets.
        sets: Vec<Vec<String>>,
    },
    /// Jobs that follow those that the batch has.
    Submitted {
        /// The batch.
        batch: BatchSerial,
        /// The jobs.
        jobs: Vec<Submission>,
    },
    /// No more jobs will come.
    Closed {
        /// The batch.
        batch: BatchSerial,
    },
    /// Nothing more of it starts.
    Stopped {
        /// The batch.
        batch: BatchSerial,
        /// How what runs is ended; none: it may go on (`--halt soon`).
        stop: Option<Stop>,
        /// Who or what did it.
        why: Option<Arc<str>>,
    },
    /// These may run on a host from now on. One record per message.
    Placed {
        /// The host.
        host: Arc<str>,
        /// For how long without a heartbeat; none: it shares our fate.
        lease: Option<Duration>,
        /// The attempts.
        attempts: Vec<AttemptId>,
    },
    /// An attempt is over, and its job is not.
    Again {
        /// The attempt.
        attempt: AttemptId,
        /// What its job has left.
        retries: u32,
        /// How many of its attempts were lost.
        losses: u8,
        /// How it ended; none: it was given back.
        outcome: Option<Box<Outcome>>,
    },
    /// A job is over for good.
    Ended {
        /// Its batch.
        batch: BatchSerial,
        /// The how manieth of the batch, from 1.
        seq: u64,
        /// The job.
        job: JobNumber,
        /// How.
        result: Box<JobResult>,
    },
    /// All jobs of a closed batch are over.
    Done {
        /// The batch.
        batch: BatchSerial,
    },
    /// A host is being drained, or is not any more.
    Drained {
        /// The host.
        host: Arc<str>,
        /// Why; none: it gets jobs again.
        reason: Option<Arc<str>>,
        /// What still runs there then is taken away, counted from when this is said.
        deadline: Option<Duration>,
    },
    /// A host is known no more.
    HostForgotten {
        /// The host.
        host: Arc<str>,
    },
    /// The numbers of a host's engines.
    Engines {
        /// The host.
        host: Arc<str>,
        /// The first one.
        first: EngineId,
        /// How many.
        slots: u16,
    },
    /// Batches of the store that this one was copied from may be placed from now on.
    Released,
}

/// What is known only while records are taken back.
#[derive(Debug, Default)]
pub(super) struct Restoring {
    /// With the longest lease that each is recorded with.
    placements: BTreeMap<JobKey, (AttemptId, Option<Duration>)>,
    comes_after: HashMap<JobKey, Vec<JobNumber>>,
    /// Jobs whose last attempt has failed, so that the next one has to wait.
    failed: HashSet<JobKey>,
    index_by_host: HashMap<Arc<str>, u32>,
}

impl Scheduler {
    /// Has every decision recorded from now on. Job specs are then the store's to keep: placements
    /// come without them.
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

    /// Whether a batch is recorded. What runs once on a host, as `exec` has it, ends with its
    /// client, and so with us.
    pub(super) fn is_stored(&self, batch: BatchSerial) -> bool {
        self.durable && self.batches.get(&batch).is_some_and(|batch| !batch.once)
    }

    /// Batch numbers up to this one have been used, also by batches that are forgotten.
    pub fn numbers_in_use(&mut self, last: BatchSerial) {
        self.batches.number_is_used(last);
    }

    /// Takes back a record of an earlier life.
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
            // It is not among what is replayed.
            Record::Done { .. } | Record::HostForgotten { .. } | Record::Released => {}
            Record::Drained {
                host,
                reason,
                deadline,
            } => {
                let index = self.known_host(&host, now);
                self.set_drained(&host, reason);
                if let Some(limit) = deadline {
                    self.timers.set(Timer::Eviction(index), now + limit);
                }
            }
            Record::Engines { host, first, slots } => {
                self.hosts.engines_are_numbered(first, slots);
                self.known_host(&host, now);
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
        // Whoever still runs under an earlier, longer lease has to be waited for.
        self.lease = self.lease.max(lease);
        self.placed_under(lease);
        let index = self.known_host(host, now);
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
            let failed = retries < job.retries;
            (job.retries, job.losses) = (job.retries.min(retries), job.losses.max(losses));
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

    /// All records have been taken back: what surely does not run may start, what may run is waited
    /// for.
    pub fn restored(&mut self, now: BootInstant) {
        let Restoring {
            placements,
            mut comes_after,
            failed,
            ..
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

    /// What may run on hosts is on them again.
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
            let name = self.hosts.name_at(host);
            if let Some(host) = name.and_then(|name| self.hosts.get_mut(&name)) {
                host.attempts.add(attempt, queue.user, queue.slots(), None);
                if recorded < self.lease {
                    longer.entry(host.name.clone()).or_default().push(attempt);
                }
            }
            // Its host is told when it has said what it has.
            if let Some(stop) = self
                .batches
                .get(&key.batch)
                .and_then(|batch| batch.cancelled)
            {
                self.cancels.begin_silently(key, stop);
            }
        }
        // Agents renew them for longer from now on, and whoever comes after us has to wait for
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

    /// What waits of a batch may start, or waits again.
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
                // How much of it is over is not known: it begins again.
                self.delay(key, now + pause);
            } else {
                self.may_start(key, &before, held);
            }
        }
    }

    /// A host of an earlier life, by index.
    fn known_host(&mut self, name: &Arc<str>, now: BootInstant) -> u32 {
        if let Some(index) = self.restoring.index_by_host.get(name) {
            return *index;
        }
        let index = self.host_becomes_known(name, now);
        self.restoring.index_by_host.insert(name.clone(), index);
        index
    }
}
