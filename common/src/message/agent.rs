//! Between coordinator and agent: `mezcal-agent/1`, one bidirectional stream, opened by the agent.
//!
//! New variants are appended, never inserted: bincode numbers them by place.

use crate::model::clock::{BootInstant, WallTime};
use crate::model::ids::{
    AttemptId, BatchSerial, EngineId, EngineIndex, Generation, SessionId, StoreId,
};
use crate::model::job::{BatchContext, Stop};
use crate::model::outcome::{Containment, Outcome};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The protocol's name in TLS (ALPN).
pub const ALPN: &[u8] = b"mezcal-agent/1";

/// The minor versions that this build speaks, first and last.
pub const VERSIONS: (u16, u16) = (1, 3);

/// From this version on an agent that serves users sends one inventory for each user
/// ([`ToCoordinator::UserInventory`]).
pub const SERVES_USERS: u16 = 2;

/// From this version on a coordinator knows attempts that could not start because their host was
/// short of something (`Ended::HostShort`).
pub const KNOWS_SHORTAGES: u16 = 2;

/// From this version on a coordinator knows byte counts of attempts' output ([`Report::Counted`]).
pub const COUNTS_OUTPUT: u16 = 3;

/// From this version on an agent reports the versions of its engines ([`ToCoordinator::Engines`]).
pub const TELLS_ENGINES: u16 = 3;

/// From this version on an agent reports how many of its engines are usable
/// ([`ToCoordinator::UsableEngines`]).
pub const ENGINES_FAIL: u16 = 3;

/// Description of an agent, sent when it connects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Range of minor protocol versions.
    pub versions: (u16, u16),
    /// Version of the program.
    pub program: String,
    /// Number of the agent's keeper, unique within the boot: only an agent with the same keeper may
    /// replace an old session.
    pub keeper: u64,
    /// The kernel's id of this boot: another id proves that all processes from before are dead.
    pub boot_id: [u8; 16],
    /// Number of slots: jobs at a time.
    pub slots: u16,
    /// Other names of the host, beside the one in the certificate. Coordinators from 0.2 on do not
    /// use them as names.
    pub aliases: Vec<String>,
    /// Logical CPUs.
    pub cpus: u32,
    /// Physical memory in bytes.
    pub memory: u64,
    /// Users whose jobs it runs, each as that user's account; none: jobs of all users, as its own
    /// account.
    pub users: Option<Vec<String>>,
}

/// Load of a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Load average over one minute.
    pub one_minute: f64,
    /// Memory available without swapping, in bytes.
    pub available: u64,
}

/// An agent's report of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// An engine has had it for a while. Short attempts skip this.
    Started {
        /// The slot: of several users' engines for one slot only one runs a job.
        engine: EngineIndex,
    },
    /// It has ended.
    Finished {
        /// The slot; none if it never reached one.
        engine: Option<EngineIndex>,
        /// How it ended.
        outcome: Box<Outcome>,
    },
    /// It is returned unstarted, or by an agent that stops: nothing of it runs, and it does not
    /// count as a failure.
    Returned,
    /// It has ended, and its output was counted.
    Counted {
        /// The slot; none if it never reached one.
        engine: Option<EngineIndex>,
        /// How it ended, with the byte counts of its output.
        #[serde(with = "crate::model::outcome::counted")]
        outcome: Box<Outcome>,
    },
}

/// One report with its number in the agent's sequence, which continues across sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberedReport {
    /// 1 for the agent's first report.
    pub seq: u64,
    /// The attempt that the report is about.
    pub attempt: AttemptId,
    /// The event.
    pub report: Report,
}

/// The stream of a job that output comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// From agent to coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToCoordinator {
    /// The first message.
    Hello(Hello),
    /// All attempts that the agent still holds: an attempt that is not listed is not on this host.
    Inventory {
        /// Attempts that wait for an engine.
        queued: Vec<AttemptId>,
        /// Attempts on an engine.
        running: Vec<AttemptId>,
        /// Attempts that have ended; their reports follow.
        unacknowledged: Vec<AttemptId>,
        /// How the processes of an attempt are kept together.
        containment: Containment,
        /// Seconds to add to the agent's wall clock to get the coordinator's.
        clock_offset: Option<f64>,
    },
    /// Credit: the agent takes attempts until the slots of all attempts sent in this session add up
    /// to `credit`.
    Pull {
        /// Cumulative count of slots; it falls only when the agent is stopping.
        credit: u64,
        /// Slots that are idle at present.
        idle: u16,
    },
    /// Reports in the order of their numbers.
    Reports(Vec<NumberedReport>),
    /// The answer to a cancel of attempts that the agent does not have: nothing of them runs, and
    /// none will start.
    Absent {
        /// The cancelled attempts.
        attempts: Vec<AttemptId>,
    },
    /// Sign of life; its acknowledgement renews the lease.
    Heartbeat {
        /// The agent's clock when it sent this; returned in the answer.
        sent: BootInstant,
        /// Load of the host.
        load: Load,
        /// Seconds to add to the agent's wall clock to get the coordinator's.
        clock_offset: Option<f64>,
    },
    /// Output of a job whose batch streams it.
    Output {
        /// The attempt that wrote it.
        attempt: AttemptId,
        /// Standard output or error.
        stream: Stream,
        /// The bytes, as the job wrote them.
        data: Bytes,
    },
    /// The agent is stopping: it holds no attempts any more and will not come back in this session.
    Goodbye,
    /// The answer to [`ToAgent::Logs`]: the number of streams that follow, or an error.
    LogsAnswer {
        /// Number of the request.
        request: u64,
        /// Streams that begin with a [`LogHeader`].
        streams: Result<u8, String>,
    },
    /// Requests another certificate, for a new key. Answered by [`ToAgent::Renewed`].
    Renew {
        /// A certificate signing request (PKCS #10, DER). Only its key counts.
        request: Bytes,
    },
    /// All attempts that the agent still holds for one user: an attempt of that user that is not
    /// listed, and was not sent in this session, is not on this host. Listed attempts of other
    /// users are ignored.
    UserInventory {
        /// The user whose attempts these are.
        user: String,
        /// Attempts that wait for an engine.
        queued: Vec<AttemptId>,
        /// Attempts that are on an engine by the engine's own word. Answered by [`ToAgent::Known`].
        running: Vec<AttemptId>,
        /// Attempts that have ended; their reports follow.
        unacknowledged: Vec<AttemptId>,
    },
    /// Ends the inventories of all served users, and is repeated when the set of served users
    /// changes: attempts of any other user on this host are unknown.
    Served {
        /// Users whose jobs run here.
        users: Vec<String>,
        /// Users who have engines here but are not served, each with the reason.
        unheard: Vec<(String, String)>,
        /// How the processes of an attempt are kept together.
        containment: Containment,
        /// Seconds to add to the agent's wall clock to get the coordinator's.
        clock_offset: Option<f64>,
    },
    /// Reports about attempts that this agent has not handed out itself, on the word of one user's
    /// engines: they count for that user's jobs only.
    ReportsOf {
        /// The user whose engines report.
        user: String,
        /// Reports, in the same sequence as all others.
        reports: Vec<NumberedReport>,
    },
    /// Versions of the engines. Sent again when they change.
    Engines {
        /// Version of the program, and the number of engines that have it; empty: a version too old
        /// to report itself.
        versions: Vec<(String, u16)>,
        /// Users who get new engines when the jobs in their present ones have ended, and no new
        /// jobs until then.
        replacing: Vec<String>,
    },
    /// The number of jobs that can run at a time, because the other engines die at their start or
    /// cannot be started; sent when it changes. Until the first one it is the number of slots.
    UsableEngines {
        /// The number of usable slots.
        ready: u16,
        /// Why the other engines fail, for people.
        failing: Option<String>,
    },
}

/// Header of a stream of output; the bytes follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogHeader {
    /// Number of the request.
    pub request: u64,
    /// Standard output or error.
    pub stream: Stream,
}

/// The part of an attempt's output that a client requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogWish {
    /// Standard output.
    pub out: bool,
    /// Standard error.
    pub err: bool,
    /// Continue until the attempt ends.
    pub follow: bool,
}

/// An attempt with all data needed to run it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Id of the attempt.
    pub attempt: AttemptId,
    /// An encoded [`crate::model::job::JobSpec`].
    pub spec: Bytes,
    /// Slots that it takes: one engine runs it, and the others stay idle meanwhile.
    pub slots: u16,
}

/// From coordinator to agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToAgent {
    /// The first answer: the agent is accepted.
    Welcome {
        /// The protocol version in use.
        version: u16,
        /// Version of the program.
        program: String,
        /// Id of this session.
        session: SessionId,
        /// The coordinator's store. Numbers of batches and attempts keep their meaning in all lives
        /// of a coordinator with this store.
        store: StoreId,
        /// How long the agent may run attempts without an acknowledged heartbeat; `None`: it dies
        /// with the coordinator.
        lease: Option<Duration>,
        /// `engine_id` of the host's first engine; the others follow.
        first_engine: EngineId,
        /// The coordinator's wall clock.
        clock: WallTime,
    },
    /// The settings that all jobs of a batch share; precedes their first `Run` in a session.
    Context {
        /// Serial number of the batch.
        batch: BatchSerial,
        /// Its settings.
        context: BatchContext,
        /// The user who owns it.
        user: String,
    },
    /// Attempts to run. Valid in this session only.
    Run(Vec<Placement>),
    /// Kill these attempts, running or not, and prove it by a `Finished` or an `Absent`.
    Cancel {
        /// The attempts to kill.
        attempts: Vec<AttemptId>,
        /// Signal and grace.
        stop: Stop,
    },
    /// All reports up to this one are kept by the coordinator; forget them.
    Acknowledge {
        /// The highest sequence number kept.
        through: u64,
    },
    /// The answer to a heartbeat.
    HeartbeatSeen {
        /// The agent's clock, as sent in the heartbeat.
        sent: BootInstant,
        /// The coordinator's wall clock.
        clock: WallTime,
    },
    /// No more jobs of this batch will come.
    Forget {
        /// Serial number of the batch.
        batch: BatchSerial,
    },
    /// The client has taken this much streamed output.
    OutputTaken {
        /// The attempt that wrote it.
        attempt: AttemptId,
        /// Number of bytes.
        bytes: u32,
    },
    /// Return those of these attempts that have not started (`Returned`); leave the others alone.
    Retract {
        /// The attempts to return.
        attempts: Vec<AttemptId>,
    },
    /// Kill these attempts, running or not, and return them (`Returned`): they run again elsewhere.
    Evict {
        /// The attempts to kill.
        attempts: Vec<AttemptId>,
        /// Signal and grace.
        stop: Stop,
    },
    /// Send the output of this attempt, over streams of its own.
    Logs {
        /// Repeated in the answer and in the streams' headers.
        request: u64,
        /// The attempt, which runs here or has ended here.
        attempt: AttemptId,
        /// Its encoded [`crate::model::job::JobSpec`].
        spec: Bytes,
        /// The settings of its batch.
        context: Box<BatchContext>,
        /// The part of its output.
        wish: LogWish,
    },
    /// The answer to [`ToCoordinator::Renew`].
    Renewed {
        /// The certificate and those between it and the root, in PEM form; or the reason for a
        /// refusal.
        cert: Result<String, String>,
    },
    /// The answer to [`ToCoordinator::UserInventory`]: the attempts that the user's engines do run,
    /// and the slots that each takes. Any other attempt that they claim to run is not this host's.
    Known {
        /// The user whose attempts these are.
        user: String,
        /// Each attempt with its slots.
        attempts: Vec<(AttemptId, u16)>,
    },
    /// The coordinator's store was restored from a copy. Comes before the `Welcome`, and only to
    /// agents of version 1.2 and later; without it the store is an original.
    Generation {
        /// The generation of that store. An agent that has met a newer one leaves.
        generation: Generation,
    },
}
