//! The keeper's core: which engines there are, which attempt each is trusted with until when, and
//! what is done about engines that fail.
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
//! An engine that dies soon after its start, again and again, waits before the next try, longer
//! each time.
//!
//! An engine says which attempt it runs and by when that should be over; the agent says which
//! attempt it has an engine kill, before it tells the engine; the lease ends everything. An engine
//! that is late by [`LATE`] is killed, and so are all processes that it leaves: then the keeper is
//! their parent, and its `wait` is the proof.

pub mod driver;
mod event;
mod slot;
pub mod start;
mod sweeping;

pub use event::{Effect, Event};
use slot::{LIVED, Life, RESTART_FIRST, Slot, said};
use sweeping::SWEEP_FIRST;

use mezcal_common::message::engine::{FromKeeper, ToKeeper};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::EngineIndex;
use mezcal_common::model::outcome::Ended;
use std::collections::VecDeque;
use std::time::Duration;

/// How late an engine may be with killing an attempt that should be dead.
pub const LATE: Duration = Duration::from_secs(1);
/// A keeper without an agent ends after this time, if no lease goes on longer.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// And no sooner than this long after the lease: killing takes its time.
const AFTER_LEASE: Duration = Duration::from_secs(60);
/// An engine whose link ends again so soon is of no use: it cannot hear, or cannot be understood.
const RELINK_PAUSE: Duration = Duration::from_secs(10);

/// The decisions of one keeper.
#[derive(Debug)]
pub struct Keeper {
    slots: Vec<Slot>,
    /// How many engines the agent wants.
    wanted: usize,
    /// The agent waits for its links until the engines that are too many are gone: their attempts
    /// are in no inventory.
    links_due: bool,
    lease: Option<BootInstant>,
    /// The time since which there is no agent.
    alone_since: Option<BootInstant>,
    /// The keeper ends when it has been alone for long.
    patience: bool,
    /// Ends of engines that the agent has not acknowledged.
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

    /// The same keeper, which waits for an agent for ever.
    pub fn always_wanted(self) -> Self {
        Self {
            patience: false,
            ..self
        }
    }

    /// Takes an event that happened at `now`.
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
                    // There is nothing in the engine that anybody has to wait for.
                    self.tell_end(engine, 0);
                }
            }
            Event::Swept { killed, alive } => self.swept(killed, alive, now),
        }
    }

    /// Does everything that is due at `now`.
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

    /// The time at which [`Keeper::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<BootInstant> {
        let slots = self.slots.iter().filter_map(|slot| match slot.life {
            Life::Alive => slot.deadline(self.lease).map(|(at, _)| at),
            Life::Killed { since, told: false } => Some(since + crate::engine::UNKILLABLE_AFTER),
            Life::Due { at } => Some(at),
            Life::Killed { told: true, .. } | Life::Dead { .. } | Life::Retired => None,
        });
        slots.chain(self.sweep_at).chain(self.end_at()).min()
    }

    /// The next effect to perform.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn slot(&mut self, engine: EngineIndex) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(engine.0))
    }

    /// The time at which to give up waiting for an agent.
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
                // A dead engine is replaced, and the agent is linked to its successor.
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
                    // The attempt ended with the engine that this one has replaced.
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
        // Before the links: the messages of an engine are newer than its predecessor's end.
        self.effects
            .extend(self.ends.iter().cloned().map(Effect::Tell));
        for i in 0..self.wanted {
            // The end may be acknowledged already, but this agent must know that the slot is not
            // available.
            let told = |end: &FromKeeper| matches!(end, FromKeeper::EngineEnded { engine, .. } if usize::from(engine.0) == i);
            // Or that there is nothing in the slot.
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
}

#[cfg(test)]
mod tests;
