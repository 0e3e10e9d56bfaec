//! One session with the coordinator: its terms, how many attempts were asked for in it, and which
//! messages have been sent.

use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::EngineId;
use std::time::Duration;

/// The time between two heartbeats.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// The coordinator's knowledge of the engines: how many are of use, and why the others are not.
pub(super) type Usable = (u16, Option<String>);

#[derive(Debug)]
pub(super) struct Session {
    version: u16,
    lease: Option<Duration>,
    first_engine: EngineId,
    /// Attempts received in this session, counted in slots.
    received: u64,
    /// The credit and the idle slots that the last `Pull` told.
    asked: (u64, u16),
    /// The inventory has been sent.
    known: bool,
    next_heartbeat: BootInstant,
    usable: Usable,
}

impl Session {
    /// A session that has been welcomed, of a host with this many engines.
    pub(super) fn begin(
        version: u16,
        lease: Option<Duration>,
        first_engine: EngineId,
        engines: u16,
        now: BootInstant,
    ) -> Self {
        Self {
            version,
            lease,
            first_engine,
            received: 0,
            asked: (0, 0),
            known: false,
            next_heartbeat: now,
            usable: (engines, None),
        }
    }

    /// Whether both sides speak this version of the protocol, or a later one.
    pub(super) fn speaks(&self, version: u16) -> bool {
        self.version >= version
    }

    /// How long attempts may run without an acknowledged heartbeat; none: for ever.
    pub(super) fn lease(&self) -> Option<Duration> {
        self.lease
    }

    /// The number of the host's first engine in the cluster.
    pub(super) fn first_engine(&self) -> EngineId {
        self.first_engine
    }

    /// Whether the coordinator has been told which attempts are here.
    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    pub(super) fn is_known_now(&mut self) {
        self.known = true;
    }

    pub(super) fn next_heartbeat(&self) -> Option<BootInstant> {
        self.known.then_some(self.next_heartbeat)
    }

    /// Whether a heartbeat is due; if one is, the next one follows in its time.
    pub(super) fn take_heartbeat(&mut self, now: BootInstant) -> bool {
        let due = self.known && self.next_heartbeat <= now;
        if due {
            self.next_heartbeat = now + HEARTBEAT;
        }
        due
    }

    /// Attempts have come that take this many slots.
    pub(super) fn receive(&mut self, slots: u64) {
        self.received += slots;
    }

    /// Whether more attempts may come than have come.
    pub(super) fn has_credit(&self) -> bool {
        self.asked.0 > self.received
    }

    /// The next credit and number of idle slots to tell, if they have changed: credit for attempts
    /// that take `want` slots more, which is never taken back, and how many slots are idle.
    pub(super) fn ask(&mut self, want: u64, idle: u16) -> Option<(u64, u16)> {
        let asked = (self.asked.0.max(self.received + want), idle);
        let changed = asked != self.asked;
        self.asked = asked;
        changed.then_some(asked)
    }

    /// Asks for nothing more; returns the credit that is left.
    pub(super) fn ask_no_more(&mut self) -> u64 {
        self.asked = (self.received, 0);
        self.received
    }

    /// Whether this is news to the coordinator, which is told it now.
    pub(super) fn tell_usable(&mut self, usable: &Usable) -> bool {
        let news = self.usable != *usable;
        if news {
            self.usable.clone_from(usable);
        }
        news
    }
}
