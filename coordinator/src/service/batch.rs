//! A batch as the service knows it, and a client's view of one.

use super::outlet::size_estimate;
use super::reading::RESULT_BYTES;
use crate::store::BatchRow;
use mezcal_common::message::client::{Attachment, SetAside, Submission};
use mezcal_common::model::ids::{BatchSerial, JobNumber};
use mezcal_common::model::outcome::JobResult;
use std::collections::VecDeque;

/// Results that may be on their way to a client before it has taken them, and results that are kept
/// in memory beside a store.
const RESULT_WINDOW: u64 = 8192;
/// Bytes of these results, for each batch: a full window with a few lines of output each. Older
/// results are read from the store again.
const TAIL_BYTES: usize = 4 << 20;

/// A batch as the service knows it.
pub(super) struct Batch {
    serial: BatchSerial,
    owner: String,
    /// The name that the owner gave it.
    name: Option<String>,
    /// Whether it is in the store.
    stored: bool,
    /// Results so far; the last of them are in `tail`.
    results: u64,
    tail: VecDeque<(JobNumber, JobResult)>,
    tail_bytes: usize,
    /// Results that are not a success.
    failed: u64,
    /// How many of these were cancelled or skipped.
    aside: SetAside,
    /// Whether all its jobs have ended.
    done: bool,
    size: Size,
    /// Whether any of its jobs have been accepted in this life of the coordinator.
    begun: bool,
}

/// Names in a batch's host sets, its jobs, and bytes of their texts, as far as they have come in
/// this life of the coordinator.
#[derive(Clone, Copy, Default)]
pub(super) struct Size {
    pub(super) host_names: usize,
    pub(super) jobs: usize,
    pub(super) texts: usize,
}

impl Batch {
    pub(super) fn new(serial: BatchSerial, owner: String, stored: bool) -> Self {
        Self {
            serial,
            owner,
            name: None,
            stored,
            results: 0,
            tail: VecDeque::new(),
            tail_bytes: 0,
            failed: 0,
            aside: SetAside::default(),
            done: false,
            size: Size::default(),
            begun: false,
        }
    }

    pub(super) fn named(self, name: Option<String>) -> Self {
        Self { name, ..self }
    }

    pub(super) fn stored(row: &BatchRow) -> Self {
        let BatchRow { serial, status } = row;
        let (results, failed, done) = (
            status.ended,
            status.ended - status.succeeded,
            status.done.is_some(),
        );
        let aside = status.aside.unwrap_or_default();
        Self {
            results,
            failed,
            aside,
            done,
            ..Self::new(*serial, status.user.clone(), true).named(status.name.clone())
        }
    }

    pub(super) fn serial(&self) -> BatchSerial {
        self.serial
    }

    pub(super) fn owner(&self) -> &str {
        &self.owner
    }

    /// The name that the owner gave it.
    pub(super) fn name(&self) -> Option<&String> {
        self.name.as_ref()
    }

    /// Whether it is in the store, or on its way there.
    pub(super) fn is_stored(&self) -> bool {
        self.stored
    }

    /// Number of results so far.
    pub(super) fn results(&self) -> u64 {
        self.results
    }

    /// How many results are not a success.
    pub(super) fn failed(&self) -> u64 {
        self.failed
    }

    /// How many of these were cancelled or skipped.
    pub(super) fn aside(&self) -> &SetAside {
        &self.aside
    }

    /// Whether all its jobs have ended.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    pub(super) fn has_ended(&mut self) {
        self.done = true;
    }

    /// Whether any of its jobs have been accepted in this life of the coordinator.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    pub(super) fn begins(&mut self) {
        self.begun = true;
    }

    /// Adds the result of a job that has not been counted.
    pub(super) fn add(&mut self, seq: u64, job: JobNumber, result: JobResult) {
        self.results = seq;
        self.failed += u64::from(!result.outcome.succeeded());
        self.aside.add(&result.outcome);
        self.tail_bytes += size_estimate(&result);
        self.tail.push_back((job, result));
        while self.stored
            && (self.tail.len() as u64 > RESULT_WINDOW || self.tail_bytes > TAIL_BYTES)
        {
            let oldest = self.tail.pop_front();
            self.tail_bytes -= oldest.map_or(0, |(_, result)| size_estimate(&result));
        }
    }

    /// Nobody waits for its results: if the store has them, they need not be in memory.
    pub(super) fn let_go(&mut self) {
        if self.done && self.stored {
            (self.tail, self.tail_bytes) = (VecDeque::new(), 0);
        }
    }

    /// Its size with these host sets and jobs, in this life of the coordinator.
    pub(super) fn size_with(&self, host_sets: &[Vec<String>], jobs: &[Submission]) -> Size {
        let Size {
            host_names,
            jobs: count,
            texts,
        } = self.size;
        Size {
            host_names: host_names + host_sets.iter().map(|set| 1 + set.len()).sum::<usize>(),
            jobs: count + jobs.len(),
            texts: texts + jobs.iter().map(|job| job.spec.len()).sum::<usize>(),
        }
    }

    pub(super) fn grows_to(&mut self, size: Size) {
        self.size = size;
    }

    /// The next results in memory after the first `sent`: at most `room`, and no more bytes than
    /// fit one message.
    fn next(&mut self, sent: u64, room: usize) -> Vec<(JobNumber, JobResult)> {
        let first = (sent - self.before_tail()) as usize;
        let mut bytes = 0;
        let fits = |(_, result): &&(JobNumber, JobResult)| {
            bytes += size_estimate(result);
            bytes <= RESULT_BYTES
        };
        let count = self.tail.range(first..).take(room).take_while(fits).count();
        let next = first..first + count.max(1);
        if self.stored {
            return self.tail.range(next).cloned().collect();
        }
        // No other client will ask for them.
        let results: Vec<_> = self.tail.drain(next).collect();
        let bytes = results.iter().map(|(_, result)| size_estimate(result));
        self.tail_bytes -= bytes.sum::<usize>();
        results
    }

    /// Number of results before the first one that is in memory.
    fn before_tail(&self) -> u64 {
        self.results - self.tail.len() as u64
    }
}

/// One client's view of one batch.
pub(super) struct Following {
    /// The client has opened the batch, which ends with its clients.
    owner: bool,
    wish: Wish,
    /// Results that were sent, or passed over; and of those, results that the client has kept.
    sent: u64,
    taken: u64,
    /// Results are being read for it.
    reading: bool,
    /// The client has been told that there are no more results.
    ended: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// Results alone: the client has the jobs itself.
    Results,
    Attached(Attachment),
}

/// The next step for a client that follows a batch.
pub(super) enum Next {
    Results(Vec<(JobNumber, JobResult)>),
    /// The results after this number have to be read from the store.
    Stored(u64),
    Nothing,
}

impl Following {
    /// The view of a client that has opened the batch and has `have` results.
    pub(super) fn of_owner(have: u64) -> Self {
        Self {
            owner: true,
            wish: Wish::Results,
            sent: have,
            taken: have,
            reading: false,
            ended: false,
        }
    }

    pub(super) fn attached(wish: Attachment) -> Self {
        Self {
            owner: false,
            wish: Wish::Attached(wish),
            sent: 0,
            taken: 0,
            reading: false,
            ended: false,
        }
    }

    /// The client has opened the batch, which ends with its clients.
    pub(super) fn is_owners(&self) -> bool {
        self.owner
    }

    /// The client says that it has kept so many results.
    pub(super) fn take(&mut self, results: u64) {
        self.taken = results.clamp(self.taken, self.sent);
    }

    /// The results after those that were sent are being read. If the client wants them with their
    /// jobs: whether only those of jobs that did not succeed.
    pub(super) fn reads(&mut self) -> Option<bool> {
        self.reading = true;
        match self.wish {
            Wish::Attached(Attachment::Results { failed, .. }) => Some(failed),
            Wish::Results | Wish::Attached(Attachment::End) => None,
        }
    }

    /// The results after the first `after` have been read, or not. False if they are not wanted.
    pub(super) fn has_read(&mut self, after: u64) -> bool {
        let wanted = self.reading && self.sent == after;
        self.reading &= !wanted;
        wanted
    }

    /// Tells the client by `tell` that no results come after those that were sent, if that is so
    /// and it has not been told. `tell` says whether there was room.
    pub(super) fn say_end(&mut self, batch: &Batch, tell: impl FnOnce() -> bool) {
        let over = match self.wish {
            Wish::Results => return,
            Wish::Attached(Attachment::End) => batch.done,
            Wish::Attached(Attachment::Results { follow, .. }) => {
                !self.reading && self.sent == batch.results && (batch.done || !follow)
            }
        };
        if over && !self.ended {
            self.ended = tell();
        }
    }

    pub(super) fn has_sent(&mut self, through: u64) {
        self.sent = through;
    }

    /// The results after those that were sent, if they are in memory and there is `room` for them.
    pub(super) fn next(&mut self, batch: &mut Batch, room: impl FnOnce() -> bool) -> Next {
        let described = match self.wish {
            Wish::Results => false,
            Wish::Attached(Attachment::Results { .. }) => true,
            Wish::Attached(Attachment::End) => return Next::Nothing,
        };
        let open = (self.taken + RESULT_WINDOW).saturating_sub(self.sent);
        if self.reading || self.sent >= batch.results || open == 0 {
            return Next::Nothing;
        }
        if described || self.sent < batch.before_tail() {
            return Next::Stored(self.sent);
        }
        if !room() {
            return Next::Nothing;
        }
        let results = batch.next(self.sent, open as usize);
        self.sent += results.len() as u64;
        Next::Results(results)
    }

    /// All jobs of the batch have ended, and the client has kept all results.
    pub(super) fn is_over(&self, batch: &Batch) -> bool {
        batch.done && self.taken == batch.results
    }
}
