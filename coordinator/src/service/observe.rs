//! What can be seen of a running service: counters for Prometheus, and a picture of the moment with
//! the newest ends for the dashboard.

use super::batch::Batch;
use super::state::Service;
use crate::scheduler::Scheduler;
use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::model::escape::for_terminal;
use mezcal_common::model::identity;
use mezcal_common::model::ids::{BatchId, JobNumber};
use mezcal_common::model::outcome::{Ended, JobResult, Outcome, WaitStatus};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::AtomicU64;

/// Ends that are remembered for the timeline.
const RECENT: usize = 4096;
/// Of which one picture shows the newest.
const RECENT_AT_ONCE: usize = 600;
/// Failures that are shown with what they wrote.
const FAILING: usize = 50;
/// Batches in the picture: all that run, and so many of the others.
const ENDED_BATCHES: usize = 20;
const BATCHES: usize = 200;
/// Characters of a job's last words.
const TAIL: usize = 600;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByOutcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfHost {
    host: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByHost {
    host: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByHolder {
    role: &'static str,
    /// Empty if it is the coordinator's own, which for Prometheus is the same as none.
    host: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Version {
    version: &'static str,
}

type Real = Gauge<f64, AtomicU64>;

/// An attempt that has ended, for the timeline. Times are milliseconds since the Unix epoch on the
/// coordinator's clock.
#[derive(Clone, Debug, Serialize)]
struct Recent {
    seq: u64,
    host: String,
    engine: u32,
    from: i64,
    to: i64,
    batch: BatchId,
    job: JobNumber,
    outcome: &'static str,
    ok: bool,
}

/// A job that did not succeed.
#[derive(Clone, Debug, Serialize)]
struct Failing {
    batch: BatchId,
    job: JobNumber,
    host: Option<String>,
    outcome: &'static str,
    code: Option<i32>,
    error: Option<String>,
    stderr: Option<String>,
    at: i64,
}

/// What is kept for whoever looks.
pub(super) struct Observed {
    registry: Registry,
    attempts: Family<ByOutcome, Counter>,
    durations: Histogram,
    leftovers: Counter,
    agents: Gauge,
    slots: Family<ByState, Gauge>,
    jobs: Family<ByState, Gauge>,
    batches: Family<ByState, Gauge>,
    host_states: Family<OfHost, Gauge>,
    skew: Family<ByHost, Real>,
    expiry: Family<ByHolder, Gauge>,
    unsaved: Gauge,
    writable: Gauge,
    resident: Gauge,
    cpu: Real,
    recent: VecDeque<Recent>,
    seq: u64,
    failing: VecDeque<Failing>,
}

impl Observed {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("mezcal");
        // From a millisecond to a day and a half.
        let durations = Histogram::new(exponential_buckets(0.001, 4.0, 14));
        let info = Family::<Version, Gauge>::default();
        info.get_or_create(&Version {
            version: mezcal_common::VERSION,
        })
        .set(1);
        let me = Self {
            attempts: Family::default(),
            durations,
            leftovers: Counter::default(),
            agents: Gauge::default(),
            slots: Family::default(),
            jobs: Family::default(),
            batches: Family::default(),
            host_states: Family::default(),
            skew: Family::default(),
            expiry: Family::default(),
            unsaved: Gauge::default(),
            writable: Gauge::default(),
            resident: Gauge::default(),
            cpu: Real::default(),
            recent: VecDeque::new(),
            seq: 0,
            failing: VecDeque::new(),
            registry: Registry::default(),
        };
        registry.register("build_info", "Version of the coordinator", info);
        registry.register("attempts", "Attempts that have ended", me.attempts.clone());
        registry.register(
            "attempt_duration_seconds",
            "How long attempts have run",
            me.durations.clone(),
        );
        registry.register(
            "leftover_processes",
            "Processes that outlived their jobs and were killed",
            me.leftovers.clone(),
        );
        registry.register(
            "agents_connected",
            "Agents that can be given jobs",
            me.agents.clone(),
        );
        registry.register("slots", "Slots of connected agents", me.slots.clone());
        registry.register("jobs", "Jobs that have not ended", me.jobs.clone());
        registry.register("batches", "Batches that are kept", me.batches.clone());
        registry.register(
            "host_state",
            "1 for the state that a host is in",
            me.host_states.clone(),
        );
        registry.register(
            "agent_clock_skew_seconds",
            "To be added to a host's clock to get the coordinator's",
            me.skew.clone(),
        );
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "When the certificates in use end: the coordinator's, the issuer's, those of connected agents",
            me.expiry.clone(),
        );
        registry.register(
            "store_unsaved_records",
            "Records on their way into the store",
            me.unsaved.clone(),
        );
        registry.register(
            "store_writable",
            "0 while the store cannot be written",
            me.writable.clone(),
        );
        registry.sub_registry_with_prefix("process").register(
            "resident_memory_bytes",
            "Resident set",
            me.resident.clone(),
        );
        registry.sub_registry_with_prefix("process").register(
            "cpu_seconds",
            "User and system CPU time",
            me.cpu.clone(),
        );
        Self { registry, ..me }
    }

    /// An attempt is over, its job perhaps not.
    pub(super) fn attempt(&self, outcome: &Outcome) {
        self.attempts
            .get_or_create(&ByOutcome {
                outcome: outcome.ended.as_str(),
            })
            .inc();
        if let Some(span) = outcome.span {
            self.durations.observe(span.elapsed.as_secs_f64());
        }
        if outcome.ended == Ended::Exited {
            self.leftovers.inc_by(u64::from(outcome.killed));
        }
    }

    pub(super) fn result(&mut self, batch: BatchId, job: JobNumber, result: &JobResult) {
        let outcome = &result.outcome;
        self.attempt(outcome);
        let (ok, word) = (outcome.succeeded(), outcome.ended.as_str());
        if let (Some(place), Some(span)) = (&result.place, outcome.span) {
            let offset = (place.clock_offset.unwrap_or(0.0) * 1e6) as i64;
            let at = |time: WallTime| (time.0 + offset) / 1000;
            self.seq += 1;
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(Recent {
                seq: self.seq,
                host: place.host.to_string(),
                engine: place.engine.0,
                from: at(span.started),
                to: at(span.completed),
                batch,
                job,
                outcome: word,
                ok,
            });
        }
        if !ok && outcome.ended != Ended::Cancelled {
            if self.failing.len() == FAILING {
                self.failing.pop_back();
            }
            let tail = outcome
                .stderr_tail
                .as_ref()
                .map(|bytes| last_words(&String::from_utf8_lossy(bytes)));
            self.failing.push_front(Failing {
                batch,
                job,
                host: result.place.as_ref().map(|place| place.host.to_string()),
                outcome: word,
                code: outcome.status.map(WaitStatus::code),
                error: outcome.error.clone(),
                stderr: tail.filter(|text| !text.trim().is_empty()),
                at: WallTime::now().0 / 1000,
            });
        }
    }
}

/// The end of a text, line by line, without what could do harm.
fn last_words(text: &str) -> String {
    let skip = text.chars().count().saturating_sub(TAIL);
    let end: String = text.chars().skip(skip).collect();
    end.lines()
        .map(|line| for_terminal(line).into_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

/// A picture of the moment.
#[derive(Debug, Serialize)]
pub struct View {
    now: i64,
    version: &'static str,
    hosts: Vec<HostView>,
    batches: Vec<BatchView>,
    ended: u64,
    failed: u64,
    cancelled: u64,
    skipped: u64,
    recent: Vec<Recent>,
    /// The last of them: what comes after it is new.
    pub(crate) seq: u64,
    failing: Vec<Failing>,
    trouble: Option<String>,
}

#[derive(Debug, Serialize)]
struct HostView {
    name: String,
    state: &'static str,
    why: Option<String>,
    first_engine: u32,
    busy: u16,
    load: f64,
    /// What is known to run in each engine.
    engines: Vec<Option<Running>>,
}

#[derive(Debug, Serialize)]
struct Running {
    batch: BatchId,
    job: JobNumber,
}

#[derive(Debug, Serialize)]
struct BatchView {
    id: BatchId,
    user: String,
    name: Option<String>,
    jobs: u64,
    running: u64,
    ended: u64,
    failed: u64,
    cancelled: u64,
    skipped: u64,
    done: bool,
}

/// Those that were no success, without the cancelled and skipped ones.
fn failed_of(batch: &Batch) -> u64 {
    batch.failed - batch.aside.cancelled - batch.aside.skipped
}

impl Service {
    /// What whoever looks sees, with ends after number `since`.
    pub(super) fn view(&self, since: u64) -> Option<View> {
        let observed = self.observed.as_ref()?;
        let now = BootInstant::now();
        let running = self.running_by_host();
        let failing: HashMap<String, String> = self
            .scheduler
            .failing_hosts()
            .into_iter()
            .map(|host| (host.name, host.why))
            .collect();
        let hosts = self.scheduler.host_status(now).into_iter().map(|host| {
            let (first_engine, on) = running.get(&host.name).cloned().unwrap_or_default();
            let mut engines: Vec<Option<Running>> = (0..host.slots).map(|_| None).collect();
            for (engine, batch, job) in on {
                if let Some(slot) = engines.get_mut(usize::from(engine)) {
                    *slot = Some(Running { batch, job });
                }
            }
            let (state, why) = state_of(&host, failing.get(&host.name));
            HostView {
                name: host.name,
                state,
                why,
                first_engine,
                busy: host.busy,
                load: host.load.one_minute,
                engines,
            }
        });
        let mut batches: Vec<(&BatchId, &Batch)> = self.batches.iter().collect();
        batches.sort_by_key(|(_, batch)| (batch.done, std::cmp::Reverse(batch.serial)));
        let open = batches
            .iter()
            .filter(|(_, batch)| !batch.done)
            .count()
            .min(BATCHES);
        let running = self.scheduler.running_by_batch();
        let shown = batches
            .into_iter()
            .take(open + ENDED_BATCHES)
            .map(|(id, batch)| BatchView {
                id: *id,
                user: batch.owner.clone(),
                name: batch.name.clone(),
                jobs: jobs_of(&self.scheduler, id, batch),
                running: running.get(&batch.serial).copied().unwrap_or(0),
                ended: batch.results,
                failed: failed_of(batch),
                cancelled: batch.aside.cancelled,
                skipped: batch.aside.skipped,
                done: batch.done,
            });
        let new = observed
            .recent
            .iter()
            .rev()
            .take_while(|recent| recent.seq > since)
            .take(RECENT_AT_ONCE);
        let mut recent: Vec<Recent> = new.cloned().collect();
        recent.reverse();
        Some(View {
            now: WallTime::now().0 / 1000,
            version: mezcal_common::VERSION,
            hosts: hosts.collect(),
            batches: shown.collect(),
            ended: self.batches.iter().map(|(_, batch)| batch.results).sum(),
            failed: self.batches.iter().map(|(_, batch)| failed_of(batch)).sum(),
            cancelled: self
                .batches
                .iter()
                .map(|(_, batch)| batch.aside.cancelled)
                .sum(),
            skipped: self
                .batches
                .iter()
                .map(|(_, batch)| batch.aside.skipped)
                .sum(),
            recent,
            seq: observed.seq,
            failing: observed.failing.iter().cloned().collect(),
            trouble: self.kept.as_ref().and_then(|kept| kept.trouble.clone()),
        })
    }

    /// What is known to run where: by host its first engine's number, and engine, batch and job.
    #[expect(clippy::type_complexity, reason = "a table that lives for one picture")]
    fn running_by_host(&self) -> HashMap<String, (u32, Vec<(u16, BatchId, JobNumber)>)> {
        let names: BTreeMap<_, BatchId> = self
            .batches
            .iter()
            .filter(|(_, b)| !b.done)
            .map(|(id, b)| (b.serial, *id))
            .collect();
        let hosts = self.scheduler.running().map(|(host, first, on)| {
            let known =
                on.filter_map(|(engine, key)| Some((engine, *names.get(&key.batch)?, key.job)));
            (host.to_owned(), (first.0, known.collect()))
        });
        hosts.collect()
    }

    /// Everything that is counted, in Prometheus' text format.
    pub(super) fn metrics(&mut self) -> Option<String> {
        let hosts = self.scheduler.host_status(BootInstant::now());
        let live = || self.batches.iter().filter(|(_, batch)| !batch.done);
        let running: u64 = self.scheduler.running_by_batch().values().sum();
        let open: u64 = live()
            .map(|(id, batch)| jobs_of(&self.scheduler, id, batch).saturating_sub(batch.results))
            .sum();
        let (agents, engines) = self.scheduler.fleet();
        let busy: i64 = hosts
            .iter()
            .filter(|h| h.ready)
            .map(|h| i64::from(h.busy))
            .sum();
        let unsaved = self.kept.as_ref().map_or(0, super::durable::Kept::unsaved);
        let trouble = self
            .kept
            .as_ref()
            .is_some_and(|kept| kept.trouble.is_some());
        let (unfinished, all) = (live().count() as i64, self.batches.len() as i64);
        let own = self
            .certificate_until
            .map(|until| ("coordinator", String::new(), until));
        let issuer = self
            .enrolment
            .as_ref()
            .and_then(|enrolment| enrolment.issuer_until());
        let agents_own = self.agents.values().filter_map(|link| {
            let (_, until) = identity::validity(link.peer.certificate()).ok()?;
            Some(("agent", link.peer.identity().name.clone(), until))
        });
        let issuers = issuer.map(|until| ("issuer", String::new(), until));
        let expiries: Vec<_> = own.into_iter().chain(issuers).chain(agents_own).collect();
        let observed = self.observed.as_mut()?;
        observed.agents.set(i64::from(agents));
        observed
            .slots
            .get_or_create(&ByState { state: "busy" })
            .set(busy);
        observed
            .slots
            .get_or_create(&ByState { state: "idle" })
            .set(i64::from(engines) - busy);
        observed
            .jobs
            .get_or_create(&ByState { state: "running" })
            .set(running as i64);
        observed
            .jobs
            .get_or_create(&ByState { state: "waiting" })
            .set(open.saturating_sub(running) as i64);
        observed
            .batches
            .get_or_create(&ByState { state: "running" })
            .set(unfinished);
        observed
            .batches
            .get_or_create(&ByState { state: "ended" })
            .set(all - unfinished);
        observed.host_states.clear();
        for host in &hosts {
            let state = state_of(host, None).0;
            observed
                .host_states
                .get_or_create(&OfHost {
                    host: host.name.clone(),
                    state,
                })
                .set(1);
            if let Some(offset) = host.clock_offset {
                observed
                    .skew
                    .get_or_create(&ByHost {
                        host: host.name.clone(),
                    })
                    .set(offset);
            }
        }
        observed.expiry.clear();
        for (role, host, until) in expiries {
            observed
                .expiry
                .get_or_create(&ByHolder { role, host })
                .set(until);
        }
        observed.unsaved.set(unsaved as i64);
        observed.writable.set(i64::from(!trouble));
        observed.cpu.set(cpu_seconds().unwrap_or(0.0));
        observed.resident.set(resident().unwrap_or(0));
        let mut text = String::new();
        encode(&mut text, &observed.registry).ok()?;
        Some(text)
    }
}

fn jobs_of(scheduler: &Scheduler, id: &BatchId, batch: &Batch) -> u64 {
    scheduler
        .batch_so_far(*id)
        .map_or(batch.results, |(_, _, jobs, _)| jobs)
}

fn state_of(
    host: &mezcal_common::message::client::HostStatus,
    failing: Option<&String>,
) -> (&'static str, Option<String>) {
    match host {
        _ if !host.connected => ("lost", None),
        _ if host.drained.is_some() => ("drained", host.drained.clone()),
        _ if host.quarantined.is_some() => (
            "quarantined",
            host.quarantined.as_ref().map(|(_, why)| why.clone()),
        ),
        _ if !host.ready => ("not_ready", failing.cloned()),
        _ if failing.is_some() => ("ready", failing.map(|why| format!("failing: {why}"))),
        _ => ("ready", None),
    }
}

/// CPU time of this process so far (proc_pid_stat(5), fields 14 and 15).
fn cpu_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    let ticks = text
        .rsplit(')')
        .next()?
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|n| n.parse::<u64>().ok())
        .sum::<u64>();
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Bytes of this process in memory (proc_pid_statm(5)).
fn resident() -> Option<i64> {
    let pages: i64 = std::fs::read_to_string("/proc/self/statm")
        .ok()?
        .split(' ')
        .nth(1)?
        .parse()
        .ok()?;
    Some(pages * rustix::param::page_size() as i64)
}
