//! Connections between agents and coordinators, with the messages on them, and the ways in which
//! they break at their two ends.

use super::World;
use super::plan::{LOOK, USER};
use super::steps::Step;
use mezcal_agent::supervisor;
use mezcal_agent::supervisor::generations::Meeting;
use mezcal_common::message::agent::{Hello, NumberedReport, ToAgent, ToCoordinator, VERSIONS};
use mezcal_common::message::engine::FromEngine;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, EngineIndex, Generation, SessionId};
use mezcal_common::wire::endpoint::IDLE_TIMEOUT;
use mezcal_coordinator::scheduler;
use std::collections::VecDeque;
use std::time::Duration;

pub(super) struct Connection {
    pub(super) host: usize,
    /// Whether it goes to the original of the copy that is served now.
    pub(super) original: bool,
    /// A restore has cut it: its coordinator is no longer at that address.
    pub(super) cut: bool,
    /// The store's generation, as the coordinator reported it.
    pub(super) generation: Generation,
    /// The incarnation of the agent that made it.
    pub(super) agent: u64,
    pub(super) hello_sent: BootInstant,
    pub(super) agent_open: bool,
    pub(super) coordinator_open: bool,
    pub(super) to_agent: VecDeque<ToAgent>,
    pub(super) to_coordinator: VecDeque<ToCoordinator>,
    pub(super) agent_heard: Duration,
    pub(super) coordinator_heard: Duration,
}

impl World {
    /// Ends connections of a host that have timed out, and makes one if there is none.
    pub(super) fn look(&mut self, n: usize) {
        let ids: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, c)| c.host == n)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.look_at_connection(id);
        }
        // Until a host has met the copy, it finds the copy at the address; later it finds either.
        let original = self.original.as_ref().filter(|original| !original.down);
        let alive = original.is_some() && self.hosts[n].met_copy;
        let to_original = alive && self.chance.one_in(2);
        let host = &self.hosts[n];
        if host.can_act()
            && (to_original || !self.serving.down)
            && host.links == (true, true)
            && host.supervisor.is_some()
            && host.connection.is_none()
        {
            self.connect(n, to_original);
        }
        let wait = LOOK + self.chance.millis(300);
        self.after(wait, Step::Look(n));
    }

    /// Keep-alives go both ways while the links permit; each end gives up for itself.
    fn look_at_connection(&mut self, id: u64) {
        let now = self.now;
        let Some(c) = self.connections.get_mut(&id) else {
            return;
        };
        let host = &self.hosts[c.host];
        let up = host.can_act();
        let links = if c.cut { (false, false) } else { host.links };
        if up && c.agent_open && links.0 && c.coordinator_open {
            c.coordinator_heard = now;
        }
        if up && c.coordinator_open && links.1 && c.agent_open && links.0 {
            c.agent_heard = now;
        }
        let (agent, coordinator) = (
            up && c.agent_open && now - c.agent_heard > IDLE_TIMEOUT,
            c.coordinator_open && now - c.coordinator_heard > IDLE_TIMEOUT,
        );
        if agent {
            self.agent_lost(id);
        }
        if coordinator {
            self.coordinator_lost(id);
        }
    }

    /// An agent makes a connection and introduces itself.
    fn connect(&mut self, n: usize, original: bool) {
        self.next += 1;
        let (id, hello_sent) = (self.next, self.at(n));
        let now = self.now;
        let host = &mut self.hosts[n];
        let connection = Connection {
            host: n,
            original,
            cut: false,
            generation: Generation::default(),
            agent: host.agent,
            hello_sent,
            agent_open: true,
            coordinator_open: true,
            to_agent: VecDeque::new(),
            to_coordinator: VecDeque::new(),
            agent_heard: now,
            coordinator_heard: now,
        };
        self.connections.insert(id, connection);
        host.connection = Some(id);
        let hello = Hello {
            versions: VERSIONS,
            program: "simulation".into(),
            keeper: host.keeper,
            boot_id: [host.boot; 16],
            slots: self.plan.slots as u16,
            aliases: vec![],
            cpus: 1,
            memory: 0,
            users: self.plan.users(),
        };
        let event = scheduler::Event::AgentHello {
            session: SessionId(id),
            name: format!("h{n}"),
            hello,
        };
        self.at_coordinator_of(id, |world| world.tell_scheduler(event));
    }

    /// A host renews its leases. After a silence as long as the lease the coordinator may have
    /// given up the host's attempts.
    pub(super) fn hear(&mut self, n: usize) {
        if self.now - self.heard[n] > self.hosts[n].lease {
            self.kept.retain(|_, (host, ..)| *host != n);
        }
        self.heard[n] = self.now;
    }

    pub(super) fn agent_lost(&mut self, id: u64) {
        let Some(c) = self.connections.get_mut(&id) else {
            return;
        };
        if !std::mem::replace(&mut c.agent_open, false) {
            return;
        }
        let (n, agent) = (c.host, c.agent);
        let at = self.at(n);
        let host = &mut self.hosts[n];
        if host.connection == Some(id) {
            host.connection = None;
        }
        if host.agent == agent
            && let Some(supervisor) = &mut host.supervisor
        {
            supervisor.handle(supervisor::Event::Disconnected, at);
        }
        let cut = self.connections.get(&id).is_some_and(|c| c.cut);
        if self.hosts[n].links.0 && !cut {
            let wait = self.chance.millis(50);
            self.after(wait, Step::CoordinatorSeesEnd(id));
        }
    }

    pub(super) fn coordinator_lost(&mut self, id: u64) {
        let Some(c) = self.connections.get_mut(&id) else {
            return;
        };
        if !std::mem::replace(&mut c.coordinator_open, false) {
            return;
        }
        let (n, cut) = (c.host, c.cut);
        self.at_coordinator_of(id, |world| {
            world.tell_scheduler(scheduler::Event::AgentGone(SessionId(id)))
        });
        if self.hosts[n].links.1 && !cut {
            let wait = self.chance.millis(50);
            self.after(wait, Step::AgentSeesEnd(id));
        }
    }

    /// The agent's end of its connection is gone; the other end may notice it.
    pub(super) fn drop_agent_side(&mut self, n: usize) {
        if let Some(id) = self.hosts[n].connection.take() {
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.agent_open = false;
            }
            let cut = self.connections.get(&id).is_some_and(|c| c.cut);
            if self.hosts[n].links.0 && self.hosts[n].up && !cut && self.chance.one_in(2) {
                let wait = self.chance.millis(50);
                self.after(wait, Step::CoordinatorSeesEnd(id));
            }
        }
    }

    /// The next message to an agent arrives, or is sent again.
    pub(super) fn deliver_to_agent(&mut self, id: u64) {
        let Some(c) = self.connections.get_mut(&id) else {
            return;
        };
        let n = c.host;
        if !c.agent_open || !self.hosts[n].up {
            return;
        }
        if !self.hosts[n].links.1 || c.cut {
            // A message is sent again until it arrives or the connection is given up.
            return self.after(Duration::from_millis(200), Step::ToAgent(id));
        }
        let Some(message) = c.to_agent.pop_front() else {
            return;
        };
        c.agent_heard = self.now;
        match message {
            ToAgent::Generation { generation } => c.generation = generation,
            welcome @ ToAgent::Welcome { .. } => self.welcomed(id, welcome),
            other => self.tell_agent(n, supervisor::Event::Coordinator(other)),
        }
    }

    fn tell_agent(&mut self, n: usize, event: supervisor::Event) {
        let at = self.at(n);
        if let Some(supervisor) = &mut self.hosts[n].supervisor {
            supervisor.handle(event, at);
        }
    }

    /// An agent gets the welcome: the coordinator's generation and the lease.
    fn welcomed(&mut self, id: u64, welcome: ToAgent) {
        let Some(c) = self.connections.get(&id) else {
            return;
        };
        let ToAgent::Welcome {
            version,
            store,
            lease,
            first_engine,
            ..
        } = welcome
        else {
            return;
        };
        let (n, hello_sent) = (c.host, c.hello_sent);
        let (generation, of_copy) = (c.generation, self.copied && !c.original);
        let host = &mut self.hosts[n];
        match host.met.judge(store, generation) {
            Meeting::Known => {}
            Meeting::Newer => host.met.remember(store, generation),
            // The agent leaves.
            Meeting::Older(_) => return self.agent_lost(id),
        }
        host.met_copy |= of_copy;
        if host.supervisor.is_none() {
            return;
        }
        if let Some(lease) = lease {
            // Attempts that may have been given up under the old lease are not safe under this one.
            if self.now - self.heard[n] > host.lease {
                self.kept.retain(|_, (host, ..)| *host != n);
            }
            (host.lease, host.longest_lease) = (lease, host.longest_lease.max(lease));
        }
        let lease = match self.mutants.holds_on_to_the_longest_lease() {
            true => lease.map(|_| host.longest_lease),
            false => lease,
        };
        let event = supervisor::Event::Welcomed {
            version,
            store,
            lease: lease.map(|l| l + self.mutants.forgotten_margin()),
            first_engine,
            hello_sent,
        };
        self.tell_agent(n, event);
        if self.mutants.takes_unheard_engines_for_idle() {
            for slot in 0..self.plan.slots {
                let (engine, ready) = (
                    EngineIndex(slot as u16),
                    FromEngine::Ready { running: None },
                );
                self.tell_agent(n, supervisor::Event::Engine(engine, ready));
            }
        }
    }

    /// The next message to a coordinator arrives, or is sent again while its sender lives.
    pub(super) fn deliver_to_coordinator(&mut self, id: u64) {
        let Some(c) = self.connections.get_mut(&id) else {
            return;
        };
        let n = c.host;
        if !c.coordinator_open || self.serving.down {
            return;
        }
        if !self.hosts[n].links.0 || !self.hosts[n].up || c.cut {
            if !c.agent_open {
                return;
            }
            return self.after(Duration::from_millis(200), Step::ToCoordinator(id));
        }
        let Some(message) = c.to_coordinator.pop_front() else {
            return;
        };
        c.coordinator_heard = self.now;
        if let ToCoordinator::Heartbeat { .. }
        | ToCoordinator::Inventory { .. }
        | ToCoordinator::Served { .. } = message
        {
            self.hear(n);
        }
        if let ToCoordinator::Served { users, .. } = &message
            && !users.iter().any(|user| user == USER)
        {
            self.user_is_unheard(id, n);
        }
        let message = match message {
            ToCoordinator::ReportsOf { reports, .. } if self.mutants.believes_anybody() => {
                ToCoordinator::Reports(reports)
            }
            other => other,
        };
        if let ToCoordinator::Reports(reports) = &message
            && self.mutants.takes_stale_reports()
        {
            self.count_stale_reports(reports);
        }
        self.tell_scheduler(scheduler::Event::Agent(SessionId(id), message));
    }

    /// A host does not know the attempts of a user's engines.
    fn user_is_unheard(&mut self, id: u64, n: usize) {
        // The engines may come back too late for their attempts.
        self.kept.retain(|_, (host, ..)| *host != n);
        if self.mutants.takes_silence_for_absence() {
            let (queued, running, unacknowledged) = (vec![], vec![], vec![]);
            let nothing = ToCoordinator::UserInventory {
                user: USER.into(),
                queued,
                running,
                unacknowledged,
            };
            self.tell_scheduler(scheduler::Event::Agent(SessionId(id), nothing));
        }
    }

    /// Counts reports of earlier attempts for the present attempt, from any engine.
    fn count_stale_reports(&mut self, reports: &[NumberedReport]) {
        for NumberedReport {
            attempt, report, ..
        } in reports
        {
            let placed = self.placed.get(&attempt.key).copied();
            if let Some((later, session)) = placed.filter(|(a, _)| *a > attempt.attempt) {
                let attempt = AttemptId {
                    attempt: later,
                    ..*attempt
                };
                let stale = NumberedReport {
                    seq: u64::MAX,
                    attempt,
                    report: report.clone(),
                };
                let message = ToCoordinator::Reports(vec![stale]);
                self.tell_scheduler(scheduler::Event::Agent(SessionId(session), message));
            }
        }
    }
}
