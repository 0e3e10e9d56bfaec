//! Everything that the scheduler reacts to.

use mezcal_common::message::agent::{Hello, LogWish, ToCoordinator};
use mezcal_common::message::client::{BatchTerms, Submission};
use mezcal_common::model::ids::{BatchId, JobNumber, SessionId};
use mezcal_common::model::job::Stop;
use std::sync::Arc;

/// Something that has happened, as [`super::Scheduler::handle`] takes it.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An agent has said hello in a new session.
    AgentHello {
        /// The agent's session.
        session: SessionId,
        /// The host's name in the agent's certificate.
        name: String,
        /// Its first message.
        hello: Hello,
    },
    /// Any later message of an agent.
    Agent(SessionId, ToCoordinator),
    /// The session's connection is gone.
    AgentGone(SessionId),
    /// A client opens a batch.
    Open {
        /// The user whose batch it is.
        user: String,
        /// The terms of the batch.
        terms: Box<BatchTerms>,
    },
    /// More jobs for a batch.
    Submit {
        /// The id of the batch.
        batch: BatchId,
        /// Host sets to append to its table.
        host_sets: Vec<Vec<String>>,
        /// The jobs, in the order of their numbers.
        jobs: Vec<Submission>,
    },
    /// No more jobs will come.
    Close {
        /// The id of the batch.
        batch: BatchId,
    },
    /// No client looks after a batch any more.
    Unattended {
        /// The id of the batch.
        batch: BatchId,
    },
    /// A client looks after a batch again.
    Attended {
        /// The id of the batch.
        batch: BatchId,
    },
    /// Kill the jobs that run, drop the jobs that wait.
    Cancel {
        /// Comes back in [`Effect::Cancelled`](super::Effect::Cancelled); none: no client waits for it.
        request: Option<u64>,
        /// Which batches and jobs.
        what: Vec<Wanted>,
        /// With which signal and grace the running jobs end.
        stop: Stop,
        /// For the results of the cancelled jobs: who or what cancelled them, if it was not their
        /// own client.
        why: Option<Arc<str>>,
    },
    /// A client asks for a job's output.
    Logs {
        /// Comes back in [`Effect::LogsAnswer`](super::Effect::LogsAnswer).
        request: u64,
        /// The id of the batch.
        batch: BatchId,
        /// Its `id` or number.
        job: String,
        /// Which streams, and whether to follow them.
        wish: LogWish,
    },
    /// A client has taken streamed output.
    OutputTaken {
        /// The id of the batch.
        batch: BatchId,
        /// The number of the job in its batch.
        job: JobNumber,
        /// How many bytes.
        bytes: u32,
    },
}

/// A whole batch, or one job of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The id of the batch.
    pub batch: BatchId,
    /// Which job; none: all jobs, also those that are still to come.
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
