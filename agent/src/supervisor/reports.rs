//! Reports: what has become of attempts, until the coordinator has acknowledged it. When they are
//! sent, and in what company.

use super::Supervisor;
use super::dispatch::REFILL;
use super::event::Effect;
use super::slot::Slot;
use mezcal_common::message::agent::{
    COUNTS_OUTPUT, KNOWS_SHORTAGES, NumberedReport, Report, SERVES_USERS, ToCoordinator,
};
use mezcal_common::message::engine::{ToEngine, ToKeeper};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, EngineIndex};
use mezcal_common::model::outcome::{Ended, Outcome};
use std::time::Duration;

/// An attempt that has been with an engine this long is reported as started; shorter ones save the
/// message.
pub(super) const STARTED_AFTER: Duration = Duration::from_millis(200);

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

/// Reports in one message: each may carry two tails of 4 KiB and an error text, and a frame holds 1
/// MiB.
const REPORTS_PER_MESSAGE: usize = 64;

/// A report on its way.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) report: NumberedReport,
    /// Whose engines it is about, if that is known.
    pub(super) set: Option<usize>,
    /// It is not about anything that was given out here: it counts for that user's jobs only.
    pub(super) claimed: bool,
}

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
        self.push(attempt, report, set, claimed);
    }

    pub(super) fn push_report(&mut self, attempt: AttemptId, report: Report) {
        let set = self.owner(attempt);
        self.push(attempt, report, set, false);
    }

    pub(super) fn push(
        &mut self,
        attempt: AttemptId,
        report: Report,
        set: Option<usize>,
        claimed: bool,
    ) {
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

    /// Whether its end is among the reports.
    pub(super) fn is_over(&self, attempt: AttemptId) -> bool {
        self.ends_of(attempt).next().is_some()
    }

    /// What is said of an attempt's end.
    pub(super) fn ends_of(&self, attempt: AttemptId) -> impl Iterator<Item = &Entry> {
        self.reports.iter().filter(move |entry| {
            entry.report.attempt == attempt
                && !matches!(entry.report.report, Report::Started { .. })
        })
    }

    pub(super) fn acknowledge(&mut self, through: u64, now: BootInstant) {
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

    /// Tells an engine what it may forget.
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

    /// Sends what has not been sent. False if it may wait for more.
    pub(super) fn send_reports(&mut self, now: BootInstant) -> bool {
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
}
