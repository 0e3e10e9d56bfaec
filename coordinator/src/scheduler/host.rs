//! A host, and the attempts that are or may be on it.

use super::credit::Credit;
use super::drain::Drain;
use super::on_host::Attempts;
use super::{quarantine, wide};
use mezcal_common::message::agent::{Hello, Load};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{BatchSerial, EngineId, SessionId};
use mezcal_common::model::outcome::{Containment, Place};
use rustc_hash::FxHashSet;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(super) const REASON_CHARS: usize = 200;

#[derive(Debug)]
pub(super) struct Host {
    pub(super) name: Arc<str>,
    /// Its index into the names of hosts.
    pub(super) index: u32,
    pub(super) containment: Containment,
    /// Names beside its full one to which it has a claim.
    pub(super) aliases: Vec<Arc<str>>,
    pub(super) session: Option<SessionId>,
    /// The last hello of its agent; only the slots count if it has not connected in this life of
    /// ours.
    hello: Hello,
    pub(super) seen: bool,
    pub(super) first_engine: EngineId,
    /// The inventory of this session has arrived.
    known: bool,
    /// How many jobs can run there at a time, as its agent says; none: as many as it has slots.
    usable: Option<u16>,
    /// Why the other slots cannot be used.
    failing: Option<String>,
    /// Its inventory has not arrived in time.
    late: bool,
    /// The number of slots with which it serves under its names; zero: it is absent.
    pub(super) width: u16,
    /// Its share in the counts of the fleet: agents and slots.
    pub(super) counted: (u32, u32),
    /// The slots that its agent has asked for in this session.
    pub(super) credit: Credit,
    /// Batches whose context was sent in this session.
    told: FxHashSet<BatchSerial>,
    pub(super) attempts: Attempts,
    /// Users who have engines there that are not served, and why.
    pub(super) unheard: Vec<(String, String)>,
    /// Versions of its engines, and how many have each.
    pub(super) engines: Vec<(String, u16)>,
    /// Users who get new engines there once their running jobs have ended, and no new jobs until
    /// then.
    pub(super) replacing: Vec<String>,
    /// Users, by number, of whose attempts there nothing is heard, and when those are surely over.
    fenced: BTreeMap<u32, BootInstant>,
    /// Idle slots that are kept for a job of several slots, and when it may keep some again.
    pub(super) kept: Option<wide::Kept>,
    pub(super) no_more_before: Option<BootInstant>,
    pub(super) failures: quarantine::Failures,
    pub(super) drain: Drain,
    /// Its place in the scheduler's indices: whether it wants jobs, and since when its longest idle
    /// slot has been idle.
    pub(super) indexed: (bool, Option<BootInstant>),
    /// [`Host::room`] when it was last indexed.
    pub(super) had_room: u16,
    /// When the last message arrived that renewed its lease.
    pub(super) heard: BootInstant,
    pub(super) since: BootInstant,
    pub(super) load: Load,
    pub(super) clock_offset: Option<f64>,
}

impl Host {
    /// A host that an earlier life of the coordinator knew.
    pub(super) fn of_earlier_life(name: Arc<str>, index: u32, now: BootInstant) -> Self {
        let hello = Hello {
            versions: (0, 0),
            program: String::new(),
            keeper: 0,
            boot_id: [0; 16],
            slots: 0,
            aliases: Vec::new(),
            cpus: 0,
            memory: 0,
            users: None,
        };
        Self::new(name, index, hello, now)
    }

    fn new(name: Arc<str>, index: u32, hello: Hello, now: BootInstant) -> Self {
        Self {
            name,
            index,
            containment: Containment::Subreaper,
            aliases: Vec::new(),
            session: None,
            hello,
            seen: false,
            first_engine: EngineId(0),
            known: false,
            usable: None,
            failing: None,
            late: false,
            width: 0,
            counted: (0, 0),
            credit: Credit::default(),
            told: FxHashSet::default(),
            attempts: Attempts::default(),
            unheard: Vec::new(),
            engines: Vec::new(),
            replacing: Vec::new(),
            fenced: BTreeMap::new(),
            kept: None,
            no_more_before: None,
            failures: quarantine::Failures::default(),
            drain: Drain::default(),
            indexed: (false, None),
            had_room: 0,
            heard: now,
            since: now,
            load: Load::default(),
            clock_offset: None,
        }
    }

    /// The same host with a connected agent.
    pub(super) fn connected(
        self,
        session: SessionId,
        hello: Hello,
        first_engine: EngineId,
        now: BootInstant,
    ) -> Self {
        Self {
            aliases: self.aliases,
            session: Some(session),
            seen: true,
            first_engine,
            attempts: self.attempts,
            failures: self.failures,
            drain: self.drain,
            ..Self::new(self.name, self.index, hello, now)
        }
    }

    /// Its session has ended.
    pub(super) fn disconnected(&mut self, now: BootInstant) {
        (self.session, self.known) = (None, false);
        (self.usable, self.failing, self.late) = (None, None, false);
        self.credit = Credit::default();
        self.since = now;
        self.told.clear();
    }

    /// Notes that it is told of a batch. True if it had not been told in this session.
    pub(super) fn tell_of(&mut self, batch: BatchSerial) -> bool {
        self.told.insert(batch)
    }

    /// Forgets a batch that has ended. True if the host was told of it in this session.
    pub(super) fn forgets(&mut self, batch: BatchSerial) -> bool {
        self.failures.forget(batch);
        self.told.remove(&batch)
    }

    /// Sets the numbers that an earlier life gave to its engines.
    pub(super) fn had_engines(&mut self, first: EngineId, slots: u16) {
        (self.first_engine, self.hello.slots) = (first, slots);
    }

    pub(super) fn hello(&self) -> &Hello {
        &self.hello
    }

    /// It runs jobs of these users from now on, or of everybody; returns those of before.
    pub(super) fn serve_only(&mut self, users: Option<Vec<String>>) -> Option<Vec<String>> {
        std::mem::replace(&mut self.hello.users, users)
    }

    /// Whether it has a session, and the inventory of this session has arrived.
    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    pub(super) fn set_known(&mut self, known: bool) {
        self.known = known;
        self.late &= !known;
    }

    /// Its inventory has not arrived in time.
    pub(super) fn set_late(&mut self) {
        self.late = true;
    }

    /// So many jobs can run there at a time, and why not more; returns that reason of before.
    pub(super) fn set_usable(&mut self, ready: u16, failing: Option<String>) -> Option<String> {
        self.usable = Some(ready);
        std::mem::replace(&mut self.failing, failing)
    }

    /// Slots that jobs can have at present.
    pub(super) fn usable_now(&self) -> u16 {
        if self.late { 0 } else { self.slots() }
    }

    /// Why its agent says that some of its slots cannot be used.
    pub(super) fn failing(&self) -> Option<&str> {
        self.failing.as_deref()
    }

    /// Why some of its slots cannot be used; none: all can.
    pub(super) fn trouble(&self) -> Option<&str> {
        const LATE: &str = "its agent has not said what runs there: its engines do not answer";
        self.failing().or_else(|| self.late.then_some(LATE))
    }

    /// Fences the attempts of these users, and of no others, until then; fences that stand stay as
    /// they are. Without a lease nothing has to be fenced.
    pub(super) fn fence_only(&mut self, users: &BTreeSet<u32>, until: Option<BootInstant>) {
        self.fenced.retain(|user, _| users.contains(user));
        let Some(until) = until else {
            return;
        };
        for user in users {
            self.fenced.entry(*user).or_insert(until);
        }
    }

    /// When the first fence of a user ends.
    pub(super) fn first_fence(&self) -> Option<BootInstant> {
        self.fenced.values().min().copied()
    }

    /// Ends the fences that are over; returns whose they were.
    pub(super) fn end_fences(&mut self, now: BootInstant) -> Vec<u32> {
        let over = self.fenced.extract_if(.., |_, until| *until <= now);
        over.map(|(user, _)| user).collect()
    }

    /// How many of its slots can be used.
    pub(super) fn slots(&self) -> u16 {
        self.usable
            .map_or(self.hello.slots, |usable| usable.min(self.hello.slots))
    }

    /// The place of an attempt on one of its engines; none: it is not known on which.
    pub(super) fn place(&self, engine: Option<u16>) -> Option<Place> {
        Some(Place {
            host: self.name.clone(),
            engine: EngineId(self.first_engine.0 + u32::from(engine?)),
            clock_offset: self.clock_offset,
        })
    }

    /// The names to which it has a claim.
    pub(super) fn names(&self) -> Vec<Arc<str>> {
        std::iter::once(&self.name)
            .chain(&self.aliases)
            .cloned()
            .collect()
    }

    /// Whether its inventory is known, and it is neither quarantined nor drained.
    pub(super) fn is_willing(&self) -> bool {
        self.known && self.failures.until.is_none() && self.drain.reason().is_none()
    }

    /// Most slots that one job may take at once: they are idle, and nothing is on its way to them.
    /// An agent that reports idle slots may not yet have the jobs that were sent before.
    pub(super) fn room(&self) -> u16 {
        let not_taken = u64::from(self.slots()).saturating_sub(self.attempts.slots());
        let asked = self.credit.left();
        asked
            .min(self.credit.idle() as u64)
            .min(not_taken)
            .min(u64::from(u16::MAX)) as u16
    }

    /// Whether it has asked for a job of so many slots. A job of one slot may wait there for a
    /// while.
    pub(super) fn has_asked_for(&self, slots: u16) -> bool {
        self.credit.is_left() && (slots == 1 || slots <= self.room())
    }

    /// Whether it has more jobs than it can run.
    pub(super) fn is_overfull(&self) -> bool {
        self.attempts.slots() > u64::from(self.slots())
    }
}
