//! The keeper's core: which engines there are, what each is trusted with until when, and what is done about those that fail.
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
//! An engine says what it runs and by when that should be over; the agent says what it has told an engine to kill, before it tells
//! the engine; the lease ends everything. Whoever is late by [`LATE`] is killed, and so is all that it leaves: then the keeper is the
//! parent, and its `wait` is the proof.

pub mod driver;

use mezcal_common::clock::BootInstant;
use mezcal_common::ids::{AttemptId, EngineIndex};
use mezcal_common::outcome::Ended;
use mezcal_common::wire::engine::{EngineToKeeper, FromKeeper, ToKeeper};
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
    /// KILL and reap every child that is no engine, and what is in the leaves of these dead ones; answer with [`Event::Swept`].
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
}

#[derive(Debug)]
struct Slot {
    life: Life,
    watch: Option<Watch>,
    /// What the agent has told it to kill, and by when.
    cancelled: Option<(AttemptId, BootInstant)>,
    /// Why it was killed.
    ended: Ended,
    killed: u32,
}

impl Slot {
    fn new() -> Self {
        Self { life: Life::Alive, watch: None, cancelled: None, ended: Ended::Lost, killed: 0 }
    }

    fn attempt(&self) -> Option<AttemptId> {
        self.watch.map(|w| w.attempt).or(self.cancelled.map(|(attempt, _)| attempt))
    }

    /// When it is late, and what its attempt has ended by then.
    fn deadline(&self, lease: Option<BootInstant>) -> Option<(BootInstant, Ended)> {
        let watch = self.watch.and_then(|w| Some((w.until?, w.ended)));
        let cancelled = self.cancelled.map(|(_, by)| (by, Ended::Cancelled));
        // An engine that is killing has its own time for that.
        let lease = self.watch.filter(|w| !w.killing).and(lease).map(|until| (until, Ended::Lost));
        let first = [watch, cancelled, lease].into_iter().flatten().min_by_key(|(at, _)| *at);
        first.map(|(at, ended)| (at + LATE, ended))
    }
}

/// The decisions of one keeper.
#[derive(Debug)]
pub struct Keeper {
    slots: Vec<Slot>,
    lease: Option<BootInstant>,
    /// No agent since then.
    alone_since: Option<BootInstant>,
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
            lease: None,
            alone_since: Some(now),
            ends: Vec::new(),
            sweep_at: None,
            pause: SWEEP_FIRST,
            effects: VecDeque::new(),
        }
    }

    /// Takes what happened at `now`.
    pub fn handle(&mut self, event: Event, now: BootInstant) {
        match event {
            Event::Agent(message) => self.agent(message),
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
                    self.sweep(now, true);
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
                        slot.life = Life::Killed { since: now, told: false };
                        self.effects.push_back(Effect::Kill(engine));
                    }
                }
                Life::Killed { since, told: false } if since + crate::engine::UNKILLABLE_AFTER <= now => {
                    slot.life = Life::Killed { since, told: true };
                    self.tell_end(engine, 1);
                }
                Life::Killed { .. } | Life::Dead { .. } => {}
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
            Life::Killed { told: true, .. } | Life::Dead { .. } => None,
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
        let alone = self.alone_since? + PATIENCE;
        Some(self.lease.map_or(alone, |lease| alone.max(lease + AFTER_LEASE)))
    }

    fn agent(&mut self, message: ToKeeper) {
        match message {
            ToKeeper::Engines { count } => self.engines(count),
            ToKeeper::Stop => self.effects.push_back(Effect::Exit),
            ToKeeper::Lease { until } => self.lease = until,
            ToKeeper::Cancelled { engine, attempt, by } => {
                if let Some(slot) = self.slot(engine) {
                    slot.cancelled = Some((attempt, by));
                }
            }
            ToKeeper::EndSeen { attempt } => {
                self.ends.retain(|end| !matches!(end, FromKeeper::EngineEnded { attempt: Some(a), .. } if *a == attempt));
            }
        }
    }

    fn engines(&mut self, count: u16) {
        self.alone_since = None;
        let new = self.slots.len()..usize::from(count).max(self.slots.len());
        for i in new {
            self.slots.push(Slot::new());
            self.effects.push_back(Effect::Start(EngineIndex(i as u16)));
        }
        // Before the links: what an engine says of itself is newer than its predecessor's end.
        self.effects.extend(self.ends.iter().cloned().map(Effect::Tell));
        for (i, slot) in self.slots.iter().enumerate().take(usize::from(count)) {
            if slot.life == Life::Alive {
                self.effects.push_back(Effect::Link(EngineIndex(i as u16)));
            }
        }
    }

    fn dead(&self) -> Vec<EngineIndex> {
        let dead = self.slots.iter().enumerate().filter(|(_, slot)| matches!(slot.life, Life::Dead { .. }));
        dead.map(|(i, _)| EngineIndex(i as u16)).collect()
    }

    fn sweep(&mut self, now: BootInstant, first: bool) {
        self.pause = if first { SWEEP_FIRST } else { (self.pause * 2).min(SWEEP_MAX) };
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
            let Some(slot) = self.slot(engine) else { continue };
            let Life::Dead { since, told } = slot.life else { continue };
            if alive == 0 {
                if !told {
                    self.tell_end(engine, 0);
                }
                self.slots[usize::from(engine.0)] = Slot::new();
                self.effects.push_back(Effect::Start(engine));
                self.effects.push_back(Effect::Link(engine));
            } else if !told && since + crate::engine::UNKILLABLE_AFTER <= now {
                slot.life = Life::Dead { since, told: true };
                self.tell_end(engine, alive);
            }
        }
    }

    fn tell_end(&mut self, engine: EngineIndex, survivors: u32) {
        let Some(slot) = self.slot(engine) else { return };
        let (attempt, ended, killed) = (slot.attempt(), slot.ended, slot.killed);
        let end = FromKeeper::EngineEnded { engine, attempt, ended, killed, survivors };
        if attempt.is_some() {
            self.ends.push(end.clone());
        }
        self.effects.push_back(Effect::Tell(end));
    }
}

fn said(slot: &mut Slot, message: EngineToKeeper) {
    match message {
        EngineToKeeper::Watch { attempt, until, ended, killing } => {
            slot.watch = Some(Watch { attempt, until, ended, killing });
            // What it says of a kill under way is newer than the agent's word; what it says of a job that runs may be older.
            if killing && slot.cancelled.is_some_and(|(cancelled, _)| cancelled == attempt) {
                slot.cancelled = None;
            }
        }
        EngineToKeeper::Over { attempt } => {
            if slot.watch.is_some_and(|w| w.attempt == attempt) {
                slot.watch = None;
            }
            if slot.cancelled.is_some_and(|(cancelled, _)| cancelled == attempt) {
                slot.cancelled = None;
            }
        }
    }
}

#[cfg(test)]
mod tests;
