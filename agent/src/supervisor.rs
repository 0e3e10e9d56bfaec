//! The agent's core: what waits, what runs where, what has not been acknowledged, and how much more
//! to ask for.
//!
//! No clock, no I/O: events in, effects out. [`crate::supervisor::driver`] performs the effects.
//!
//! The rules that make it safe:
//! - An attempt is in exactly one place: the queue, one engine, or the unacknowledged reports. The
//!   inventory lists all three and is sent only when every engine has been heard, so that what is
//!   not in it is not on this host.
//! - Reports stay until the coordinator has acknowledged them; engines forget an outcome only then.
//! - An engine is believed about what it was given, and about nothing else. What it says of
//!   attempts that an earlier agent may have given it counts only for its own user's jobs, which
//!   the coordinator knows.
//! - Without an acknowledged heartbeat for a lease nothing waiting may start any more; engines
//!   enforce the same instant themselves.

mod batches;
mod claims;
mod connection;
mod dispatch;
pub mod driver;
mod ending;
mod engines;
mod event;
pub mod generations;
pub(crate) mod greeting;
mod handover;
pub mod host;
mod inventory;
mod keepers;
pub mod links;
pub(crate) mod logs;
pub(crate) mod pauses;
mod programs;
mod queue;
pub mod renewal;
mod reports;
mod serving;
mod session;
mod sets;
mod shortage;
mod slot;
mod standing;
pub mod users;

pub use event::{Effect, Event};
pub use handover::Carried;
pub use session::HEARTBEAT;
pub use sets::HEARD_WITHIN;

use batches::Batches;
use mezcal_common::message::agent::{Load, Report, ToCoordinator};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, StoreId};
use mezcal_common::model::outcome::Containment;
use programs::Programs;
use queue::Queue;
use reports::{Entry, STARTED_AFTER};
use session::Session;
use sets::Set;
use shortage::Shortage;
use slot::{Engine, Slot};
use std::collections::{HashMap, HashSet, VecDeque};

/// One host's decisions.
#[derive(Debug)]
pub struct Supervisor {
    /// Jobs at a time.
    slots: usize,
    /// Users have engines of their own, and none may harm another; else everybody's jobs run in the
    /// agent's own.
    shared: bool,
    /// One for each user.
    sets: Vec<Set>,
    /// `slots` of each set, one set after the other. Of those with the same place in their sets one
    /// runs something at a time.
    engines: Vec<Engine>,
    queue: Queue,
    batches: Batches,
    reports: VecDeque<Entry>,
    next_seq: u64,
    /// Sequence number of the first report not sent in this session.
    next_unsent: u64,
    /// Until when it may wait.
    send_by: Option<BootInstant>,
    /// When engines must be told what they may forget.
    acknowledge_at: Option<BootInstant>,
    session: Option<Session>,
    store: Option<StoreId>,
    lease_until: Option<BootInstant>,
    mean_run: Option<f64>,
    load: Load,
    clock_offset: Option<f64>,
    containment: Containment,
    shortage: Shortage,
    programs: Programs,
    /// Running attempts that are given back when they are dead.
    evicted: HashSet<AttemptId>,
    /// Attempts whose ends the keeper of a set remembers until they are acknowledged.
    ends: HashMap<AttemptId, usize>,
    stopping: bool,
    leaving: bool,
    effects: VecDeque<Effect>,
}

impl Supervisor {
    /// A supervisor of `slots` engines, none of which has been heard yet; with `users`, of so many
    /// for each of them.
    pub fn new(slots: u16, users: Option<Vec<String>>) -> Self {
        let slots = usize::from(slots);
        let shared = users.is_some();
        let sets: Vec<Set> = users
            .unwrap_or_else(|| vec![String::new()])
            .into_iter()
            .map(Set::new)
            .collect();
        Self {
            slots,
            shared,
            engines: (0..slots * sets.len()).map(|_| Engine::new()).collect(),
            sets,
            queue: Queue::default(),
            batches: Batches::default(),
            reports: VecDeque::new(),
            next_seq: 1,
            next_unsent: 1,
            send_by: None,
            acknowledge_at: None,
            session: None,
            store: None,
            lease_until: None,
            mean_run: None,
            load: Load::default(),
            clock_offset: None,
            containment: Containment::Subreaper,
            shortage: Shortage::default(),
            programs: Programs::default(),
            evicted: HashSet::new(),
            ends: HashMap::new(),
            stopping: false,
            leaving: false,
            effects: VecDeque::new(),
        }
    }

    /// Takes what happened at `now`.
    pub fn handle(&mut self, event: Event, now: BootInstant) {
        // Whoever was stopped past its lease may hear this before its timer.
        self.expire(now);
        match event {
            Event::Welcomed {
                version,
                store,
                lease,
                first_engine,
                hello_sent,
            } => {
                self.enter(store);
                self.sets.iter_mut().for_each(|set| set.told = None);
                self.programs.told = None;
                self.session = Some(Session {
                    version,
                    lease,
                    first_engine,
                    received: 0,
                    asked: (0, 0),
                    known: false,
                    next_heartbeat: now,
                    timed: None,
                    engines: (self.slots as u16, None),
                });
                self.renew(hello_sent);
            }
            Event::Disconnected => {
                self.session = None;
                self.send_by = None;
                self.release_output();
            }
            Event::Coordinator(message) => self.on_coordinator(message, now),
            Event::Engine(index, message) => self.on_engine(index, message, now),
            Event::Runs(index, version) => self.engine_runs(usize::from(index.0), &version),
            Event::Containment(kind) => self.containment = kind,
            Event::EngineEnded {
                engine,
                attempt,
                ended,
                killed,
                survivors,
            } => {
                self.engine_ended(engine, attempt, ended, killed, survivors, now);
            }
            Event::EngineFails { engine, why } => {
                if let Some(engine) = self.engines.get_mut(usize::from(engine.0)) {
                    engine.why = Some(why);
                }
            }
            Event::LinkMade(index) => self.link_made(index),
            Event::LinkLost(index) => self.link_lost(index, now),
            Event::KeeperGone { set, why } => self.keeper_gone(set, why, now),
            Event::KeeperHere { user } => self.keeper_here(user),
            Event::Measured { load, clock_offset } => {
                self.load = load;
                self.clock_offset = clock_offset;
            }
            Event::Stop => self.stop(now),
            Event::Leave => {
                self.leaving = true;
                self.give_back();
            }
        }
        self.settle(now);
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: BootInstant) {
        self.expire(now);
        // Nobody waits any longer for whoever is late, and the first heartbeat follows what is said
        // of that.
        self.look_at_sets(now);
        self.send_inventory();
        if let Some(session) = &mut self.session
            && session.known
            && session.next_heartbeat <= now
        {
            session.next_heartbeat = now + HEARTBEAT;
            let (load, clock_offset) = (self.load, self.clock_offset);
            self.effects
                .push_back(Effect::ToCoordinator(ToCoordinator::Heartbeat {
                    sent: now,
                    load,
                    clock_offset,
                }));
        }
        self.report_started(now);
        self.relink(now);
        self.shortage.handle_timeout(now);
        if self.acknowledge_at.is_some_and(|at| at <= now) {
            self.acknowledge_at = None;
            for i in 0..self.engines.len() {
                self.tell_acknowledged(i);
            }
        }
        self.settle(now);
    }

    /// When [`Supervisor::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<BootInstant> {
        let heartbeat = self
            .session
            .as_ref()
            .filter(|s| s.known)
            .map(|s| s.next_heartbeat);
        let connected = heartbeat.is_some();
        let started = self.engines.iter().filter_map(|e| match e.slot {
            Slot::Busy {
                since,
                reported: false,
                ..
            } if connected => Some(since + STARTED_AFTER),
            Slot::Unheard { .. }
            | Slot::Idle
            | Slot::Busy { .. }
            | Slot::Held { .. }
            | Slot::Unfit => None,
        });
        let sets = (0..self.sets.len()).filter(|_| self.shared);
        let sets =
            sets.filter_map(|set| self.sets[set].poll_timeout(self.what_is_wrong(set).is_none()));
        let relinks = self.engines.iter().filter_map(|engine| engine.relink_at);
        let failing = self
            .engines
            .iter()
            .filter(|engine| !engine.failing)
            .filter_map(|engine| Some(engine.vacant? + HEARD_WITHIN));
        started
            .chain(sets)
            .chain(relinks)
            .chain(failing)
            .chain(heartbeat)
            .chain(self.lease_until)
            .chain(self.send_by)
            .chain(self.acknowledge_at)
            .chain(self.shortage.poll_timeout())
            .chain(self.replacements_end())
            .min()
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn settle(&mut self, now: BootInstant) {
        self.look_at_sets(now);
        self.look_at_failures(now);
        self.send_inventory();
        self.look_at_programs(now);
        self.dispatch(now);
        // What waits for company is sent together with the next pull.
        if self.session.as_ref().is_some_and(|s| s.known) && self.send_reports(now) {
            self.pull();
        }
        if self.stopping
            && self.queue.is_empty()
            && self.busy() == 0
            && (self.reports.is_empty() || self.session.is_none())
        {
            self.effects
                .push_back(Effect::ToCoordinator(ToCoordinator::Goodbye));
            self.effects.push_back(Effect::Exit);
        }
        let back = |entry: &Entry| entry.report.report == Report::Returned;
        if self.leaving && (self.session.is_none() || !self.reports.iter().any(back)) {
            self.effects.push_back(Effect::Exit);
        }
    }
}

#[cfg(test)]
mod tests;
