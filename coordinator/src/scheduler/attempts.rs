//! How attempts end, and what that means for their job: another attempt, or its end.

use super::{Effect, JobState, Record, Scheduler, hold};
use mezcal_common::message::agent::{NumberedReport, Report, ToAgent};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, JobKey, attempt_count};
use mezcal_common::model::outcome::{Ended, JobResult, Outcome, Place};
use std::sync::Arc;
use std::time::Duration;

/// A job whose host was lost this often ends as `lost`: the job itself may be killing the hosts.
const MAX_LOSSES: u32 = 3;

impl Scheduler {
    /// With a `user`, only reports of that user's attempts count.
    pub(super) fn reports(
        &mut self,
        name: &Arc<str>,
        user: Option<&str>,
        reports: Vec<NumberedReport>,
        now: BootInstant,
    ) {
        let Some(through) = reports.iter().map(|r| r.seq).max() else {
            return;
        };
        let user = user.map(|user| self.users.number(user));
        for NumberedReport {
            attempt, report, ..
        } in reports
        {
            let Some(host) = self.hosts.get_mut(name) else {
                return;
            };
            if user.is_some_and(|user| {
                host.attempts
                    .get(attempt)
                    .is_some_and(|on| Some(on.user) != user)
            }) {
                tracing::warn!(host = %name, %attempt, "{name} reports on another user's attempt \
                    {attempt}; ignored");
                continue;
            }
            match report {
                Report::Started { engine } => {
                    host.attempts.starts(attempt, Some(engine.0));
                }
                Report::Finished { engine, outcome } | Report::Counted { engine, outcome } => {
                    if host.attempts.remove(attempt).is_none() {
                        continue;
                    }
                    let (index, place) = (host.index, host.place(engine.map(|e| e.0)));
                    if self.is_superseded(attempt) {
                        continue;
                    }
                    if outcome.ended == Ended::HostShort {
                        self.host_was_short(index, attempt, place, *outcome, now);
                        continue;
                    }
                    if outcome.status.is_some()
                        && let Some(batch) = self.batches.get_mut(&attempt.key.batch)
                    {
                        batch.short.is_over(index);
                    }
                    self.judge(name, attempt.key, &outcome, now);
                    self.attempt_over(attempt, place, *outcome, now);
                }
                Report::Returned => {
                    if host.attempts.remove(attempt).is_some() {
                        self.returned(attempt, now);
                    }
                }
            }
        }
        self.reindex(name);
        self.tell_agent(name, ToAgent::Acknowledge { through });
    }

    pub(super) fn is_superseded(&self, attempt: AttemptId) -> bool {
        self.batches
            .job(attempt.key)
            .is_none_or(|job| job.attempt != attempt.attempt || job.state != JobState::Placed)
    }

    /// The present attempt of a job is over: the job is tried again, or ends.
    pub(super) fn attempt_over(
        &mut self,
        attempt: AttemptId,
        place: Option<Place>,
        mut outcome: Outcome,
        now: BootInstant,
    ) {
        if self.is_of_an_eviction(attempt.key, &outcome) {
            return self.returned(attempt, now);
        }
        // How it ended by itself, for its record. A success is never tried again.
        let kept = (self.durable && !outcome.succeeded()).then(|| Box::new(outcome.clone()));
        let again = self.is_tried_again(attempt, &mut outcome);
        let has_a_number = self.generation.next_attempt(attempt.attempt).is_some();
        if !has_a_number {
            let why = format!(
                "it was tried {} times, and there are no more numbers for its attempts",
                attempt_count(attempt.attempt)
            );
            let said = outcome.error.take();
            outcome.error = Some(said.map_or(why.clone(), |said| format!("{said}; {why}")));
        }
        if !again || !has_a_number {
            return self.finish(attempt.key, place, outcome, now);
        }
        self.comes_back(attempt, kept);
        // A lost host is no failure of the job: elsewhere it may begin at once.
        let batch = self.batches.get(&attempt.key.batch);
        let batch = batch.filter(|_| outcome.ended != Ended::Lost);
        let pause = batch.map_or(Duration::ZERO, |batch| batch.pause_of(attempt.key.job));
        match pause.is_zero() {
            true => self.enqueue(attempt.key),
            false => self.delay(attempt.key, now + pause),
        }
    }

    /// Whether an attempt ended because of an eviction. An agent that was restarted in its grace
    /// does not know why the attempt ended.
    fn is_of_an_eviction(&self, key: JobKey, outcome: &Outcome) -> bool {
        if outcome.ended != Ended::Cancelled || outcome.survivors > 0 || self.cancels.has(key) {
            return false;
        }
        let batch = self.batches.get(&key.batch);
        let wanted = batch.is_some_and(|batch| !batch.is_given_up() && !batch.once);
        let host = self
            .batches
            .job(key)
            .and_then(|job| self.hosts.at(job.host));
        wanted && host.is_some_and(|host| host.drain.is_overdue())
    }

    /// Whether the job of an ended attempt is tried again, which uses up a retry or counts a loss.
    /// If not, `outcome` then says how the job ended.
    fn is_tried_again(&mut self, attempt: AttemptId, outcome: &mut Outcome) -> bool {
        let key = attempt.key;
        let Some(batch) = self.batches.get_mut(&key.batch) else {
            return false;
        };
        let cancelled = batch.cancelled.is_some() || self.cancels.has(key);
        let once = batch.once || batch.halted;
        match outcome.ended {
            Ended::Lost if cancelled => {
                outcome.ended = Ended::Cancelled;
                false
            }
            // An attempt that was lost with an earlier life of ours does not count as a loss.
            Ended::Lost if attempt.epoch != self.epoch && !once => true,
            Ended::Lost => batch.is_lost(key.job, &self.hosts, outcome) <= MAX_LOSSES && !once,
            Ended::Exited
            | Ended::Signaled
            | Ended::Timeout
            | Ended::OutOfMemory
            | Ended::StartFailed => {
                !cancelled && !batch.halted && batch.uses_a_retry(key.job, outcome)
            }
            Ended::Cancelled
            | Ended::NoHost
            | Ended::Skipped
            | Ended::Unkillable
            | Ended::HostShort => false,
        }
    }

    /// A job is on no host any more, and will be placed again.
    fn comes_back(&mut self, attempt: AttemptId, outcome: Option<Box<Outcome>>) {
        let Some(batch) = self.batches.get_mut(&attempt.key.batch) else {
            return;
        };
        let user = batch.user;
        let Some(job) = batch.comes_back(attempt.key.job) else {
            return;
        };
        self.users.give_back(user, job.queue.slots());
        let (retries, losses) = (job.retries(), job.losses());
        self.persist(|| Record::Again {
            attempt,
            retries,
            losses,
            outcome,
        });
    }

    /// Takes all jobs back from a host whose agent has stopped in order; none counts as failed.
    pub(super) fn give_back(&mut self, name: &str, now: BootInstant) {
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        let attempts = std::mem::take(&mut host.attempts);
        self.reindex(name);
        for attempt in attempts.ids() {
            self.returned(attempt, now);
        }
    }

    pub(super) fn returned(&mut self, attempt: AttemptId, now: BootInstant) {
        if self.is_superseded(attempt) {
            return;
        }
        let asked = self.cancels.has(attempt.key);
        let Some(batch) = self.batches.get_mut(&attempt.key.batch) else {
            return;
        };
        if asked || batch.is_given_up() {
            return self.finish(
                attempt.key,
                None,
                Outcome::never_ran(Ended::Cancelled, None),
                now,
            );
        }
        if batch.once {
            return self.finish(
                attempt.key,
                None,
                Outcome::never_ran(Ended::Lost, "its agent was stopped".to_owned()),
                now,
            );
        }
        if self.generation.next_attempt(attempt.attempt).is_none() {
            let why =
                "it was given back, and there are no more numbers for its attempts".to_owned();
            return self.finish(attempt.key, None, Outcome::never_ran(Ended::Lost, why), now);
        }
        self.comes_back(attempt, None);
        self.enqueue(attempt.key);
    }

    /// Attempts of `name` for which `gone` is true are surely over, without a report.
    pub(super) fn lose_attempts(
        &mut self,
        name: &str,
        gone: impl Fn(AttemptId) -> bool,
        why: &str,
        now: BootInstant,
    ) {
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        let lost: Vec<(AttemptId, Option<u16>)> = host
            .attempts
            .iter()
            .filter(|(a, _)| gone(*a))
            .map(|(a, on)| (a, on.engine))
            .collect();
        for (attempt, engine) in lost {
            let place = self.hosts.get_mut(name).and_then(|host| {
                host.attempts.remove(attempt);
                host.place(engine)
            });
            self.reindex(name);
            if !self.is_superseded(attempt) {
                self.attempt_over(
                    attempt,
                    place,
                    Outcome::never_ran(Ended::Lost, why.to_owned()),
                    now,
                );
            }
        }
    }

    /// Ends a job for good.
    pub(super) fn finish(
        &mut self,
        key: JobKey,
        place: Option<Place>,
        mut outcome: Outcome,
        now: BootInstant,
    ) {
        let Some(job) = self.batches.job(key) else {
            return;
        };
        let (attempt, queue) = (job.attempt, job.queue);
        let local = self.is_local(queue, place.as_ref());
        let Some(batch) = self.batches.get_mut(&key.batch) else {
            return;
        };
        match batch.end(key.job, &outcome) {
            None => return,
            Some(JobState::Placed) => self.users.give_back(batch.user, queue.slots()),
            Some(JobState::Waiting | JobState::Queued | JobState::Done) => {}
        }
        let (id, seq) = (batch.id, batch.done as u64);
        if outcome.ended == Ended::Cancelled && outcome.error.is_none() {
            let why = self.cancels.why_of(key).or_else(|| batch.why.clone());
            outcome.error = why.map(|why| why.to_string());
        }
        if let Some(until) = self.held_until(key.batch) {
            hold::admit_ignorance(&mut outcome, until, now);
        }
        let (ended, killed, survivors) = (outcome.ended, outcome.killed, outcome.survivors);
        let succeeded = outcome.succeeded();
        let result = JobResult {
            attempt,
            place,
            local,
            outcome,
        };
        self.persist(|| Record::Ended {
            batch: key.batch,
            seq,
            job: key.job,
            result: Box::new(result.clone()),
        });
        self.effects.push_back(Effect::Result {
            batch: id,
            seq,
            job: key.job,
            result,
        });
        self.order_ended(key, succeeded);
        self.cancel_done(key, ended, killed, survivors);
        self.check_halt(key.batch, now);
        self.end_batch_if_done(key.batch);
    }
}
