//! The agent's core: the attempts that wait, those that run and where, the reports that have not
//! been acknowledged, and how many more attempts to ask for.
//!
//! No clock, no I/O: events in, effects out. [`crate::supervisor::driver`] performs the effects.
//!
//! The rules that make it safe:
//! - An attempt is in exactly one place: the queue, one engine, or the unacknowledged reports. The
//!   inventory lists all three and is sent only when every engine has been heard, so that an
//!   attempt that is not in it is not on this host.
//! - Reports stay until the coordinator has acknowledged them; engines forget an outcome only then.
//! - An engine is believed about attempts that it was given, and about nothing else. Its word about
//!   attempts that an earlier agent may have given it counts only for its own user's jobs, which
//!   the coordinator knows.
//! - If no heartbeat has been acknowledged for the time of a lease, no waiting attempt may start
//!   any more; engines enforce the same instant themselves.

mod batches;
mod claims;
mod connection;
mod coordinator;
mod dispatch;
pub mod driver;
mod ending;
mod engines;
mod event;
pub mod generations;
pub(crate) mod greeting;
mod handover;
pub mod host;
pub mod input;
mod inventory;
mod keepers;
mod lease;
pub mod links;
pub(crate) mod logs;
mod pace;
pub mod parts;
pub(crate) mod pauses;
mod programs;
mod queue;
pub mod renewal;
mod reporting;
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
use mezcal_common::message::agent::Load;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, StoreId};
use mezcal_common::model::outcome::Containment;
use pace::Pace;
use programs::Programs;
use queue::Queue;
use reports::Reports;
use session::Session;
use sets::Set;
use shortage::Shortage;
use slot::Engine;
use std::collections::{HashMap, HashSet, VecDeque};

/// The decisions for one host.
#[derive(Debug)]
pub struct Supervisor {
    /// Jobs that run at a time.
    slots: usize,
    /// Users have engines of their own, and none may harm another; else everybody's jobs run in the
    /// agent's own engines.
    shared: bool,
    /// One set for each user.
    sets: Vec<Set>,
    /// `slots` engines of each set, one set after the other. Of the engines with the same place in
    /// their sets, one runs something at a time.
    engines: Vec<Engine>,
    queue: Queue,
    batches: Batches,
    reports: Reports,
    /// When engines must be told which outcomes they may forget.
    acknowledge_at: Option<BootInstant>,
    session: Option<Session>,
    store: Option<StoreId>,
    lease_until: Option<BootInstant>,
    pace: Pace,
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
    /// Takes an event that happened at `now`.
    pub fn handle(&mut self, event: Event, now: BootInstant) {
        // An agent that was stopped past its lease may hear this before its timer.
        self.expire(now);
        match event {
            Event::Welcomed {
                version,
                store,
                lease,
                first_engine,
                hello_sent,
            } => {
                let engines = self.slots as u16;
                let session = Session::begin(version, lease, first_engine, engines, now);
                self.welcomed(session, store, hello_sent);
            }
            Event::Disconnected => self.disconnected(),
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
            } => self.engine_ended(engine, attempt, ended, killed, survivors, now),
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
                (self.load, self.clock_offset) = (load, clock_offset);
            }
            Event::Stop => self.stop(now),
            Event::Leave => {
                self.leaving = true;
                self.give_back();
            }
        }
        self.settle(now);
    }

    /// Does everything that is due at `now`.
    pub fn handle_timeout(&mut self, now: BootInstant) {
        self.expire(now);
        // Before the inventory and the heartbeat: nobody waits any longer for sets that are late,
        // and the first heartbeat follows the messages about them.
        self.look_at_sets(now);
        self.send_inventory();
        self.beat(now);
        self.report_started(now);
        self.relink(now);
        self.shortage.handle_timeout(now);
        self.tell_acknowledged_if_due(now);
        self.settle(now);
    }

    /// The time at which [`Supervisor::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<BootInstant> {
        let heartbeat = self.session.as_ref().and_then(Session::next_heartbeat);
        let engines = [self.started_at(), self.relink_at(), self.failing_at()];
        let sets = [self.sets_at(), self.replacements_end()];
        let reports = [self.reports.due(), self.acknowledge_at];
        let host = [heartbeat, self.lease_until, self.shortage.poll_timeout()];
        let all = engines.into_iter().chain(sets).chain(reports).chain(host);
        all.flatten().min()
    }

    /// The next effect to perform.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn settle(&mut self, now: BootInstant) {
        self.look_at_sets(now);
        self.look_at_failures(now);
        self.send_inventory();
        self.look_at_programs(now);
        self.dispatch(now);
        // Reports that wait for company are sent together with the next pull.
        if self.is_known() && self.send_reports(now) {
            self.pull();
        }
        self.end_when_done();
    }
}

#[cfg(test)]
mod tests;
