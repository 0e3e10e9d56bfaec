//! What happens to the coordinator.

use mezcal_common::message::agent::{Hello, LogWish, ToCoordinator};
use mezcal_common::message::client::{BatchTerms, Submission};
use mezcal_common::model::ids::{BatchId, JobNumber, SessionId};
use mezcal_common::model::job::Stop;
use std::sync::Arc;

/// What happens to the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An agent has said hello over a new session; its name is the certificate's.
    AgentHello {
        /// The session.
        session: SessionId,
        /// The host.
        name: String,
        /// What it says.
        hello: Hello,
    },
    /// Any later message.
    Agent(SessionId, ToCoordinator),
    /// The session's connection is gone.
    AgentGone(SessionId),
    /// A client opens a batch.
    Open {
        /// Whose it is.
        user: String,
        /// Its terms.
        terms: Box<BatchTerms>,
    },
    /// More jobs for a batch.
    Submit {
        /// The batch.
        batch: BatchId,
        /// Host sets to append to its table.
        host_sets: Vec<Vec<String>>,
        /// The jobs.
        jobs: Vec<Submission>,
    },
    /// No more jobs will come.
    Close {
        /// The batch.
        batch: BatchId,
    },
    /// Nobody is connected any more who looks after a batch.
    Unattended {
        /// The batch.
        batch: BatchId,
    },
    /// Somebody is.
    Attended {
        /// The batch.
        batch: BatchId,
    },
    /// Kill what runs, drop what waits.
    Cancel {
        /// Comes back in [`Effect::Cancelled`]; none: nobody waits for that.
        request: Option<u64>,
        /// What of which batches.
        what: Vec<Wanted>,
        /// How.
        stop: Stop,
        /// For the results of what is cancelled: who or what did it, when it was not their own
        /// client.
        why: Option<Arc<str>>,
    },
    /// Somebody wants to see a job's output.
    Logs {
        /// Comes back in [`Effect::LogsAnswer`].
        request: u64,
        /// Its batch.
        batch: BatchId,
        /// Its `id` or number.
        job: String,
        /// What of it.
        wish: LogWish,
    },
    /// A client has taken streamed output.
    OutputTaken {
        /// The batch.
        batch: BatchId,
        /// The job.
        job: JobNumber,
        /// Bytes.
        bytes: u32,
    },
}

/// A whole batch, or one job of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The batch.
    pub batch: BatchId,
    /// Which job; none: all of them, those that are still to come included.
    pub job: Option<WantedJob>,
}

/// One job of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WantedJob {
    /// By its `id`, or else by its number.
    Named(String),
    /// By its number.
    Number(JobNumber),
}
