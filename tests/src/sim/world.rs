//! The begin of a run, its clock, and the loop that takes one step after another.

use super::World;
use super::chance::Chance;
use super::coordinator::{Coordinator, scheduler_of};
use super::host::Host;
use super::log::Log;
use super::mutants::Mutants;
use super::plan::{CALM, END, END_OF_CROWD, LEASE, LOOK, Plan, RESTORES};
use super::steps::Step;
use mezcal_agent::supervisor::Supervisor;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{Generation, JobKey, JobNumber};
use mezcal_common::model::job::{Command, JobSpec};
use mezcal_common::wire::codec;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

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
