//! A batch as the service knows it, and a client's view of one.

use super::outlet::size_estimate;
use super::reading::RESULT_BYTES;
use crate::store::BatchRow;
use mezcal_common::message::client::{Attachment, SetAside, Submission};
use mezcal_common::model::ids::{BatchSerial, JobNumber};
use mezcal_common::model::outcome::JobResult;
use std::collections::VecDeque;

/// Results that a client may have on its way without having taken them, and that are kept in memory
/// beside a store.
const RESULT_WINDOW: u64 = 8192;
/// And their bytes, of each batch: those of a full window with a few lines of output each. What is
/// older is read from the store again.
const TAIL_BYTES: usize = 4 << 20;

/// A batch as the service knows it.
pub(super) struct Batch {
    serial: BatchSerial,
    owner: String,
    /// What they call it.
    name: Option<String>,
    /// It is in the store.
    stored: bool,
    /// Results so far, of which the last ones are here.
    results: u64,
    tail: VecDeque<(JobNumber, JobResult)>,
    tail_bytes: usize,
    /// Results that were no success.
    failed: u64,
    /// Of which were cancelled or skipped.
    aside: SetAside,
    /// All its jobs are over.
    done: bool,
    size: Size,
    /// Some of its jobs have been accepted, in this life of the coordinator.
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

    /// What they call it.
    pub(super) fn name(&self) -> Option<&String> {
        self.name.as_ref()
    }

    /// It is in the store, or on its way there.
    pub(super) fn is_stored(&self) -> bool {
        self.stored
    }

    /// Results so far.
    pub(super) fn results(&self) -> u64 {
        self.results
    }

    /// Of which were no success.
    pub(super) fn failed(&self) -> u64 {
        self.failed
    }

    /// Of which were cancelled or skipped.
    pub(super) fn aside(&self) -> &SetAside {
        &self.aside
    }

    /// All its jobs are over.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    pub(super) fn has_ended(&mut self) {
        self.done = true;
    }

    /// Some of its jobs have been accepted, in this life of the coordinator.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    pub(super) fn begins(&mut self) {
        self.begun = true;
    }

    /// A job is over, which has not been counted.
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

    /// Nobody waits for its results: if they can be had from the store, they need not be in memory.
    pub(super) fn let_go(&mut self) {
        if self.done && self.stored {
            (self.tail, self.tail_bytes) = (VecDeque::new(), 0);
        }
    }

    /// What it has come to with these, in this life of the coordinator.
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

    /// The next results in memory after the first `sent`, so many at most and as many bytes as fit
    /// one message.
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
        // Nobody else will ask for them.
        let results: Vec<_> = self.tail.drain(next).collect();
        let bytes = results.iter().map(|(_, result)| size_estimate(result));
        self.tail_bytes -= bytes.sum::<usize>();
        results
    }

    /// Results before the first one that is in memory.
    fn before_tail(&self) -> u64 {
        self.results - self.tail.len() as u64
    }
}

/// One client's view of one batch.
pub(super) struct Watch {
    /// The client has opened it, and it lives with its clients.
    owner: bool,
    wish: Wish,
    /// Results that were sent, or passed over; and of those that the client has kept.
    sent: u64,
    taken: u64,
    /// Some are being read.
    reading: bool,
    /// The client has been told that there are no more.
    ended: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// Results alone: it has the jobs itself.
    Results,
    Attached(Attachment),
}

/// What comes next for a client that follows a batch.
pub(super) enum Next {
    Results(Vec<(JobNumber, JobResult)>),
    /// The store has to be asked for what comes after so many.
    Stored(u64),
    Nothing,
}

impl Watch {
    /// That of whoever has opened the batch, and has so many results.
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

    /// The client has opened the batch, which lives with its clients.
    pub(super) fn is_owners(&self) -> bool {
        self.owner
    }

    /// What the client says that it has kept.
    pub(super) fn take(&mut self, results: u64) {
        self.taken = results.clamp(self.taken, self.sent);
    }

    /// The results after those that were sent are being read. If they are wanted with their jobs,
    /// whether only those that did not succeed.
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

    /// Nothing comes after what has been sent, which the client has not been told: tells it by
    /// `tell`, which says whether there was room.
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

    /// Nothing of the batch is left to be said.
    pub(super) fn is_over(&self, batch: &Batch) -> bool {
        batch.done && self.taken == batch.results
    }
}
