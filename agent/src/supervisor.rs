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
pub mod driver;
pub mod generations;
pub(crate) mod greeting;
pub mod host;
pub(crate) mod logs;
pub(crate) mod pauses;
mod programs;
mod queue;
pub mod renewal;
mod sets;
mod shortage;
pub mod users;

use batches::Batches;
use mezcal_common::message::agent::{
    COUNTS_OUTPUT, ENGINES_FAIL, KNOWS_SHORTAGES, Load, NumberedReport, Placement, Report,
    SERVES_USERS, ToAgent, ToCoordinator,
};
use mezcal_common::message::engine::{FromEngine, OUTPUT_WINDOW, ToEngine, ToKeeper};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, BatchSerial, EngineId, EngineIndex, StoreId};
use mezcal_common::model::job::Stop;
use mezcal_common::model::outcome::{Containment, Ended, Outcome};
use programs::{Programs, Replacing};
use queue::Queue;
pub use sets::HEARD_WITHIN;
use sets::Set;
use shortage::Shortage;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

/// Between two heartbeats.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// An attempt that has been with an engine this long is reported as started; shorter ones save the
/// message.
const STARTED_AFTER: Duration = Duration::from_millis(200);
/// Outcomes that may wait for their acknowledgement before the agent stops asking for more.
const MAX_UNACKNOWLEDGED: usize = 1024;
/// What it takes to get another attempt from the coordinator, processing included: prefetch covers
/// this much run time.
const REFILL: Duration = Duration::from_millis(20);
/// Reports may wait this long for company while the queue can feed the engines: one packet then
/// carries several.
const COALESCE: Duration = Duration::from_millis(50);
/// A report that has not been acknowledged by then shows that the coordinator is behind: what comes
/// after it waits for the acknowledgement, so that there are fewer messages the more there is to do
/// (as Nagle's algorithm does, RFC 896).
const BEHIND: Duration = REFILL;
/// But not longer than this after it.
const MAX_BEHIND: Duration = Duration::from_millis(200);
/// Acknowledgements for an engine wait this long for a message that goes there anyway.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(1);
/// Most attempts to ask for beyond what can start now.
const MAX_PREFETCH: u64 = 512;
/// Weight of the newest run time in their mean: 1/8, as TCP's smoothed round trip (RFC 6298).
const SMOOTHING: f64 = 0.125;
/// After the end of its link an engine's own end may be told: only then the keeper is asked for
/// another link to it.
const RELINK_AFTER: Duration = Duration::from_millis(250);
/// And again after this, if nothing has come of it: longer than the keeper takes for the sign of an
/// engine that is no use.
const RELINK_AGAIN: Duration = Duration::from_secs(15);
/// Grace for attempts when the agent itself stops.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// What happens to an agent.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The coordinator's `Welcome`, with the time at which our `Hello` left.
    Welcomed {
        /// The version of the protocol that both speak.
        version: u16,
        /// The coordinator's store. Nothing that another one knows is wanted.
        store: StoreId,
        /// How long attempts may run without an acknowledged heartbeat.
        lease: Option<Duration>,
        /// Number of the first engine.
        first_engine: EngineId,
        /// When our `Hello` was sent.
        hello_sent: BootInstant,
    },
    /// The connection is gone.
    Disconnected,
    /// Any later message of the coordinator.
    Coordinator(ToAgent),
    /// A message of an engine.
    Engine(EngineIndex, FromEngine),
    /// An engine says which version of the program it runs, before it says anything else over a
    /// link.
    Runs(EngineIndex, String),
    /// What the keeper has to hold attempts together.
    Containment(Containment),
    /// An engine died and what it left was killed.
    EngineEnded {
        /// Which.
        engine: EngineIndex,
        /// What it ran, if the keeper knows.
        attempt: Option<AttemptId>,
        /// Why the keeper killed it; `Lost` if it died by itself.
        ended: Ended,
        /// Processes killed.
        killed: u32,
        /// Processes still alive.
        survivors: u32,
    },
    /// Why an engine has died or could not be started, in the words of its keeper.
    EngineFails {
        /// Which.
        engine: EngineIndex,
        /// Why.
        why: String,
    },
    /// There is a link to an engine: the first, or another one in the place of one that may not
    /// have ended yet.
    LinkMade(EngineIndex),
    /// The link to an engine has come to its end, either way.
    LinkLost(EngineIndex),
    /// Nothing is to be heard any more from the keeper of a user, nor from its engines.
    KeeperGone {
        /// Which of the users.
        set: usize,
        /// Why, for those who ask why the user's jobs do not run here.
        why: String,
    },
    /// There is a keeper of this user, who may be new here.
    KeeperHere {
        /// Whose.
        user: String,
    },
    /// A new reading for heartbeats.
    Measured {
        /// Load and memory.
        load: Load,
        /// Seconds to add to our wall clock to get the coordinator's.
        clock_offset: Option<f64>,
    },
    /// The agent should stop: kill everything, report it, say goodbye.
    Stop,
    /// The agent should end, and what runs goes on in its users' engines: give back what has not
    /// started.
    Leave,
}

/// What a supervisor leaves to its successor in the same process.
#[derive(Debug, Default)]
pub struct Carried {
    /// What waits goes on waiting, for as long as its lease allows.
    queue: Queue,
    batches: Batches,
    store: Option<StoreId>,
    lease_until: Option<BootInstant>,
    /// Ends that no engine can repeat, each with the user if that is known.
    ends: Vec<(AttemptId, Report, Option<String>)>,
    /// Whose engines have been replaced by those of another version.
    replaced: Vec<String>,
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Tell the coordinator, in the present session.
    ToCoordinator(ToCoordinator),
    /// Tell an engine.
    ToEngine(EngineIndex, ToEngine),
    /// Tell the keeper of a set.
    ToKeeper(usize, ToKeeper),
    /// Everything is reported: end the process.
    Exit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    /// Not heard since its link was made.
    Unheard {
        /// What it was given over an earlier one, and how many slots that takes: it may still run.
        given: Option<(AttemptId, u16)>,
    },
    Idle,
    Busy {
        attempt: AttemptId,
        since: BootInstant,
        reported: bool,
        /// So many of the host: this engine, and others that do nothing meanwhile.
        slots: u16,
        /// Only the engine says so. The coordinator has not confirmed it yet.
        claimed: bool,
    },
    /// Something in it does not die.
    Held {
        slots: u16,
    },
    /// It does something that nobody here knows of. Nothing waits for it.
    Unfit,
}

impl Slot {
    /// So many slots of the host.
    fn taken(self) -> u16 {
        match self {
            Slot::Idle | Slot::Unfit => 0,
            Slot::Unheard { given } => given.map_or(1, |(_, slots)| slots),
            Slot::Busy { slots, .. } | Slot::Held { slots } => slots,
        }
    }

    /// What it was given, and how many slots that takes, unless it is known to be over.
    fn given(self) -> Option<(AttemptId, u16)> {
        match self {
            Slot::Unheard { given } => given,
            Slot::Busy {
                attempt,
                slots,
                claimed: false,
                ..
            } => Some((attempt, slots)),
            Slot::Idle | Slot::Busy { claimed: true, .. } | Slot::Held { .. } | Slot::Unfit => None,
        }
    }
}

#[derive(Debug)]
struct Engine {
    slot: Slot,
    /// The batch whose context it knows.
    context: Option<BatchSerial>,
    /// Outcomes that it may forget, not told yet.
    acknowledged: Vec<AttemptId>,
    /// What it was told to kill: told again over a new link.
    stop: Option<(AttemptId, Stop)>,
    /// Streamed output of its attempt that the far end has not taken.
    output: u32,
    /// When to ask for another link to it.
    relink_at: Option<BootInstant>,
    /// The version of its program, once it has been heard; empty if it says none.
    program: Option<String>,
    /// Since when there is nothing in it: the one before it is dead by its keeper's word, and it
    /// has not been heard itself.
    vacant: Option<BootInstant>,
    /// That has been so for long.
    failing: bool,
    /// Why, if its keeper has said so.
    why: Option<String>,
}

impl Engine {
    fn new() -> Self {
        Self {
            slot: Slot::Unheard { given: None },
            context: None,
            acknowledged: Vec::new(),
            stop: None,
            output: 0,
            relink_at: None,
            program: None,
            vacant: None,
            failing: false,
            why: None,
        }
    }

    /// Whether it may have something that nobody here knows of.
    fn is_unknown(&self) -> bool {
        matches!(self.slot, Slot::Unheard { .. }) && self.vacant.is_none()
    }

    fn is_heard(&self) -> bool {
        !matches!(self.slot, Slot::Unheard { .. })
    }
}

/// A report on its way.
#[derive(Debug)]
struct Entry {
    report: NumberedReport,
    /// Whose engines it is about, if that is known.
    set: Option<usize>,
    /// It is not about anything that was given out here: it counts for that user's jobs only.
    claimed: bool,
}

#[derive(Debug)]
struct Session {
    version: u16,
    lease: Option<Duration>,
    first_engine: EngineId,
    /// Slots' worth of attempts received in this session.
    received: u64,
    /// What the last `Pull` said.
    asked: (u64, u16),
    /// The inventory has been sent.
    known: bool,
    next_heartbeat: BootInstant,
    /// One report at a time whose acknowledgement is waited for, and when it was sent.
    timed: Option<(u64, BootInstant)>,
    /// What the coordinator has been told of engines that fail.
    engines: (u16, Option<String>),
}

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

    /// Begins with what its predecessor has left to it.
    #[must_use]
    pub fn carrying(mut self, carried: Carried) -> Self {
        let Carried {
            queue,
            batches,
            store,
            lease_until,
            ends,
            replaced,
        } = carried;
        for set in self
            .sets
            .iter_mut()
            .filter(|set| replaced.contains(&set.user))
        {
            set.replacing = Replacing::Done;
        }
        (self.queue, self.batches, self.store, self.lease_until) =
            (queue, batches, store, lease_until);
        for (attempt, report, user) in ends {
            let set = user.and_then(|user| self.set_of(&user));
            self.push(attempt, report, set, false);
        }
        self
    }

    /// What its successor goes on with. Nothing that waits starts here any more.
    pub fn leave(&mut self) -> Carried {
        // Engines and keepers repeat the other ends.
        let own = |report: &Report| {
            matches!(
                report,
                Report::Returned | Report::Finished { engine: None, .. }
            )
        };
        let user = |entry: &Entry| entry.set.map(|set| self.sets[set].user.clone());
        let left = self
            .reports
            .iter()
            .filter(|entry| own(&entry.report.report));
        let ends = left
            .map(|entry| {
                (
                    entry.report.attempt,
                    entry.report.report.clone(),
                    user(entry),
                )
            })
            .collect();
        let (queue, batches) = (
            std::mem::take(&mut self.queue),
            std::mem::take(&mut self.batches),
        );
        let replaced = self
            .sets
            .iter()
            .filter(|set| matches!(set.replacing, Replacing::Ending { .. } | Replacing::Done));
        let replaced = replaced.map(|set| set.user.clone()).collect();
        Carried {
            queue,
            batches,
            store: self.store,
            lease_until: self.lease_until,
            ends,
            replaced,
        }
    }

    /// Which of the sets is this user's.
    pub fn set_of(&self, user: &str) -> Option<usize> {
        self.sets
            .iter()
            .position(|set| set.user == user)
            .filter(|_| self.shared)
    }

    /// Whose a set is.
    pub fn user_of(&self, set: usize) -> Option<&str> {
        self.sets
            .get(set)
            .filter(|_| self.shared)
            .map(|set| set.user.as_str())
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

    /// Gives up what waits once the lease is over.
    fn expire(&mut self, now: BootInstant) {
        if self.lease_until.is_none_or(|until| until > now) {
            return;
        }
        self.lease_until = None;
        for attempt in self.queue.take() {
            let why = "the coordinator was out of reach for longer than the lease";
            self.finished(
                None,
                attempt,
                Outcome::never_ran(Ended::Lost, why.to_owned()),
            );
        }
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

    /// Slots in use, also by what may still run in engines that are not heard.
    pub fn busy(&self) -> usize {
        let busy = |slot| {
            matches!(
                slot,
                Slot::Busy { .. } | Slot::Held { .. } | Slot::Unheard { given: Some(_) }
            )
        };
        self.engines.iter().filter(|e| busy(e.slot)).count()
    }

    /// Slots that nothing takes.
    fn free(&self) -> usize {
        if self.engines.is_empty() {
            return 0;
        }
        let taken: usize = (0..self.slots)
            .map(|place| usize::from(self.taken(place)))
            .sum();
        self.slots.saturating_sub(taken)
    }

    /// What the engines of one place take.
    fn taken(&self, place: usize) -> u16 {
        (place..self.engines.len())
            .step_by(self.slots)
            .map(|i| self.taken_by(i))
            .max()
            .unwrap_or(0)
    }

    /// What one engine takes. Of a set that is not served, only what it was given counts.
    fn taken_by(&self, index: usize) -> u16 {
        let slot = self.engines[index].slot;
        match slot {
            Slot::Unheard { given: None } | Slot::Busy { claimed: true, .. }
                if !self.is_served(index / self.slots) =>
            {
                0
            }
            Slot::Idle if self.rests_for_engines() => 1,
            _ => slot.taken(),
        }
    }

    fn is_served(&self, set: usize) -> bool {
        !self.shared || self.sets[set].served
    }

    fn engines_of(&self, set: usize) -> std::ops::Range<usize> {
        set * self.slots..(set + 1) * self.slots
    }

    fn set_of_engine(&self, index: EngineIndex) -> usize {
        usize::from(index.0) / self.slots.max(1)
    }

    /// Whose jobs a batch's are, if not the agent's own: its user, or those who may be. None: it
    /// runs nobody else's.
    pub fn owners_of(&self, batch: BatchSerial) -> Option<Vec<String>> {
        let everybody = || self.sets.iter().map(|set| set.user.clone()).collect();
        self.shared.then(|| {
            self.batches
                .owner(batch)
                .map_or_else(everybody, |user| vec![user.to_owned()])
        })
    }

    /// The engine of this place that runs a user's jobs.
    fn engine_for(&self, user: &str, place: usize) -> Option<usize> {
        let set = match self.shared {
            true => self
                .set_of(user)
                .filter(|set| self.sets[*set].served && !self.holds_back(*set))?,
            false => 0,
        };
        Some(set * self.slots + place)
    }

    /// The slot of an engine, as the coordinator knows it.
    fn place(&self, engine: EngineIndex) -> EngineIndex {
        EngineIndex((usize::from(engine.0) % self.slots) as u16)
    }

    /// A session begins. With a coordinator of another store batches have other numbers, and what
    /// waits is not wanted.
    fn enter(&mut self, store: StoreId) {
        if self
            .store
            .replace(store)
            .is_some_and(|known| known != store)
        {
            self.queue.take();
            self.batches.forget_all();
            for engine in &mut self.engines {
                engine.context = None;
            }
        }
        let waiting = self
            .queue
            .attempts()
            .map(|attempt| attempt.key.batch)
            .collect();
        self.batches.session_begins(&waiting);
    }

    /// Streamed output that was on its way is lost with the connection: its jobs must not wait for
    /// it.
    fn release_output(&mut self) {
        for (i, engine) in self.engines.iter_mut().enumerate() {
            if let Slot::Busy { attempt, .. } = engine.slot {
                engine.output = 0;
                let taken = ToEngine::OutputTaken {
                    attempt,
                    bytes: u32::MAX,
                };
                self.effects
                    .push_back(Effect::ToEngine(EngineIndex(i as u16), taken));
            }
        }
    }

    fn on_coordinator(&mut self, message: ToAgent, now: BootInstant) {
        match message {
            // The driver turns the first ones into `Welcomed`; later ones mean nothing.
            ToAgent::Welcome { .. } | ToAgent::Generation { .. } => {}
            ToAgent::Context {
                batch,
                context,
                user,
            } => {
                // A store that was restored from a backup may have used the number for another
                // batch.
                if self.batches.learn(batch, context, user) {
                    self.engines
                        .iter_mut()
                        .filter(|e| e.context == Some(batch))
                        .for_each(|e| e.context = None);
                }
            }
            ToAgent::Run(placements) => {
                if let Some(session) = &mut self.session {
                    session.received += placements.iter().map(|p| u64::from(p.slots)).sum::<u64>();
                }
                // With its lease over nothing may start here, nor wait for a later session.
                let lapsed = self.lease_until.is_none()
                    && self.session.as_ref().is_some_and(|s| s.lease.is_some());
                if self.stopping || self.leaving || lapsed {
                    for placement in placements {
                        self.push_report(placement.attempt, Report::Returned);
                    }
                } else {
                    self.queue.extend(placements);
                }
            }
            ToAgent::Cancel { attempts, stop } => self.cancel(&attempts, stop, now),
            ToAgent::Retract { attempts } => {
                let wanted: HashSet<AttemptId> = attempts.into_iter().collect();
                for attempt in self.queue.take_some(&wanted) {
                    self.push_report(attempt, Report::Returned);
                }
            }
            ToAgent::Evict { attempts, stop } => self.evict(attempts, stop, now),
            ToAgent::Known { user, attempts } => self.known(&user, &attempts),
            // The driver sees to these.
            ToAgent::Logs { .. } | ToAgent::Renewed { .. } => {}
            ToAgent::Acknowledge { through } => self.acknowledge(through, now),
            ToAgent::HeartbeatSeen { sent, clock: _ } => self.renew(sent.min(now)),
            ToAgent::Forget { batch } => self.batches.forget(batch),
            ToAgent::OutputTaken { attempt, bytes } => {
                if let Some(index) = self.engine_of(attempt) {
                    let engine = &mut self.engines[usize::from(index.0)];
                    engine.output = engine.output.saturating_sub(bytes);
                    self.effects.push_back(Effect::ToEngine(
                        index,
                        ToEngine::OutputTaken { attempt, bytes },
                    ));
                }
            }
        }
    }

    fn on_engine(&mut self, index: EngineIndex, message: FromEngine, now: BootInstant) {
        let i = usize::from(index.0);
        let Some(engine) = self.engines.get_mut(i) else {
            return;
        };
        match message {
            FromEngine::Ready { running } => {
                (engine.context, engine.output, engine.relink_at) = (None, 0, None);
                if engine.program.is_none() {
                    // One of before 0.2.
                    engine.program = Some(String::new());
                    self.programs.changed = true;
                }
                (engine.vacant, engine.failing, engine.why) = (None, false, None);
                let (given, stop) = (engine.slot.given(), engine.stop);
                let most = self.slots as u16;
                let ours = given
                    .filter(|(given, _)| running.is_some_and(|(attempt, _)| attempt == *given));
                self.engines[i].slot = match (running, ours) {
                    (_, Some((attempt, slots))) => Slot::Busy {
                        attempt,
                        since: now,
                        reported: true,
                        slots,
                        claimed: false,
                    },
                    (Some((attempt, _)), None) if self.is_elsewhere(attempt, index) => Slot::Unfit,
                    (Some((attempt, slots)), None) => {
                        let slots = slots.clamp(1, most);
                        Slot::Busy {
                            attempt,
                            since: now,
                            reported: true,
                            slots,
                            claimed: self.shared,
                        }
                    }
                    (None, None) => Slot::Idle,
                };
                // It knows of no lease that was given over an earlier link; one that an earlier
                // agent has given it stays.
                if let Some(until) = self.lease_until
                    && !self.is_fenced(i / self.slots)
                {
                    self.effects.push_back(Effect::ToEngine(
                        index,
                        ToEngine::Lease { until: Some(until) },
                    ));
                }
                if let Some((attempt, _)) = given.filter(|_| ours.is_none())
                    && !self.is_over(attempt)
                {
                    let why = "it was given to an engine that does not have it any more".to_owned();
                    self.finished(Some(index), attempt, Outcome::never_ran(Ended::Lost, why));
                }
                if let Some((attempt, stop)) =
                    stop.filter(|(stopped, _)| ours.is_some_and(|(attempt, _)| attempt == *stopped))
                {
                    self.stop_engine(i, attempt, stop, now);
                }
                self.look_at_claim(index, now);
            }
            FromEngine::Finished { attempt, outcome } => {
                self.engine_finished(index, attempt, outcome.within_limits(), now)
            }
            FromEngine::Output {
                attempt,
                stream,
                data,
            } => {
                let bytes = data.len() as u32;
                let runs = matches!(engine.slot, Slot::Busy { attempt: busy, claimed: false, .. } if busy == attempt);
                // It keeps to the window, or loses what it writes.
                if runs
                    && self.session.is_some()
                    && engine.output.saturating_add(bytes) <= 2 * OUTPUT_WINDOW
                {
                    engine.output += bytes;
                    self.effects
                        .push_back(Effect::ToCoordinator(ToCoordinator::Output {
                            attempt,
                            stream,
                            data,
                        }));
                } else {
                    // Nobody is there to take it, and the engine must not wait for that.
                    self.effects.push_back(Effect::ToEngine(
                        index,
                        ToEngine::OutputTaken { attempt, bytes },
                    ));
                }
            }
            // The driver hands it to whoever follows.
            FromEngine::Shown { .. } | FromEngine::ShownAll { .. } => {}
        }
    }

    /// An engine says that an attempt is over.
    fn engine_finished(
        &mut self,
        index: EngineIndex,
        attempt: AttemptId,
        outcome: Outcome,
        now: BootInstant,
    ) {
        let i = usize::from(index.0);
        let set = self.set_of_engine(index);
        let slot = self.engines[i].slot;
        let over = |slots| {
            if outcome.survivors > 0 {
                Slot::Held { slots }
            } else {
                Slot::Idle
            }
        };
        let (next, claimed) = match slot {
            Slot::Busy {
                attempt: busy,
                slots,
                claimed: false,
                ..
            } if busy == attempt => (over(slots), false),
            Slot::Busy {
                attempt: busy,
                claimed: true,
                ..
            } if busy == attempt => (
                if outcome.survivors > 0 {
                    Slot::Unfit
                } else {
                    Slot::Idle
                },
                true,
            ),
            // What it runs follows with `Ready`.
            Slot::Unheard { given } if given.is_some_and(|(given, _)| given == attempt) => {
                (Slot::Unheard { given: None }, false)
            }
            // An earlier agent may have given it that, or this one, who has had it acknowledged.
            Slot::Unheard { .. } => (slot, true),
            Slot::Unfit => (Slot::Idle, true),
            Slot::Idle | Slot::Busy { .. } | Slot::Held { .. } if self.shared => {
                tracing::warn!(engine = index.0, %attempt, "an engine reports on what it was not given; not believed");
                return;
            }
            Slot::Idle | Slot::Busy { .. } | Slot::Held { .. } => (slot, false),
        };
        // Whatever its word is worth: it does not run that any more.
        self.engines[i].slot = next;
        if claimed && self.shared {
            let claims = self
                .reports
                .iter()
                .filter(|entry| entry.claimed && entry.set == Some(set))
                .count();
            if self.is_elsewhere(attempt, index) || claims >= MAX_UNACKNOWLEDGED {
                tracing::warn!(engine = index.0, %attempt, "an engine reports on what it was not given; not believed");
                return;
            }
        }
        if self.engines[i]
            .stop
            .is_some_and(|(stopped, _)| stopped == attempt)
        {
            self.engines[i].stop = None;
        }
        // What another user's engines say of it does not count for this one's.
        if self
            .ends_of(attempt)
            .any(|entry| !entry.claimed || entry.set == Some(set))
        {
            return;
        }
        // Whose engines are many people's, each may have used up what is only theirs.
        if !self.shared && self.shortage.ended(&outcome, now) {
            self.give_back();
        }
        if let Some(span) = outcome.span {
            let run = span.elapsed.as_secs_f64();
            self.mean_run = Some(
                self.mean_run
                    .map_or(run, |mean| mean + SMOOTHING * (run - mean)),
            );
        }
        self.finished_as(Some(index), attempt, outcome, claimed && self.shared);
    }

    /// Whether somebody else than this engine, as far as is known here, has or had an attempt.
    fn is_elsewhere(&self, attempt: AttemptId, index: EngineIndex) -> bool {
        let set = self.set_of_engine(index);
        let i = usize::from(index.0);
        self.shared
            && (self.has_queued(attempt)
                || self.reports.iter().any(|entry| {
                    entry.report.attempt == attempt && entry.set != Some(set) && !entry.claimed
                })
                || self.engines.iter().enumerate().any(|(n, e)| {
                    n != i && e.slot.given().is_some_and(|(given, _)| given == attempt)
                }))
    }

    /// What an engine claims to run takes slots until the coordinator has answered for it, and it
    /// answers an inventory. If its set has had that, the next one comes when the set is served
    /// again.
    fn look_at_claim(&mut self, index: EngineIndex, now: BootInstant) {
        let set = self.set_of_engine(index);
        let claims = matches!(
            self.engines[usize::from(index.0)].slot,
            Slot::Busy { claimed: true, .. }
        );
        if claims && self.session.is_some() && self.sets[set].told == Some(Ok(())) {
            self.leave_out(
                set,
                "an engine of theirs runs what this agent has not given it".into(),
                now,
            );
        }
    }

    /// What the coordinator knows of what a user's engines say that they run.
    fn known(&mut self, user: &str, attempts: &[(AttemptId, u16)]) {
        let Some(set) = self.set_of(user) else { return };
        let most = self.slots as u16;
        for i in self.engines_of(set) {
            let slot = &mut self.engines[i].slot;
            if let Slot::Busy {
                attempt,
                slots,
                claimed: claimed @ true,
                ..
            } = slot
            {
                match attempts.iter().find(|(known, _)| known == attempt) {
                    Some((_, taken)) => (*slots, *claimed) = ((*taken).clamp(1, most), false),
                    None => *slot = Slot::Unfit,
                }
            }
        }
    }

    /// What was heard over an earlier link counts no more: what is sent from now on meets what the
    /// engine says first over this one.
    fn link_made(&mut self, index: EngineIndex) {
        let Some(engine) = self.engines.get_mut(usize::from(index.0)) else {
            return;
        };
        engine.slot = Slot::Unheard {
            given: engine.slot.given(),
        };
        (engine.context, engine.output) = (None, 0);
    }

    fn link_lost(&mut self, index: EngineIndex, now: BootInstant) {
        self.link_made(index);
        if let Some(engine) = self.engines.get_mut(usize::from(index.0)) {
            engine.relink_at = Some(now + RELINK_AFTER);
        }
    }

    /// Asks for links that have ended while their engines have not.
    fn relink(&mut self, now: BootInstant) {
        for i in 0..self.engines.len() {
            if let Some(at) = self.engines[i].relink_at.as_mut().filter(|at| **at <= now) {
                *at = now + RELINK_AGAIN;
                let (set, engine) = (i / self.slots, EngineIndex((i % self.slots) as u16));
                self.effects
                    .push_back(Effect::ToKeeper(set, ToKeeper::Relink { engine }));
            }
        }
    }

    fn keeper_gone(&mut self, set: usize, why: String, now: BootInstant) {
        if !self.shared || set >= self.sets.len() {
            return;
        }
        for i in self.engines_of(set) {
            let engine = &mut self.engines[i];
            engine.slot = Slot::Unheard {
                given: engine.slot.given(),
            };
            (
                engine.context,
                engine.output,
                engine.relink_at,
                engine.program,
            ) = (None, 0, None, None);
            (engine.vacant, engine.failing, engine.why) = (None, false, None);
            engine.acknowledged.clear();
        }
        self.sets[set].here = false;
        self.programs.changed = true;
        match self.sets[set].replacing {
            // That has been said.
            Replacing::Ending { .. } => {}
            Replacing::Draining => {
                self.sets[set].replacing = Replacing::No;
                self.leave_out(set, why, now);
            }
            Replacing::No | Replacing::Done => self.leave_out(set, why, now),
        }
    }

    fn keeper_here(&mut self, user: String) {
        match self.set_of(&user) {
            Some(set) => self.sets[set].here = true,
            // Their numbers have 16 bits.
            None if self.shared && self.engines.len() + self.slots <= usize::from(u16::MAX) => {
                self.sets.push(Set::new(user));
                self.engines.extend((0..self.slots).map(|_| Engine::new()));
            }
            None => tracing::warn!(
                user,
                "no jobs of {user} are run: there are too many engines"
            ),
        }
    }

    /// Why a set cannot be served, whatever it has been so far.
    fn what_is_wrong(&self, set: usize) -> Option<Wrong> {
        let slots = || {
            self.engines[self.engines_of(set)]
                .iter()
                .map(|engine| engine.slot)
        };
        if slots().any(|slot| slot == Slot::Unfit) {
            return Some(Wrong::Unfit);
        }
        slots()
            .any(|slot| matches!(slot, Slot::Unheard { .. }))
            .then_some(Wrong::Unheard)
    }

    /// Serves the users whose engines have been heard, and leaves the others out.
    fn look_at_sets(&mut self, now: BootInstant) {
        let sets = if self.shared { self.sets.len() } else { 0 };
        for set in 0..sets {
            if self.sets[set].over.take_if(|over| *over <= now).is_some() {
                for i in self.engines_of(set) {
                    let slot = &mut self.engines[i].slot;
                    match slot {
                        Slot::Unheard { given } => *given = None,
                        Slot::Busy { .. } => *slot = Slot::Unfit,
                        Slot::Idle | Slot::Held { .. } | Slot::Unfit => {}
                    }
                }
            }
            if !self.sets[set].here {
                continue;
            }
            match self.what_is_wrong(set) {
                None if self.sets[set].served => self.sets[set].by = None,
                None => {
                    if self.sets[set].serve(now) {
                        self.sets[set].is_replaced();
                        self.programs.changed = true;
                        if let Some(until) = self.lease_until {
                            // It has missed what was said of that meanwhile.
                            self.tell_lease(set, Some(until));
                        }
                    }
                }
                Some(Wrong::Unfit) => {
                    self.leave_out(
                        set,
                        "an engine of theirs runs what the coordinator does not know".into(),
                        now,
                    );
                }
                // A set that is left out is not waited for.
                Some(Wrong::Unheard) if self.sets[set].why.is_some() => {}
                Some(Wrong::Unheard) => {
                    let by = *self.sets[set].by.get_or_insert(now + HEARD_WITHIN);
                    if by <= now {
                        let silent = || {
                            format!(
                                "their engines have not answered within {} s",
                                HEARD_WITHIN.as_secs()
                            )
                        };
                        let why = self.engines[self.engines_of(set)]
                            .iter()
                            .find_map(|engine| engine.vacant.and(engine.why.as_ref()));
                        let why = why.map_or_else(silent, |why| {
                            format!("their engines do not start: {why}")
                        });
                        self.leave_out(set, why, now);
                    }
                }
            }
        }
    }

    fn leave_out(&mut self, set: usize, why: String, now: BootInstant) {
        let Some(left) = self.sets.get_mut(set) else {
            return;
        };
        if left.why.as_ref() != Some(&why) {
            tracing::warn!(user = left.user, "no jobs of {} are run: {why}", left.user);
        }
        left.leave_out(why, self.lease_until, now);
        let user = &left.user;
        let theirs = |attempt: &AttemptId| self.batches.owner(attempt.key.batch) == Some(user);
        let waiting: HashSet<AttemptId> = self.queue.attempts().filter(theirs).collect();
        for attempt in self.queue.take_some(&waiting) {
            self.push_report(attempt, Report::Returned);
        }
    }

    /// Leases are not renewed for what the coordinator fences.
    fn is_fenced(&self, set: usize) -> bool {
        self.shared && self.sets[set].why.is_some()
    }

    fn engine_ended(
        &mut self,
        index: EngineIndex,
        attempt: Option<AttemptId>,
        ended: Ended,
        killed: u32,
        survivors: u32,
        now: BootInstant,
    ) {
        let set = self.set_of_engine(index);
        let Some(engine) = self.engines.get_mut(usize::from(index.0)) else {
            return;
        };
        let was = engine.slot;
        let slots = was.taken().max(1);
        let given = was.given().map(|(attempt, _)| attempt);
        engine.slot = match survivors {
            0 => Slot::Unheard { given: None },
            // A slot of the host is held by what it was given, and by nothing else.
            _ if self.shared && given.is_none() => Slot::Unfit,
            _ => Slot::Held { slots },
        };
        engine.vacant = if survivors == 0 {
            engine.vacant.or(Some(now))
        } else {
            None
        };
        engine.failing &= engine.vacant.is_some();
        (engine.context, engine.stop, engine.output, engine.relink_at) = (None, None, 0, None);
        engine.program = None;
        self.programs.changed = true;
        let busy = if let Slot::Busy { attempt, .. } = was {
            Some(attempt)
        } else {
            given
        };
        let told =
            attempt.filter(|attempt| busy == Some(*attempt) || !self.is_elsewhere(*attempt, index));
        self.ends
            .extend(told.into_iter().chain(busy).map(|attempt| (attempt, set)));
        // The keeper may know of one that has ended since, or of none when it was a short one.
        for attempt in busy.into_iter().chain(told.filter(|a| busy != Some(*a))) {
            if self.is_over(attempt) {
                continue;
            }
            let left = format!("{killed} processes that it left were killed");
            // Why the keeper has killed the engine is about the attempt that it names.
            let (ended, error) = match ended {
                _ if survivors > 0 => (
                    Ended::Unkillable,
                    "its engine is dead or dying, and something of it does not die".to_owned(),
                ),
                Ended::Cancelled if told == Some(attempt) => (
                    ended,
                    format!("its engine did not answer the cancel and was killed; {left}"),
                ),
                Ended::Timeout if told == Some(attempt) => (
                    ended,
                    format!("its engine did not end it at its timeout and was killed; {left}"),
                ),
                _ => (Ended::Lost, format!("its engine died; {left}")),
            };
            let mut outcome = Outcome::never_ran(ended, error);
            (outcome.killed, outcome.survivors) = (killed, survivors);
            self.finished_as(
                Some(index),
                attempt,
                outcome,
                self.shared && given != Some(attempt),
            );
        }
    }

    /// Whether its end is among the reports.
    fn is_over(&self, attempt: AttemptId) -> bool {
        self.ends_of(attempt).next().is_some()
    }

    /// What is said of an attempt's end.
    fn ends_of(&self, attempt: AttemptId) -> impl Iterator<Item = &Entry> {
        self.reports.iter().filter(move |entry| {
            entry.report.attempt == attempt
                && !matches!(entry.report.report, Report::Started { .. })
        })
    }

    /// Has an engine kill what it runs. The keeper hears of it first, so that it never waits for an
    /// answer that it has had.
    fn stop_engine(&mut self, index: usize, attempt: AttemptId, stop: Stop, now: BootInstant) {
        let engine = EngineIndex(index as u16);
        self.engines[index].stop = Some((attempt, stop));
        let (set, place) = (index / self.slots, EngineIndex((index % self.slots) as u16));
        self.effects.push_back(Effect::ToKeeper(
            set,
            ToKeeper::Cancelled {
                engine: place,
                attempt,
                by: now + stop.grace,
            },
        ));
        self.effects
            .push_back(Effect::ToEngine(engine, ToEngine::Cancel { attempt, stop }));
    }

    fn evict(&mut self, attempts: Vec<AttemptId>, stop: Stop, now: BootInstant) {
        let wanted: HashSet<AttemptId> = attempts.into_iter().collect();
        for attempt in self.queue.take_some(&wanted) {
            self.push_report(attempt, Report::Returned);
        }
        for i in 0..self.engines.len() {
            if let Some(attempt) = self.held_by(i).filter(|attempt| wanted.contains(attempt)) {
                self.evicted.insert(attempt);
                self.stop_engine(i, attempt, stop, now);
            }
        }
    }

    fn cancel(&mut self, attempts: &[AttemptId], stop: Stop, now: BootInstant) {
        let wanted: HashSet<AttemptId> = attempts.iter().copied().collect();
        self.evicted.retain(|attempt| !wanted.contains(attempt));
        let mut found = HashSet::new();
        for attempt in self.queue.take_some(&wanted) {
            found.insert(attempt);
            self.finished(None, attempt, Outcome::never_ran(Ended::Cancelled, None));
        }
        for i in 0..self.engines.len() {
            if let Some(attempt) = self.held_by(i).filter(|attempt| wanted.contains(attempt)) {
                found.insert(attempt);
                self.stop_engine(i, attempt, stop, now);
            }
        }
        // What is in the reports has been answered already, or will be again after a reconnect.
        found.extend(self.reports.iter().map(|r| r.report.attempt));
        let absent = attempts
            .iter()
            .copied()
            .filter(|a| !found.contains(a) && self.can_be_absent(*a));
        let absent: Vec<AttemptId> = absent.collect();
        // Before every engine has been heard, absence cannot be known; the coordinator asks again
        // after the inventory.
        if !absent.is_empty() && self.session.as_ref().is_some_and(|s| s.known) {
            self.effects
                .push_back(Effect::ToCoordinator(ToCoordinator::Absent {
                    attempts: absent,
                }));
        }
    }

    /// What an engine has, or may have as long as it is not heard.
    fn held_by(&self, index: usize) -> Option<AttemptId> {
        match self.engines[index].slot {
            Slot::Busy { attempt, .. }
            | Slot::Unheard {
                given: Some((attempt, _)),
            } => Some(attempt),
            Slot::Unheard { given: None } | Slot::Idle | Slot::Held { .. } | Slot::Unfit => None,
        }
    }

    /// Whether the engines that may have an attempt are heard.
    fn can_be_absent(&self, attempt: AttemptId) -> bool {
        !self.shared
            || self.owner(attempt).map_or_else(
                || self.sets.iter().all(|set| set.served),
                |set| self.sets[set].served,
            )
    }

    fn acknowledge(&mut self, through: u64, now: BootInstant) {
        while let Some(first) = self.reports.front()
            && first.report.seq <= through
        {
            let attempt = first.report.attempt;
            if !matches!(first.report.report, Report::Started { .. })
                && let Some(set) = self.ends.remove(&attempt)
            {
                self.effects
                    .push_back(Effect::ToKeeper(set, ToKeeper::EndSeen { attempt }));
            }
            if let Report::Finished {
                engine: Some(engine),
                ..
            } = first.report.report
                && let Some(engine) = self.engines.get_mut(usize::from(engine.0))
            {
                engine.acknowledged.push(attempt);
                self.acknowledge_at.get_or_insert(now + ACKNOWLEDGE_WITHIN);
            }
            self.reports.pop_front();
        }
        if let Some(session) = &mut self.session {
            session.timed.take_if(|(seq, _)| *seq <= through);
        }
    }

    /// The coordinator has seen what we sent at `sent`. Its present session says how long that is
    /// good for, also when that is shorter than an earlier one said: it waits no longer than that
    /// before it places elsewhere what is here.
    fn renew(&mut self, sent: BootInstant) {
        let until = self
            .session
            .as_ref()
            .and_then(|s| s.lease)
            .map(|lease| sent + lease);
        if until == self.lease_until {
            return;
        }
        self.lease_until = until;
        for set in (0..self.sets.len())
            .filter(|set| !self.is_fenced(*set))
            .collect::<Vec<_>>()
        {
            self.tell_lease(set, until);
        }
    }

    fn tell_lease(&mut self, set: usize, until: Option<BootInstant>) {
        self.effects
            .push_back(Effect::ToKeeper(set, ToKeeper::Lease { until }));
        for i in self.engines_of(set) {
            self.effects.push_back(Effect::ToEngine(
                EngineIndex(i as u16),
                ToEngine::Lease { until },
            ));
        }
    }

    /// Nothing that waits starts here any more.
    fn give_back(&mut self) {
        if let Some(session) = self.session.as_mut().filter(|s| s.known) {
            // Before anything comes back: it must not be placed here again.
            session.asked = (session.received, 0);
            self.effects
                .push_back(Effect::ToCoordinator(ToCoordinator::Pull {
                    credit: session.received,
                    idle: 0,
                }));
        }
        for attempt in self.queue.take() {
            self.push_report(attempt, Report::Returned);
        }
    }

    fn stop(&mut self, now: BootInstant) {
        self.stopping = true;
        self.give_back();
        for i in 0..self.engines.len() {
            if let Some(attempt) = self.held_by(i) {
                self.stop_engine(i, attempt, Stop::after(STOP_GRACE), now);
            }
        }
    }

    fn finished(&mut self, engine: Option<EngineIndex>, attempt: AttemptId, outcome: Outcome) {
        self.finished_as(engine, attempt, outcome, false);
    }

    fn finished_as(
        &mut self,
        engine: Option<EngineIndex>,
        attempt: AttemptId,
        outcome: Outcome,
        claimed: bool,
    ) {
        let evicted = self.evicted.remove(&attempt) || self.stopping;
        let gone = matches!(
            outcome.ended,
            Ended::Cancelled | Ended::Lost | Ended::HostShort
        );
        let report = if evicted && gone && outcome.survivors == 0 {
            // Nobody cancelled the job: its host goes away under it.
            Report::Returned
        } else {
            Report::Finished {
                engine,
                outcome: Box::new(outcome),
            }
        };
        let set = engine
            .map(|engine| self.set_of_engine(engine))
            .or_else(|| self.owner(attempt));
        self.push(attempt, report, set, claimed);
    }

    /// The set whose user's an attempt is, if that is known.
    fn owner(&self, attempt: AttemptId) -> Option<usize> {
        self.batches
            .owner(attempt.key.batch)
            .and_then(|user| self.set_of(user))
    }

    fn push_report(&mut self, attempt: AttemptId, report: Report) {
        let set = self.owner(attempt);
        self.push(attempt, report, set, false);
    }

    fn push(&mut self, attempt: AttemptId, report: Report, set: Option<usize>, claimed: bool) {
        let report = NumberedReport {
            seq: self.next_seq,
            attempt,
            report,
        };
        self.reports.push_back(Entry {
            report,
            set,
            claimed,
        });
        self.next_seq += 1;
    }

    /// Sends what has not been sent. False if it may wait for more.
    fn send_reports(&mut self, now: BootInstant) -> bool {
        // Their numbers have no gaps.
        let waiting = self.reports.front().map_or(0, |first| {
            self.next_seq - first.report.seq.max(self.next_unsent)
        }) as usize;
        if waiting == 0 {
            self.send_by = None;
            return true;
        }
        let deadline = self.send_by.get_or_insert(now + COALESCE);
        let timed = self.session.as_ref().and_then(|s| s.timed);
        let behind = timed
            .map(|(_, sent)| sent)
            .filter(|sent| *sent + BEHIND <= now);
        if let Some(sent) = behind {
            *deadline = (*deadline).max(sent + MAX_BEHIND);
        }
        let deadline = *deadline;
        let fed =
            !self.queue.is_empty() && self.queue.len() as u64 * 2 >= self.prefetch(self.slots);
        if (fed || behind.is_some()) && waiting < REPORTS_PER_MESSAGE && now < deadline {
            return false;
        }
        self.send_by = None;
        self.next_unsent = self.next_seq;
        if let Some(session) = &mut self.session {
            session.timed.get_or_insert((self.next_seq - 1, now));
        }
        let vouched = self
            .session
            .as_ref()
            .is_some_and(|s| s.version >= SERVES_USERS);
        let unsent = self.reports.range(self.reports.len() - waiting..);
        let unsent: Vec<(Option<usize>, NumberedReport)> = unsent
            .map(|entry| {
                (
                    entry.set.filter(|_| entry.claimed && vouched),
                    self.as_the_coordinator_knows(&entry.report),
                )
            })
            .collect();
        for same in unsent.chunk_by(|(set, _), (next, _)| set == next) {
            for chunk in same.chunks(REPORTS_PER_MESSAGE) {
                let reports = chunk.iter().map(|(_, report)| report.clone()).collect();
                let message = match same.first().and_then(|(set, _)| *set) {
                    Some(set) => ToCoordinator::ReportsOf {
                        user: self.sets[set].user.clone(),
                        reports,
                    },
                    None => ToCoordinator::Reports(reports),
                };
                self.effects.push_back(Effect::ToCoordinator(message));
            }
        }
        true
    }

    fn as_the_coordinator_knows(&self, report: &NumberedReport) -> NumberedReport {
        let NumberedReport {
            seq,
            attempt,
            report,
        } = report.clone();
        let version = self.session.as_ref().map_or(0, |s| s.version);
        let report = match report {
            Report::Finished { outcome, .. }
                if outcome.ended == Ended::HostShort && version < KNOWS_SHORTAGES =>
            {
                Report::Returned
            }
            Report::Started { engine } => Report::Started {
                engine: self.place(engine),
            },
            Report::Finished { engine, outcome } => {
                let engine = engine.map(|engine| self.place(engine));
                if outcome.written.is_known() && version >= COUNTS_OUTPUT {
                    Report::Counted { engine, outcome }
                } else {
                    Report::Finished { engine, outcome }
                }
            }
            other @ (Report::Returned | Report::Counted { .. }) => other,
        };
        NumberedReport {
            seq,
            attempt,
            report,
        }
    }

    /// Tells an engine what it may forget.
    fn tell_acknowledged(&mut self, index: usize) {
        let attempts = std::mem::take(&mut self.engines[index].acknowledged);
        if !attempts.is_empty() {
            self.effects.push_back(Effect::ToEngine(
                EngineIndex(index as u16),
                ToEngine::Acknowledge { attempts },
            ));
        }
    }

    fn report_started(&mut self, now: BootInstant) {
        if self.session.as_ref().is_none_or(|s| !s.known) {
            return;
        }
        for i in 0..self.engines.len() {
            if let Slot::Busy {
                attempt,
                since,
                reported: reported @ false,
                ..
            } = &mut self.engines[i].slot
                && *since + STARTED_AFTER <= now
            {
                *reported = true;
                let attempt = *attempt;
                self.push_report(
                    attempt,
                    Report::Started {
                        engine: EngineIndex(i as u16),
                    },
                );
            }
        }
    }

    /// Whether it waits for an engine.
    pub fn has_queued(&self, attempt: AttemptId) -> bool {
        self.queue.attempts().any(|waiting| waiting == attempt)
    }

    /// Which engine has it.
    pub fn engine_of(&self, wanted: AttemptId) -> Option<EngineIndex> {
        let at = self
            .engines
            .iter()
            .position(|e| matches!(e.slot, Slot::Busy { attempt, .. } if attempt == wanted))?;
        Some(EngineIndex(at as u16))
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

    /// Says which engines have come to nothing for long. Of those of users it is said who is not
    /// served.
    fn look_at_failures(&mut self, now: BootInstant) {
        for engine in &mut self.engines {
            engine.failing |= engine
                .vacant
                .is_some_and(|since| since + HEARD_WITHIN <= now);
        }
        let Some(session) = self
            .session
            .as_mut()
            .filter(|session| !self.shared && session.version >= ENGINES_FAIL)
        else {
            return;
        };
        let failing = || self.engines.iter().filter(|engine| engine.failing);
        let (slots, count) = (self.slots as u16, failing().count() as u16);
        let words = (count > 0).then(|| {
            let why = failing()
                .find_map(|engine| engine.why.as_deref())
                .unwrap_or("its keeper does not say why");
            format!("{count} of {slots} engines do not start: {why}")
        });
        let engines = (slots - count, words);
        if session.engines != engines {
            session.engines.clone_from(&engines);
            let (ready, failing) = engines;
            self.effects
                .push_back(Effect::ToCoordinator(ToCoordinator::UsableEngines {
                    ready,
                    failing,
                }));
        }
    }

    fn send_inventory(&mut self) {
        let Some(session) = &self.session else { return };
        if self.shared && session.version >= SERVES_USERS {
            return self.send_inventories();
        }
        // Without any engine a host has nothing to do, and a coordinator that does not hear of that
        // takes it for ready.
        let useless = session.version < ENGINES_FAIL
            && !self.engines.is_empty()
            && !self.engines.iter().any(Engine::is_heard);
        if session.known || useless || self.engines.iter().any(Engine::is_unknown) {
            return;
        }
        self.effects
            .push_back(Effect::ToCoordinator(ToCoordinator::Inventory {
                queued: self.queue.attempts().collect(),
                running: (0..self.engines.len())
                    .filter_map(|i| self.held_by(i))
                    .collect(),
                unacknowledged: self.reports.iter().map(|r| r.report.attempt).collect(),
                containment: self.containment,
                clock_offset: self.clock_offset,
            }));
        self.is_known();
    }

    /// What each user's engines have that are served, and who is left out. Said again when that
    /// changes.
    fn send_inventories(&mut self) {
        let known = self.session.as_ref().is_some_and(|s| s.known);
        if !known && self.sets.iter().any(Set::is_awaited) {
            return;
        }
        let mut changed = !known;
        for set in 0..self.sets.len() {
            let standing = self.sets[set].standing();
            if standing == self.sets[set].told {
                continue;
            }
            changed = true;
            let user = self.sets[set].user.clone();
            if self.sets[set].served {
                let theirs =
                    |attempt: &AttemptId| self.batches.owner(attempt.key.batch) == Some(&user);
                let of_set = self.reports.iter().filter(|entry| entry.set == Some(set));
                self.effects
                    .push_back(Effect::ToCoordinator(ToCoordinator::UserInventory {
                        queued: self.queue.attempts().filter(theirs).collect(),
                        running: self
                            .engines_of(set)
                            .filter_map(|i| self.held_by(i))
                            .collect(),
                        unacknowledged: of_set.map(|entry| entry.report.attempt).collect(),
                        user: user.clone(),
                    }));
            }
            self.sets[set].told = standing;
        }
        if !changed {
            return;
        }
        let unheard = self
            .sets
            .iter()
            .filter_map(|set| Some((set.user.clone(), set.why.clone()?)));
        self.effects
            .push_back(Effect::ToCoordinator(ToCoordinator::Served {
                users: self
                    .sets
                    .iter()
                    .filter(|set| set.served)
                    .map(|set| set.user.clone())
                    .collect(),
                unheard: unheard.collect(),
                containment: self.containment,
                clock_offset: self.clock_offset,
            }));
        if !known {
            self.is_known();
        }
    }

    /// The coordinator has been told what is here.
    fn is_known(&mut self) {
        if let Some(session) = &mut self.session {
            session.known = true;
        }
        // All of them again: what was sent in an earlier session may not have arrived.
        self.next_unsent = 0;
        self.send_by = Some(BootInstant::default());
    }

    fn dispatch(&mut self, now: BootInstant) {
        if self.queue.is_empty() {
            return;
        }
        let Some(first_engine) = self.session.as_ref().map(|s| s.first_engine) else {
            return;
        };
        let mut free = self.free();
        for place in 0..self.slots {
            if !self.shortage.may_start() {
                return;
            }
            if self.taken(place) > 0 {
                continue;
            }
            let Some(Placement {
                attempt,
                spec,
                slots,
            }) = self.queue.next_within(free)
            else {
                break;
            };
            let batch = attempt.key.batch;
            let Some((context, user)) = self.batches.context(batch) else {
                self.finished(
                    None,
                    attempt,
                    Outcome::never_ran(Ended::StartFailed, "its batch is unknown here".to_owned()),
                );
                continue;
            };
            let Some(i) = self.engine_for(user, place) else {
                // The coordinator has not heard yet that this user is not served here any more.
                self.push_report(attempt, Report::Returned);
                continue;
            };
            let context = if self.engines[i].context == Some(batch) {
                None
            } else {
                Some(context.clone())
            };
            self.tell_acknowledged(i);
            self.engines[i].context = Some(batch);
            self.engines[i].slot = Slot::Busy {
                attempt,
                since: now,
                reported: false,
                slots,
                claimed: false,
            };
            (self.engines[i].stop, self.engines[i].output) = (None, 0);
            free -= usize::from(slots);
            self.shortage.given(now);
            let engine = EngineId(first_engine.0 + place as u32);
            let run = ToEngine::Run {
                attempt,
                spec,
                context,
                engine,
                slots,
            };
            self.effects
                .push_back(Effect::ToEngine(EngineIndex(i as u16), run));
        }
    }

    fn prefetch(&self, slots: usize) -> u64 {
        // Slots run out this many attempts while a refill is on its way; below a tenth, waiting
        // costs less than queueing behind a long job.
        let during_refill = match self.mean_run {
            Some(mean) => slots as f64 * REFILL.as_secs_f64() / mean.max(1e-6),
            None => 0.0,
        };
        if during_refill < 0.1 {
            0
        } else {
            (during_refill.ceil() as u64).min(MAX_PREFETCH)
        }
    }

    fn pull(&mut self) {
        let (idle, queued) = (
            if self.shortage.rests() {
                0
            } else {
                self.free()
            },
            self.queue.slots(),
        );
        let held = self
            .engines
            .iter()
            .filter(|e| matches!(e.slot, Slot::Held { .. }) || !self.shared && e.failing)
            .count();
        let usable = if self.engines.is_empty() {
            0
        } else {
            self.slots.saturating_sub(held)
        };
        let room = MAX_UNACKNOWLEDGED.saturating_sub(self.reports.len() + self.busy()) as u64;
        let want =
            if self.stopping || self.leaving || self.shortage.rests() || self.rests_for_engines() {
                0
            } else {
                (idle as u64 + self.prefetch(usable))
                    .saturating_sub(queued as u64)
                    .min(room)
            };
        let Some(session) = self.session.as_mut().filter(|s| s.known) else {
            return;
        };
        let asked = (
            session.asked.0.max(session.received + want),
            idle.saturating_sub(queued) as u16,
        );
        if asked != session.asked {
            session.asked = asked;
            self.effects
                .push_back(Effect::ToCoordinator(ToCoordinator::Pull {
                    credit: asked.0,
                    idle: asked.1,
                }));
        }
    }
}

/// What keeps a set from being served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// An engine does what nobody here knows of.
    Unfit,
    /// An engine has not been heard.
    Unheard,
}

/// Reports in one message: each may carry two tails of 4 KiB and an error text, and a frame holds 1
/// MiB.
const REPORTS_PER_MESSAGE: usize = 64;

#[cfg(test)]
mod tests;
