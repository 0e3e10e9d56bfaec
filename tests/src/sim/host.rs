//! A host with its clock and its agent: the driver of a real supervisor.

use super::World;
use super::chance::Chance;
use super::plan::{LEASE, Plan, WORD};
use super::slot::Slot;
use super::steps::Step;
use super::upgrades::{NEW, OLD};
use mezcal_agent::supervisor::generations::Met;
use mezcal_agent::supervisor::{self, Supervisor};
use mezcal_common::message::agent::{Report, ToCoordinator};
use mezcal_common::message::engine::ToKeeper;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, EngineIndex};
use mezcal_common::model::outcome::Ended;
use std::time::Duration;

pub(super) struct Host {
    pub(super) supervisor: Option<Supervisor>,
    pub(super) agent: u64,
    pub(super) slots: Vec<Slot>,
    pub(super) boot: u8,
    pub(super) keeper: u64,
    pub(super) up: bool,
    /// Its agent is stopped, or the whole host is suspended.
    pub(super) agent_stopped: bool,
    pub(super) suspended: bool,
    /// Its agents check the versions of engines; its next agents are of the newer version.
    pub(super) minds_versions: bool,
    pub(super) is_upgraded: bool,
    /// Its keeper and engines are from before its upgrade.
    pub(super) has_old_engines: bool,
    /// Its keeper is dead or about to end, and the processes that it left are dying.
    pub(super) keeper_dying: bool,
    /// The generations that it remembers having met, and whether it has met the copy.
    pub(super) met: Met,
    pub(super) met_copy: bool,
    /// The lease that the newest coordinator gave its agent, and the longest so far.
    pub(super) lease: Duration,
    pub(super) longest_lease: Duration,
    /// The directions in which packets go: to the coordinator, from it.
    pub(super) links: (bool, bool),
    pub(super) connection: Option<u64>,
    /// This host's clock: the time of its zero, and the microseconds per second that it is fast.
    pub(super) zero: Duration,
    pub(super) drift: i64,
    /// Ends of engines that no agent has seen acknowledged.
    pub(super) ends: Vec<(usize, Option<AttemptId>)>,
}

impl Host {
    pub(super) fn new(chance: &mut Chance, plan: &Plan) -> Self {
        Self {
            supervisor: None,
            agent: 0,
            slots: (0..plan.slots).map(|_| Slot::new()).collect(),
            boot: 1,
            keeper: 1,
            up: true,
            agent_stopped: false,
            suspended: false,
            keeper_dying: false,
            minds_versions: plan.upgraded,
            is_upgraded: false,
            has_old_engines: plan.upgraded,
            met: Met::default(),
            met_copy: false,
            lease: LEASE,
            longest_lease: LEASE,
            links: (true, true),
            connection: None,
            zero: chance.millis(1_000_000),
            // Up to 200 ppm fast or slow: two clocks differ by less than the 500 ppm that the
            // margin allows for.
            drift: chance.below(400) as i64 - 200,
            ends: Vec::new(),
        }
    }

    /// Whether its agent, if it has one, can act.
    pub(super) fn can_act(&self) -> bool {
        self.up && !self.agent_stopped && !self.suspended
    }

    /// Links the agent to all live engines anew.
    pub(super) fn relink(&mut self, at: BootInstant) {
        for slot in (0..self.slots.len())
            .filter(|slot| !self.slots[*slot].dead)
            .collect::<Vec<_>>()
        {
            self.relink_engine(slot, at);
        }
    }

    /// Links the agent to an engine anew; the engine reports the attempt that it runs.
    pub(super) fn relink_engine(&mut self, slot: usize, at: BootInstant) {
        self.slots[slot].relink(at);
        if let Some(supervisor) = self.supervisor.as_mut().filter(|_| self.minds_versions) {
            let version = if self.has_old_engines { OLD } else { NEW };
            let engine = EngineIndex(slot as u16);
            supervisor.handle(supervisor::Event::Runs(engine, version.to_owned()), at);
        }
    }

    /// The attempts with a process here.
    pub(super) fn attempts(&self) -> impl Iterator<Item = AttemptId> {
        self.slots.iter().filter_map(|slot| slot.alive)
    }
}

impl World {
    /// The present time on a host's clock.
    pub(super) fn at(&self, host: usize) -> BootInstant {
        let host = &self.hosts[host];
        let drift = self.now.as_micros() as i64 / 1_000_000 * host.drift;
        BootInstant(host.zero + Duration::from_micros((self.now.as_micros() as i64 + drift) as u64))
    }

    /// The time at which that clock shows `at`, or a little later.
    pub(super) fn when(&self, host: usize, at: BootInstant) -> Duration {
        let left = at.0.saturating_sub(self.at(host).0);
        self.now + left + left / 5000 + Duration::from_micros(1)
    }

    /// Starts the agent of a host that is up; its keeper links it to the engines.
    pub(super) fn agent_starts(&mut self, n: usize) {
        if !self.hosts[n].up || self.hosts[n].keeper_dying || self.hosts[n].supervisor.is_some() {
            return;
        }
        let at = self.at(n);
        let slots = self.plan.slots;
        let users = self.plan.users();
        let shared = users.is_some();
        let late = shared && self.chance.one_in(3);
        let host = &mut self.hosts[n];
        if self.mutants.forgets_generations() {
            host.met = Met::default();
        }
        let agent = host.agent;
        let mut supervisor = Supervisor::new(slots as u16, users);
        if host.minds_versions {
            supervisor = supervisor.of_version(if host.is_upgraded { NEW } else { OLD });
        }

        // The keeper reports ends that its last agent has not seen acknowledged, then links.
        for (slot, attempt) in &host.ends {
            let (engine, attempt) = (EngineIndex(*slot as u16), *attempt);
            supervisor.handle(
                supervisor::Event::EngineEnded {
                    engine,
                    attempt,
                    ended: Ended::Lost,
                    killed: 0,
                    survivors: 0,
                },
                at,
            );
        }
        host.supervisor = Some(supervisor);
        if shared {
            let wait = self.chance.millis(WORD.as_millis() as u64);
            self.after(wait, Step::Hostile { host: n, agent });
        }
        if late {
            // The keeper was stopped.
            let wait = self.chance.millis(10_000);
            self.after(wait, Step::Relink { host: n, agent });
        } else {
            self.hosts[n].relink(at);
        }
    }

    pub(super) fn supervisor_effect(&mut self, n: usize, effect: supervisor::Effect) {
        match effect {
            supervisor::Effect::ToCoordinator(message) => {
                if let ToCoordinator::Reports(reports) = &message {
                    for report in reports
                        .iter()
                        .filter(|r| !matches!(r.report, Report::Started { .. }))
                    {
                        self.log.line(
                            self.now,
                            format_args!("h{n} reports {} as {:?}", report.attempt, report.report),
                        );
                    }
                }
                if let Some(id) = self.hosts[n].connection
                    && let Some(c) = self.connections.get_mut(&id).filter(|c| c.agent_open)
                {
                    c.to_coordinator.push_back(message);
                    let wait = self.chance.millis(40);
                    self.after(wait, Step::ToCoordinator(id));
                }
            }
            // The hostile user's engines ignore messages.
            supervisor::Effect::ToEngine(index, _) if usize::from(index.0) >= self.plan.slots => {}
            supervisor::Effect::ToEngine(index, message) => {
                let slot = &mut self.hosts[n].slots[usize::from(index.0)];
                if !slot.dead {
                    slot.to.push_back(message);
                    let link = slot.link;
                    let wait = self.chance.millis(4);
                    self.after(wait, Step::ToEngine(n, usize::from(index.0), link));
                }
            }
            supervisor::Effect::ToKeeper(_, ToKeeper::EndSeen { attempt }) => {
                self.hosts[n].ends.retain(|(_, a)| *a != Some(attempt));
            }
            supervisor::Effect::ToKeeper(0, ToKeeper::Stop) => self.ask_keeper_to_end(n),
            supervisor::Effect::ToKeeper(..) | supervisor::Effect::Exit => {}
        }
    }

    /// A message of an engine reaches its agent.
    pub(super) fn deliver_from_engine(&mut self, n: usize, slot: usize, link: u64) {
        let at = self.at(n);
        let place = &mut self.hosts[n];
        if place.slots[slot].link != link {
            return;
        }
        if let Some(message) = place.slots[slot].from.pop_front()
            && let Some(supervisor) = &mut place.supervisor
        {
            let engine = EngineIndex(slot as u16);
            supervisor.handle(supervisor::Event::Engine(engine, message), at);
        }
    }

    /// A late keeper links the engines to an agent that is still there.
    pub(super) fn keeper_links(&mut self, n: usize, agent: u64) {
        let at = self.at(n);
        let host = &mut self.hosts[n];
        if host.up && host.agent == agent && host.supervisor.is_some() {
            host.relink(at);
        }
    }

    /// A dead keeper's processes are dead: the host gets another keeper, and an agent.
    pub(super) fn keeper_swept(&mut self, n: usize, keeper: u64) {
        let host = &mut self.hosts[n];
        if host.up && host.keeper == keeper {
            host.keeper_dying = false;
            host.slots.iter_mut().for_each(Slot::start_anew);
            self.agent_starts(n);
        }
    }
}
