//! Which engine gets which waiting attempt, and how many more to ask the coordinator for.

use super::Supervisor;
use super::event::Effect;
use super::session::Session;
use super::slot::Slot;
use mezcal_common::message::agent::{Placement, Report, ToCoordinator};
use mezcal_common::message::engine::ToEngine;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, EngineId, EngineIndex};
use mezcal_common::model::outcome::{Ended, Outcome};

/// Outcomes that may wait for their acknowledgement before the agent stops asking for more.
pub(super) const MAX_UNACKNOWLEDGED: usize = 1024;

impl Supervisor {
    /// Slots in use, also by attempts that may still run in engines that are not heard.
    pub fn busy(&self) -> usize {
        let busy = |slot| {
            matches!(
                slot,
                Slot::Busy { .. } | Slot::Held { .. } | Slot::Unheard { given: Some(_) }
            )
        };
        self.engines.iter().filter(|e| busy(e.slot)).count()
    }

    /// Slots that no attempt takes.
    pub(super) fn free(&self) -> usize {
        if self.engines.is_empty() {
            return 0;
        }
        let taken: usize = (0..self.slots)
            .map(|place| usize::from(self.taken(place)))
            .sum();
        self.slots.saturating_sub(taken)
    }

    /// The slots that the engines of one place take.
    pub(super) fn taken(&self, place: usize) -> u16 {
        (place..self.engines.len())
            .step_by(self.slots)
            .map(|i| self.taken_by(i))
            .max()
            .unwrap_or(0)
    }

    /// The slots that one engine takes. In a set that is not served, only an attempt that the
    /// engine was given counts.
    fn taken_by(&self, index: usize) -> u16 {
        let slot = self.engines[index].slot;
        match slot {
            Slot::Unheard { given: None } | Slot::Busy { claimed: true, .. }
                if !self.is_served(index / self.slots) =>
            {
                0
            }
            Slot::Idle if self.rests_for_engines() => 1,
            Slot::Unheard { .. }
            | Slot::Idle
            | Slot::Busy { .. }
            | Slot::Held { .. }
            | Slot::Unfit => slot.taken(),
        }
    }

    /// The engine of this place that runs a user's jobs.
    fn engine_for(&self, user: &str, place: usize) -> Option<usize> {
        let set = match self.shared {
            true => self
                .set_of(user)
                .filter(|set| self.sets[*set].is_served() && !self.holds_back(*set))?,
            false => 0,
        };
        Some(set * self.slots + place)
    }

    /// Whether an attempt waits for an engine.
    pub fn has_queued(&self, attempt: AttemptId) -> bool {
        self.queue.attempts().any(|waiting| waiting == attempt)
    }

    /// The engine that runs an attempt.
    pub fn engine_of(&self, wanted: AttemptId) -> Option<EngineIndex> {
        let at = self
            .engines
            .iter()
            .position(|e| matches!(e.slot, Slot::Busy { attempt, .. } if attempt == wanted))?;
        Some(EngineIndex(at as u16))
    }

    /// The attempt that an engine has, or may have as long as it is not heard.
    pub(super) fn held_by(&self, index: usize) -> Option<AttemptId> {
        match self.engines[index].slot {
            Slot::Busy { attempt, .. }
            | Slot::Unheard {
                given: Some((attempt, _)),
            } => Some(attempt),
            Slot::Unheard { given: None } | Slot::Idle | Slot::Held { .. } | Slot::Unfit => None,
        }
    }

    pub(super) fn dispatch(&mut self, now: BootInstant) {
        if self.queue.is_empty() {
            return;
        }
        let Some(first_engine) = self.session.as_ref().map(Session::first_engine) else {
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

    pub(super) fn pull(&mut self) {
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
                (idle as u64 + self.pace.prefetch(usable))
                    .saturating_sub(queued as u64)
                    .min(room)
            };
        let Some(session) = self.session.as_mut().filter(|s| s.is_known()) else {
            return;
        };
        if let Some((credit, idle)) = session.ask(want, idle.saturating_sub(queued) as u16) {
            self.effects
                .push_back(Effect::ToCoordinator(ToCoordinator::Pull { credit, idle }));
        }
    }
}
