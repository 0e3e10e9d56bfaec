//! What the scheduler wants done, and what of it need not wait for the store.

use super::Record;
use bytes::Bytes;
use mezcal_common::message::agent::{Stream, ToAgent};
use mezcal_common::message::client::{CancelSummary, Notice};
use mezcal_common::model::ids::{BatchId, JobNumber, SessionId};
use mezcal_common::model::outcome::JobResult;
use std::sync::Arc;

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Remember this before performing what comes after it; heartbeats and their like need not
    /// wait.
    Persist(Record),
    /// Tell an agent.
    ToAgent(SessionId, ToAgent),
    /// Tell an agent the first message of its session, of which nothing has still to be remembered.
    Greet(SessionId, ToAgent),
    /// End a session, telling the agent why.
    CloseSession {
        /// The session.
        session: SessionId,
        /// True if a person has to mend something.
        refused: bool,
        /// Why.
        reason: String,
    },
    /// A job is over for good.
    Result {
        /// Its batch.
        batch: BatchId,
        /// The how manieth of the batch, from 1.
        seq: u64,
        /// The job.
        job: JobNumber,
        /// How.
        result: JobResult,
    },
    /// The batch has so many jobs now.
    Accepted {
        /// The batch.
        batch: BatchId,
        /// Cumulative count.
        jobs: u64,
        /// No more will come.
        closed: bool,
    },
    /// A request that makes no sense, for the client of this batch.
    Refused {
        /// The batch.
        batch: BatchId,
        /// Why.
        reason: String,
    },
    /// All jobs of a closed batch are over.
    BatchDone {
        /// The batch.
        batch: BatchId,
    },
    /// Something that the batch's client should say.
    Notice {
        /// The batch.
        batch: BatchId,
        /// What.
        notice: Notice,
    },
    /// Streamed output.
    Output {
        /// The batch.
        batch: BatchId,
        /// The job.
        job: JobNumber,
        /// Where it runs.
        host: Arc<str>,
        /// Which stream.
        stream: Stream,
        /// The bytes.
        data: Bytes,
    },
    /// A cancel is done, or cannot be.
    Cancelled {
        /// The request.
        request: u64,
        /// What it has come to; or what is wrong with it, and then nothing was cancelled.
        result: Result<CancelSummary, String>,
    },
    /// On how many streams a job's output comes, or why it does not.
    LogsAnswer {
        /// The request.
        request: u64,
        /// How many.
        streams: Result<u8, String>,
    },
    /// Agents or engines have come or gone.
    Fleet {
        /// Connected agents.
        agents: u32,
        /// Their slots.
        engines: u32,
    },
}

impl Effect {
    /// Whether it may be performed before what was to be remembered earlier is safe: signs of life,
    /// and what changes nothing. A stalled disk then expires no lease.
    pub fn overtakes_the_store(&self) -> bool {
        match self {
            Effect::ToAgent(_, message) => {
                matches!(
                    message,
                    ToAgent::HeartbeatSeen { .. }
                        | ToAgent::OutputTaken { .. }
                        | ToAgent::Logs { .. }
                )
            }
            Effect::Greet(..)
            | Effect::CloseSession { .. }
            | Effect::Refused { .. }
            | Effect::Notice { .. }
            | Effect::Output { .. }
            | Effect::LogsAnswer { .. }
            | Effect::Fleet { .. } => true,
            Effect::Persist(_)
            | Effect::Result { .. }
            | Effect::Accepted { .. }
            | Effect::BatchDone { .. }
            | Effect::Cancelled { .. } => false,
        }
    }
}
