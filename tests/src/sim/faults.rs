//! Faults: one at a time, drawn by its weight.

use super::World;
use super::chance::Chance;
use super::plan::SLOW_DEATH;
use super::slot::Slot;
use super::steps::Step;
use mezcal_agent::engine;

/// A fault of a host or the coordinator.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// No packet gets through between a host and any coordinator.
    LinkIsCut,
    /// No packet gets through from a host.
    LinkIsCutFromHost,
    /// No packet gets through to a host.
    LinkIsCutToHost,
    /// The agent dies and comes back; its engines go on.
    AgentDies,
    /// The host goes down with all its processes; it comes back with a clock of its own.
    HostGoesDown,
    /// An engine dies; its keeper sweeps the processes that it leaves.
    EngineDies,
    /// The coordinator dies, and loses all records that its store does not have. If it is down
    /// already, an engine dies instead.
    CoordinatorDies,
    /// The agent does nothing for a while; its engines go on.
    AgentIsStopped,
    /// The host does nothing for a while, and its clock goes on.
    HostIsSuspended,
    /// The keeper dies: its engines kill their processes and go; the agent leaves and comes back
    /// with another keeper.
    KeeperDies,
}

/// The frequency of each fault, as a part of the sum of all weights. A seed depends on the order: a
/// new row goes to the end, and engines have two for that reason.
const WEIGHTS: [(Fault, u64); 11] = [
    (Fault::LinkIsCut, 1),
    (Fault::LinkIsCutFromHost, 1),
    (Fault::LinkIsCutToHost, 1),
    (Fault::AgentDies, 1),
    (Fault::HostGoesDown, 1),
    (Fault::EngineDies, 3),
    (Fault::CoordinatorDies, 2),
    (Fault::AgentIsStopped, 1),
    (Fault::HostIsSuspended, 1),
    (Fault::KeeperDies, 1),
    (Fault::EngineDies, 1),
];

impl Fault {
    fn drawn(chance: &mut Chance) -> Self {
        let mut left = chance.below(WEIGHTS.iter().map(|(_, weight)| weight).sum());
        for (fault, weight) in WEIGHTS {
            match left.checked_sub(weight) {
                None => return fault,
                Some(rest) => left = rest,
            }
        }
        unreachable!("what is drawn is below the sum of all weights")
    }
}

impl World {
    /// Causes a fault, and schedules its repair.
    pub(super) fn fault(&mut self) {
        let n = self.chance.below(self.hosts.len() as u64) as usize;
        match Fault::drawn(&mut self.chance) {
            Fault::LinkIsCut => self.cut(n, (false, false)),
            Fault::LinkIsCutFromHost => self.cut(n, (false, true)),
            Fault::LinkIsCutToHost => self.cut(n, (true, false)),
            Fault::AgentDies => self.agent_dies(n),
            Fault::HostGoesDown => self.host_goes_down(n),
            Fault::CoordinatorDies if !self.serving.down => self.coordinator_dies(),
            Fault::EngineDies | Fault::CoordinatorDies => self.engine_dies(n),
            Fault::AgentIsStopped => {
                self.hosts[n].agent_stopped = true;
                let wait = self.chance.millis(60_000);
                self.after(wait, Step::AgentContinues(n));
            }
            Fault::HostIsSuspended => {
                // For less than the margin can spare: a host that sleeps through its own deadline
                // is outside of P1.
                self.hosts[n].suspended = true;
                let wait = self.chance.millis(2000);
                self.after(wait, Step::HostContinues(n));
            }
            Fault::KeeperDies => self.keeper_dies(n),
        }
    }

    /// Sets the directions in which packets go from now on: to the coordinator, from it.
    fn cut(&mut self, n: usize, links: (bool, bool)) {
        self.hosts[n].links = links;
        let most = if self.chance.one_in(2) {
            15_000
        } else {
            90_000
        };
        let wait = self.chance.millis(most);
        self.after(wait, Step::LinkUp(n));
    }

    pub(super) fn agent_dies(&mut self, n: usize) {
        self.hosts[n].supervisor = None;
        self.hosts[n].agent += 1;
        self.drop_agent_side(n);
        let at = self.at(n);
        for slot in self.hosts[n].slots.iter_mut().filter(|s| !s.dead) {
            slot.link += 1;
            slot.engine.handle(engine::Event::Unlinked, at);
        }
        let wait = self
            .chance
            .millis(if self.chance.0 & 1 == 0 { 3000 } else { 60_000 });
        self.after(wait, Step::AgentStarts(n));
    }

    fn host_goes_down(&mut self, n: usize) {
        let zero = self.chance.millis(1_000_000);
        let host = &mut self.hosts[n];
        if !host.up {
            return;
        }
        (host.up, host.supervisor, host.zero, host.keeper_dying) = (false, None, zero, false);
        (host.agent, host.boot, host.keeper) = (host.agent + 1, host.boot + 1, host.keeper + 1);
        host.ends.clear();
        host.has_old_engines &= !host.is_upgraded;
        host.slots.iter_mut().for_each(Slot::start_anew);
        self.drop_agent_side(n);
        let wait = self.chance.millis(60_000);
        self.after(wait, Step::HostUp(n));
    }

    fn engine_dies(&mut self, n: usize) {
        let slot = self.chance.below(self.plan.slots as u64) as usize;
        let up = self.hosts[n].up;
        let place = &mut self.hosts[n].slots[slot];
        if !up || place.dead {
            return;
        }
        place.dead = true;
        place.link += 1;
        let life = place.life;
        let wait = self.chance.millis(400);
        let swept = Step::EngineSwept {
            host: n,
            slot,
            life,
        };
        self.after(wait, swept);
    }

    fn keeper_dies(&mut self, n: usize) {
        let host = &mut self.hosts[n];
        if host.up && host.supervisor.is_some() {
            self.keeper_is_gone(n);
        }
    }

    /// The keeper's processes are dying, and the agent has left.
    pub(super) fn keeper_is_gone(&mut self, n: usize) {
        let host = &mut self.hosts[n];
        host.has_old_engines &= !host.is_upgraded;
        (host.supervisor, host.agent, host.keeper, host.keeper_dying) =
            (None, host.agent + 1, host.keeper + 1, true);
        host.ends.clear();
        for slot in &mut host.slots {
            slot.dead = true;
            slot.life += 1;
            slot.link += 1;
        }
        let keeper = host.keeper;
        self.kept.retain(|_, (host, ..)| *host != n);
        self.drop_agent_side(n);
        let wait = self.chance.millis(SLOW_DEATH.as_millis() as u64);
        self.after(wait, Step::KeeperSwept { host: n, keeper });
    }
}
