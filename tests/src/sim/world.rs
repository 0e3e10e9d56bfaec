//! The state of a run, its clock, and the loop that takes one step after another.

use super::chance::Chance;
use super::coordinator::{Coordinator, scheduler_of};
use super::host::Host;
use super::log::Log;
use super::mutants::Mutants;
use super::network::Connection;
use super::plan::{CALM, END, END_OF_CROWD, LEASE, LOOK, Plan, RESTORES};
use super::steps::Step;
use mezcal_agent::supervisor::Supervisor;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{Generation, JobKey, JobNumber};
use mezcal_common::model::job::{Command, JobSpec};
use mezcal_common::model::outcome::JobResult;
use mezcal_common::wire::codec;
use mezcal_coordinator::scheduler::Record;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

/// The state of a run.
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) mutants: Mutants,
    pub(super) now: Duration,
    pub(super) chance: Chance,
    pub(super) steps: BinaryHeap<Reverse<(Duration, u64)>>,
    pub(super) todo: BTreeMap<u64, Step>,
    pub(super) next: u64,
    /// The serving coordinator: after a restore, the one with the copy.
    pub(super) serving: Coordinator,
    /// The original of a served copy, if it is still alive.
    pub(super) original: Option<Coordinator>,
    /// The original acts now: `serving` and `original` have changed places.
    pub(super) of_original: bool,
    /// A copy of the store that is not served yet; and whether a copy is served.
    pub(super) copy: Option<Vec<Record>>,
    pub(super) copied: bool,
    pub(super) spec: bytes::Bytes,
    pub(super) hosts: Vec<Host>,
    pub(super) connections: BTreeMap<u64, Connection>,
    /// The present attempt of each job, and the session that it was placed in.
    pub(super) placed: BTreeMap<JobKey, (u32, u64)>,
    /// Attempts that ended by themselves.
    pub(super) ended: BTreeSet<(JobKey, u32)>,
    /// Attempts that their engines have to keep: host, slot and life of the engine.
    pub(super) kept: BTreeMap<(JobKey, u32), (usize, usize, u64)>,
    /// When each host last renewed its leases.
    pub(super) heard: Vec<Duration>,
    pub(super) results: BTreeMap<u32, JobResult>,
    pub(super) slots_by_job: BTreeMap<u32, u16>,
    /// The hosts of jobs that may run on one host only.
    pub(super) required: BTreeMap<u32, usize>,
    /// Jobs reported as over for good: no process of theirs may be alive any more.
    pub(super) proven: BTreeSet<u32>,
    /// Jobs that exit with 1.
    pub(super) failing: BTreeSet<u32>,
    pub(super) client_is_gone: bool,
    /// Whether the scheduler has decided that no more jobs of the batch start; and the first
    /// placement after that, if any.
    pub(super) given_up: bool,
    pub(super) placed_in_vain: Option<String>,
    /// The longest run of a job in a crowd.
    pub(super) longest: Duration,
    /// The latest time for the start of the wide job.
    pub(super) wide_until: Option<Duration>,
    pub(super) log: Log,
}

impl World {
    pub(super) fn new(plan: Plan) -> Self {
        let mut chance = Chance(plan.seed);
        let mutants = Mutants(plan.mutant);
        let hosts = (0..plan.hosts)
            .map(|_| Host::new(&mut chance, &plan))
            .collect();
        let mut world = Self {
            plan,
            mutants,
            now: Duration::ZERO,
            chance,
            steps: BinaryHeap::new(),
            todo: BTreeMap::new(),
            next: 0,
            serving: Coordinator::new(
                scheduler_of(0, LEASE, mutants),
                0,
                Vec::new(),
                Generation::default(),
            ),
            original: None,
            of_original: false,
            copy: None,
            copied: false,
            spec: codec::encode_body(&JobSpec::new(Command::Shell("true".into()))).expect("small"),
            hosts,
            connections: BTreeMap::new(),
            placed: BTreeMap::new(),
            ended: BTreeSet::new(),
            kept: BTreeMap::new(),
            heard: vec![Duration::ZERO; plan.hosts],
            results: BTreeMap::new(),
            slots_by_job: BTreeMap::new(),
            required: BTreeMap::new(),
            proven: BTreeSet::new(),
            failing: BTreeSet::new(),
            client_is_gone: false,
            given_up: false,
            placed_in_vain: None,
            longest: Duration::ZERO,
            wide_until: None,
            log: Log::default(),
        };
        world.accept_the_batch();
        world.lay_out();
        world
    }

    /// Schedules the steps that happen in every run.
    fn lay_out(&mut self) {
        let Plan {
            seed, jobs, crowd, ..
        } = self.plan;
        for host in 0..self.plan.hosts {
            let wait = self.chance.millis(2000);
            self.after(wait, Step::AgentStarts(host));
            self.after(wait + LOOK, Step::Look(host));
        }
        if self.plan.upgraded {
            self.plan_upgrades();
        }
        for _ in 0..self.plan.faults {
            let at = self.chance.millis(CALM.as_millis() as u64 - 100_000);
            self.after(at, Step::Fault);
        }
        // Chances of their own: the other events of a seed stay the same.
        let mut chance = Chance(seed ^ RESTORES);
        if !crowd && chance.one_in(3) {
            let backup = chance.millis(150_000);
            self.after(backup, Step::Backup);
            let restore = backup + chance.millis(100_000);
            let alive = chance.one_in(2);
            self.after(restore, Step::Restore { alive });
        }
        for job in 1..=jobs {
            if !crowd && self.chance.one_in(6) {
                let at = self.chance.millis(CALM.as_millis() as u64);
                self.after(at, Step::Cancel(job));
            }
        }
    }

    /// Schedules a step after a while.
    pub(super) fn after(&mut self, wait: Duration, step: Step) {
        self.next += 1;
        self.steps.push(Reverse((self.now + wait, self.next)));
        self.todo.insert(self.next, step);
    }

    pub(super) fn run(&mut self) -> Result<(), String> {
        self.perform()?;
        let end = if self.plan.crowd { END_OF_CROWD } else { END };
        while !self.is_over() {
            let step = self.steps.peek().map(|Reverse((at, _))| *at);
            let timer = self.next_timer();
            let at = step
                .into_iter()
                .chain(timer)
                .min()
                .ok_or("nothing is left to happen, and jobs have no result")?;
            if at > end {
                self.in_the_end_every_job_has_a_result()?;
                return self.in_the_end_no_idle_engine_is_old();
            }
            self.now = self.now.max(at);
            if step == Some(at) {
                let Some(Reverse((_, id))) = self.steps.pop() else {
                    continue;
                };
                if let Some(step) = self.todo.remove(&id) {
                    self.log.line(self.now, format_args!("{step:?}"));
                    self.step(step)?;
                }
            } else {
                self.timers();
            }
            self.perform()?;
            self.check()?;
        }
        Ok(())
    }

    pub(super) fn is_over(&self) -> bool {
        let replaced = self.hosts.iter().all(|host| !host.has_old_engines);
        (self.results.len() == self.plan.jobs as usize && replaced)
            || (self.plan.crowd && self.results.contains_key(&self.plan.jobs))
    }

    pub(super) fn key(&self, job: u32) -> JobKey {
        JobKey {
            batch: mezcal_common::model::ids::BatchSerial(1),
            job: JobNumber(job),
        }
    }

    pub(super) fn next_timer(&self) -> Option<Duration> {
        let coordinators = [Some(&self.serving), self.original.as_ref()]
            .into_iter()
            .flatten()
            .filter(|c| !c.down);
        let own = coordinators
            .filter_map(|c| c.scheduler.poll_timeout())
            .map(|at| at.0)
            .min();
        let hosts = self
            .hosts
            .iter()
            .enumerate()
            .filter(|(_, host)| host.up && !host.suspended)
            .flat_map(|(n, host)| {
                let agent = host
                    .supervisor
                    .as_ref()
                    .filter(|_| !host.agent_stopped)
                    .and_then(Supervisor::poll_timeout);
                let engines = host
                    .slots
                    .iter()
                    .filter(|s| !s.dead)
                    .filter_map(|s| s.engine.poll_timeout());
                agent.into_iter().chain(engines).map(move |at| (n, at))
            });
        hosts
            .map(|(n, at)| {
                if at <= self.at(n) {
                    self.now
                } else {
                    self.when(n, at)
                }
            })
            .chain(own)
            .min()
    }

    pub(super) fn timers(&mut self) {
        for coordinator in [Some(&mut self.serving), self.original.as_mut()]
            .into_iter()
            .flatten()
            .filter(|c| !c.down)
        {
            coordinator.scheduler.handle_timeout(BootInstant(self.now));
        }
        for n in 0..self.hosts.len() {
            let at = self.at(n);
            let host = &mut self.hosts[n];
            if !host.up || host.suspended {
                continue;
            }
            let agent = host.supervisor.as_mut().filter(|_| !host.agent_stopped);
            if let Some(supervisor) = agent.filter(|s| s.poll_timeout().is_some_and(|t| t <= at)) {
                supervisor.handle_timeout(at);
            }
            for slot in host
                .slots
                .iter_mut()
                .filter(|s| !s.dead && s.engine.poll_timeout().is_some_and(|t| t <= at))
            {
                slot.engine.handle_timeout(at);
            }
        }
    }

    /// Performs all effects of all cores.
    pub(super) fn perform(&mut self) -> Result<(), String> {
        loop {
            let mut any = false;
            any |= self.coordinator_effects()?;
            self.for_original(|world| {
                any |= world.coordinator_effects()?;
                Ok(())
            })?;
            for n in 0..self.hosts.len() {
                while let Some(effect) = self.hosts[n]
                    .supervisor
                    .as_mut()
                    .and_then(Supervisor::poll_effect)
                {
                    any = true;
                    self.supervisor_effect(n, effect);
                }
                for slot in 0..self.plan.slots {
                    while let Some(effect) = self.hosts[n].slots[slot].engine.poll_effect() {
                        any = true;
                        if !self.hosts[n].slots[slot].dead {
                            self.engine_effect(n, slot, effect);
                        }
                    }
                }
            }
            if !any {
                return Ok(());
            }
        }
    }
}
