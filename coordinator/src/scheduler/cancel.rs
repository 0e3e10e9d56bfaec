//! Cancelling, and the proof of it: a request is answered when nothing that it names can be alive or start any more.

use super::queues::QueueKey;
use super::{Effect, JobState, Record, Scheduler, Wanted, WantedJob};
use mezcal_common::clock::BootInstant;
use mezcal_common::ids::{AttemptId, BatchId, BatchSerial, JobKey, JobNumber};
use mezcal_common::job::Stop;
use mezcal_common::outcome::{Ended, Outcome};
use mezcal_common::wire::agent::{LogWish, ToAgent};
use mezcal_common::wire::client::CancelSummary;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// A placed job that is being killed, and who waits for that.
#[derive(Debug)]
pub(super) struct Cancelling {
    pub(super) stop: Stop,
    pub(super) why: Option<Arc<str>>,
    requests: Vec<u64>,
}

impl Cancelling {
    /// One that nobody waits for.
    pub(super) fn silent(stop: Stop) -> Self {
        Self { stop, why: None, requests: Vec::new() }
    }
}

/// A cancel under way.
#[derive(Debug)]
pub(super) struct CancelRequest {
    /// Placed jobs that it waits for.
    waiting: u64,
    summary: CancelSummary,
}

impl Scheduler {
    pub(super) fn cancel(&mut self, request: Option<u64>, what: &[Wanted], stop: Stop, why: Option<Arc<str>>, now: BootInstant) {
        let (mut batches, mut jobs) = (Vec::new(), Vec::new());
        for wanted in what {
            match self.resolve(wanted) {
                Ok((serial, None)) => batches.push(serial),
                Ok((batch, Some(job))) => jobs.push(JobKey { batch, job }),
                // A whole batch that has just ended needs no cancel.
                Err(_) if wanted.job.is_none() => {}
                Err(reason) => {
                    self.effects.extend(request.map(|request| Effect::Cancelled { request, result: Err(reason) }));
                    return;
                }
            }
        }
        if let Some(request) = request {
            // One more than there are jobs, until all of them have been looked at.
            self.requests.insert(request, CancelRequest { waiting: 1, summary: CancelSummary::default() });
        }
        for serial in batches {
            if let Some(batch) = self.batches.get_mut(&serial)
                && why.is_some()
            {
                batch.why = why.clone();
            }
            self.cancel_batch(serial, request, stop, now);
        }
        let (mut placed, mut waiting) = (Vec::new(), Vec::new());
        let mut queued: HashMap<QueueKey, HashSet<JobNumber>> = HashMap::new();
        for key in jobs {
            let Some(job) = self.job(key) else { continue };
            match job.state {
                JobState::Queued => {
                    queued.entry(job.queue).or_default().insert(key.job);
                }
                JobState::Placed => placed.push(key),
                JobState::Waiting => waiting.push(key),
                JobState::Done => {}
            }
        }
        for (queue, jobs) in queued {
            self.queues.take(queue, &jobs);
            waiting.extend(jobs.into_iter().map(|job| JobKey { batch: queue.batch, job }));
        }
        self.count_jobs(request, waiting.len() as u64);
        for key in waiting {
            let why = why.as_ref().map(ToString::to_string);
            self.finish(key, None, Outcome::never_ran(Ended::Cancelled, why), now);
        }
        self.cancel_placed(placed, request, stop, why, now);
        if let Some(request) = request {
            self.request_done(request);
        }
    }

    /// Cancels all of a batch, and whatever is still to come of it.
    pub(super) fn cancel_batch(&mut self, serial: BatchSerial, request: Option<u64>, stop: Stop, now: BootInstant) {
        let Some(batch) = self.batches.get_mut(&serial) else { return };
        batch.cancelled = Some(stop);
        let why = batch.why.clone();
        self.persist(|| Record::Stopped { batch: serial, stop: Some(stop), why: why.clone() });
        let attempts = self.hosts.values().flat_map(|h| h.attempts.keys());
        let placed = attempts.filter(|a| a.key.batch == serial && !self.is_superseded(**a)).map(|a| a.key).collect();
        // Before the queue is emptied: that may be the end of the batch.
        self.cancel_placed(placed, request, stop, why, now);
        let dropped = self.drop_queued(serial, now);
        self.count_jobs(request, dropped);
    }

    fn cancel_placed(&mut self, keys: Vec<JobKey>, request: Option<u64>, stop: Stop, why: Option<Arc<str>>, now: BootInstant) {
        let mut by_host: BTreeMap<(Arc<str>, Duration, i32), Vec<AttemptId>> = BTreeMap::new();
        for key in keys {
            let Some(job) = self.job(key) else { continue };
            let Some(host) = self.host_at(job.host) else { continue };
            let Some(attempt) = host.attempt(self.epoch, key, job.attempt) else { continue };
            let name = host.name.clone();
            let entry = self.cancelling.entry(key).or_insert_with(|| Cancelling::silent(stop));
            entry.stop = entry.stop.stricter(stop);
            entry.why = entry.why.take().or_else(|| why.clone());
            let told = entry.stop;
            if let Some(request) = request.filter(|r| !entry.requests.contains(r)) {
                entry.requests.push(request);
                self.count_jobs(Some(request), 1);
                if let Some(open) = self.requests.get_mut(&request) {
                    open.waiting += 1;
                }
            }
            by_host.entry((name, told.grace, stop.signal)).or_default().push(attempt);
        }
        for ((name, grace, signal), attempts) in by_host {
            if self.hosts.get(&name).is_some_and(|h| h.session.is_some()) {
                self.tell_agent(&name, ToAgent::Cancel { attempts, stop: Stop { signal, grace } });
            } else {
                self.abandon_cancelled(&name, now);
            }
        }
    }

    fn count_jobs(&mut self, request: Option<u64>, jobs: u64) {
        if let Some(open) = request.and_then(|r| self.requests.get_mut(&r)) {
            open.summary.jobs += jobs;
        }
    }

    /// A job is over: so much of what waits for it is done.
    pub(super) fn cancel_done(&mut self, key: JobKey, killed: u32, survivors: u32) {
        let Some(done) = self.cancelling.remove(&key) else { return };
        for request in done.requests {
            if let Some(open) = self.requests.get_mut(&request) {
                open.summary.killed += u64::from(killed);
                open.summary.survivors += u64::from(survivors);
            }
            self.request_done(request);
        }
    }

    /// A job's host cannot be reached: it is dead when its lease has ended.
    pub(super) fn cancel_unreachable(&mut self, key: JobKey, fenced_for: Duration) {
        for request in self.cancelling.get(&key).map(|c| c.requests.as_slice()).unwrap_or_default() {
            if let Some(open) = self.requests.get_mut(request) {
                open.summary.unreachable += 1;
                open.summary.fenced_for = open.summary.fenced_for.max(fenced_for);
            }
        }
    }

    fn request_done(&mut self, request: u64) {
        let Some(open) = self.requests.get_mut(&request) else { return };
        open.waiting -= 1;
        if open.waiting == 0
            && let Some(CancelRequest { summary, .. }) = self.requests.remove(&request)
        {
            self.effects.push_back(Effect::Cancelled { request, result: Ok(summary) });
        }
    }

    fn resolve(&self, wanted: &Wanted) -> Result<(BatchSerial, Option<JobNumber>), String> {
        let serial = self.serial(wanted.batch)?;
        let number = |job: &WantedJob| match job {
            WantedJob::Named(name) => self.job_number(serial, name),
            WantedJob::Number(number) => self.existing(serial, *number).ok_or_else(|| self.no_job(serial, &number.to_string())),
        };
        let job = wanted.job.as_ref().map(number).transpose()?;
        Ok((serial, job))
    }

    pub(super) fn serial(&self, batch: BatchId) -> Result<BatchSerial, String> {
        self.serials.get(&batch).copied().ok_or_else(|| format!("batch {batch} has ended"))
    }

    /// A job by the `id` that its user gave it, or else by its number.
    pub(super) fn job_number(&self, serial: BatchSerial, name: &str) -> Result<JobNumber, String> {
        let batch = self.batches.get(&serial).ok_or("that batch has ended")?;
        if let Some(number) = batch.labels.get(name) {
            return Ok(*number);
        }
        let number = name.parse().ok().and_then(|number| self.existing(serial, JobNumber(number)));
        number.ok_or_else(|| self.no_job(serial, name))
    }

    fn existing(&self, serial: BatchSerial, number: JobNumber) -> Option<JobNumber> {
        let batch = self.batches.get(&serial)?;
        (number.0 >= 1 && number.0 as usize <= batch.jobs.len()).then_some(number)
    }

    fn no_job(&self, serial: BatchSerial, name: &str) -> String {
        let Some(batch) = self.batches.get(&serial) else { return "that batch has ended".into() };
        let jobs = batch.jobs.len();
        format!("batch {} has no job {name:?}: it has {jobs} jobs, named by their `id` or their number", batch.id)
    }

    /// Asks the host of a job for its output.
    pub(super) fn logs(&mut self, request: u64, batch: BatchId, job: &str, wish: LogWish) {
        if let Err(why) = self.ask_for_logs(request, batch, job, wish) {
            self.effects.push_back(Effect::LogsAnswer { request, streams: Err(why) });
        }
    }

    fn ask_for_logs(&mut self, request: u64, id: BatchId, name: &str, wish: LogWish) -> Result<(), String> {
        let serial = self.serial(id)?;
        let key = JobKey { batch: serial, job: self.job_number(serial, name)? };
        let (job, batch) = self.job(key).zip(self.batches.get(&serial)).ok_or("that batch has ended")?;
        if job.attempt == 0 {
            return Err(match job.state {
                JobState::Done => format!("job {name} was never started"),
                JobState::Waiting | JobState::Queued | JobState::Placed => format!("job {name} has not started yet"),
            });
        }
        let at = self.host_at(job.host).ok_or("its host is unknown")?;
        let host = at.name.clone();
        if at.session.is_none() {
            return Err(format!("{host}, where job {name} runs or ran, is not connected"));
        }
        let own = AttemptId { epoch: self.epoch, key, attempt: job.attempt };
        let attempt = at.attempt(self.epoch, key, job.attempt).unwrap_or(own);
        let (spec, context) = (job.spec.clone(), Box::new(batch.context.clone()));
        self.tell_agent(&host, ToAgent::Logs { request, attempt, spec, context, wish });
        Ok(())
    }
}
