//! Batches from their opening to their end: opened, submitted to, closed, attended, done.

use super::{Batch, Effect, Job, Record, Scheduler, Timer, halt};
use mezcal_common::message::agent::ToAgent;
use mezcal_common::message::client::{BatchTerms, Submission};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::duration::format_duration;
use mezcal_common::model::ids::{BatchId, BatchSerial, JobKey, JobNumber};
use mezcal_common::model::job::{MAX_SPEC, Stop};
use mezcal_common::model::outcome::{Ended, Outcome};
use std::time::Duration;

/// Most jobs in one batch: job numbers are 32 bits, and an index of this many fits in memory.
const MAX_JOBS: usize = 100_000_000;

/// A job that has just been submitted.
struct New {
    job: JobNumber,
    /// Why the job cannot start at all.
    stillborn: Option<String>,
    after: Vec<JobNumber>,
}

/// Jobs that a batch has taken.
struct Taken {
    queued: Vec<New>,
    /// The same jobs for the store, if it has the batch.
    records: Vec<Submission>,
    /// Why some of them were refused.
    refused: Option<String>,
}

/// Adds jobs to a batch, up to the first invalid one.
fn take(batch: &mut Batch, serial: BatchSerial, jobs: Vec<Submission>, stored: bool) -> Taken {
    let mut taken = Taken {
        queued: Vec::with_capacity(jobs.len()),
        records: Vec::with_capacity(if stored { jobs.len() } else { 0 }),
        refused: None,
    };
    for mut submission in jobs {
        if !batch.open || submission.job.0 as usize != batch.jobs.len() + 1 {
            let why = format!("job {} does not continue the batch", submission.job);
            taken.refused = Some(why);
            break;
        }
        if submission.spec.len() > MAX_SPEC
            || batch.jobs.len() >= MAX_JOBS
            || submission.slots == 0
            || [submission.hosts, submission.prefer]
                .iter()
                .flatten()
                .any(|h| *h as usize >= batch.host_sets.len())
        {
            taken.refused = Some(format!("job {} is not acceptable", submission.job));
            break;
        }
        if stored {
            taken.records.push(submission.clone());
        }
        taken.queued.push(New {
            job: submission.job,
            stillborn: submission.stillborn.take(),
            after: std::mem::take(&mut submission.after),
        });
        batch.add_job(serial, submission, stored);
    }
    taken
}

impl Scheduler {
    pub(super) fn open(&mut self, user: String, terms: BatchTerms, now: BootInstant) {
        let id = terms.context.batch;
        if self.batches.serial(id).is_some() {
            // A repeated request to open means the same batch.
            return;
        }
        let serial = self.batches.next_number();
        if serial > self.generation.last_batch() {
            let reason = "the coordinator has used up the batch numbers of this generation of its \
                store: `coordinator restore` of a copy that `coordinator backup` makes begins the \
                next one"
                .to_owned();
            self.effects
                .push_back(Effect::Refused { batch: id, reason });
            return;
        }
        self.batches.number_is_used(serial);
        let age = Duration::ZERO;
        self.persist(|| Record::Opened {
            batch: serial,
            user: user.clone(),
            terms: Box::new(terms.clone()),
            age,
        });
        self.add_batch(serial, user, terms, age, now);
    }

    pub(super) fn add_batch(
        &mut self,
        serial: BatchSerial,
        user: String,
        terms: BatchTerms,
        age: Duration,
        now: BootInstant,
    ) {
        let (user, is_new) = self.users.add(user);
        if is_new {
            self.limit_priorities();
        }
        let batch = Batch::new(user, terms);
        if let Some(limit) = batch.time_limit {
            let end = now + limit.saturating_sub(age);
            self.timers.set(Timer::TimeLimit(serial), end);
        }
        self.batches.add(serial, batch);
    }

    pub(super) fn submit(
        &mut self,
        id: BatchId,
        host_sets: &[Vec<String>],
        jobs: Vec<Submission>,
        now: BootInstant,
    ) {
        let Some(serial) = self.batches.serial(id) else {
            self.effects.push_back(Effect::Refused {
                batch: id,
                reason: "there is no such open batch".into(),
            });
            return;
        };
        let stored = self.is_stored(serial);
        let Some(batch) = self.batches.get_mut(&serial) else {
            return;
        };
        batch.add_host_sets(host_sets);
        let Taken {
            queued,
            records,
            refused,
        } = take(batch, serial, jobs, stored);
        let (accepted, held) = (batch.jobs.len() as u64, batch.is_held());
        if !host_sets.is_empty() {
            self.persist(|| Record::HostSets {
                batch: serial,
                sets: host_sets.to_vec(),
            });
        }
        if !records.is_empty() {
            self.persist(|| Record::Submitted {
                batch: serial,
                jobs: records,
            });
        }
        self.effects.push_back(Effect::Accepted {
            batch: id,
            jobs: accepted,
            closed: false,
        });
        if let Some(reason) = refused {
            self.effects
                .push_back(Effect::Refused { batch: id, reason });
        }
        self.begin_jobs(serial, queued, held, now);
    }

    /// Jobs were submitted: each waits for a host or for something else first, or ends at once.
    fn begin_jobs(&mut self, serial: BatchSerial, jobs: Vec<New>, held: bool, now: BootInstant) {
        let given_up = |s: &Self| s.batches.get(&serial).is_none_or(Batch::is_given_up);
        let mut cancelled = given_up(self);
        for New {
            job,
            stillborn,
            after,
        } in jobs
        {
            let key = JobKey { batch: serial, job };
            match stillborn {
                Some(why) => {
                    self.finish(key, None, Outcome::never_ran(Ended::StartFailed, why), now);
                    // Its end may have halted the batch.
                    cancelled = given_up(self);
                }
                None if cancelled => {
                    self.finish(key, None, Outcome::never_ran(Ended::Cancelled, None), now)
                }
                None => self.may_start(key, &after, held),
            }
        }
    }

    /// A new job may run: it waits for a host, or for something else first. `held`: for its batch
    /// to be whole.
    pub(super) fn may_start(&mut self, key: JobKey, after: &[JobNumber], held: bool) {
        if self.must_wait(key, after) {
            return;
        }
        match held {
            true => self
                .batches
                .job_mut(key)
                .into_iter()
                .for_each(Job::set_waiting),
            false => self.enqueue(key),
        }
    }

    /// No more jobs of a batch will come. A client that lost the answer and closes again is told
    /// again.
    pub(super) fn close(&mut self, id: BatchId, now: BootInstant) {
        let Some(serial) = self.batches.serial(id) else {
            return;
        };
        let Some(batch) = self.batches.get_mut(&serial) else {
            return;
        };
        let (first, jobs, detached) = (batch.close(), batch.jobs.len() as u64, batch.detached);
        if first {
            self.persist(|| Record::Closed { batch: serial });
        }
        self.effects.push_back(Effect::Accepted {
            batch: id,
            jobs,
            closed: true,
        });
        if !first {
            return;
        }
        if detached {
            self.release_the_whole(serial);
        }
        self.order_is_complete(serial);
        // From now on a share of all jobs can be computed.
        self.check_halt(serial, now);
        self.end_batch_if_done(serial);
    }

    /// No client looks after a batch any more: unless it is detached and complete, its lease
    /// begins.
    pub(super) fn unattended(&mut self, serial: BatchSerial, now: BootInstant) {
        let needs_somebody = |batch: &Batch| batch.open || !batch.detached;
        if self.batches.get(&serial).is_some_and(needs_somebody) {
            let until = now + self.client_lease;
            self.timers.begin(Timer::Deserted(serial), until);
        }
    }

    pub(super) fn attended(&mut self, serial: BatchSerial) {
        self.timers.clear(Timer::Deserted(serial));
    }

    pub(super) fn end_deserted(&mut self, serial: BatchSerial, now: BootInstant) {
        let Some(batch) = self.batches.get_mut(&serial) else {
            return;
        };
        batch.set_why(
            format!(
                "its client was gone for longer than {}",
                format_duration(self.client_lease)
            )
            .into(),
        );
        let id = batch.id;
        self.cancel_batch(serial, None, Stop::after(halt::GRACE), now);
        self.close(id, now);
    }

    pub(super) fn end_batch_if_done(&mut self, serial: BatchSerial) {
        let Some(batch) = self.batches.get(&serial) else {
            return;
        };
        if batch.open || batch.done < batch.jobs.len() {
            return;
        }
        let id = batch.id;
        self.timers.clear(Timer::TimeLimit(serial));
        self.timers.clear(Timer::Deserted(serial));
        self.persist(|| Record::Done { batch: serial });
        self.effects.push_back(Effect::BatchDone { batch: id });
        self.batches.remove(serial);
        for host in self.hosts.values_mut() {
            if host.forgets(serial)
                && let Some(session) = host.session
            {
                self.effects
                    .push_back(Effect::ToAgent(session, ToAgent::Forget { batch: serial }));
            }
        }
    }

    /// The number of a batch that has not ended, with the counts of its host sets and jobs, and
    /// whether it is complete.
    pub fn batch_so_far(&self, id: BatchId) -> Option<(BatchSerial, u64, u64, bool)> {
        let serial = self.batches.serial(id)?;
        let batch = self.batches.get(&serial)?;
        Some((
            serial,
            batch.host_sets.len() as u64,
            batch.jobs.len() as u64,
            !batch.open,
        ))
    }

    /// How many jobs of a batch are on hosts, and how many others have not ended; none: the batch
    /// has ended.
    pub fn left_of(&self, batch: BatchId) -> Option<(u64, u64)> {
        let batch = self.batches.get(&self.batches.serial(batch)?)?;
        Some((
            batch.placed,
            (batch.jobs.len() - batch.done) as u64 - batch.placed,
        ))
    }
}
