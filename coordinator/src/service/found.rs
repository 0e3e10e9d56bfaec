//! Findings for clients, with their requests: they come back to the loop, where things may have
//! changed since the request.

use super::peers::{Asker, Follow};
use crate::store::BatchRow;
use mezcal_common::message::agent::ToAgent;
use mezcal_common::message::client::{BatchTerms, Submission};
use mezcal_common::model::ids::{BatchId, SessionId};

pub(super) enum Found {
    Batches(Listing, Result<Vec<BatchRow>, String>),
    /// The batch that a client wants to follow; none: the store does not have it.
    Batch(Follow, BatchId, Result<Option<BatchRow>, String>),
    Again(Retry, Result<Again, String>),
    /// A request for the output of a job of that batch, and the question for the agent that has
    /// it, with the job's text.
    Text(u64, BatchId, Result<Option<(SessionId, ToAgent)>, String>),
}

impl Found {
    /// The client that has asked, if it is the finding itself that answers it.
    pub(super) fn asker(&self) -> Option<&Asker> {
        match self {
            Self::Batches(Listing { by, .. }, _)
            | Self::Batch(Follow { by, .. }, ..)
            | Self::Again(Retry { by, .. }, _) => Some(by),
            Self::Text(..) => None,
        }
    }
}

/// A client wants to list its user's batches.
pub(super) struct Listing {
    pub(super) by: Asker,
    /// Other users' batches, too.
    pub(super) all: bool,
}

/// A client wants an ended batch to run again.
pub(super) struct Retry {
    pub(super) by: Asker,
    pub(super) batch: BatchId,
    /// Only jobs that did not succeed.
    pub(super) failed: bool,
    /// Revocations that were done when it was checked whether the batch's owner is still a user.
    pub(super) revocations: u64,
}

/// An ended batch as a new one.
pub(super) struct Again {
    pub(super) terms: BatchTerms,
    pub(super) host_sets: Vec<Vec<String>>,
    pub(super) jobs: Vec<Submission>,
}
