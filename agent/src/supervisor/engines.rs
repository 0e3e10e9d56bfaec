//! The words of engines and their keepers about attempts, and over which link they came: which of
//! them are believed, and what becomes of an attempt whose engine is dead.

use super::Supervisor;
use super::dispatch::MAX_UNACKNOWLEDGED;
use super::event::Effect;
use super::slot::Slot;
use bytes::Bytes;
use mezcal_common::message::agent::{Stream, ToCoordinator};
use mezcal_common::message::engine::{FromEngine, OUTPUT_WINDOW, ToEngine, ToKeeper};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, EngineIndex};
use mezcal_common::model::outcome::{Ended, Outcome};
use std::time::Duration;

/// After the end of its link an engine's own end may be told: the keeper is asked for another link
/// to the engine only after this time.
const RELINK_AFTER: Duration = Duration::from_millis(250);

/// The keeper is asked again after this time, if no link has come of it: longer than the interval
/// within which a second request shows the keeper that an engine is of no use.
const RELINK_AGAIN: Duration = Duration::from_secs(15);

impl Supervisor {
    /// When to ask for another link.
    pub(super) fn relink_at(&self) -> Option<BootInstant> {
        let relinks = self.engines.iter().filter_map(|engine| engine.relink_at);
        relinks.min()
    }

    pub(super) fn on_engine(&mut self, index: EngineIndex, message: FromEngine, now: BootInstant) {
        if usize::from(index.0) >= self.engines.len() {
            return;
        }
        match message {
            FromEngine::Ready { running } => self.engine_ready(index, running, now),
            FromEngine::Finished { attempt, outcome } => {
                self.engine_finished(index, attempt, outcome.within_limits(), now)
            }
            FromEngine::Output {
                attempt,
                stream,
                data,
            } => self.engine_output(index, attempt, stream, data),
            // The driver hands the output to the requests that follow it.
            FromEngine::Shown { .. } | FromEngine::ShownAll { .. } => {}
        }
    }

    /// An engine has said all that it has to say of earlier attempts, and which attempt it runs.
    fn engine_ready(
        &mut self,
        index: EngineIndex,
        running: Option<(AttemptId, u16)>,
        now: BootInstant,
    ) {
        let i = usize::from(index.0);
        if self.engines[i].is_heard_of() {
            self.programs.look_again();
        }
        let (given, stop) = (self.engines[i].slot.given(), self.engines[i].stop);
        let ours = given.filter(|(given, _)| running.is_some_and(|(attempt, _)| attempt == *given));
        self.engines[i].slot = match (running, ours) {
            (_, Some((attempt, slots))) => Slot::found(attempt, slots, false, now),
            (Some((attempt, _)), None) if self.is_elsewhere(attempt, index) => Slot::Unfit,
            (Some((attempt, slots)), None) => {
                let slots = slots.clamp(1, self.slots as u16);
                Slot::found(attempt, slots, self.shared, now)
            }
            (None, None) => Slot::Idle,
        };
        // The engine does not know a lease that was given over an earlier link; a lease that an
        // earlier agent has given it stays.
        if let Some(until) = self.lease_until
            && !self.is_fenced(i / self.slots)
        {
            let until = Some(until);
            self.effects
                .push_back(Effect::ToEngine(index, ToEngine::Lease { until }));
        }
        if let Some((attempt, _)) = given.filter(|_| ours.is_none())
            && !self.reports.is_over(attempt)
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

    fn engine_output(
        &mut self,
        index: EngineIndex,
        attempt: AttemptId,
        stream: Stream,
        data: Bytes,
    ) {
        let engine = &mut self.engines[usize::from(index.0)];
        let bytes = data.len() as u32;
        let runs = matches!(engine.slot, Slot::Busy { attempt: busy, claimed: false, .. } if busy == attempt);
        // An engine keeps to the window, or loses the output.
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
            // Nobody is there to take the output, and the engine must not wait for that.
            self.effects.push_back(Effect::ToEngine(
                index,
                ToEngine::OutputTaken { attempt, bytes },
            ));
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
        let (next, claimed) = match slot.after(attempt, outcome.survivors > 0) {
            Some(after) => after,
            None if self.shared => return self.disbelieve(index, attempt),
            None => (slot, false),
        };
        // Whatever its word is worth: the engine does not run the attempt any more.
        self.engines[i].slot = next;
        if claimed && self.shared {
            let claims = self
                .reports
                .iter()
                .filter(|entry| entry.is_claimed() && entry.set() == Some(set))
                .count();
            if self.is_elsewhere(attempt, index) || claims >= MAX_UNACKNOWLEDGED {
                return self.disbelieve(index, attempt);
            }
        }
        if self.engines[i]
            .stop
            .is_some_and(|(stopped, _)| stopped == attempt)
        {
            self.engines[i].stop = None;
        }
        // The claim of another user's engine about this attempt does not count for this user's.
        if self
            .reports
            .ends_of(attempt)
            .any(|entry| !entry.is_claimed() || entry.set() == Some(set))
        {
            return;
        }
        // With users' own engines, each user may have used up a limit that is that user's alone.
        if !self.shared && self.shortage.ended(&outcome, now) {
            self.give_back();
        }
        if let Some(span) = outcome.span {
            self.pace.ran(span.elapsed);
        }
        self.finished_as(Some(index), attempt, outcome, claimed && self.shared);
    }

    fn disbelieve(&self, index: EngineIndex, attempt: AttemptId) {
        tracing::warn!(engine = index.0, %attempt, "an engine reports on an attempt that it was \
            not given; ignored");
    }

    pub(super) fn engine_ended(
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
            // A slot of the host is held by an attempt that the engine was given, and by nothing
            // else.
            _ if self.shared && given.is_none() => Slot::Unfit,
            _ => Slot::Held { slots },
        };
        engine.is_dead(survivors == 0, now);
        self.programs.look_again();
        let busy = if let Slot::Busy { attempt, .. } = was {
            Some(attempt)
        } else {
            given
        };
        let told =
            attempt.filter(|attempt| busy == Some(*attempt) || !self.is_elsewhere(*attempt, index));
        self.ends
            .extend(told.into_iter().chain(busy).map(|attempt| (attempt, set)));
        // The keeper may know of an attempt that has ended since, or of none when it was a short
        // one.
        for attempt in busy.into_iter().chain(told.filter(|a| busy != Some(*a))) {
            if self.reports.is_over(attempt) {
                continue;
            }
            let named = told == Some(attempt);
            let (ended, error) = why_over(ended, named, killed, survivors);
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

    /// Words over an earlier link do not count any more: messages from now on meet the first words
    /// of the engine over this link.
    pub(super) fn link_made(&mut self, index: EngineIndex) {
        let Some(engine) = self.engines.get_mut(usize::from(index.0)) else {
            return;
        };
        engine.is_unlinked();
    }

    pub(super) fn link_lost(&mut self, index: EngineIndex, now: BootInstant) {
        self.link_made(index);
        if let Some(engine) = self.engines.get_mut(usize::from(index.0)) {
            engine.relink_at = Some(now + RELINK_AFTER);
        }
    }

    /// Asks for links to engines whose links have ended and that have not ended themselves.
    pub(super) fn relink(&mut self, now: BootInstant) {
        for i in 0..self.engines.len() {
            if let Some(at) = self.engines[i].relink_at.as_mut().filter(|at| **at <= now) {
                *at = now + RELINK_AGAIN;
                let (set, engine) = (i / self.slots, EngineIndex((i % self.slots) as u16));
                self.effects
                    .push_back(Effect::ToKeeper(set, ToKeeper::Relink { engine }));
            }
        }
    }
}

/// How an attempt has ended whose engine is dead, and why. The keeper's reason for killing the
/// engine is about the attempt that it has `named`.
fn why_over(ended: Ended, named: bool, killed: u32, survivors: u32) -> (Ended, String) {
    let left = format!("{killed} processes that it left were killed");
    let died = || format!("its engine died; {left}");
    if survivors > 0 {
        let why = "its engine is dead or dying, and a process of it does not die";
        return (Ended::Unkillable, why.to_owned());
    }
    match ended {
        Ended::Cancelled if named => (
            ended,
            format!("its engine did not answer the cancel and was killed; {left}"),
        ),
        Ended::Timeout if named => (
            ended,
            format!("its engine did not end it at its timeout and was killed; {left}"),
        ),
        Ended::Exited
        | Ended::Signaled
        | Ended::Timeout
        | Ended::Cancelled
        | Ended::OutOfMemory
        | Ended::StartFailed
        | Ended::NoHost
        | Ended::Skipped
        | Ended::Lost
        | Ended::Unkillable
        | Ended::HostShort => (Ended::Lost, died()),
    }
}
