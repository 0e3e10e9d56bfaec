//! Reports that the coordinator has not acknowledged, in order: which of them have been sent, and
//! when the others have to be.

use super::pace::REFILL;
use mezcal_common::message::agent::{NumberedReport, Report};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::AttemptId;
use std::collections::VecDeque;
use std::time::Duration;

/// Reports may wait this long for company while the queue can feed the engines: one packet then
/// carries several.
const COALESCE: Duration = Duration::from_millis(50);
/// A report that has not been acknowledged by then shows that the coordinator is behind: the
/// reports after it wait for the acknowledgement, so that there are fewer messages the more there
/// is to do (as Nagle's algorithm does, RFC 896).
const BEHIND: Duration = REFILL;
/// But they do not wait longer than this after it.
const MAX_BEHIND: Duration = Duration::from_millis(200);
/// Reports in one message: each may carry two tails of 4 KiB and an error text, and a frame holds 1
/// MiB.
pub(super) const REPORTS_PER_MESSAGE: usize = 64;

/// A report on its way to the coordinator.
#[derive(Debug)]
pub(super) struct Entry {
    report: NumberedReport,
    set: Option<usize>,
    claimed: bool,
}

impl Entry {
    pub(super) fn numbered(&self) -> &NumberedReport {
        &self.report
    }

    pub(super) fn report(&self) -> &Report {
        &self.report.report
    }

    pub(super) fn attempt(&self) -> AttemptId {
        self.report.attempt
    }

    /// The set of the engine that the report is about, if that is known.
    pub(super) fn set(&self) -> Option<usize> {
        self.set
    }

    /// Whether the report is about an attempt that was not given out here: it counts for that
    /// user's jobs only.
    pub(super) fn is_claimed(&self) -> bool {
        self.claimed
    }

    /// Whether the report says that its attempt is over.
    pub(super) fn is_end(&self) -> bool {
        !matches!(self.report.report, Report::Started { .. })
    }
}

#[derive(Debug)]
pub(super) struct Reports {
    entries: VecDeque<Entry>,
    next_seq: u64,
    /// Sequence number of the first report not sent in this session.
    next_unsent: u64,
    /// Until when the unsent reports may wait.
    send_by: Option<BootInstant>,
    /// The number of one report whose acknowledgement is waited for, and when it was sent.
    timed: Option<(u64, BootInstant)>,
}

impl Reports {
    pub(super) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            next_seq: 1,
            next_unsent: 1,
            send_by: None,
            timed: None,
        }
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
        self.entries.push_back(Entry {
            report,
            set,
            claimed,
        });
        self.next_seq += 1;
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    pub(super) fn attempts(&self) -> impl Iterator<Item = AttemptId> {
        self.iter().map(Entry::attempt)
    }

    /// The reports of an attempt's end.
    pub(super) fn ends_of(&self, attempt: AttemptId) -> impl Iterator<Item = &Entry> {
        self.iter()
            .filter(move |entry| entry.attempt() == attempt && entry.is_end())
    }

    /// Whether the end of an attempt is among the reports.
    pub(super) fn is_over(&self, attempt: AttemptId) -> bool {
        self.ends_of(attempt).next().is_some()
    }

    /// The first report, if the coordinator has acknowledged those up to this number.
    pub(super) fn pop_acknowledged(&mut self, through: u64) -> Option<Entry> {
        self.timed.take_if(|(seq, _)| *seq <= through);
        self.entries
            .pop_front_if(|first| first.report.seq <= through)
    }

    pub(super) fn session_begins(&mut self) {
        self.timed = None;
    }

    pub(super) fn session_ends(&mut self) {
        (self.send_by, self.timed) = (None, None);
    }

    /// Has all of them sent again: reports that were sent in an earlier session may not have
    /// arrived.
    pub(super) fn send_all(&mut self) {
        self.next_unsent = 0;
        self.send_by = Some(BootInstant::default());
    }

    /// When the unsent reports have waited long enough.
    pub(super) fn due(&self) -> Option<BootInstant> {
        self.send_by
    }

    /// The reports to be sent now, which count as sent from now on; none: they may wait for more.
    /// `fed`: the engines have enough to do meanwhile.
    pub(super) fn take_unsent(
        &mut self,
        fed: bool,
        now: BootInstant,
    ) -> Option<impl Iterator<Item = &Entry>> {
        // The numbers of the reports have no gaps.
        let waiting = self.entries.front().map_or(0, |first| {
            self.next_seq - first.report.seq.max(self.next_unsent)
        }) as usize;
        if waiting == 0 {
            self.send_by = None;
        } else {
            let deadline = self.send_by.get_or_insert(now + COALESCE);
            let behind = self
                .timed
                .map(|(_, sent)| sent)
                .filter(|sent| *sent + BEHIND <= now);
            if let Some(sent) = behind {
                *deadline = (*deadline).max(sent + MAX_BEHIND);
            }
            let deadline = *deadline;
            if (fed || behind.is_some()) && waiting < REPORTS_PER_MESSAGE && now < deadline {
                return None;
            }
            self.send_by = None;
            self.next_unsent = self.next_seq;
            self.timed.get_or_insert((self.next_seq - 1, now));
        }
        Some(self.entries.range(self.entries.len() - waiting..))
    }
}
