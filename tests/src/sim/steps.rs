//! All steps of a run, and the effect of each.

use super::World;
use super::plan::BATCH;
use mezcal_agent::engine;
use mezcal_common::model::ids::AttemptId;
use mezcal_coordinator::scheduler;
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
    /// The store has all records of this life of the coordinator up to `through`.
    Commit {
        life: u64,
        through: u64,
    },
    /// The life of the coordinator after this one begins.
    CoordinatorUp(u64),
    /// A user copies the store.
    Backup,
    /// A user serves the copy, and hosts find it at the original's address.
    Restore {
        /// Whether the original stays alive.
        alive: bool,
    },
    AgentContinues(usize),
    HostContinues(usize),
    KeeperSwept {
        host: usize,
        keeper: u64,
    },
    /// A host has programs of a newer version.
    Upgrade(usize),
    /// A keeper that was asked to end ends, and the user's next one comes.
    KeeperEnds {
        host: usize,
        keeper: u64,
    },
    KeeperComes {
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
            | Step::KeeperEnds { host, .. }
            | Step::KeeperComes { host, .. }
            | Step::KeeperSwept { host, .. } => Some(*host),
            _ => None,
        }
    }

    /// Performs a step, or postpones it if its host is not awake.
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
            Step::Look(host) => self.look(host),
            Step::ToEngine(host, slot, link) => self.deliver_to_engine(host, slot, link),
            Step::FromEngine(host, slot, link) => self.deliver_from_engine(host, slot, link),
            Step::Spawned {
                host,
                slot,
                life,
                result,
            } => self.spawned(host, slot, life, result),
            Step::JobEnds {
                host,
                slot,
                attempt,
                life,
            } => self.job_ends(host, slot, attempt, life),
            Step::EngineSwept { host, slot, life } => self.engine_swept(host, slot, life),
            Step::KeeperSwept { host, keeper } => self.keeper_swept(host, keeper),
            Step::Upgrade(host) => self.upgrade(host),
            Step::KeeperEnds { host, keeper } => self.keeper_ends(host, keeper)?,
            Step::KeeperComes { host, keeper } => self.keeper_comes(host, keeper),
            Step::Relink { host, agent } => self.keeper_links(host, agent),
            Step::Hostile { host, agent } => self.hostile(host, agent),
            Step::AgentStarts(host) => self.agent_starts(host),
            Step::AgentContinues(host) => self.hosts[host].agent_stopped = false,
            Step::AgentSeesEnd(id) => self.agent_lost(id),
            Step::CoordinatorSeesEnd(id) => self.coordinator_lost(id),
            Step::LinkUp(host) => self.hosts[host].links = (true, true),
            Step::HostUp(host) => {
                self.hosts[host].up = true;
                self.agent_starts(host);
            }
            Step::HostContinues(host) => {
                self.hosts[host].suspended = false;
                // Timers that are due there come before anything else.
                self.timers();
            }
            Step::Fault => self.fault(),
            Step::Commit { life, through } => self.store_has(life, through)?,
            Step::CoordinatorUp(life) => self.coordinator_is_up(life)?,
            Step::Backup => self.copy = Some(self.serving.stored.clone()),
            Step::Restore { alive } => self.restore(alive)?,
            Step::ClientLeaves => {
                self.client_is_gone = true;
                self.tell_scheduler(scheduler::Event::Unattended { batch: BATCH });
            }
            Step::WideComes => self.wide_comes(),
            Step::Cancel(job) => self.cancel(job),
        }
        Ok(())
    }
}
