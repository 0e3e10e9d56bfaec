//! What the scheduler wants done, and what of it need not wait for the store.

use super::Record;
use bytes::Bytes;
use mezcal_common::message::agent::{LogWish, Placement, Stream, ToAgent};
use mezcal_common::message::client::{CancelSummary, Notice};
use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::model::ids::{
    AttemptId, BatchId, EngineId, Generation, JobKey, JobNumber, SessionId, StoreId,
};
use mezcal_common::model::job::BatchContext;
use mezcal_common::model::outcome::JobResult;
use std::sync::Arc;
use std::time::Duration;

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Remember this before performing what comes after it; heartbeats and their like need not
    /// wait.
    Persist(Record),
    /// Tell an agent a message that is complete.
    ToAgent(SessionId, ToAgent),
    /// Tell an agent, before anything else, of which generation the store is.
    Generation(SessionId, Generation),
    /// Welcome an agent.
    Welcome(SessionId, Welcome),
    /// Tell an agent that its heartbeat has come.
    HeartbeatSeen {
        /// Its session.
        session: SessionId,
        /// When it was sent, by the agent's clock.
        sent: BootInstant,
    },
    /// Give an agent jobs to run.
    Place(SessionId, Vec<Placing>),
    /// Ask an agent for the output of a job.
    AskForLogs {
        /// Its session.
        session: SessionId,
        /// Comes back in the answer.
        request: u64,
        /// The attempt that has it.
        attempt: AttemptId,
        /// What was run.
        text: Text,
        /// Of its batch.
        context: Box<BatchContext>,
        /// What of it.
        wish: LogWish,
    },
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
    /// The message that it has for an agent, if it has one, and the agent's session. The message
    /// leaves at `clock`, and `stored` fetches texts that the store has.
    pub fn for_agent(
        self,
        clock: WallTime,
        mut stored: impl FnMut(JobKey) -> Bytes,
    ) -> Option<(SessionId, ToAgent)> {
        Some(match self {
            Effect::ToAgent(session, message) => (session, message),
            Effect::Generation(session, generation) => {
                (session, ToAgent::Generation { generation })
            }
            Effect::Welcome(session, welcome) => (session, welcome.message(session, clock)),
            Effect::HeartbeatSeen { session, sent } => {
                (session, ToAgent::HeartbeatSeen { sent, clock })
            }
            Effect::Place(session, jobs) => {
                let run = jobs.into_iter().map(|job| job.placement(&mut stored));
                (session, ToAgent::Run(run.collect()))
            }
            Effect::AskForLogs {
                session,
                request,
                attempt,
                text,
                context,
                wish,
            } => {
                let spec = text.or_stored(|| stored(attempt.key));
                let logs = ToAgent::Logs {
                    request,
                    attempt,
                    spec,
                    context,
                    wish,
                };
                (session, logs)
            }
            Effect::Persist(_)
            | Effect::CloseSession { .. }
            | Effect::Result { .. }
            | Effect::Accepted { .. }
            | Effect::Refused { .. }
            | Effect::BatchDone { .. }
            | Effect::Notice { .. }
            | Effect::Output { .. }
            | Effect::Cancelled { .. }
            | Effect::LogsAnswer { .. }
            | Effect::Fleet { .. } => return None,
        })
    }

    /// Whether it may be performed before what was to be remembered earlier is safe: signs of life,
    /// and what changes nothing. A stalled disk then expires no lease.
    pub fn overtakes_the_store(&self) -> bool {
        match self {
            Effect::ToAgent(_, message) => match message {
                ToAgent::OutputTaken { .. } => true,
                ToAgent::Generation { .. }
                | ToAgent::Welcome { .. }
                | ToAgent::Context { .. }
                | ToAgent::Run(_)
                | ToAgent::Cancel { .. }
                | ToAgent::Acknowledge { .. }
                | ToAgent::HeartbeatSeen { .. }
                | ToAgent::Forget { .. }
                | ToAgent::Retract { .. }
                | ToAgent::Evict { .. }
                | ToAgent::Logs { .. }
                | ToAgent::Renewed { .. }
                | ToAgent::Known { .. } => false,
            },
            Effect::Welcome(_, welcome) => !welcome.has_news,
            Effect::Generation(..)
            | Effect::HeartbeatSeen { .. }
            | Effect::AskForLogs { .. }
            | Effect::CloseSession { .. }
            | Effect::Refused { .. }
            | Effect::Notice { .. }
            | Effect::Output { .. }
            | Effect::LogsAnswer { .. }
            | Effect::Fleet { .. } => true,
            Effect::Persist(_)
            | Effect::Place(..)
            | Effect::Result { .. }
            | Effect::Accepted { .. }
            | Effect::BatchDone { .. }
            | Effect::Cancelled { .. } => false,
        }
    }
}

/// What an agent is told first of its session; the time is the driver's to say.
#[derive(Clone, Debug, PartialEq)]
pub struct Welcome {
    /// The minor version of the protocol that both speak.
    pub version: u16,
    /// The store.
    pub store: StoreId,
    /// For how long the agent may run jobs without a word from us.
    pub lease: Option<Duration>,
    /// The number of its first engine.
    pub first_engine: EngineId,
    /// Something of this has still to be remembered.
    pub has_news: bool,
}

impl Welcome {
    /// The message, as it leaves at `clock`.
    pub fn message(self, session: SessionId, clock: WallTime) -> ToAgent {
        ToAgent::Welcome {
            version: self.version,
            program: mezcal_common::VERSION.into(),
            session,
            store: self.store,
            lease: self.lease,
            first_engine: self.first_engine,
            clock,
        }
    }
}

/// The text of a job, or where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// An encoded [`mezcal_common::model::job::JobSpec`].
    Here(Bytes),
    /// The store has it.
    Stored,
}

impl Text {
    /// The text; `stored` fetches it if the store has it.
    pub fn or_stored(self, stored: impl FnOnce() -> Bytes) -> Bytes {
        match self {
            Text::Here(text) => text,
            Text::Stored => stored(),
        }
    }
}

/// An attempt that an agent is given.
#[derive(Clone, Debug, PartialEq)]
pub struct Placing {
    /// Its id.
    pub attempt: AttemptId,
    /// What is to be run.
    pub text: Text,
    /// Slots that it takes.
    pub slots: u16,
}

impl Placing {
    /// The same with its text; `stored` fetches it if the store has it.
    pub fn placement(self, stored: impl FnOnce(JobKey) -> Bytes) -> Placement {
        let key = self.attempt.key;
        Placement {
            attempt: self.attempt,
            spec: self.text.or_stored(|| stored(key)),
            slots: self.slots,
        }
    }
}
