//! How attempts end, and with the last of them a job: again, or for good.

use super::{Effect, JobState, Record, Scheduler, Text, after, hold, text};
use mezcal_common::message::agent::{NumberedReport, Report, ToAgent};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, EngineId, JobKey, attempt_count};
use mezcal_common::model::outcome::{Ended, JobResult, Outcome, Place};
use std::sync::Arc;
use std::time::Duration;

/// A job whose host was lost this often ends as `lost`: it may be what kills them.
const MAX_LOSSES: u32 = 3;

impl Scheduler {
    /// With a `user`, only what is about that user's attempts counts.
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
                tracing::warn!(host = %name, %attempt, "{name} reports on another user's attempt {attempt}; not believed");
                continue;
            }
            match report {
                Report::Started { engine } => {
                    host.attempts.starts(attempt, Some(engine.0));
                }
                Report::Finished { engine, outcome } | Report::Counted { engine, outcome } => {
                    let index = host.index;
                    if host.attempts.remove(attempt).is_none() || self.is_superseded(attempt) {
                        continue;
                    }
                    let place = self.place(name, engine.map(|e| e.0));
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

    pub(super) fn place(&self, name: &Arc<str>, engine: Option<u16>) -> Option<Place> {
        let host = self.hosts.get(name)?;
        let engine = EngineId(host.first_engine.0 + u32::from(engine?));
        Some(Place {
            host: host.name.clone(),
            engine,
            clock_offset: host.clock_offset,
        })
    }

    pub(super) fn is_superseded(&self, attempt: AttemptId) -> bool {
        self.batches
            .job(attempt.key)
            .is_none_or(|job| job.attempt != attempt.attempt || job.state != JobState::Placed)
    }

    /// The present attempt of a job is over: again, or for good.
    fn attempt_over(
        &mut self,
        attempt: AttemptId,
        place: Option<Place>,
        mut outcome: Outcome,
        now: BootInstant,
    ) {
        let key = attempt.key;
        let asked = self.cancels.has(key);
        let Some(batch) = self.batches.get_mut(&key.batch) else {
            return;
        };
        let (cancelled, once) = (
            asked || batch.cancelled.is_some(),
            batch.once || batch.halted,
        );
        let Some(job) = batch.jobs.get_mut(key.job.0 as usize - 1) else {
            return;
        };
        if outcome.ended == Ended::Cancelled
            && outcome.survivors == 0
            && !cancelled
            && !once
            && self
                .hosts
                .at(job.host)
                .is_some_and(|host| host.drain.is_overdue())
        {
            // An agent that was started again in the grace of an eviction does not know why it
            // ended.
            return self.returned(attempt, now);
        }
        let kept = self.durable.then(|| Box::new(outcome.clone()));
        let numbered = self.generation.next_attempt(job.attempt).is_some();
        let again = match outcome.ended {
            Ended::Lost if cancelled => {
                outcome.ended = Ended::Cancelled;
                false
            }
            // What went with an earlier life of ours is nobody's loss.
            Ended::Lost if attempt.epoch != self.epoch && !once => true,
            Ended::Lost => {
                job.losses += 1;
                let host = self.hosts.name_at(job.host);
                let why = outcome.error.as_deref().unwrap_or_default();
                let lost = batch.lost.entry(key.job).or_default();
                let host = host.as_deref().unwrap_or("a host");
                lost.push(format!("attempt {} on {host}: {why}", job.attempt));
                if lost.len() > 1 {
                    outcome.error = Some(lost.join("; "));
                }
                u32::from(job.losses) <= MAX_LOSSES && !once
            }
            Ended::Exited
            | Ended::Signaled
            | Ended::Timeout
            | Ended::OutOfMemory
            | Ended::StartFailed => {
                let worth = batch
                    .retry_rules
                    .get(&key.job)
                    .is_none_or(|rule| after::worth_another(&rule.on, &outcome));
                let retry =
                    !outcome.succeeded() && job.retries > 0 && !cancelled && !batch.halted && worth;
                job.retries -= u32::from(retry);
                retry
            }
            Ended::Cancelled
            | Ended::NoHost
            | Ended::Skipped
            | Ended::Unkillable
            | Ended::HostShort => false,
        };
        let failed = outcome.ended != Ended::Lost;
        let again = again && numbered;
        if !numbered {
            let why = format!(
                "it was tried {} times, and there are no more numbers for its attempts",
                attempt_count(job.attempt)
            );
            outcome.error = Some(
                outcome
                    .error
                    .take()
                    .map_or(why.clone(), |said| format!("{said}; {why}")),
            );
        }
        if !again {
            return self.finish(key, place, outcome, now);
        }
        self.users.give_back(batch.user, job.queue.slots());
        batch.placed -= 1;
        let (retries, losses) = (job.retries, job.losses);
        job.state = JobState::Queued;
        // A lost host is nobody's failure: elsewhere it may begin at once.
        let delay = if failed {
            batch.pause_of(key.job)
        } else {
            Duration::ZERO
        };
        self.persist(|| Record::Again {
            attempt,
            retries,
            losses,
            outcome: kept,
        });
        match delay.is_zero() {
            true => self.enqueue(key),
            false => self.delay(key, now + delay),
        }
    }

    /// Everything on a host comes back without anybody's fault: its agent has stopped in order.
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
        let Some(job) = batch.jobs.get_mut(attempt.key.job.0 as usize - 1) else {
            return;
        };
        job.state = JobState::Queued;
        batch.placed -= 1;
        self.users.give_back(batch.user, job.queue.slots());
        let (retries, losses) = (job.retries, job.losses);
        self.persist(|| Record::Again {
            attempt,
            retries,
            losses,
            outcome: None,
        });
        self.enqueue(attempt.key);
    }

    /// Attempts of `name` that `gone` picks are surely over, without a report.
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
        let shared = host.name.clone();
        for (attempt, engine) in lost {
            if let Some(host) = self.hosts.get_mut(name) {
                host.attempts.remove(attempt);
            }
            self.reindex(name);
            if !self.is_superseded(attempt) {
                let place = self.place(&shared, engine);
                self.attempt_over(
                    attempt,
                    place,
                    Outcome::never_ran(Ended::Lost, why.to_owned()),
                    now,
                );
            }
        }
    }

    pub(super) fn finish(
        &mut self,
        key: JobKey,
        place: Option<Place>,
        mut outcome: Outcome,
        now: BootInstant,
    ) {
        let local = self
            .batches
            .job(key)
            .and_then(|job| self.is_local(job.queue, place.as_ref()));
        let held = self.held_until(key.batch);
        let Some(batch) = self.batches.get_mut(&key.batch) else {
            return;
        };
        let Some(job) = batch.jobs.get_mut(key.job.0 as usize - 1) else {
            return;
        };
        if job.state == JobState::Done {
            return;
        }
        // What is left of its text is for whoever asks for its output.
        if let Text::Here(text) = &mut job.text {
            *text = text::ended(text);
        }
        match job.state {
            JobState::Waiting => batch.order.forget(key.job),
            JobState::Placed => {
                batch.placed -= 1;
                self.users.give_back(batch.user, job.queue.slots());
            }
            JobState::Queued | JobState::Done => {}
        }
        job.state = JobState::Done;
        job.succeeded = outcome.succeeded();
        let succeeded = job.succeeded;
        batch.done += 1;
        batch.lost.remove(&key.job);
        batch.counts.add(&outcome);
        let why = self.cancels.why_of(key).or_else(|| batch.why.clone());
        if outcome.ended == Ended::Cancelled
            && outcome.error.is_none()
            && let Some(why) = why
        {
            outcome.error = Some(why.to_string());
        }
        if let Some(until) = held {
            hold::admit_ignorance(&mut outcome, until, now);
        }
        let (ended, killed, survivors) = (outcome.ended, outcome.killed, outcome.survivors);
        let result = JobResult {
            attempt: job.attempt,
            place,
            local,
            outcome,
        };
        let (batch, seq) = (batch.id, batch.done as u64);
        self.persist(|| Record::Ended {
            batch: key.batch,
            seq,
            job: key.job,
            result: Box::new(result.clone()),
        });
        self.effects.push_back(Effect::Result {
            batch,
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
