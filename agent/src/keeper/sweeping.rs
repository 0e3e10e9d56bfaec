//! The processes that dead engines leave: they are swept until none is left, and then the agent
//! hears of it and another engine is started.

use super::Keeper;
use super::event::Effect;
use super::slot::{Life, Slot};
use mezcal_common::message::engine::FromKeeper;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::EngineIndex;
use std::time::Duration;

/// First pause between two sweeps; doubles up to [`SWEEP_MAX`].
pub(super) const SWEEP_FIRST: Duration = Duration::from_millis(2);

pub(super) const SWEEP_MAX: Duration = Duration::from_millis(100);

impl Keeper {
    pub(super) fn dead(&self) -> Vec<EngineIndex> {
        let dead = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| matches!(slot.life, Life::Dead { .. }));
        dead.map(|(i, _)| EngineIndex(i as u16)).collect()
    }

    pub(super) fn sweep(&mut self, now: BootInstant, first: bool) {
        self.pause = if first {
            SWEEP_FIRST
        } else {
            (self.pause * 2).min(SWEEP_MAX)
        };
        self.sweep_at = Some(now + self.pause);
        let engines = self.dead();
        self.effects.push_back(Effect::Sweep { engines });
    }

    pub(super) fn swept(&mut self, killed: u32, alive: u32, now: BootInstant) {
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

    /// Starts the successor of an engine of which nothing is left.
    pub(super) fn start(&mut self, engine: EngineIndex, now: BootInstant) {
        let Some(slot) = self.slot(engine) else {
            return;
        };
        (slot.life, slot.started) = (Life::Alive, now);
        self.effects.push_back(Effect::Start(engine));
        if !self.links_due {
            self.effects.push_back(Effect::Link(engine));
        }
    }

    pub(super) fn tell_end(&mut self, engine: EngineIndex, survivors: u32) {
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
