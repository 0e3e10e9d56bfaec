//! Data about the ends of attempts for the dashboard and the metrics: counts of all, the newest
//! ends, and the newest failures.

use super::counters::Counters;
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::escape::for_terminal;
use mezcal_common::model::ids::{BatchId, JobNumber};
use mezcal_common::model::outcome::{Ended, JobResult, Outcome, WaitStatus};
use serde::Serialize;
use std::collections::VecDeque;

/// Ends that are remembered for the timeline.
const RECENT: usize = 4096;
/// How many of these one picture shows: the newest.
const RECENT_AT_ONCE: usize = 600;
/// Failures that are shown with their output.
const FAILING: usize = 50;
/// Characters that are shown of a job's output.
const TAIL: usize = 600;

/// An attempt that has ended, for the timeline. Times are milliseconds since the Unix epoch on the
/// coordinator's clock.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Recent {
    seq: u64,
    host: String,
    engine: u32,
    from: i64,
    to: i64,
    batch: BatchId,
    job: JobNumber,
    outcome: &'static str,
    ok: bool,
}

/// A job that did not succeed.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Failing {
    batch: BatchId,
    job: JobNumber,
    host: Option<String>,
    outcome: &'static str,
    code: Option<i32>,
    error: Option<String>,
    stderr: Option<String>,
    at: i64,
}

/// The data for the dashboard and the metrics.
pub(super) struct Observed {
    counters: Counters,
    recent: VecDeque<Recent>,
    seq: u64,
    failing: VecDeque<Failing>,
}

impl Observed {
    pub(super) fn new() -> Self {
        Self {
            counters: Counters::new(),
            recent: VecDeque::new(),
            seq: 0,
            failing: VecDeque::new(),
        }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// An attempt has ended; its job may go on.
    pub(super) fn attempt(&self, outcome: &Outcome) {
        self.counters.attempt(outcome);
    }

    pub(super) fn result(&mut self, batch: BatchId, job: JobNumber, result: &JobResult) {
        let outcome = &result.outcome;
        self.attempt(outcome);
        let (ok, word) = (outcome.succeeded(), outcome.ended.as_str());
        if let (Some(place), Some(span)) = (&result.place, outcome.span) {
            let offset = (place.clock_offset.unwrap_or(0.0) * 1e6) as i64;
            let at = |time: WallTime| (time.0 + offset) / 1000;
            self.seq += 1;
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(Recent {
                seq: self.seq,
                host: place.host.to_string(),
                engine: place.engine.0,
                from: at(span.started),
                to: at(span.completed),
                batch,
                job,
                outcome: word,
                ok,
            });
        }
        if !ok && outcome.ended != Ended::Cancelled {
            if self.failing.len() == FAILING {
                self.failing.pop_back();
            }
            let tail = outcome
                .stderr_tail
                .as_ref()
                .map(|bytes| last_words(&String::from_utf8_lossy(bytes)));
            self.failing.push_front(Failing {
                batch,
                job,
                host: result.place.as_ref().map(|place| place.host.to_string()),
                outcome: word,
                code: outcome.status.map(WaitStatus::code),
                error: outcome.error.clone(),
                stderr: tail.filter(|text| !text.trim().is_empty()),
                at: WallTime::now().0 / 1000,
            });
        }
    }

    /// The newest ends after number `since`, and the number of the last one.
    pub(super) fn recent(&self, since: u64) -> (Vec<Recent>, u64) {
        let new = self
            .recent
            .iter()
            .rev()
            .take_while(|recent| recent.seq > since)
            .take(RECENT_AT_ONCE);
        let mut recent: Vec<Recent> = new.cloned().collect();
        recent.reverse();
        (recent, self.seq)
    }

    /// The newest failures, newest first.
    pub(super) fn failing(&self) -> Vec<Failing> {
        self.failing.iter().cloned().collect()
    }
}

/// The end of a text, line by line, without characters that could do harm.
fn last_words(text: &str) -> String {
    let skip = text.chars().count().saturating_sub(TAIL);
    let end: String = text.chars().skip(skip).collect();
    end.lines()
        .map(|line| for_terminal(line).into_owned())
        .collect::<Vec<_>>()
        .join("\n")
}
