//! The ends of attempts on their way to the coordinator, and the acknowledgements on their way back
//! to engines and keepers.

use super::Supervisor;
use super::event::Effect;
use super::reports::{Entry, REPORTS_PER_MESSAGE};
use super::session::Session;
use super::slot::Slot;
use mezcal_common::message::agent::{
    COUNTS_OUTPUT, KNOWS_SHORTAGES, NumberedReport, Report, SERVES_USERS, ToCoordinator,
};
use mezcal_common::message::engine::{ToEngine, ToKeeper};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, EngineIndex};
use mezcal_common::model::outcome::{Ended, Outcome};
use std::time::Duration;

/// An attempt that has been with an engine for this long is reported as started; shorter ones save
/// the message.
pub(super) const STARTED_AFTER: Duration = Duration::from_millis(200);

/// Acknowledgements for an engine wait this long for a message that goes there anyway.
pub(super) const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(1);

impl Supervisor {
    pub(super) fn finished(
        &mut self,
        engine: Option<EngineIndex>,
        attempt: AttemptId,
        outcome: Outcome,
    ) {
        self.finished_as(engine, attempt, outcome, false);
    }

    pub(super) fn finished_as(
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
        self.reports.push(attempt, report, set, claimed);
    }

    pub(super) fn push_report(&mut self, attempt: AttemptId, report: Report) {
        let set = self.owner(attempt);
        self.reports.push(attempt, report, set, false);
    }

    pub(super) fn acknowledge(&mut self, through: u64, now: BootInstant) {
        while let Some(entry) = self.reports.pop_acknowledged(through) {
            let attempt = entry.attempt();
            if entry.is_end()
                && let Some(set) = self.ends.remove(&attempt)
            {
                self.effects
                    .push_back(Effect::ToKeeper(set, ToKeeper::EndSeen { attempt }));
            }
            if let Report::Finished {
                engine: Some(engine),
                ..
            } = entry.report()
                && let Some(engine) = self.engines.get_mut(usize::from(engine.0))
            {
                engine.acknowledged.push(attempt);
                self.acknowledge_at.get_or_insert(now + ACKNOWLEDGE_WITHIN);
            }
        }
    }

    /// Tells engines which outcomes they may forget, if that has waited long enough.
    pub(super) fn tell_acknowledged_if_due(&mut self, now: BootInstant) {
        if self.acknowledge_at.is_some_and(|at| at <= now) {
            self.acknowledge_at = None;
            for i in 0..self.engines.len() {
                self.tell_acknowledged(i);
            }
        }
    }

    /// Tells an engine which outcomes it may forget.
    pub(super) fn tell_acknowledged(&mut self, index: usize) {
        let attempts = std::mem::take(&mut self.engines[index].acknowledged);
        if !attempts.is_empty() {
            self.effects.push_back(Effect::ToEngine(
                EngineIndex(index as u16),
                ToEngine::Acknowledge { attempts },
            ));
        }
    }

    pub(super) fn report_started(&mut self, now: BootInstant) {
        if !self.is_known() {
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

    /// When the next attempt has to be reported as started.
    pub(super) fn started_at(&self) -> Option<BootInstant> {
        let unreported = self.engines.iter().filter_map(|e| match e.slot {
            Slot::Busy {
                since,
                reported: false,
                ..
            } => Some(since + STARTED_AFTER),
            Slot::Unheard { .. }
            | Slot::Idle
            | Slot::Busy { .. }
            | Slot::Held { .. }
            | Slot::Unfit => None,
        });
        unreported.min().filter(|_| self.is_known())
    }

    /// Sends the reports that have not been sent. False if they may wait for more.
    pub(super) fn send_reports(&mut self, now: BootInstant) -> bool {
        let prefetch = self.pace.prefetch(self.slots);
        let fed = !self.queue.is_empty() && self.queue.len() as u64 * 2 >= prefetch;
        let vouched = self.speaks(SERVES_USERS);
        let Some(unsent) = self.reports.take_unsent(fed, now) else {
            return false;
        };
        let (session, slots) = (self.session.as_ref(), self.slots);
        let on_behalf_of = |entry: &Entry| entry.set().filter(|_| entry.is_claimed() && vouched);
        let mut unsent = unsent.peekable();
        while let Some(first) = unsent.next() {
            let set = on_behalf_of(first);
            let mut reports = vec![as_the_coordinator_knows(first.numbered(), session, slots)];
            while reports.len() < REPORTS_PER_MESSAGE
                && let Some(next) = unsent.next_if(|next| on_behalf_of(next) == set)
            {
                reports.push(as_the_coordinator_knows(next.numbered(), session, slots));
            }
            let message = match set {
                Some(set) => ToCoordinator::ReportsOf {
                    user: self.sets[set].user().to_owned(),
                    reports,
                },
                None => ToCoordinator::Reports(reports),
            };
            self.effects.push_back(Effect::ToCoordinator(message));
        }
        true
    }
}

fn as_the_coordinator_knows(
    report: &NumberedReport,
    session: Option<&Session>,
    slots: usize,
) -> NumberedReport {
    let NumberedReport {
        seq,
        attempt,
        report,
    } = report.clone();
    let speaks = |version| session.is_some_and(|session| session.speaks(version));
    let place = |engine: EngineIndex| EngineIndex((usize::from(engine.0) % slots) as u16);
    let report = match report {
        Report::Finished { outcome, .. }
            if outcome.ended == Ended::HostShort && !speaks(KNOWS_SHORTAGES) =>
        {
            Report::Returned
        }
        Report::Started { engine } => Report::Started {
            engine: place(engine),
        },
        Report::Finished { engine, outcome } => {
            let engine = engine.map(place);
            if outcome.written.is_known() && speaks(COUNTS_OUTPUT) {
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
