//! Attempts that have to end before they have ended by themselves: cancels, evictions, an agent
//! that stops or leaves.

use super::Supervisor;
use super::event::Effect;
use super::reports::Entry;
use mezcal_common::message::agent::{Report, ToCoordinator};
use mezcal_common::message::engine::{ToEngine, ToKeeper};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, EngineIndex};
use mezcal_common::model::job::Stop;
use mezcal_common::model::outcome::{Ended, Outcome};
use std::collections::HashSet;
use std::time::Duration;

/// Grace for attempts when the agent itself stops.
const STOP_GRACE: Duration = Duration::from_secs(2);

impl Supervisor {
    /// Ends, if that is wanted and there is nothing left to report.
    pub(super) fn end_when_done(&mut self) {
        if self.stopping
            && self.queue.is_empty()
            && self.busy() == 0
            && (self.reports.is_empty() || self.session.is_none())
        {
            self.effects
                .push_back(Effect::ToCoordinator(ToCoordinator::Goodbye));
            self.effects.push_back(Effect::Exit);
        }
        let back = |entry: &Entry| *entry.report() == Report::Returned;
        if self.leaving && (self.session.is_none() || !self.reports.iter().any(back)) {
            self.effects.push_back(Effect::Exit);
        }
    }

    pub(super) fn cancel(&mut self, attempts: &[AttemptId], stop: Stop, now: BootInstant) {
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
        // The attempts in the reports have been answered already, or will be again after a
        // reconnect.
        found.extend(self.reports.attempts());
        let absent = attempts
            .iter()
            .copied()
            .filter(|a| !found.contains(a) && self.can_be_absent(*a));
        let absent: Vec<AttemptId> = absent.collect();
        // Before every engine has been heard, absence cannot be known; the coordinator asks again
        // after the inventory.
        if !absent.is_empty() && self.is_known() {
            self.effects
                .push_back(Effect::ToCoordinator(ToCoordinator::Absent {
                    attempts: absent,
                }));
        }
    }

    pub(super) fn evict(&mut self, attempts: Vec<AttemptId>, stop: Stop, now: BootInstant) {
        let wanted: HashSet<AttemptId> = attempts.into_iter().collect();
        self.return_some(&wanted);
        for i in 0..self.engines.len() {
            if let Some(attempt) = self.held_by(i).filter(|attempt| wanted.contains(attempt)) {
                self.evicted.insert(attempt);
                self.stop_engine(i, attempt, stop, now);
            }
        }
    }

    /// Gives back those of the `wanted` attempts that have not started.
    pub(super) fn return_some(&mut self, wanted: &HashSet<AttemptId>) {
        for attempt in self.queue.take_some(wanted) {
            self.push_report(attempt, Report::Returned);
        }
    }

    /// Has an engine kill its attempt. The keeper hears of it first, so that it never waits for an
    /// answer that it has had.
    pub(super) fn stop_engine(
        &mut self,
        index: usize,
        attempt: AttemptId,
        stop: Stop,
        now: BootInstant,
    ) {
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

    /// No waiting attempt starts here any more.
    pub(super) fn give_back(&mut self) {
        if let Some(session) = self.session.as_mut().filter(|s| s.is_known()) {
            // Before anything comes back: it must not be placed here again.
            let credit = session.ask_no_more();
            self.effects
                .push_back(Effect::ToCoordinator(ToCoordinator::Pull {
                    credit,
                    idle: 0,
                }));
        }
        for attempt in self.queue.take() {
            self.push_report(attempt, Report::Returned);
        }
    }

    pub(super) fn stop(&mut self, now: BootInstant) {
        self.stopping = true;
        self.give_back();
        for i in 0..self.engines.len() {
            if let Some(attempt) = self.held_by(i) {
                self.stop_engine(i, attempt, Stop::after(STOP_GRACE), now);
            }
        }
    }
}
