//! The keeper's core: which engines there are, what each is trusted with until when, and what is
//! done about those that fail.
//!
//! No clock, no I/O: events in, effects out. [`driver`] performs the effects.
//!
//! ```text
//!          keeps no deadline                 reaped
//!  Alive ────────────────────▶ Killed ─────────────────▶ Dead (orphans are swept) ── none left ──▶ Alive (a new one)
//!    └──────────────────────── died ────────────────────▶ │
//!                                 10 s ──▶ told as unkillable; goes on trying
//! ```
//!
//! One that dies soon after its start, again and again, waits before the next try, longer each
//! time.
//!
//! An engine says what it runs and by when that should be over; the agent says what it has told an
//! engine to kill, before it tells the engine; the lease ends everything. Whoever is late by
//! [`LATE`] is killed, and so is all that it leaves: then the keeper is the parent, and its `wait`
//! is the proof.

pub mod driver;

use mezcal_common::message::engine::{EngineToKeeper, FromKeeper, ToKeeper};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, EngineIndex};
use mezcal_common::model::outcome::Ended;
use std::collections::VecDeque;
use std::time::Duration;

/// How late an engine may be with killing what should be dead.
pub const LATE: Duration = Duration::from_secs(1);
/// A keeper without an agent ends after this, if no lease goes on longer.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// And no sooner than this after the lease: killing takes its time.
const AFTER_LEASE: Duration = Duration::from_secs(60);
/// First pause between two sweeps; doubles up to [`SWEEP_MAX`].
const SWEEP_FIRST: Duration = Duration::from_millis(2);
const SWEEP_MAX: Duration = Duration::from_millis(100);
/// An engine whose link ends again so soon is no use: it cannot hear, or cannot be understood.
const RELINK_PAUSE: Duration = Duration::from_secs(10);

/// An engine that has lived so long has not failed at its start.
const LIVED: Duration = Duration::from_secs(10);
/// Pause before the second start in a row of one that has; doubles up to [`RESTART_MAX`].
const RESTART_FIRST: Duration = Duration::from_millis(100);
const RESTART_MAX: Duration = Duration::from_secs(5);

/// Attempts that an engine has said to be over and that are remembered: more than can be on their
/// way between two looks at the agent.
const REMEMBERED: usize = 8;

/// What happens to a keeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message of the agent.
    Agent(ToKeeper),
    /// The agent is gone.
    AgentGone,
    /// A message of an engine.
    Engine(EngineIndex, EngineToKeeper),
    /// A signal has stopped an engine.
    EngineStopped(EngineIndex),
    /// An engine has ended and is reaped; its children are ours now.
    EngineDied(EngineIndex),
    /// An engine could not be started: there may be no room for another process just now.
    NotStarted(EngineIndex),
    /// The answer to [`Effect::Sweep`].
    Swept {
        /// Processes that died by our KILL in this sweep.
        killed: u32,
        /// Processes still alive.
        alive: u32,
    },
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Start an engine.
    Start(EngineIndex),
    /// Connect the agent with an engine.
    Link(EngineIndex),
    /// KILL an engine.
    Kill(EngineIndex),
    /// CONT to an engine.
    Continue(EngineIndex),
    /// KILL and reap every child that is no engine, and what is in the leaves of these dead ones;
    /// answer with [`Event::Swept`].
    Sweep {
        /// The dead ones.
        engines: Vec<EngineIndex>,
    },
    /// Tell the agent.
    Tell(FromKeeper),
    /// End this process.
    Exit,
}

/// What an engine has said of its attempt.
#[derive(Clone, Copy, Debug)]
struct Watch {
    attempt: AttemptId,
    until: Option<BootInstant>,
    ended: Ended,
    killing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Alive,
    /// Has been sent KILL. `told`: the agent knows that it does not die.
    Killed {
        since: BootInstant,
        told: bool,
    },
    /// Is reaped; what it left is being swept.
    Dead {
        since: BootInstant,
        told: bool,
    },
    /// Nothing of it is left; its successor is started then.
    Due {
        at: BootInstant,
    },
    /// Is dead and was one too many.
    Retired,
}

#[derive(Debug)]
struct Slot {
    life: Life,
    started: BootInstant,
    /// How many in a row have not lived long.
    failures: u32,
    watch: Option<Watch>,
    /// What the agent has told it to kill, and by when.
    cancelled: Option<(AttemptId, BootInstant)>,
    /// Attempts that it has said to be over: the agent's word about them may come later.
    over: VecDeque<AttemptId>,
    /// When the agent's link to it was made again last.
    relinked: Option<BootInstant>,
    /// Why it was killed.
    ended: Ended,
    killed: u32,
}

impl Slot {
    fn new(now: BootInstant, failures: u32) -> Self {
        Self {
            life: Life::Alive,
            started: now,
            failures,
            watch: None,
            cancelled: None,
            over: VecDeque::new(),
            relinked: None,
            ended: Ended::Lost,
            killed: 0,
        }
    }

    /// How long its successor is waited with. None: a first failure may be chance.
    fn pause(&self) -> Option<Duration> {
        let doublings = self.failures.checked_sub(2)?;
        Some(
            RESTART_FIRST
                .saturating_mul(2u32.saturating_pow(doublings))
                .min(RESTART_MAX),
        )
    }

    fn attempt(&self) -> Option<AttemptId> {
        self.watch
            .map(|w| w.attempt)
            .or(self.cancelled.map(|(attempt, _)| attempt))
    }

    /// When it is late, and what its attempt has ended by then.
    fn deadline(&self, lease: Option<BootInstant>) -> Option<(BootInstant, Ended)> {
        let watch = self.watch.and_then(|w| Some((w.until?, w.ended)));
        // What it says that it runs is not what it was told to kill: that is over.
        let other = |attempt| self.watch.is_some_and(|w| w.attempt != attempt);
        let cancelled = self
            .cancelled
            .filter(|(attempt, _)| !other(*attempt))
            .map(|(_, by)| (by, Ended::Cancelled));
        // An engine that is killing has its own time for that.
        let lease = self
            .watch
            .filter(|w| !w.killing)
            .and(lease)
            .map(|until| (until, Ended::Lost));
        let first = [watch, cancelled, lease]
            .into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at);
        first.map(|(at, ended)| (at + LATE, ended))
    }
}

/// The decisions of one keeper.
#[derive(Debug)]
pub struct Keeper {
    slots: Vec<Slot>,
    /// How many the agent wants.
    wanted: usize,
    /// The agent waits for its links until those that are too many are gone: what they run is in no
    /// inventory.
    links_due: bool,
    lease: Option<BootInstant>,
    /// No agent since then.
    alone_since: Option<BootInstant>,
    /// It ends when it has been alone for long.
    patience: bool,
    /// Ends that the agent has to see acknowledged.
    ends: Vec<FromKeeper>,
    sweep_at: Option<BootInstant>,
    pause: Duration,
    effects: VecDeque<Effect>,
}

impl Keeper {
    /// A keeper without engines and without an agent.
    pub fn new(now: BootInstant) -> Self {
        Self {
            slots: Vec::new(),
            wanted: 0,
            links_due: false,
            lease: None,
            alone_since: Some(now),
            patience: true,
            ends: Vec::new(),
            sweep_at: None,
            pause: SWEEP_FIRST,
            effects: VecDeque::new(),
        }
    }

    /// It waits for an agent for ever.
    pub fn always_wanted(self) -> Self {
        Self {
            patience: false,
            ..self
        }
    }

    /// Takes what happened at `now`.
    pub fn handle(&mut self, event: Event, now: BootInstant) {
        match event {
            Event::Agent(message) => self.agent(message, now),
            Event::AgentGone => self.alone_since = Some(now),
            Event::Engine(engine, message) => {
                if let Some(slot) = self.slot(engine) {
                    said(slot, message);
                }
            }
            Event::EngineStopped(engine) => self.effects.push_back(Effect::Continue(engine)),
            Event::EngineDied(engine) => {
                if let Some(slot) = self.slot(engine) {
                    let told = matches!(slot.life, Life::Killed { told: true, .. });
                    slot.life = Life::Dead { since: now, told };
                    slot.failures = if now.since(slot.started) < LIVED {
                        slot.failures.saturating_add(1)
                    } else {
                        0
                    };
                    self.sweep(now, true);
                }
            }
            Event::NotStarted(engine) => {
                if let Some(slot) = self.slot(engine) {
                    slot.failures = slot.failures.saturating_add(1);
                    slot.life = Life::Due {
                        at: now + slot.pause().unwrap_or(RESTART_FIRST),
                    };
                    // There is nothing in it that anybody has to wait for.
                    self.tell_end(engine, 0);
                }
            }
            Event::Swept { killed, alive } => self.swept(killed, alive, now),
        }
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: BootInstant) {
        let lease = self.lease;
        for i in 0..self.slots.len() {
            let (engine, slot) = (EngineIndex(i as u16), &mut self.slots[i]);
            match slot.life {
                Life::Alive => {
                    if let Some((_, ended)) = slot.deadline(lease).filter(|(at, _)| *at <= now) {
                        slot.ended = ended;
                        slot.life = Life::Killed {
                            since: now,
                            told: false,
                        };
                        self.effects.push_back(Effect::Kill(engine));
                    }
                }
                Life::Killed { since, told: false }
                    if since + crate::engine::UNKILLABLE_AFTER <= now =>
                {
                    slot.life = Life::Killed { since, told: true };
                    self.tell_end(engine, 1);
                }
                Life::Due { at } if at <= now => self.start(engine, now),
                Life::Killed { .. } | Life::Dead { .. } | Life::Due { .. } | Life::Retired => {}
            }
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep(now, false);
        }
        if self.end_at().is_some_and(|at| at <= now) {
            self.effects.push_back(Effect::Exit);
        }
    }

    /// When [`Keeper::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<BootInstant> {
        let slots = self.slots.iter().filter_map(|slot| match slot.life {
            Life::Alive => slot.deadline(self.lease).map(|(at, _)| at),
            Life::Killed { since, told: false } => Some(since + crate::engine::UNKILLABLE_AFTER),
            Life::Due { at } => Some(at),
            Life::Killed { told: true, .. } | Life::Dead { .. } | Life::Retired => None,
        });
        slots.chain(self.sweep_at).chain(self.end_at()).min()
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn slot(&mut self, engine: EngineIndex) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(engine.0))
    }

    /// When to give up waiting for an agent.
    fn end_at(&self) -> Option<BootInstant> {
        let alone = self.alone_since.filter(|_| self.patience)? + PATIENCE;
        Some(
            self.lease
                .map_or(alone, |lease| alone.max(lease + AFTER_LEASE)),
        )
    }

    fn agent(&mut self, message: ToKeeper, now: BootInstant) {
        match message {
            ToKeeper::Engines { count, .. } => self.engines(count, now),
            ToKeeper::Stop => self.effects.push_back(Effect::Exit),
            ToKeeper::Lease { until } => self.lease = until,
            ToKeeper::Cancelled {
                engine,
                attempt,
                by,
            } => {
                if let Some(slot) = self
                    .slot(engine)
                    .filter(|slot| !slot.over.contains(&attempt))
                {
                    slot.cancelled = Some((attempt, by));
                }
            }
            ToKeeper::Relink { engine } => {
                // A dead one is replaced, and the agent is linked to that.
                let Some(slot) = self.slot(engine).filter(|slot| slot.life == Life::Alive) else {
                    return;
                };
                if slot
                    .relinked
                    .replace(now)
                    .is_some_and(|last| now.since(last) < RELINK_PAUSE)
                {
                    (slot.ended, slot.life) = (
                        Ended::Lost,
                        Life::Killed {
                            since: now,
                            told: false,
                        },
                    );
                    self.effects.push_back(Effect::Kill(engine));
                } else if !self.links_due {
                    self.effects.push_back(Effect::Link(engine));
                }
            }
            ToKeeper::EndSeen { attempt } => {
                self.ends.retain(|end| !matches!(end, FromKeeper::EngineEnded { attempt: Some(a), .. } if *a == attempt));
                for slot in self
                    .slots
                    .iter_mut()
                    .filter(|s| s.cancelled.is_some_and(|(a, _)| a == attempt))
                {
                    // It ended with the engine that this one has replaced.
                    slot.cancelled = None;
                }
            }
        }
    }

    fn engines(&mut self, count: u16, now: BootInstant) {
        self.alone_since = None;
        self.wanted = usize::from(count);
        for i in 0..self.wanted.max(self.slots.len()) {
            let engine = EngineIndex(i as u16);
            match self.slots.get(i).map(|slot| slot.life) {
                None => {
                    self.slots.push(Slot::new(now, 0));
                    self.effects.push_back(Effect::Start(engine));
                }
                Some(Life::Retired) if i < self.wanted => {
                    self.slots[i] = Slot::new(now, 0);
                    self.effects.push_back(Effect::Start(engine));
                }
                Some(Life::Due { .. }) if i >= self.wanted => self.slots[i].life = Life::Retired,
                Some(Life::Alive) if i >= self.wanted => {
                    self.slots[i].life = Life::Killed {
                        since: now,
                        told: false,
                    };
                    self.effects.push_back(Effect::Kill(engine));
                }
                Some(_) => {}
            }
        }
        // Before the links: what an engine says of itself is newer than its predecessor's end.
        self.effects
            .extend(self.ends.iter().cloned().map(Effect::Tell));
        for i in 0..self.wanted {
            // Its end may be acknowledged already, but this agent must know that the slot is not to
            // be had.
            let told = |end: &FromKeeper| matches!(end, FromKeeper::EngineEnded { engine, .. } if usize::from(engine.0) == i);
            // Or that there is nothing in it.
            let survivors = match self.slots[i].life {
                Life::Killed { told: true, .. } | Life::Dead { told: true, .. } => 1,
                Life::Due { .. } => 0,
                Life::Alive | Life::Killed { .. } | Life::Dead { .. } | Life::Retired => continue,
            };
            if !self.ends.iter().any(told) {
                let (engine, ended, killed) = (
                    EngineIndex(i as u16),
                    self.slots[i].ended,
                    self.slots[i].killed,
                );
                let end = FromKeeper::EngineEnded {
                    engine,
                    attempt: None,
                    ended,
                    killed,
                    survivors,
                };
                self.effects.push_back(Effect::Tell(end));
            }
        }
        self.links_due = true;
        self.link_if_due();
    }

    fn link_if_due(&mut self) {
        let too_many = self
            .slots
            .iter()
            .skip(self.wanted)
            .any(|slot| slot.life != Life::Retired);
        if self.links_due && !too_many {
            self.links_due = false;
            let alive = (0..self.wanted).filter(|i| self.slots[*i].life == Life::Alive);
            self.effects
                .extend(alive.map(|i| Effect::Link(EngineIndex(i as u16))));
        }
    }

    fn dead(&self) -> Vec<EngineIndex> {
        let dead = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| matches!(slot.life, Life::Dead { .. }));
        dead.map(|(i, _)| EngineIndex(i as u16)).collect()
    }

    fn sweep(&mut self, now: BootInstant, first: bool) {
        self.pause = if first {
            SWEEP_FIRST
        } else {
            (self.pause * 2).min(SWEEP_MAX)
        };
        self.sweep_at = Some(now + self.pause);
        let engines = self.dead();
        self.effects.push_back(Effect::Sweep { engines });
    }

    fn swept(&mut self, killed: u32, alive: u32, now: BootInstant) {
        let dead = self.dead();
        let Some(first) = dead.first().copied() else {
            self.sweep_at = None;
            return;
        };
        if let Some(slot) = self.slot(first) {
            slot.killed += killed;
        }
        if alive == 0 {
            self.sweep_at = None;
        }
        for engine in dead {
            let Some(slot) = self.slot(engine) else {
                continue;
            };
            let Life::Dead { since, told } = slot.life else {
                continue;
            };
            if alive == 0 {
                if !told {
                    self.tell_end(engine, 0);
                }
                let index = usize::from(engine.0);
                let over = self.slots[index].attempt();
                self.slots[index] = Slot::new(now, self.slots[index].failures);
                self.slots[index].over.extend(over);
                if index >= self.wanted {
                    self.slots[index].life = Life::Retired;
                    continue;
                }
                match self.slots[index].pause() {
                    None => self.start(engine, now),
                    Some(pause) => self.slots[index].life = Life::Due { at: now + pause },
                }
            } else if !told && since + crate::engine::UNKILLABLE_AFTER <= now {
                slot.life = Life::Dead { since, told: true };
                self.tell_end(engine, alive);
            }
        }
        self.link_if_due();
    }

    /// Starts the successor of one of which nothing is left.
    fn start(&mut self, engine: EngineIndex, now: BootInstant) {
        let Some(slot) = self.slot(engine) else {
            return;
        };
        (slot.life, slot.started) = (Life::Alive, now);
        self.effects.push_back(Effect::Start(engine));
        if !self.links_due {
            self.effects.push_back(Effect::Link(engine));
        }
    }

    fn tell_end(&mut self, engine: EngineIndex, survivors: u32) {
        let Some(slot) = self.slot(engine) else {
            return;
        };
        let (attempt, ended, killed) = (slot.attempt(), slot.ended, slot.killed);
        let end = FromKeeper::EngineEnded {
            engine,
            attempt,
            ended,
            killed,
            survivors,
        };
        if attempt.is_some() {
            self.ends.push(end.clone());
        }
        self.effects.push_back(Effect::Tell(end));
    }
}

fn said(slot: &mut Slot, message: EngineToKeeper) {
    match message {
        EngineToKeeper::Watch {
            attempt,
            until,
            ended,
            killing,
        } => {
            slot.watch = Some(Watch {
                attempt,
                until,
                ended,
                killing,
            });
            // What it says of a kill under way is newer than the agent's word; what it says of a
            // job that runs may be older.
            if killing
                && slot
                    .cancelled
                    .is_some_and(|(cancelled, _)| cancelled == attempt)
            {
                slot.cancelled = None;
            }
        }
        EngineToKeeper::Over { attempt } => {
            if slot.over.len() == REMEMBERED {
                slot.over.pop_front();
            }
            slot.over.push_back(attempt);
            if slot.watch.is_some_and(|w| w.attempt == attempt) {
                slot.watch = None;
            }
            if slot
                .cancelled
                .is_some_and(|(cancelled, _)| cancelled == attempt)
            {
                slot.cancelled = None;
            }
        }
    }
}

#[cfg(test)]
mod tests;
