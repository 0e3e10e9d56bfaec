//! A coordinator with its store: the driver of a real scheduler.

use super::World;
use super::mutants::Mutants;
use super::plan::{BATCH, CLIENT_LEASE, LEASES, LOCALITY_WAIT};
use super::steps::Step;
use mezcal_common::message::agent::{NumberedReport, Report, ToAgent, ToCoordinator};
use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::model::ids::{AttemptId, Epoch, Generation, JobNumber, SessionId, StoreId};
use mezcal_coordinator::scheduler::{self, Record, Scheduler};
use std::collections::VecDeque;
use std::time::Duration;

/// A coordinator with its store.
pub(super) struct Coordinator {
    pub(super) scheduler: Scheduler,
    /// Number of the coordinator's life; each life has an epoch of its own.
    pub(super) life: u64,
    pub(super) down: bool,
    pub(super) stored: Vec<Record>,
    /// Records on their way into the store; numbers of all records issued, and of those stored.
    pub(super) unstored: VecDeque<Record>,
    pub(super) issued: u64,
    pub(super) committed: u64,
    /// Effects that wait for the store.
    pub(super) held: VecDeque<(u64, scheduler::Effect)>,
    /// The generation of its store.
    pub(super) generation: Generation,
}

impl Coordinator {
    pub(super) fn new(
        scheduler: Scheduler,
        life: u64,
        stored: Vec<Record>,
        generation: Generation,
    ) -> Self {
        let (unstored, held) = (VecDeque::new(), VecDeque::new());
        Self {
            scheduler,
            life,
            down: false,
            stored,
            unstored,
            issued: 0,
            committed: 0,
            held,
            generation,
        }
    }
}

/// The scheduler for one life of the coordinator.
pub(super) fn scheduler_of(life: u64, lease: Duration, mutants: Mutants) -> Scheduler {
    let wait = mutants.wait_for_locality(LOCALITY_WAIT);
    Scheduler::new(Epoch(7 + life), StoreId(1), Some(lease), wait)
        .durable(CLIENT_LEASE)
        .with_mistake(mutants.of_the_scheduler())
        .watched()
}

impl World {
    pub(super) fn tell_scheduler(&mut self, event: scheduler::Event) {
        if !self.serving.down {
            self.serving.scheduler.handle(event, BootInstant(self.now));
        }
    }

    /// Moves the scheduler's effects to the queue that waits for the store.
    pub(super) fn take_effects(&mut self) {
        let before = self.serving.issued;
        while let Some(effect) = self.serving.scheduler.poll_effect() {
            if let scheduler::Effect::Persist(record) = effect {
                match &record {
                    Record::Stopped { .. } if !self.of_original => self.given_up = true,
                    Record::Placed { attempts, .. } if self.given_up && !self.of_original => {
                        // An earlier attempt is recorded again when its lease grows.
                        let recorded = |attempt: &AttemptId| {
                            let mut earlier =
                                self.serving.stored.iter().chain(&self.serving.unstored);
                            earlier.any(|record| matches!(record, Record::Placed { attempts, .. } if attempts.contains(attempt)))
                        };
                        let new: Vec<&AttemptId> = attempts
                            .iter()
                            .filter(|attempt| !recorded(attempt))
                            .collect();
                        if !new.is_empty() {
                            self.placed_in_vain
                                .get_or_insert(format!("given up: {new:?} are placed after that"));
                        }
                    }
                    _ => {}
                }
                self.serving.unstored.push_back(record);
                self.serving.issued += 1;
            } else {
                self.serving.held.push_back((self.serving.issued, effect));
            }
        }
        if self.serving.issued > before {
            // A disk stalls at times.
            let most = if self.chance.one_in(16) { 2000 } else { 20 };
            let wait = self.chance.millis(most);
            let (life, through) = (self.serving.life, self.serving.issued);
            self.after(wait, Step::Commit { life, through });
        }
    }

    pub(super) fn commit(&mut self, through: u64) {
        while self.serving.committed < through
            && let Some(record) = self.serving.unstored.pop_front()
        {
            self.serving.stored.push(record);
            self.serving.committed += 1;
        }
    }

    /// The coordinator dies, and loses all records that its store does not have.
    pub(super) fn coordinator_dies(&mut self) {
        self.serving.down = true;
        self.serving.unstored.clear();
        self.serving.held.clear();
        (self.serving.issued, self.serving.committed) = (0, 0);
        self.serving.life += 1;
        for c in self
            .connections
            .values_mut()
            .filter(|c| c.coordinator_open && c.original == self.of_original)
        {
            c.coordinator_open = false;
            c.to_agent.clear();
        }
        let wait = self
            .chance
            .millis(if self.chance.0 & 1 == 0 { 3000 } else { 60_000 });
        let life = self.serving.life;
        self.after(wait, Step::CoordinatorUp(life));
    }

    pub(super) fn coordinator_comes_back(&mut self) -> Result<(), String> {
        self.serving.down = false;
        let lease = LEASES[self.chance.below(LEASES.len() as u64) as usize];
        self.serving.scheduler = scheduler_of(self.serving.life, lease, self.mutants)
            .of_generation(self.serving.generation);
        if self.is_copy() && !self.is_released() && !self.mutants.restores_without_waiting() {
            // A user who restores a copy knows from the configuration how long leases were since.
            let first = Generation::default()
                .next(Generation::default(), WallTime(1))
                .expect("one of few")
                .first_batch();
            let scheduler = std::mem::replace(
                &mut self.serving.scheduler,
                scheduler_of(0, lease, self.mutants),
            );
            self.serving.scheduler = scheduler.holding(first, LEASES.into_iter().max());
        }
        let now = BootInstant(self.now);
        // The copy may continue a batch that only the original has given up.
        if !self.of_original {
            self.given_up = self
                .serving
                .stored
                .iter()
                .any(|record| matches!(record, Record::Stopped { .. }));
        }
        for record in self.serving.stored.clone() {
            // The client attaches again and takes the results that it has missed.
            if let Record::Ended { job, result, .. } = &record
                && !self.results.contains_key(&job.0)
            {
                self.result(job.0, (**result).clone())?;
            }
            self.serving.scheduler.replay(record, now);
        }
        self.serving.scheduler.restored(now);
        if !self.client_is_gone {
            self.tell_scheduler(scheduler::Event::Attended { batch: BATCH });
        }
        // Connections of the earlier life are reset at the next packet.
        let ids: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, c)| c.agent_open && !c.coordinator_open && !c.cut)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let wait = self.chance.millis(5000);
            self.after(wait, Step::AgentSeesEnd(id));
        }
        Ok(())
    }

    /// Performs the coordinator's effects that its store permits. True if there were any.
    pub(super) fn coordinator_effects(&mut self) -> Result<bool, String> {
        let mut any = false;
        self.take_effects();
        for (after, effect) in std::mem::take(&mut self.serving.held) {
            let hasty = self.mutants.acts_before_its_store();
            // Waiting effects keep their order.
            let waits = after > self.serving.committed && !hasty && !effect.overtakes_the_store();
            if waits {
                self.serving.held.push_back((after, effect));
            } else {
                any = true;
                self.scheduler_effect(effect)?;
            }
        }
        Ok(any)
    }

    fn scheduler_effect(&mut self, effect: scheduler::Effect) -> Result<(), String> {
        match effect {
            effect @ (scheduler::Effect::ToAgent(..)
            | scheduler::Effect::Welcome(..)
            | scheduler::Effect::HeartbeatSeen { .. }
            | scheduler::Effect::Place(..)
            | scheduler::Effect::AskForLogs { .. }) => {
                let message = effect.for_agent(WallTime(0), |_| self.spec.clone());
                if let Some((SessionId(id), message)) = message {
                    return self.send_to_agent(id, message);
                }
            }
            scheduler::Effect::CloseSession {
                session: SessionId(id),
                ..
            } => {
                if let Some(c) = self.connections.get_mut(&id) {
                    c.coordinator_open = false;
                }
                let wait = self.chance.millis(50);
                self.after(wait, Step::AgentSeesEnd(id));
            }
            scheduler::Effect::Result {
                job: JobNumber(job),
                result,
                ..
            } => return self.result(job, result),
            scheduler::Effect::Cancelled {
                request,
                result: Ok(summary),
            } => {
                if summary.unreachable == 0 && !self.of_original {
                    self.proven.insert(request as u32);
                }
            }
            scheduler::Effect::Persist(_)
            | scheduler::Effect::Cancelled { .. }
            | scheduler::Effect::Accepted { .. }
            | scheduler::Effect::Refused { .. }
            | scheduler::Effect::BatchDone { .. }
            | scheduler::Effect::Notice { .. }
            | scheduler::Effect::Output { .. }
            | scheduler::Effect::LogsAnswer { .. }
            | scheduler::Effect::Fleet { .. } => {}
        }
        Ok(())
    }

    /// Sends a message to an agent; a message may place jobs.
    fn send_to_agent(&mut self, id: u64, message: ToAgent) -> Result<(), String> {
        if let ToAgent::Retract { attempts } = &message
            && self.mutants.takes_back_without_an_answer()
        {
            for attempt in attempts.iter().copied() {
                let reports = vec![NumberedReport {
                    seq: u64::MAX,
                    attempt,
                    report: Report::Returned,
                }];
                let answer = ToCoordinator::Reports(reports);
                self.tell_scheduler(scheduler::Event::Agent(SessionId(id), answer));
            }
        }
        if let ToAgent::Run(run) = &message {
            for placement in run {
                let AttemptId { key, attempt, .. } = placement.attempt;
                let last = (key, attempt - 1);
                if let Some(place) = self.kept.remove(&last) {
                    self.what_has_ended_does_not_run_again(last, place)?;
                }
                self.placed.insert(key, (attempt, id));
            }
        }
        if let Some(c) = self.connections.get_mut(&id).filter(|c| c.coordinator_open) {
            c.to_agent.push_back(message);
            // In order: each step takes the first message that waits.
            let wait = self.chance.millis(40);
            self.after(wait, Step::ToAgent(id));
        }
        Ok(())
    }

    /// The store has all records of a coordinator's life up to `through`.
    pub(super) fn store_has(&mut self, life: u64, through: u64) -> Result<(), String> {
        let commit = |world: &mut Self| {
            if life == world.serving.life && !world.serving.down {
                world.commit(through);
            }
            Ok(())
        };
        commit(self)?;
        self.for_original(commit)
    }

    /// The next life of a coordinator begins.
    pub(super) fn coordinator_is_up(&mut self, life: u64) -> Result<(), String> {
        let back = |world: &mut Self| match world.serving.life == life && world.serving.down {
            true => world.coordinator_comes_back(),
            false => Ok(()),
        };
        back(self)?;
        self.for_original(back)
    }
}
