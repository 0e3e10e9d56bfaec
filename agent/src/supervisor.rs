//! The agent's core: what waits, what runs where, what has not been acknowledged, and how much more to ask for.
//!
//! No clock, no I/O: events in, effects out. [`crate::driver`] performs the effects.
//!
//! The rules that make it safe:
//! - An attempt is in exactly one place: the queue, one engine, or the unacknowledged reports. The inventory lists all three and is
//!   sent only when every engine has been heard, so that what is not in it is not on this host.
//! - Reports stay until the coordinator has acknowledged them; engines forget an outcome only then.
//! - Without an acknowledged heartbeat for a lease nothing waiting may start any more; engines enforce the same instant themselves.

mod queue;

use mezcal_common::clock::BootInstant;
use mezcal_common::ids::{AttemptId, BatchSerial, EngineId, EngineIndex, StoreId};
use mezcal_common::job::{BatchContext, Stop};
use mezcal_common::outcome::{Containment, Ended, Outcome};
use mezcal_common::wire::agent::{Load, NumberedReport, Placement, Report, ToAgent, ToCoordinator};
use mezcal_common::wire::engine::{FromEngine, ToEngine, ToKeeper};
use queue::Queue;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

/// Between two heartbeats.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// An attempt that has been with an engine this long is reported as started; shorter ones save the message.
const STARTED_AFTER: Duration = Duration::from_millis(200);
/// Outcomes that may wait for their acknowledgement before the agent stops asking for more.
const MAX_UNACKNOWLEDGED: usize = 1024;
/// What it takes to get another attempt from the coordinator, processing included: prefetch covers this much run time.
const REFILL: Duration = Duration::from_millis(20);
/// Reports may wait this long for company while the queue can feed the engines: one packet then carries several.
const COALESCE: Duration = Duration::from_millis(50);
/// A report that has not been acknowledged by then shows that the coordinator is behind: what comes after it waits for the
/// acknowledgement, so that there are fewer messages the more there is to do (as Nagle's algorithm does, RFC 896).
const BEHIND: Duration = REFILL;
/// But not longer than this after it.
const MAX_BEHIND: Duration = Duration::from_millis(200);
/// Acknowledgements for an engine wait this long for a message that goes there anyway.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(1);
/// Most attempts to ask for beyond what can start now.
const MAX_PREFETCH: u64 = 512;
/// Weight of the newest run time in their mean: 1/8, as TCP's smoothed round trip (RFC 6298).
const SMOOTHING: f64 = 0.125;
/// Grace for attempts when the agent itself stops.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// What happens to an agent.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The coordinator's `Welcome`, with the time at which our `Hello` left.
    Welcomed {
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
    /// A new reading for heartbeats.
    Measured {
        /// Load and memory.
        load: Load,
        /// Seconds to add to our wall clock to get the coordinator's.
        clock_offset: Option<f64>,
    },
    /// The agent should stop: kill everything, report it, say goodbye.
    Stop,
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Tell the coordinator, in the present session.
    ToCoordinator(ToCoordinator),
    /// Tell an engine.
    ToEngine(EngineIndex, ToEngine),
    /// Tell the keeper.
    ToKeeper(ToKeeper),
    /// Everything is reported: end the process.
    Exit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    /// Not heard since its link was made.
    Unheard,
    Idle,
    Busy {
        attempt: AttemptId,
        since: BootInstant,
        reported: bool,
        /// So many of the host: this engine, and others that do nothing meanwhile.
        slots: u16,
    },
    /// Something in it does not die.
    Held {
        slots: u16,
    },
}

impl Slot {
    /// So many slots of the host.
    fn taken(self) -> u16 {
        match self {
            Slot::Idle => 0,
            Slot::Unheard => 1,
            Slot::Busy { slots, .. } | Slot::Held { slots } => slots,
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
}

#[derive(Debug)]
struct Session {
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
}

/// One host's decisions.
#[derive(Debug)]
pub struct Supervisor {
    /// Jobs at a time.
    slots: usize,
    /// Whose jobs run here; none: everybody's, in one set of engines.
    users: Option<Vec<String>>,
    /// `slots` of each user, one user after the other. Of those with the same place in their sets one runs something at a time.
    engines: Vec<Engine>,
    queue: Queue,
    /// What jobs of a batch have in common, and whose they are.
    contexts: HashMap<BatchSerial, (BatchContext, String)>,
    reports: VecDeque<NumberedReport>,
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
    /// Running attempts that are given back when they are dead.
    evicted: HashSet<AttemptId>,
    /// Attempts whose ends the keeper remembers until they are acknowledged.
    ends: HashSet<AttemptId>,
    stopping: bool,
    effects: VecDeque<Effect>,
}

impl Supervisor {
    /// A supervisor of `slots` engines, none of which has been heard yet; with `users`, of so many for each of them.
    pub fn new(slots: u16, users: Option<Vec<String>>) -> Self {
        let slots = usize::from(slots);
        let count = slots * users.as_ref().map_or(1, Vec::len);
        Self {
            slots,
            users,
            engines: (0..count).map(|_| Engine { slot: Slot::Unheard, context: None, acknowledged: Vec::new() }).collect(),
            queue: Queue::default(),
            contexts: HashMap::new(),
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
            evicted: HashSet::new(),
            ends: HashSet::new(),
            stopping: false,
            effects: VecDeque::new(),
        }
    }

    /// Takes what happened at `now`.
    pub fn handle(&mut self, event: Event, now: BootInstant) {
        // Whoever was stopped past its lease may hear this before its timer.
        self.expire(now);
        match event {
            Event::Welcomed { store, lease, first_engine, hello_sent } => {
                self.enter(store);
                self.session = Some(Session {
                    lease,
                    first_engine,
                    received: 0,
                    asked: (0, 0),
                    known: false,
                    next_heartbeat: now,
                    timed: None,
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
            Event::Containment(kind) => self.containment = kind,
            Event::EngineEnded { engine, attempt, ended, killed, survivors } => {
                self.engine_ended(engine, attempt, ended, killed, survivors);
            }
            Event::Measured { load, clock_offset } => {
                self.load = load;
                self.clock_offset = clock_offset;
            }
            Event::Stop => self.stop(now),
        }
        self.settle(now);
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: BootInstant) {
        self.expire(now);
        if let Some(session) = &mut self.session
            && session.known
            && session.next_heartbeat <= now
        {
            session.next_heartbeat = now + HEARTBEAT;
            let (load, clock_offset) = (self.load, self.clock_offset);
            self.effects.push_back(Effect::ToCoordinator(ToCoordinator::Heartbeat { sent: now, load, clock_offset }));
        }
        self.report_started(now);
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
            self.finished(None, attempt, Outcome::never_ran(Ended::Lost, why.to_owned()));
        }
    }

    /// When [`Supervisor::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<BootInstant> {
        let heartbeat = self.session.as_ref().filter(|s| s.known).map(|s| s.next_heartbeat);
        let connected = heartbeat.is_some();
        let started = self.engines.iter().filter_map(|e| match e.slot {
            Slot::Busy { since, reported: false, .. } if connected => Some(since + STARTED_AFTER),
            Slot::Unheard | Slot::Idle | Slot::Busy { .. } | Slot::Held { .. } => None,
        });
        started.chain(heartbeat).chain(self.lease_until).chain(self.send_by).chain(self.acknowledge_at).min()
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Slots in use.
    pub fn busy(&self) -> usize {
        self.engines.iter().filter(|e| matches!(e.slot, Slot::Busy { .. } | Slot::Held { .. })).count()
    }

    /// Slots that nothing takes.
    fn free(&self) -> usize {
        if self.engines.is_empty() {
            return 0;
        }
        let taken: usize = (0..self.slots).map(|place| usize::from(self.taken(place))).sum();
        self.slots.saturating_sub(taken)
    }

    /// What the engines of one place take.
    fn taken(&self, place: usize) -> u16 {
        self.engines.iter().skip(place).step_by(self.slots).map(|e| e.slot.taken()).max().unwrap_or(0)
    }

    /// Whose jobs a batch's are, if not the agent's own: its user, or those who may be. None: it runs nobody else's.
    pub fn owners_of(&self, batch: BatchSerial) -> Option<Vec<String>> {
        let users = self.users.as_ref()?;
        Some(self.contexts.get(&batch).map_or_else(|| users.clone(), |(_, user)| vec![user.clone()]))
    }

    /// The engine of this place that runs a user's jobs.
    fn engine_for(&self, user: &str, place: usize) -> Option<usize> {
        let set = match &self.users {
            None => 0,
            Some(users) => users.iter().position(|served| served == user)?,
        };
        Some(set * self.slots + place)
    }

    /// The slot of an engine, as the coordinator knows it.
    fn place(&self, engine: EngineIndex) -> EngineIndex {
        EngineIndex((usize::from(engine.0) % self.slots) as u16)
    }

    /// A session with a coordinator of another store: its batches have other numbers, and what waits is not wanted.
    fn enter(&mut self, store: StoreId) {
        if self.store.replace(store).is_some_and(|known| known != store) {
            self.queue.take();
            self.contexts.clear();
            for engine in &mut self.engines {
                engine.context = None;
            }
        }
    }

    /// Streamed output that was on its way is lost with the connection: its jobs must not wait for it.
    fn release_output(&mut self) {
        for (i, engine) in self.engines.iter().enumerate() {
            if let Slot::Busy { attempt, .. } = engine.slot {
                let taken = ToEngine::OutputTaken { attempt, bytes: u32::MAX };
                self.effects.push_back(Effect::ToEngine(EngineIndex(i as u16), taken));
            }
        }
    }

    fn on_coordinator(&mut self, message: ToAgent, now: BootInstant) {
        match message {
            // The driver turns the first one into `Welcomed`; another one means nothing.
            ToAgent::Welcome { .. } => {}
            ToAgent::Context { batch, context, user } => {
                let known = (context, user);
                // A store that was restored from a backup may have used the number for another batch.
                if self.contexts.get(&batch) != Some(&known) {
                    self.engines.iter_mut().filter(|e| e.context == Some(batch)).for_each(|e| e.context = None);
                    self.contexts.insert(batch, known);
                }
            }
            ToAgent::Run(placements) => {
                if let Some(session) = &mut self.session {
                    session.received += placements.iter().map(|p| u64::from(p.slots)).sum::<u64>();
                }
                // With its lease over nothing may start here, nor wait for a later session.
                let lapsed = self.lease_until.is_none() && self.session.as_ref().is_some_and(|s| s.lease.is_some());
                if self.stopping || lapsed {
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
            // The driver sees to these.
            ToAgent::Logs { .. } | ToAgent::Renewed { .. } => {}
            ToAgent::Acknowledge { through } => self.acknowledge(through, now),
            ToAgent::HeartbeatSeen { sent, clock: _ } => self.renew(sent.min(now)),
            ToAgent::Forget { batch } => {
                self.contexts.remove(&batch);
            }
            ToAgent::OutputTaken { attempt, bytes } => {
                if let Some(index) = self.engine_of(attempt) {
                    self.effects.push_back(Effect::ToEngine(index, ToEngine::OutputTaken { attempt, bytes }));
                }
            }
        }
    }

    fn on_engine(&mut self, index: EngineIndex, message: FromEngine, now: BootInstant) {
        let Some(engine) = self.engines.get_mut(usize::from(index.0)) else { return };
        match message {
            FromEngine::Ready { running } => {
                engine.context = None;
                engine.slot = match running {
                    Some((attempt, slots)) => Slot::Busy { attempt, since: now, reported: true, slots },
                    None => Slot::Idle,
                };
                // It knows of no lease that was given over an earlier link; one that an earlier agent has given it stays.
                if let Some(until) = self.lease_until {
                    self.effects.push_back(Effect::ToEngine(index, ToEngine::Lease { until: Some(until) }));
                }
            }
            FromEngine::Finished { attempt, outcome } => {
                if let Slot::Busy { attempt: busy, slots, .. } = engine.slot
                    && busy == attempt
                {
                    engine.slot = if outcome.survivors > 0 { Slot::Held { slots } } else { Slot::Idle };
                }
                if self.is_over(attempt) {
                    return;
                }
                if let Some(span) = outcome.span {
                    let run = span.elapsed.as_secs_f64();
                    self.mean_run = Some(self.mean_run.map_or(run, |mean| mean + SMOOTHING * (run - mean)));
                }
                self.finished(Some(index), attempt, outcome);
            }
            FromEngine::Output { attempt, stream, data } => {
                if self.session.is_some() {
                    self.effects.push_back(Effect::ToCoordinator(ToCoordinator::Output { attempt, stream, data }));
                } else {
                    // Nobody is there to take it, and the engine must not wait for that.
                    let bytes = data.len() as u32;
                    self.effects.push_back(Effect::ToEngine(index, ToEngine::OutputTaken { attempt, bytes }));
                }
            }
            // The driver hands it to whoever follows.
            FromEngine::Shown { .. } | FromEngine::ShownAll { .. } => {}
        }
    }

    fn engine_ended(&mut self, index: EngineIndex, attempt: Option<AttemptId>, ended: Ended, killed: u32, survivors: u32) {
        let Some(engine) = self.engines.get_mut(usize::from(index.0)) else { return };
        let slots = engine.slot.taken().max(1);
        let next = if survivors > 0 { Slot::Held { slots } } else { Slot::Unheard };
        let was = std::mem::replace(&mut engine.slot, next);
        engine.context = None;
        let busy = if let Slot::Busy { attempt, .. } = was { Some(attempt) } else { None };
        self.ends.extend(attempt.into_iter().chain(busy));
        let told = attempt;
        // The keeper may know of one that has ended since, or of none when it was a short one.
        for attempt in busy.into_iter().chain(attempt.filter(|a| busy != Some(*a))) {
            if self.is_over(attempt) {
                continue;
            }
            let left = format!("{killed} processes that it left were killed");
            // Why the keeper has killed the engine is about the attempt that it names.
            let (ended, error) = match ended {
                _ if survivors > 0 => {
                    (Ended::Unkillable, "its engine is dead or dying, and something of it does not die".to_owned())
                }
                Ended::Cancelled if told == Some(attempt) => {
                    (ended, format!("its engine did not answer the cancel and was killed; {left}"))
                }
                Ended::Timeout if told == Some(attempt) => {
                    (ended, format!("its engine did not end it at its timeout and was killed; {left}"))
                }
                _ => (Ended::Lost, format!("its engine died; {left}")),
            };
            let mut outcome = Outcome::never_ran(ended, error);
            (outcome.killed, outcome.survivors) = (killed, survivors);
            self.finished(Some(index), attempt, outcome);
        }
    }

    /// Whether its end is among the reports.
    fn is_over(&self, attempt: AttemptId) -> bool {
        self.reports.iter().any(|r| r.attempt == attempt && !matches!(r.report, Report::Started { .. }))
    }

    /// Has an engine kill what it runs. The keeper hears of it first, so that it never waits for an answer that it has had.
    fn stop_engine(&mut self, index: usize, attempt: AttemptId, stop: Stop, now: BootInstant) {
        let engine = EngineIndex(index as u16);
        self.effects.push_back(Effect::ToKeeper(ToKeeper::Cancelled { engine, attempt, by: now + stop.grace }));
        self.effects.push_back(Effect::ToEngine(engine, ToEngine::Cancel { attempt, stop }));
    }

    fn evict(&mut self, attempts: Vec<AttemptId>, stop: Stop, now: BootInstant) {
        let wanted: HashSet<AttemptId> = attempts.into_iter().collect();
        for attempt in self.queue.take_some(&wanted) {
            self.push_report(attempt, Report::Returned);
        }
        for i in 0..self.engines.len() {
            if let Slot::Busy { attempt, .. } = self.engines[i].slot
                && wanted.contains(&attempt)
            {
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
            if let Slot::Busy { attempt, .. } = self.engines[i].slot
                && wanted.contains(&attempt)
            {
                found.insert(attempt);
                self.stop_engine(i, attempt, stop, now);
            }
        }
        // What is in the reports has been answered already, or will be again after a reconnect.
        found.extend(self.reports.iter().map(|r| r.attempt));
        let absent: Vec<AttemptId> = attempts.iter().copied().filter(|a| !found.contains(a)).collect();
        // Before every engine has been heard, absence cannot be known; the coordinator asks again after the inventory.
        if !absent.is_empty() && self.session.as_ref().is_some_and(|s| s.known) {
            self.effects.push_back(Effect::ToCoordinator(ToCoordinator::Absent { attempts: absent }));
        }
    }

    fn acknowledge(&mut self, through: u64, now: BootInstant) {
        while let Some(first) = self.reports.front()
            && first.seq <= through
        {
            let attempt = first.attempt;
            if self.ends.contains(&attempt) && !matches!(first.report, Report::Started { .. }) {
                self.ends.remove(&attempt);
                self.effects.push_back(Effect::ToKeeper(ToKeeper::EndSeen { attempt }));
            }
            if let Report::Finished { engine: Some(engine), .. } = first.report
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

    /// The coordinator has seen what we sent at `sent`. Its present session says how long that is good for, also when that is shorter than an
    /// earlier one said: it waits no longer than that before it places elsewhere what is here.
    fn renew(&mut self, sent: BootInstant) {
        let until = self.session.as_ref().and_then(|s| s.lease).map(|lease| sent + lease);
        if until == self.lease_until {
            return;
        }
        self.lease_until = until;
        self.effects.push_back(Effect::ToKeeper(ToKeeper::Lease { until }));
        for i in 0..self.engines.len() {
            self.effects.push_back(Effect::ToEngine(EngineIndex(i as u16), ToEngine::Lease { until }));
        }
    }

    fn stop(&mut self, now: BootInstant) {
        self.stopping = true;
        if let Some(session) = self.session.as_mut().filter(|s| s.known) {
            // Before anything comes back: it must not be placed here again.
            session.asked = (session.received, 0);
            self.effects.push_back(Effect::ToCoordinator(ToCoordinator::Pull { credit: session.received, idle: 0 }));
        }
        for attempt in self.queue.take() {
            self.push_report(attempt, Report::Returned);
        }
        for i in 0..self.engines.len() {
            if let Slot::Busy { attempt, .. } = self.engines[i].slot {
                self.stop_engine(i, attempt, Stop::after(STOP_GRACE), now);
            }
        }
    }

    fn finished(&mut self, engine: Option<EngineIndex>, attempt: AttemptId, outcome: Outcome) {
        let evicted = self.evicted.remove(&attempt) || self.stopping;
        if evicted && matches!(outcome.ended, Ended::Cancelled | Ended::Lost) && outcome.survivors == 0 {
            // Nobody cancelled the job: its host goes away under it.
            return self.push_report(attempt, Report::Returned);
        }
        self.push_report(attempt, Report::Finished { engine, outcome: Box::new(outcome) });
    }

    fn push_report(&mut self, attempt: AttemptId, report: Report) {
        self.reports.push_back(NumberedReport { seq: self.next_seq, attempt, report });
        self.next_seq += 1;
    }

    /// Sends what has not been sent. False if it may wait for more.
    fn send_reports(&mut self, now: BootInstant) -> bool {
        // Their numbers have no gaps.
        let waiting = self.reports.front().map_or(0, |first| self.next_seq - first.seq.max(self.next_unsent)) as usize;
        if waiting == 0 {
            self.send_by = None;
            return true;
        }
        let deadline = self.send_by.get_or_insert(now + COALESCE);
        let timed = self.session.as_ref().and_then(|s| s.timed);
        let behind = timed.map(|(_, sent)| sent).filter(|sent| *sent + BEHIND <= now);
        if let Some(sent) = behind {
            *deadline = (*deadline).max(sent + MAX_BEHIND);
        }
        let deadline = *deadline;
        let fed = !self.queue.is_empty() && self.queue.len() as u64 * 2 >= self.prefetch(self.slots);
        if (fed || behind.is_some()) && waiting < REPORTS_PER_MESSAGE && now < deadline {
            return false;
        }
        self.send_by = None;
        self.next_unsent = self.next_seq;
        if let Some(session) = &mut self.session {
            session.timed.get_or_insert((self.next_seq - 1, now));
        }
        let unsent: Vec<NumberedReport> =
            self.reports.range(self.reports.len() - waiting..).map(|r| self.as_the_coordinator_knows(r)).collect();
        for chunk in unsent.chunks(REPORTS_PER_MESSAGE) {
            self.effects.push_back(Effect::ToCoordinator(ToCoordinator::Reports(chunk.to_vec())));
        }
        true
    }

    fn as_the_coordinator_knows(&self, report: &NumberedReport) -> NumberedReport {
        let mut report = report.clone();
        match &mut report.report {
            Report::Started { engine } => *engine = self.place(*engine),
            Report::Finished { engine, .. } => *engine = engine.map(|engine| self.place(engine)),
            Report::Returned => {}
        }
        report
    }

    /// Tells an engine what it may forget.
    fn tell_acknowledged(&mut self, index: usize) {
        let attempts = std::mem::take(&mut self.engines[index].acknowledged);
        if !attempts.is_empty() {
            self.effects.push_back(Effect::ToEngine(EngineIndex(index as u16), ToEngine::Acknowledge { attempts }));
        }
    }

    fn report_started(&mut self, now: BootInstant) {
        if self.session.as_ref().is_none_or(|s| !s.known) {
            return;
        }
        for i in 0..self.engines.len() {
            if let Slot::Busy { attempt, since, reported: reported @ false, .. } = &mut self.engines[i].slot
                && *since + STARTED_AFTER <= now
            {
                *reported = true;
                let attempt = *attempt;
                self.push_report(attempt, Report::Started { engine: EngineIndex(i as u16) });
            }
        }
    }

    /// Whether it waits for an engine.
    pub fn has_queued(&self, attempt: AttemptId) -> bool {
        self.queue.attempts().any(|waiting| waiting == attempt)
    }

    /// Which engine has it.
    pub fn engine_of(&self, wanted: AttemptId) -> Option<EngineIndex> {
        let at = self.engines.iter().position(|e| matches!(e.slot, Slot::Busy { attempt, .. } if attempt == wanted))?;
        Some(EngineIndex(at as u16))
    }

    fn settle(&mut self, now: BootInstant) {
        self.send_inventory();
        self.dispatch(now);
        // What waits for company is sent together with the next pull.
        if self.session.as_ref().is_some_and(|s| s.known) && self.send_reports(now) {
            self.pull();
        }
        if self.stopping && self.queue.is_empty() && self.busy() == 0 && (self.reports.is_empty() || self.session.is_none()) {
            self.effects.push_back(Effect::ToCoordinator(ToCoordinator::Goodbye));
            self.effects.push_back(Effect::Exit);
        }
    }

    fn send_inventory(&mut self) {
        let heard = self.engines.iter().all(|e| e.slot != Slot::Unheard);
        let Some(session) = self.session.as_mut().filter(|s| heard && !s.known) else { return };
        session.known = true;
        let running = self
            .engines
            .iter()
            .filter_map(|e| if let Slot::Busy { attempt, .. } = e.slot { Some(attempt) } else { None })
            .collect();
        self.effects.push_back(Effect::ToCoordinator(ToCoordinator::Inventory {
            queued: self.queue.attempts().collect(),
            running,
            unacknowledged: self.reports.iter().map(|r| r.attempt).collect(),
            containment: self.containment,
            clock_offset: self.clock_offset,
        }));
        // All of them again: what was sent in an earlier session may not have arrived.
        self.next_unsent = 0;
        self.send_by = Some(BootInstant::default());
    }

    fn dispatch(&mut self, now: BootInstant) {
        if self.queue.is_empty() {
            return;
        }
        let Some(first_engine) = self.session.as_ref().map(|s| s.first_engine) else { return };
        let mut free = self.free();
        for place in 0..self.slots {
            if self.taken(place) > 0 {
                continue;
            }
            let Some(Placement { attempt, spec, slots }) = self.queue.next_within(free) else { break };
            let batch = attempt.key.batch;
            let Some((context, user)) = self.contexts.get(&batch) else {
                self.finished(None, attempt, Outcome::never_ran(Ended::StartFailed, "its batch is unknown here".to_owned()));
                continue;
            };
            let Some(i) = self.engine_for(user, place) else {
                // The coordinator has not heard yet that this user is not served here any more.
                self.push_report(attempt, Report::Returned);
                continue;
            };
            let context = if self.engines[i].context == Some(batch) { None } else { Some(context.clone()) };
            self.tell_acknowledged(i);
            self.engines[i].context = Some(batch);
            self.engines[i].slot = Slot::Busy { attempt, since: now, reported: false, slots };
            free -= usize::from(slots);
            let engine = EngineId(first_engine.0 + place as u32);
            let run = ToEngine::Run { attempt, spec, context, engine, slots };
            self.effects.push_back(Effect::ToEngine(EngineIndex(i as u16), run));
        }
    }

    fn prefetch(&self, slots: usize) -> u64 {
        // Slots run out this many attempts while a refill is on its way; below a tenth, waiting costs less than queueing behind
        // a long job.
        let during_refill = match self.mean_run {
            Some(mean) => slots as f64 * REFILL.as_secs_f64() / mean.max(1e-6),
            None => 0.0,
        };
        if during_refill < 0.1 { 0 } else { (during_refill.ceil() as u64).min(MAX_PREFETCH) }
    }

    fn pull(&mut self) {
        let (idle, queued) = (self.free(), self.queue.slots());
        let held = self.engines.iter().filter(|e| matches!(e.slot, Slot::Held { .. })).count();
        let usable = if self.engines.is_empty() { 0 } else { self.slots.saturating_sub(held) };
        let room = MAX_UNACKNOWLEDGED.saturating_sub(self.reports.len() + self.busy()) as u64;
        let want = if self.stopping { 0 } else { (idle as u64 + self.prefetch(usable)).saturating_sub(queued as u64).min(room) };
        let Some(session) = self.session.as_mut().filter(|s| s.known) else { return };
        let asked = (session.asked.0.max(session.received + want), idle.saturating_sub(queued) as u16);
        if asked != session.asked {
            session.asked = asked;
            self.effects.push_back(Effect::ToCoordinator(ToCoordinator::Pull { credit: asked.0, idle: asked.1 }));
        }
    }
}

/// Reports in one message: each may carry two tails of 4 KiB and an error text, and a frame holds 1 MiB.
const REPORTS_PER_MESSAGE: usize = 64;

#[cfg(test)]
mod tests;
