//! A batch as the service knows it, and a client's view of one.

use crate::store::BatchRow;
use mezcal_common::message::client::{Attachment, SetAside};
use mezcal_common::model::ids::{BatchSerial, JobNumber};
use mezcal_common::model::outcome::JobResult;
use std::collections::VecDeque;

/// A batch as the service knows it.
pub(super) struct Batch {
    pub(super) serial: BatchSerial,
    pub(super) owner: String,
    /// What they call it.
    pub(super) name: Option<String>,
    /// It is in the store.
    pub(super) stored: bool,
    /// Results so far, of which the last ones are here.
    pub(super) results: u64,
    pub(super) tail: VecDeque<(JobNumber, JobResult)>,
    pub(super) tail_bytes: usize,
    /// Results that were no success.
    pub(super) failed: u64,
    /// Of which were cancelled or skipped.
    pub(super) aside: SetAside,
    /// All its jobs are over.
    pub(super) done: bool,
    /// Names in its host sets, jobs, and bytes of their texts, as far as they have come in this
    /// life of the coordinator.
    pub(super) host_names: usize,
    pub(super) jobs: usize,
    pub(super) texts: usize,
    /// Some of its jobs have been accepted, in this life of the coordinator.
    pub(super) begun: bool,
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
            host_names: 0,
            jobs: 0,
            texts: 0,
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

    /// Results before the first one that is in memory.
    pub(super) fn before_tail(&self) -> u64 {
        self.results - self.tail.len() as u64
    }
}

/// One client's view of one batch.
pub(super) struct Watch {
    /// The client has opened it, and it lives with its clients.
    pub(super) owner: bool,
    pub(super) wish: Wish,
    /// Results that were sent, or passed over; and of those that the client has kept.
    pub(super) sent: u64,
    pub(super) taken: u64,
    /// Some are being read.
    pub(super) reading: bool,
    /// The client has been told that there are no more.
    pub(super) ended: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Results alone: it has the jobs itself.
    Results,
    Attached(Attachment),
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

    /// What the client says that it has kept.
    pub(super) fn take(&mut self, results: u64) {
        self.taken = results.clamp(self.taken, self.sent);
    }

    /// Nothing of the batch is left to be said.
    pub(super) fn is_over(&self, batch: &Batch) -> bool {
        batch.done && self.taken == batch.results
    }
}
