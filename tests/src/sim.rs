//! The simulation: one real scheduler, real supervisors and engines, a virtual clock, and a network
//! and hosts that fail.
//!
//! All decisions are the product's own code; only the drivers are made up here: connections that
//! delay, stall in one direction or both and break at their two ends at different times, agents,
//! engines and keepers that die and come back, agents that are stopped, hosts that reboot or are
//! suspended, clocks that differ, drift and start anew, a coordinator that dies and comes back with
//! the content of its store, and a store that is copied and served again while its original is dead
//! or alive. A seed gives the whole run. After every step the promises are checked: no job has two
//! live processes (P1), no job has two results (P2), a job that is reported as over is dead and
//! stays dead (P3), no job runs on a host where it may not run, and no slot waits too long for work
//! that prefers it (P4), every result is of the attempt that it names (P7), no host runs more jobs
//! than it has slots, no job of a halted or cancelled batch is placed; in the end, after the
//! faults, every job has its result.
//!
//! In every fourth run the hosts serve two users. One of them has no jobs and engines of their own
//! making, which send arbitrary messages about others' attempts, or none at all.
//!
//! Some runs upgrade the hosts one after another: their agents are newer then than their engines,
//! which are replaced once they are idle.
//!
//! A run that breaks a promise shows its last lines; the same plan does exactly the same again.
//!
//! A [`Mutant`] plants a known mistake. The tests show that the checks find each one.

mod batch;
mod chance;
mod coordinator;
mod copies;
mod faults;
mod host;
mod hostile;
mod log;
mod mutants;
mod network;
mod plan;
mod promises;
mod slot;
mod steps;
mod upgrades;
mod world;

pub use chance::Chance;
pub use mutants::Mutant;
pub use plan::Plan;

use coordinator::Coordinator;
use host::Host;
use log::Log;
use mezcal_common::model::ids::JobKey;
use mezcal_common::model::outcome::JobResult;
use mezcal_coordinator::scheduler::Record;
use mutants::Mutants;
use network::Connection;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;
use steps::Step;

/// The state of a run.
struct World {
    plan: Plan,
    mutants: Mutants,
    now: Duration,
    chance: Chance,
    steps: BinaryHeap<Reverse<(Duration, u64)>>,
    todo: BTreeMap<u64, Step>,
    next: u64,
    /// The serving coordinator: after a restore, the one with the copy.
    serving: Coordinator,
    /// The original of a served copy, if it is still alive.
    original: Option<Coordinator>,
    /// The original acts now: `serving` and `original` have changed places.
    of_original: bool,
    /// A copy of the store that is not served yet; and whether a copy is served.
    copy: Option<Vec<Record>>,
    copied: bool,
    spec: bytes::Bytes,
    hosts: Vec<Host>,
    connections: BTreeMap<u64, Connection>,
    /// The present attempt of each job, and the session that it was placed in.
    placed: BTreeMap<JobKey, (u32, u64)>,
    /// Attempts that ended by themselves.
    ended: BTreeSet<(JobKey, u32)>,
    /// Attempts that their engines have to keep: host, slot and life of the engine.
    kept: BTreeMap<(JobKey, u32), (usize, usize, u64)>,
    /// When each host last renewed its leases.
    heard: Vec<Duration>,
    results: BTreeMap<u32, JobResult>,
    slots_by_job: BTreeMap<u32, u16>,
    /// The hosts of jobs that may run on one host only.
    required: BTreeMap<u32, usize>,
    /// Jobs reported as over for good: no process of theirs may be alive any more.
    proven: BTreeSet<u32>,
    /// Jobs that exit with 1.
    failing: BTreeSet<u32>,
    client_is_gone: bool,
    /// Whether the scheduler has decided that no more jobs of the batch start; and the first
    /// placement after that, if any.
    given_up: bool,
    placed_in_vain: Option<String>,
    /// The longest run of a job in a crowd.
    longest: Duration,
    /// The latest time for the start of the wide job.
    wide_until: Option<Duration>,
    log: Log,
}

/// The log of a run and its end.
pub struct Played {
    /// Every step and its effects; the last line has the amount of chance that was used.
    pub log: Vec<String>,
    /// The broken promise, with the steps before it.
    pub end: Result<(), String>,
}

/// Runs a plan to its end.
///
/// # Errors
/// The broken promise, with the steps before it.
pub fn run(plan: Plan) -> Result<(), String> {
    play(plan).end
}

/// Runs a plan to its end and keeps the log.
pub fn play(plan: Plan) -> Played {
    let mut world = World::new(plan);
    let end = world.run().map_err(|broken| {
        format!(
            "{broken}\n  with {plan:?}, at {:?}\n{}",
            world.now, world.log
        )
    });
    let World {
        log, chance, now, ..
    } = &mut world;
    log.line(*now, format_args!("over: {:x}", chance.0));
    let log = world.log.0;
    Played { log, end }
}
