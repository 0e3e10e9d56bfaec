//! What fails.

use super::plan::SLOW_DEATH;
use super::slot::Slot;
use super::steps::Step;
use super::world::World;
use mezcal_agent::engine;

impl World {
    pub(super) fn fault(&mut self) {
        let n = self.chance.below(self.hosts.len() as u64) as usize;
        match self.chance.below(14) {
            8 | 9 if !self.serving.down => self.coordinator_dies(),
            10 => {
                self.hosts[n].agent_stopped = true;
                let wait = self.chance.millis(60_000);
                self.after(wait, Step::AgentContinues(n));
            }
            11 => {
                // For less than the margin has to spare: a host that sleeps through its own
                // deadline is outside of P1.
                self.hosts[n].suspended = true;
                let wait = self.chance.millis(2000);
                self.after(wait, Step::HostContinues(n));
            }
            12 => {
                // The keeper dies: its engines kill what they have and go; the agent leaves and
                // comes back with another one.
                let host = &mut self.hosts[n];
                if !host.up || host.supervisor.is_none() {
                    return;
                }
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
            0 => self.cut(n, (false, false)),
            1 => self.cut(n, (false, true)),
            2 => self.cut(n, (true, false)),
            3 => {
                // The agent dies; its engines go on.
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
            4 => {
                // The host goes down, and with it everything on it.
                let zero = self.chance.millis(1_000_000);
                let host = &mut self.hosts[n];
                if !host.up {
                    return;
                }
                (host.up, host.supervisor, host.zero, host.keeper_dying) =
                    (false, None, zero, false);
                (host.agent, host.boot, host.keeper) =
                    (host.agent + 1, host.boot + 1, host.keeper + 1);
                host.ends.clear();
                for slot in &mut host.slots {
                    *slot = Slot {
                        life: slot.life + 1,
                        link: slot.link + 1,
                        ..Slot::new()
                    };
                }
                self.drop_agent_side(n);
                let wait = self.chance.millis(60_000);
                self.after(wait, Step::HostUp(n));
            }
            _ => {
                // An engine dies; its keeper sweeps what it leaves.
                let slot = self.chance.below(self.plan.slots as u64) as usize;
                let place = &mut self.hosts[n].slots[slot];
                if !place.dead && self.hosts[n].up {
                    let place = &mut self.hosts[n].slots[slot];
                    place.dead = true;
                    place.link += 1;
                    let life = place.life;
                    let wait = self.chance.millis(400);
                    self.after(
                        wait,
                        Step::EngineSwept {
                            host: n,
                            slot,
                            life,
                        },
                    );
                }
            }
        }
    }

    pub(super) fn cut(&mut self, n: usize, links: (bool, bool)) {
        self.hosts[n].links = links;
        let most = if self.chance.one_in(2) {
            15_000
        } else {
            90_000
        };
        let wait = self.chance.millis(most);
        self.after(wait, Step::LinkUp(n));
    }
}
