//! Jobs as a user names them, and the effects of cancelling them.

use crate::model::ids::JobNumber;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Jobs, as a user names them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Selector {
    /// All batches of the user who asks.
    Mine,
    /// A batch: its id, or a prefix that only one batch of the user has.
    Batch(String),
    /// One job.
    Job {
        /// As in [`Selector::Batch`]; empty: the only batch that the user has.
        batch: String,
        /// Its `id`, or else its number.
        job: String,
    },
    /// One job by its number, whatever the `id`s of other jobs are.
    Number {
        /// As in [`Selector::Batch`].
        batch: String,
        /// Number of the job.
        job: JobNumber,
    },
}

/// Effects of a cancel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelSummary {
    /// Jobs that were cancelled by it, or are on hosts that cannot be reached. Jobs that ended by
    /// themselves meanwhile are not among them.
    pub jobs: u64,
    /// Number of processes killed.
    pub killed: u64,
    /// Number of processes still alive, of attempts that turned out unkillable.
    pub survivors: u64,
    /// Jobs on hosts that cannot be reached: they may continue there until their lease ends.
    pub unreachable: u64,
    /// Time until the last of those leases has surely ended.
    pub fenced_for: Duration,
}

/// Attempts on one host that a cancel waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelWait {
    /// Name of the host.
    pub host: String,
    /// Number of attempts.
    pub attempts: u64,
    /// Time until they are surely dead without the agent's word; none: the agent is connected, and
    /// only its word counts.
    pub fenced_for: Option<Duration>,
}
