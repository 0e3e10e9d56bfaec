//! The numbers for Prometheus: the only code that names prometheus-client.

use mezcal_common::model::outcome::{Ended, Outcome};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

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
    /// Empty for the coordinator's own, which for Prometheus is the same as none.
    host: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Version {
    version: &'static str,
}

type Real = Gauge<f64, AtomicU64>;

/// Counters, which go on, and gauges, which are set before each time that they are shown.
pub(super) struct Counters {
    registry: Registry,
    attempts: Family<ByOutcome, Counter>,
    durations: Histogram,
    leftovers: Counter,
    gauges: Gauges,
}

#[derive(Default)]
struct Gauges {
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
}

/// The values of the gauges.
pub(super) struct Present {
    pub(super) agents: u32,
    /// Busy and idle slots.
    pub(super) slots: [i64; 2],
    /// Running and waiting jobs.
    pub(super) jobs: [u64; 2],
    /// Running and ended batches.
    pub(super) batches: [usize; 2],
    pub(super) hosts: Vec<Host>,
    /// When certificates end: the role of the holder, its host, and seconds since the Unix epoch.
    pub(super) expiries: Vec<(&'static str, String, i64)>,
    /// Records on their way into the store.
    pub(super) unsaved: u64,
    pub(super) writable: bool,
}

pub(super) struct Host {
    pub(super) name: String,
    pub(super) state: &'static str,
    /// In seconds, to be added to its clock.
    pub(super) clock_offset: Option<f64>,
}

impl Counters {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("mezcal");
        let info = Family::<Version, Gauge>::default();
        info.get_or_create(&Version {
            version: mezcal_common::VERSION,
        })
        .set(1);
        let attempts = Family::default();
        // From a millisecond to a day and a half.
        let durations = Histogram::new(exponential_buckets(0.001, 4.0, 14));
        let leftovers = Counter::default();
        registry.register("build_info", "Version of the coordinator", info);
        registry.register("attempts", "Attempts that have ended", attempts.clone());
        registry.register(
            "attempt_duration_seconds",
            "How long attempts have run",
            durations.clone(),
        );
        registry.register(
            "leftover_processes",
            "Processes that outlived their jobs and were killed",
            leftovers.clone(),
        );
        let gauges = Gauges::default();
        gauges.register(&mut registry);
        Self {
            registry,
            attempts,
            durations,
            leftovers,
            gauges,
        }
    }

    /// An attempt has ended; its job may go on.
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

    /// All numbers in Prometheus' text format.
    pub(super) fn text(&self, present: &Present) -> Option<String> {
        self.gauges.set(present);
        let mut text = String::new();
        encode(&mut text, &self.registry).ok()?;
        Some(text)
    }
}

impl Gauges {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "agents_connected",
            "Agents that can be given jobs",
            self.agents.clone(),
        );
        registry.register("slots", "Slots of connected agents", self.slots.clone());
        registry.register("jobs", "Jobs that have not ended", self.jobs.clone());
        registry.register("batches", "Batches that are kept", self.batches.clone());
        registry.register(
            "host_state",
            "1 for the state that a host is in",
            self.host_states.clone(),
        );
        registry.register(
            "agent_clock_skew_seconds",
            "To be added to a host's clock to get the coordinator's",
            self.skew.clone(),
        );
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "When the certificates in use end: the coordinator's, the issuer's, those of connected agents",
            self.expiry.clone(),
        );
        registry.register(
            "store_unsaved_records",
            "Records on their way into the store",
            self.unsaved.clone(),
        );
        registry.register(
            "store_writable",
            "0 while the store cannot be written",
            self.writable.clone(),
        );
        let process = registry.sub_registry_with_prefix("process");
        process.register(
            "resident_memory_bytes",
            "Resident set",
            self.resident.clone(),
        );
        process.register("cpu_seconds", "User and system CPU time", self.cpu.clone());
    }

    fn set(&self, present: &Present) {
        let states = |family: &Family<ByState, Gauge>, states: [(&'static str, i64); 2]| {
            for (state, count) in states {
                family.get_or_create(&ByState { state }).set(count);
            }
        };
        self.agents.set(i64::from(present.agents));
        let [busy, idle] = present.slots;
        states(&self.slots, [("busy", busy), ("idle", idle)]);
        let [running, waiting] = present.jobs.map(|count| count as i64);
        states(&self.jobs, [("running", running), ("waiting", waiting)]);
        let [running, ended] = present.batches.map(|count| count as i64);
        states(&self.batches, [("running", running), ("ended", ended)]);
        self.host_states.clear();
        for host in &present.hosts {
            let of = OfHost {
                host: host.name.clone(),
                state: host.state,
            };
            self.host_states.get_or_create(&of).set(1);
            if let Some(offset) = host.clock_offset {
                let host = host.name.clone();
                self.skew.get_or_create(&ByHost { host }).set(offset);
            }
        }
        self.expiry.clear();
        for (role, host, until) in &present.expiries {
            let holder = ByHolder {
                role,
                host: host.clone(),
            };
            self.expiry.get_or_create(&holder).set(*until);
        }
        self.unsaved.set(present.unsaved as i64);
        self.writable.set(i64::from(present.writable));
        self.cpu.set(cpu_seconds().unwrap_or(0.0));
        self.resident.set(resident().unwrap_or(0));
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
