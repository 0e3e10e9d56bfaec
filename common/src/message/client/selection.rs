//! Jobs as a user names them, and what a cancel of them has come to.

use crate::model::ids::JobNumber;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Jobs, as a user names them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Selector {
    /// All batches of the user who asks.
    Mine,
    /// A batch: its id, or as much of its beginning as only one batch of the user has.
    Batch(String),
    /// One job.
    Job {
        /// As above; empty: the only batch that the user has.
        batch: String,
        /// Its `id`, or else its number.
        job: String,
    },
    /// One job by its number, whatever the `id`s of others look like.
    Number {
        /// As above.
        batch: String,
        /// The number.
        job: JobNumber,
    },
}

/// What a cancel has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelSummary {
    /// Jobs that were cancelled by it, or are on hosts that cannot be reached. What ended by itself
    /// meanwhile is not among them.
    pub jobs: u64,
    /// Processes killed.
    pub killed: u64,
    /// Processes alive: of attempts that turned out unkillable.
    pub survivors: u64,
    /// Jobs on hosts that cannot be reached: they may go on there until their lease ends.
    pub unreachable: u64,
    /// When the last of those leases has surely ended.
    pub fenced_for: Duration,
}

/// Attempts on one host that a cancel waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelWait {
    /// The host.
    pub host: String,
    /// How many.
    pub attempts: u64,
    /// When they are surely dead without its word; none: it is connected, and only its word counts.
    pub fenced_for: Option<Duration>,
}
