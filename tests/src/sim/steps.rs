//! What can happen, and what each step does.

use super::plan::{BATCH, LOOK};
use super::slot::Slot;
use super::world::World;
use mezcal_agent::{engine, supervisor};
use mezcal_common::message::client::Submission;
use mezcal_common::model::ids::{AttemptId, EngineIndex, JobNumber};
use mezcal_common::model::job::Stop;
use mezcal_coordinator::scheduler;
use mezcal_coordinator::scheduler::{Wanted, WantedJob};
use std::time::Duration;

#[derive(Clone, Debug)]
pub(super) enum Step {
    ToAgent(u64),
    ToCoordinator(u64),
    Look(usize),
    ToEngine(usize, usize, u64),
    FromEngine(usize, usize, u64),
    Spawned {
        host: usize,
        slot: usize,
        life: u64,
        result: Result<(), engine::NotStarted>,
    },
    JobEnds {
        host: usize,
        slot: usize,
        attempt: AttemptId,
        life: u64,
    },
    EngineSwept {
        host: usize,
        slot: usize,
        life: u64,
    },
    AgentStarts(usize),
    AgentSeesEnd(u64),
    CoordinatorSeesEnd(u64),
    LinkUp(usize),
    HostUp(usize),
    Fault,
    Cancel(u32),
    ClientLeaves,
    WideComes,
    /// What this life of the coordinator has told its store up to here is safe.
    Commit {
        life: u64,
        through: u64,
    },
    /// The next life of the coordinator whose last one was this.
    CoordinatorUp(u64),
    /// Somebody copies the store.
    Backup,
    /// Somebody serves the copy, and hosts find the one that does where they found the other.
    Restore {
        /// The original goes on.
        alive: bool,
    },
    AgentContinues(usize),
    HostContinues(usize),
    KeeperSwept {
        host: usize,
        keeper: u64,
    },
    Relink {
        host: usize,
        agent: u64,
    },
    Hostile {
        host: usize,
        agent: u64,
    },
}

impl World {
    /// The host that has to be awake for a step.
    pub(super) fn place_of(&self, step: &Step) -> Option<usize> {
        match step {
            Step::ToAgent(id) => self.connections.get(id).map(|c| c.host),
            Step::ToEngine(host, ..)
            | Step::FromEngine(host, ..)
            | Step::Spawned { host, .. }
            | Step::JobEnds { host, .. }
            | Step::EngineSwept { host, .. }
            | Step::KeeperSwept { host, .. } => Some(*host),
            _ => None,
        }
    }

    pub(super) fn step(&mut self, step: Step) -> Result<(), String> {
        let place = self.place_of(&step).map(|n| &self.hosts[n]);
        let for_agent = matches!(step, Step::ToAgent(_) | Step::FromEngine(..));
        if place.is_some_and(|host| host.suspended || (host.agent_stopped && for_agent)) {
            self.after(Duration::from_millis(200), step);
            return Ok(());
        }
        match step {
            Step::ToAgent(id) => self.deliver_to_agent(id),
            Step::ToCoordinator(id) => {
                self.at_coordinator_of(id, |world| world.deliver_to_coordinator(id))
            }
            Step::Look(host) => {
                self.look(host);
                let wait = LOOK + self.chance.millis(300);
                self.after(wait, Step::Look(host));
            }
            Step::ToEngine(host, slot, link) => self.deliver_to_engine(host, slot, link),
            Step::FromEngine(host, slot, link) => {
                let at = self.at(host);
                let place = &mut self.hosts[host];
                if place.slots[slot].link != link {
                    return Ok(());
                }
                if let Some(message) = place.slots[slot].from.pop_front()
                    && let Some(supervisor) = &mut place.supervisor
                {
                    supervisor.handle(
                        supervisor::Event::Engine(EngineIndex(slot as u16), message),
                        at,
                    );
                }
            }
            Step::Spawned {
                host,
                slot,
                life,
                result,
            } => {
                let at = self.at(host);
                let place = &mut self.hosts[host].slots[slot];
                if place.life == life && place.spawning.take().is_some() {
                    if result.is_err() {
                        place.alive = None;
                    }
                    place.engine.handle(engine::Event::Spawned(result), at);
                }
            }
            Step::JobEnds {
                host,
                slot,
                attempt,
                life,
            } => {
                let at = self.at(host);
                let place = &mut self.hosts[host].slots[slot];
                // Both were delayed on a suspended host: it cannot end before it has begun.
                if place.life == life && place.spawning == Some(attempt) {
                    let again = Step::JobEnds {
                        host,
                        slot,
                        attempt,
                        life,
                    };
                    self.after(Duration::from_millis(1), again);
                    return Ok(());
                }
                let runs = place.alive == Some(attempt) && place.spawning.is_none() && !place.ended;
                if place.life == life && runs && place.dies_at.is_none() && !place.dead {
                    place.ended = true;
                    self.ended.insert((attempt.key, attempt.attempt));
                    self.kept
                        .insert((attempt.key, attempt.attempt), (host, slot, life));
                    place.engine.handle(engine::Event::FirstEnded, at);
                }
            }
            Step::EngineSwept { host, slot, life } => self.engine_swept(host, slot, life),
            Step::Relink { host, agent } => {
                let at = self.at(host);
                let place = &mut self.hosts[host];
                if place.up && place.agent == agent && place.supervisor.is_some() {
                    place
                        .slots
                        .iter_mut()
                        .filter(|s| !s.dead)
                        .for_each(|slot| slot.relink(at));
                }
            }
            Step::Hostile { host, agent } => self.hostile(host, agent),
            Step::AgentStarts(host) => self.agent_starts(host),
            Step::AgentSeesEnd(id) => self.agent_lost(id),
            Step::CoordinatorSeesEnd(id) => self.coordinator_lost(id),
            Step::LinkUp(host) => self.hosts[host].links = (true, true),
            Step::HostUp(host) => {
                self.hosts[host].up = true;
                self.agent_starts(host);
            }
            Step::Fault => self.fault(),
            Step::Commit { life, through } => {
                let commit = |world: &mut Self| {
                    if life == world.serving.life && !world.serving.down {
                        world.commit(through);
                    }
                    Ok(())
                };
                commit(self)?;
                self.for_original(commit)?;
            }
            Step::CoordinatorUp(life) => {
                let back = |world: &mut Self| match world.serving.life == life && world.serving.down
                {
                    true => world.coordinator_comes_back(),
                    false => Ok(()),
                };
                back(self)?;
                self.for_original(back)?;
            }
            Step::Backup => self.copy = Some(self.serving.stored.clone()),
            Step::Restore { alive } => self.restore(alive)?,
            Step::AgentContinues(host) => self.hosts[host].agent_stopped = false,
            Step::HostContinues(host) => {
                self.hosts[host].suspended = false;
                // What is due there happens before anything else.
                self.timers();
            }
            Step::KeeperSwept { host, keeper } => {
                let place = &mut self.hosts[host];
                if place.up && place.keeper == keeper {
                    place.keeper_dying = false;
                    place.slots.iter_mut().for_each(Slot::start_anew);
                    self.agent_starts(host);
                }
            }
            Step::ClientLeaves => {
                self.client_is_gone = true;
                self.tell_scheduler(scheduler::Event::Unattended { batch: BATCH });
            }
            Step::WideComes => {
                self.wide_until = Some(self.now + scheduler::WIDE_WAIT * self.longest);
                let wide = Submission {
                    slots: self.plan.slots as u16,
                    ..Submission::new(JobNumber(self.plan.jobs), self.spec.clone())
                };
                self.tell_scheduler(scheduler::Event::Submit {
                    batch: BATCH,
                    host_sets: Vec::new(),
                    jobs: vec![wide],
                });
            }
            Step::Cancel(job) => {
                let what = vec![Wanted {
                    batch: BATCH,
                    job: Some(WantedJob::Number(JobNumber(job))),
                }];
                let grace = if self.chance.one_in(2) {
                    Duration::ZERO
                } else {
                    Duration::from_secs(2)
                };
                let event = scheduler::Event::Cancel {
                    request: Some(u64::from(job)),
                    what,
                    stop: Stop::after(grace),
                    why: None,
                };
                self.tell_scheduler(event);
                if self.mutants.answers_cancels_at_once() {
                    self.proven.insert(job);
                }
            }
        }
        Ok(())
    }
}
