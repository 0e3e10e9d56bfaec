//! Cancelling, and its proof: a request is answered when no job that it names can be alive or start
//! any more.

use super::queues::QueueKey;
use super::{Effect, JobState, Record, Scheduler, Timer, Wanted, WantedJob};
use mezcal_common::message::agent::ToAgent;
use mezcal_common::message::client::{CancelSummary, CancelWait};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, BatchId, BatchSerial, JobKey, JobNumber};
use mezcal_common::model::job::Stop;
use mezcal_common::model::outcome::{Ended, Outcome};
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// After a restart the agents of hosts where something may run are expected back within this time:
/// they notice within seconds, also after the 20 s that a connection may be silent, and try every
/// second. Until then a cancel waits for their proof; later such a host is reported as out of
/// reach.
pub(super) const RETURN: Duration = Duration::from_secs(30);

/// Most hosts that are listed when a client asks what a cancel waits for: more than a person reads,
/// and they fit in a message.
const MOST_WAITS: usize = 1000;

/// Placed jobs that are being cancelled, and cancels that are not done.
#[derive(Debug, Default)]
pub(super) struct Cancels {
    jobs: FxHashMap<JobKey, Cancelling>,
    requests: HashMap<u64, CancelRequest>,
}

impl Cancels {
    /// Opens a cancel; `held`: how long its jobs may run for another coordinator.
    fn begin(&mut self, request: u64, held: Option<Duration>) {
        let open = CancelRequest {
            // One more than there are jobs, until all of them have been checked.
            waiting: 1,
            summary: CancelSummary::default(),
            held,
        };
        self.requests.insert(request, open);
    }

    /// Whether a placed job is being cancelled.
    pub(super) fn has(&self, job: JobKey) -> bool {
        self.jobs.contains_key(&job)
    }

    /// How a placed job is being cancelled, if it is.
    pub(super) fn stop_of(&self, job: JobKey) -> Option<Stop> {
        self.jobs.get(&job).map(|cancelling| cancelling.stop)
    }

    /// Who or what cancels a placed job.
    pub(super) fn why_of(&self, job: JobKey) -> Option<Arc<str>> {
        self.jobs.get(&job)?.why.clone()
    }

    /// Begins to cancel a placed job; no client waits for it.
    pub(super) fn begin_silently(&mut self, job: JobKey, stop: Stop) {
        self.jobs.insert(job, Cancelling::silent(stop));
    }
}

/// A placed job that is being killed, and the requests that wait for that.
#[derive(Debug)]
struct Cancelling {
    stop: Stop,
    why: Option<Arc<str>>,
    requests: Vec<u64>,
}

impl Cancelling {
    /// One that no request waits for.
    fn silent(stop: Stop) -> Self {
        Self {
            stop,
            why: None,
            requests: Vec::new(),
        }
    }
}

/// A cancel that is not done.
#[derive(Debug)]
struct CancelRequest {
    /// Placed jobs that it waits for.
    waiting: u64,
    summary: CancelSummary,
    /// How long its jobs may run for the original of this restored store.
    held: Option<Duration>,
}

impl Scheduler {
    pub(super) fn cancel(
        &mut self,
        request: Option<u64>,
        what: &[Wanted],
        stop: Stop,
        why: Option<Arc<str>>,
        now: BootInstant,
    ) {
        let (mut batches, mut jobs) = (Vec::new(), Vec::new());
        for wanted in what {
            match self.resolve(wanted) {
                Ok((serial, None)) => batches.push(serial),
                Ok((batch, Some(job))) => jobs.push(JobKey { batch, job }),
                // A whole batch that has just ended needs no cancel.
                Err(_) if wanted.job.is_none() => {}
                Err(reason) => {
                    self.effects
                        .extend(request.map(|request| Effect::Cancelled {
                            request,
                            result: Err(reason),
                        }));
                    return;
                }
            }
        }
        if let Some(request) = request {
            let named = jobs.iter().map(|key| key.batch);
            let held = self.held_for(named.chain(batches.iter().copied()), now);
            self.cancels.begin(request, held);
        }
        for serial in batches {
            if let Some(batch) = self.batches.get_mut(&serial)
                && let Some(why) = &why
            {
                batch.set_why(why.clone());
            }
            self.cancel_batch(serial, request, stop, now);
        }
        self.cancel_jobs(jobs, request, stop, why, now);
        if let Some(request) = request {
            self.request_done(request);
        }
    }

    /// For how long any of these batches may run for another coordinator.
    fn held_for(
        &self,
        batches: impl Iterator<Item = BatchSerial>,
        now: BootInstant,
    ) -> Option<Duration> {
        let held = batches.filter_map(|batch| self.held_until(batch));
        held.max().map(|until| until.since(now))
    }

    /// Cancels single jobs, whatever their state.
    fn cancel_jobs(
        &mut self,
        jobs: Vec<JobKey>,
        request: Option<u64>,
        stop: Stop,
        why: Option<Arc<str>>,
        now: BootInstant,
    ) {
        let (mut placed, mut waiting) = (Vec::new(), Vec::new());
        let mut queued: HashMap<QueueKey, HashSet<JobNumber>> = HashMap::new();
        for key in jobs {
            let Some(job) = self.batches.job(key) else {
                continue;
            };
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
            waiting.extend(jobs.into_iter().map(|job| JobKey {
                batch: queue.batch,
                job,
            }));
        }
        self.count_cancelled(request, waiting.len() as u64);
        for key in waiting {
            let why = why.as_ref().map(ToString::to_string);
            self.finish(key, None, Outcome::never_ran(Ended::Cancelled, why), now);
        }
        self.cancel_placed(placed, request, stop, why, now);
    }

    /// Cancels all jobs of a batch, and those that are still to come.
    pub(super) fn cancel_batch(
        &mut self,
        serial: BatchSerial,
        request: Option<u64>,
        stop: Stop,
        now: BootInstant,
    ) {
        let Some(batch) = self.batches.get_mut(&serial) else {
            return;
        };
        batch.cancel(stop);
        let why = batch.why.clone();
        self.persist(|| Record::Stopped {
            batch: serial,
            stop: Some(stop),
            why: why.clone(),
        });
        let attempts = self.hosts.values().flat_map(|h| h.attempts.ids());
        let placed = attempts
            .filter(|a| a.key.batch == serial && !self.is_superseded(*a))
            .map(|a| a.key)
            .collect();
        // Before the queue is emptied, since that may end the batch.
        self.cancel_placed(placed, request, stop, why, now);
        let dropped = self.drop_queued(serial, now);
        self.count_cancelled(request, dropped);
    }

    fn cancel_placed(
        &mut self,
        keys: Vec<JobKey>,
        request: Option<u64>,
        stop: Stop,
        why: Option<Arc<str>>,
        now: BootInstant,
    ) {
        let mut by_host: BTreeMap<(Arc<str>, Duration, i32), Vec<AttemptId>> = BTreeMap::new();
        for key in keys {
            let Some(job) = self.batches.job(key) else {
                continue;
            };
            let Some(host) = self.hosts.at(job.host) else {
                continue;
            };
            let Some(attempt) = host.attempts.present(self.epoch, key, job.attempt) else {
                continue;
            };
            let name = host.name.clone();
            let entry = self
                .cancels
                .jobs
                .entry(key)
                .or_insert_with(|| Cancelling::silent(stop));
            entry.stop = entry.stop.stricter(stop);
            entry.why = entry.why.take().or_else(|| why.clone());
            let told = entry.stop;
            if let Some(request) = request.filter(|r| !entry.requests.contains(r)) {
                entry.requests.push(request);
                if let Some(open) = self.cancels.requests.get_mut(&request) {
                    open.waiting += 1;
                }
            }
            by_host
                .entry((name, told.grace, stop.signal))
                .or_default()
                .push(attempt);
        }
        for ((name, grace, signal), attempts) in by_host {
            let Some(host) = self.hosts.get(&name) else {
                continue;
            };
            if host.session.is_some() {
                self.tell_agent(
                    &name,
                    ToAgent::Cancel {
                        attempts,
                        stop: Stop { signal, grace },
                    },
                );
            } else if self.timers.is_set(Timer::Loss(host.index)) {
                // It may be connected again in a moment.
            } else if host.seen {
                self.abandon_cancelled(&name, now);
            } else if request.is_some() && !self.timers.is_set(Timer::Return) {
                self.abandon_asked(&name, now);
            }
        }
    }

    /// Gives up waiting for hosts that have not come back after a restart: the cancels that wait
    /// for them count them as out of reach.
    pub(super) fn expect_no_more(&mut self, now: BootInstant) {
        let hosts = self
            .hosts
            .in_order()
            .into_iter()
            .filter(|host| host.session.is_none() && !host.seen);
        for name in hosts.map(|host| host.name.clone()).collect::<Vec<_>>() {
            self.abandon_asked(&name, now);
        }
    }

    /// Ends cancelled attempts on an unreachable host; their results say that they may go on.
    pub(super) fn abandon_cancelled(&mut self, name: &str, now: BootInstant) {
        self.abandon(name, |_| true, now);
    }

    /// The same for jobs whose cancel a client waits for. Others end with a proof: their host's
    /// report, or the end of its lease.
    fn abandon_asked(&mut self, name: &str, now: BootInstant) {
        self.abandon(name, |cancelling| !cancelling.requests.is_empty(), now);
    }

    fn abandon(&mut self, name: &str, which: impl Fn(&Cancelling) -> bool, now: BootInstant) {
        let Some(host) = self.hosts.get(name).filter(|h| h.session.is_none()) else {
            return;
        };
        let left = self.fenced_for(host, now).unwrap_or_default();
        let attempts: Vec<AttemptId> = host.attempts.ids().collect();
        for attempt in attempts {
            if self.cancels.jobs.get(&attempt.key).is_some_and(&which)
                && !self.is_superseded(attempt)
            {
                let seconds = left.as_secs();
                let why = format!(
                    "cancelled while {name} was out of reach: it may go on there until its lease ends, within {seconds} s"
                );
                self.cancel_unreachable(attempt.key, left);
                self.finish(attempt.key, None, Outcome::never_ran(Ended::Lost, why), now);
            }
        }
    }

    /// The hosts that a cancel still waits for, sorted by name: at most `MOST_WAITS`.
    pub fn cancel_waits(&self, request: u64, now: BootInstant) -> Vec<CancelWait> {
        let mut by_host: BTreeMap<Arc<str>, CancelWait> = BTreeMap::new();
        for (key, _) in self
            .cancels
            .jobs
            .iter()
            .filter(|(_, cancelling)| cancelling.requests.contains(&request))
        {
            let Some(host) = self
                .batches
                .job(*key)
                .and_then(|job| self.hosts.at(job.host))
            else {
                continue;
            };
            let connected = host.session.is_some();
            let wait = by_host
                .entry(host.name.clone())
                .or_insert_with(|| CancelWait {
                    host: host.name.to_string(),
                    attempts: 0,
                    fenced_for: self.fenced_for(host, now).filter(|_| !connected),
                });
            wait.attempts += 1;
        }
        by_host.into_values().take(MOST_WAITS).collect()
    }

    fn count_cancelled(&mut self, request: Option<u64>, jobs: u64) {
        if let Some(open) = request.and_then(|r| self.cancels.requests.get_mut(&r)) {
            open.summary.jobs += jobs;
        }
    }

    /// A job is over: the requests that wait for it have one job fewer to wait for.
    pub(super) fn cancel_done(&mut self, key: JobKey, ended: Ended, killed: u32, survivors: u32) {
        let Some(done) = self.cancels.jobs.remove(&key) else {
            return;
        };
        for request in done.requests {
            if let Some(open) = self.cancels.requests.get_mut(&request) {
                // A job may have ended by itself meanwhile.
                open.summary.jobs += u64::from(ended == Ended::Cancelled);
                open.summary.killed += u64::from(killed);
                open.summary.survivors += u64::from(survivors);
            }
            self.request_done(request);
        }
    }

    /// A job's host cannot be reached: the job is dead when its host's lease has ended.
    pub(super) fn cancel_unreachable(&mut self, key: JobKey, fenced_for: Duration) {
        for request in self
            .cancels
            .jobs
            .get(&key)
            .map(|c| c.requests.as_slice())
            .unwrap_or_default()
        {
            if let Some(open) = self.cancels.requests.get_mut(request) {
                open.summary.jobs += 1;
                open.summary.unreachable += 1;
                open.summary.fenced_for = open.summary.fenced_for.max(fenced_for);
            }
        }
    }

    fn request_done(&mut self, request: u64) {
        let Some(open) = self.cancels.requests.get_mut(&request) else {
            return;
        };
        open.waiting -= 1;
        if open.waiting == 0
            && let Some(CancelRequest {
                mut summary, held, ..
            }) = self.cancels.requests.remove(&request)
        {
            if let Some(left) = held {
                // Jobs placed by another coordinator cannot be proved dead here.
                (summary.unreachable, summary.fenced_for) =
                    (summary.jobs, summary.fenced_for.max(left));
            }
            self.effects.push_back(Effect::Cancelled {
                request,
                result: Ok(summary),
            });
        }
    }

    fn resolve(&self, wanted: &Wanted) -> Result<(BatchSerial, Option<JobNumber>), String> {
        let serial = self.serial(wanted.batch)?;
        let number = |job: &WantedJob| match job {
            WantedJob::Named(name) => self.job_number(serial, name),
            WantedJob::Number(number) => self
                .existing(serial, *number)
                .ok_or_else(|| self.no_job(serial, &number.to_string())),
        };
        let job = wanted.job.as_ref().map(number).transpose()?;
        Ok((serial, job))
    }

    pub(super) fn serial(&self, batch: BatchId) -> Result<BatchSerial, String> {
        self.batches
            .serial(batch)
            .ok_or_else(|| format!("batch {batch} has ended"))
    }

    /// The number of the job with this `id`, or else of the job with this number.
    pub(super) fn job_number(&self, serial: BatchSerial, name: &str) -> Result<JobNumber, String> {
        let batch = self.batches.get(&serial).ok_or("that batch has ended")?;
        if let Some(number) = batch.labels.get(name) {
            return Ok(*number);
        }
        let number = name
            .parse()
            .ok()
            .and_then(|number| self.existing(serial, JobNumber(number)));
        number.ok_or_else(|| self.no_job(serial, name))
    }

    fn existing(&self, serial: BatchSerial, number: JobNumber) -> Option<JobNumber> {
        let batch = self.batches.get(&serial)?;
        (number.0 >= 1 && number.0 as usize <= batch.jobs.len()).then_some(number)
    }

    fn no_job(&self, serial: BatchSerial, name: &str) -> String {
        let Some(batch) = self.batches.get(&serial) else {
            return "that batch has ended".into();
        };
        let jobs = batch.jobs.len();
        format!(
            "batch {} has no job {name:?}: it has {jobs} jobs, named by their `id` or their number",
            batch.id
        )
    }
}
