//! The effects that the scheduler asks for, and which of them need not wait for the store.

use super::Record;
use bytes::Bytes;
use mezcal_common::message::agent::{LogWish, Placement, Stream, ToAgent};
use mezcal_common::message::client::{CancelSummary, Notice};
use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::model::ids::{
    AttemptId, BatchId, EngineId, JobKey, JobNumber, SessionId, StoreId,
};
use mezcal_common::model::job::BatchContext;
use mezcal_common::model::outcome::JobResult;
use std::sync::Arc;
use std::time::Duration;

/// A request to the driver. Effects are performed in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Store this before performing any later effect; heartbeats and their like need not wait.
    Persist(Record),
    /// Send an agent a message that is complete.
    ToAgent(SessionId, ToAgent),
    /// Welcome an agent.
    Welcome(SessionId, Welcome),
    /// Tell an agent that its heartbeat has arrived.
    HeartbeatSeen {
        /// The agent's session.
        session: SessionId,
        /// When the agent sent it, by the agent's clock.
        sent: BootInstant,
    },
    /// Give an agent jobs to run.
    Place(SessionId, Vec<Placing>),
    /// Ask an agent for the output of a job.
    AskForLogs {
        /// The agent's session.
        session: SessionId,
        /// Comes back in the answer.
        request: u64,
        /// The attempt whose output is wanted.
        attempt: AttemptId,
        /// The text of its job.
        text: Text,
        /// The context of its batch.
        context: Box<BatchContext>,
        /// Which streams, and whether to follow them.
        wish: LogWish,
    },
    /// End a session, telling the agent why.
    CloseSession {
        /// The agent's session.
        session: SessionId,
        /// True if a person has to correct something.
        refused: bool,
        /// Why, for people.
        reason: String,
    },
    /// A job is over for good.
    Result {
        /// The id of the batch.
        batch: BatchId,
        /// The position of this result among those of the batch, from 1.
        seq: u64,
        /// The number of the job in its batch.
        job: JobNumber,
        /// How it ended.
        result: JobResult,
    },
    /// How many jobs the batch has now.
    Accepted {
        /// The id of the batch.
        batch: BatchId,
        /// The count since the batch was opened.
        jobs: u64,
        /// No more will come.
        closed: bool,
    },
    /// A request that is not valid, for the client of this batch.
    Refused {
        /// The id of the batch.
        batch: BatchId,
        /// Why, for people.
        reason: String,
    },
    /// All jobs of a closed batch are over.
    BatchDone {
        /// The id of the batch.
        batch: BatchId,
    },
    /// A notice for the user, which the batch's client prints.
    Notice {
        /// The id of the batch.
        batch: BatchId,
        /// The content of the notice.
        notice: Notice,
    },
    /// Streamed output.
    Output {
        /// The id of the batch.
        batch: BatchId,
        /// The number of the job in its batch.
        job: JobNumber,
        /// Where it runs.
        host: Arc<str>,
        /// Which stream.
        stream: Stream,
        /// The next bytes of that stream.
        data: Bytes,
    },
    /// A cancel is done, or cannot be done.
    Cancelled {
        /// As in [`super::Event::Cancel`].
        request: u64,
        /// Its summary; or why it is not valid, and then nothing was cancelled.
        result: Result<CancelSummary, String>,
    },
    /// The answer to a request for a job's output.
    LogsAnswer {
        /// As in [`super::Event::Logs`].
        request: u64,
        /// How many streams will come, or why none.
        streams: Result<u8, String>,
    },
    /// Agents have connected or gone, or the number of their slots has changed.
    Fleet {
        /// Connected agents.
        agents: u32,
        /// The slots of these agents.
        engines: u32,
    },
}

impl Effect {
    /// The message and the session it is for, if this effect has one for an agent. The message
    /// leaves at `clock`, and `stored` fetches texts from the store.
    pub fn for_agent(
        self,
        clock: WallTime,
        mut stored: impl FnMut(JobKey) -> Bytes,
    ) -> Option<(SessionId, ToAgent)> {
        Some(match self {
            Effect::ToAgent(session, message) => (session, message),
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

    /// Whether it may safely be performed before earlier records are stored: heartbeats, and
    /// effects that change nothing. A stalled disk then expires no lease.
    pub fn overtakes_the_store(&self) -> bool {
        match self {
            Effect::ToAgent(_, message) => match message {
                ToAgent::OutputTaken { .. } | ToAgent::Generation { .. } => true,
                ToAgent::Welcome { .. }
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
            Effect::HeartbeatSeen { .. }
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

/// The first message of a session to an agent; the driver adds the time.
#[derive(Clone, Debug, PartialEq)]
pub struct Welcome {
    /// The minor version of the protocol that both sides speak.
    pub version: u16,
    /// The store of this coordinator.
    pub store: StoreId,
    /// How long the agent may run jobs without a message from us.
    pub lease: Option<Duration>,
    /// The number of its first engine.
    pub first_engine: EngineId,
    /// It holds facts that are still to be stored.
    pub has_news: bool,
}

impl Welcome {
    /// The message, sent at `clock`.
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

/// The text of a job, or where it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// An encoded [`mezcal_common::model::job::JobSpec`].
    Here(Bytes),
    /// The text is in the store.
    Stored,
}

impl Text {
    /// The text; `stored` fetches it from the store if it is there.
    pub fn or_stored(self, stored: impl FnOnce() -> Bytes) -> Bytes {
        match self {
            Text::Here(text) => text,
            Text::Stored => stored(),
        }
    }
}

/// An attempt that is sent to an agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Placing {
    /// The id of the attempt.
    pub attempt: AttemptId,
    /// The text of its job.
    pub text: Text,
    /// How many slots it takes.
    pub slots: u16,
}

impl Placing {
    /// The placement with its text; `stored` fetches it from the store if it is there.
    pub fn placement(self, stored: impl FnOnce(JobKey) -> Bytes) -> Placement {
        let key = self.attempt.key;
        Placement {
            attempt: self.attempt,
            spec: self.text.or_stored(|| stored(key)),
            slots: self.slots,
        }
    }
}
