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

/// From this version on an agent that serves users says user by user what it has
/// ([`ToCoordinator::UserInventory`]).
pub const SERVES_USERS: u16 = 2;

/// From this version on a coordinator knows attempts that their host was too short of something to
/// start (`Ended::HostShort`).
pub const KNOWS_SHORTAGES: u16 = 2;

/// From this version on a coordinator knows how much attempts have written ([`Report::Counted`]).
pub const COUNTS_OUTPUT: u16 = 3;

/// From this version on an agent says which versions its engines have ([`ToCoordinator::Engines`]).
pub const TELLS_ENGINES: u16 = 3;

/// From this version on an agent says which of its engines can be used
/// ([`ToCoordinator::UsableEngines`]).
pub const ENGINES_FAIL: u16 = 3;

/// What an agent says of itself when it connects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Range of minor protocol versions.
    pub versions: (u16, u16),
    /// Version of the program.
    pub program: String,
    /// Which keeper the agent holds, unique within the boot: only the agent that holds the same one
    /// may replace an old session.
    pub keeper: u64,
    /// The kernel's id of this boot: another one proves that whatever ran before is dead.
    pub boot_id: [u8; 16],
    /// Jobs at a time.
    pub slots: u16,
    /// Other names of the host, beside the one in the certificate. Coordinators from 0.2 on give a
    /// host no name because of them.
    pub aliases: Vec<String>,
    /// Logical CPUs.
    pub cpus: u32,
    /// Physical memory in bytes.
    pub memory: u64,
    /// Whose jobs it runs, each as that user's account; none: everybody's, as its own account.
    pub users: Option<Vec<String>>,
}

/// How loaded a host is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Load average over one minute.
    pub one_minute: f64,
    /// Memory that can be had without swapping, in bytes.
    pub available: u64,
}

/// What an agent tells of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// It has been with an engine for a while. Short attempts skip this.
    Started {
        /// The slot: of several users' engines for one slot only one runs something.
        engine: EngineIndex,
    },
    /// It is over.
    Finished {
        /// The slot; none if it never reached one.
        engine: Option<EngineIndex>,
        /// How.
        outcome: Box<Outcome>,
    },
    /// It is given back unstarted, or by an agent that stops: nothing of it runs, and it is
    /// nobody's failure.
    Returned,
    /// It is over, and its output was counted.
    Counted {
        /// The slot; none if it never reached one.
        engine: Option<EngineIndex>,
        /// How, with what it has written.
        #[serde(with = "crate::model::outcome::counted")]
        outcome: Box<Outcome>,
    },
}

/// One report with its number in the agent's sequence, which goes on across sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberedReport {
    /// From 1 for the agent's first.
    pub seq: u64,
    /// The attempt.
    pub attempt: AttemptId,
    /// What happened.
    pub report: Report,
}

/// Which of a job's streams some output comes from.
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
    /// Everything that the agent still holds, complete: what is not here is not on this host.
    Inventory {
        /// Waiting for an engine.
        queued: Vec<AttemptId>,
        /// On an engine.
        running: Vec<AttemptId>,
        /// Over; the reports follow.
        unacknowledged: Vec<AttemptId>,
        /// What holds the processes of attempts together.
        containment: Containment,
        /// Seconds to add to the agent's wall clock to get the coordinator's.
        clock_offset: Option<f64>,
    },
    /// Credit: the agent takes attempts until this many slots' worth have been sent in this
    /// session.
    Pull {
        /// Cumulative count of slots; it falls only when the agent is stopping.
        credit: u64,
        /// Slots with nothing to do right now.
        idle: u16,
    },
    /// What happened, in sequence.
    Reports(Vec<NumberedReport>),
    /// The answer to a cancel of an attempt that the agent does not have: nothing of it runs, and
    /// none will start.
    Absent {
        /// The attempts.
        attempts: Vec<AttemptId>,
    },
    /// Sign of life; its acknowledgement renews the lease.
    Heartbeat {
        /// The agent's clock when it sent this; comes back in the answer.
        sent: BootInstant,
        /// How loaded the host is.
        load: Load,
        /// Seconds to add to the agent's wall clock to get the coordinator's.
        clock_offset: Option<f64>,
    },
    /// Output of a job whose batch streams it.
    Output {
        /// The attempt.
        attempt: AttemptId,
        /// Which stream.
        stream: Stream,
        /// The bytes.
        data: Bytes,
    },
    /// The agent is stopping: it holds nothing any more and will not come back under this session.
    Goodbye,
    /// The answer to [`ToAgent::Logs`]: on how many streams the output comes, or why it does not.
    LogsAnswer {
        /// The request.
        request: u64,
        /// Streams that begin with a [`LogHeader`].
        streams: Result<u8, String>,
    },
    /// Wants another certificate, for a new key. Answered by [`ToAgent::Renewed`].
    Renew {
        /// A certificate signing request (PKCS #10, DER). Only its key counts.
        request: Bytes,
    },
    /// Everything that the agent still holds for one user, complete: what is not here of that
    /// user's, and was not sent in this session, is not on this host. What is here of other users'
    /// counts as not here.
    UserInventory {
        /// Whose.
        user: String,
        /// Waiting for an engine.
        queued: Vec<AttemptId>,
        /// On an engine, or so it says. Answered by [`ToAgent::Known`].
        running: Vec<AttemptId>,
        /// Over; the reports follow.
        unacknowledged: Vec<AttemptId>,
    },
    /// Ends the inventories of all users who are served, and is said again when others are: nothing
    /// is known of what any other user has here.
    Served {
        /// Whose jobs run here.
        users: Vec<String>,
        /// Users who have engines here that are not served, and why.
        unheard: Vec<(String, String)>,
        /// What holds the processes of attempts together.
        containment: Containment,
        /// Seconds to add to the agent's wall clock to get the coordinator's.
        clock_offset: Option<f64>,
    },
    /// Reports about what this agent has not handed out itself, on the word of one user's engines:
    /// they count for that user's jobs only.
    ReportsOf {
        /// Whose engines say so.
        user: String,
        /// What happened, in the same sequence as all reports.
        reports: Vec<NumberedReport>,
    },
    /// What the engines run. Said again when that changes.
    Engines {
        /// Versions of their program, and how many engines have each; nothing: one that is too old
        /// to say.
        versions: Vec<(String, u16)>,
        /// Users who get new engines when what runs in theirs has ended, and no new jobs until
        /// then.
        replacing: Vec<String>,
    },
    /// So many jobs can run at a time, since other engines die as soon as they are started or
    /// cannot be started; said when that changes. Until then it is as many as the host has slots.
    UsableEngines {
        /// How many.
        ready: u16,
        /// What is wrong with the others, for people.
        failing: Option<String>,
    },
}

/// What precedes the bytes on a stream of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogHeader {
    /// The request.
    pub request: u64,
    /// Standard output or error.
    pub stream: Stream,
}

/// What somebody wants to see of an attempt's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogWish {
    /// Standard output.
    pub out: bool,
    /// Standard error.
    pub err: bool,
    /// Go on until the attempt ends.
    pub follow: bool,
}

/// An attempt with all that is needed to run it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Its id.
    pub attempt: AttemptId,
    /// An encoded [`crate::model::job::JobSpec`].
    pub spec: Bytes,
    /// Slots that it takes: one engine runs it, and the others of these do nothing meanwhile.
    pub slots: u16,
}

/// From coordinator to agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToAgent {
    /// The connection is made.
    Welcome {
        /// The protocol version in use.
        version: u16,
        /// Version of the program.
        program: String,
        /// This session.
        session: SessionId,
        /// What the numbers of batches and attempts mean is the same in all lives of a coordinator
        /// with this store.
        store: StoreId,
        /// How long the agent may run attempts without an acknowledged heartbeat; `None`: it dies
        /// with the coordinator.
        lease: Option<Duration>,
        /// `engine_id` of the host's first engine; the others follow.
        first_engine: EngineId,
        /// The coordinator's wall clock.
        clock: WallTime,
    },
    /// What the jobs of a batch have in common; precedes their first `Run` in a session.
    Context {
        /// The batch.
        batch: BatchSerial,
        /// Their environment.
        context: BatchContext,
        /// Whose they are.
        user: String,
    },
    /// Run these. Valid in this session only.
    Run(Vec<Placement>),
    /// Kill these, running or not, and prove it by a `Finished` or an `Absent`.
    Cancel {
        /// The attempts.
        attempts: Vec<AttemptId>,
        /// How.
        stop: Stop,
    },
    /// All reports up to this one are kept; forget them.
    Acknowledge {
        /// The highest sequence number kept.
        through: u64,
    },
    /// The answer to a heartbeat.
    HeartbeatSeen {
        /// The agent's clock, from the heartbeat.
        sent: BootInstant,
        /// The coordinator's wall clock.
        clock: WallTime,
    },
    /// No more jobs of this batch will come.
    Forget {
        /// The batch.
        batch: BatchSerial,
    },
    /// The far end has taken this much streamed output.
    OutputTaken {
        /// The attempt.
        attempt: AttemptId,
        /// Bytes.
        bytes: u32,
    },
    /// Give back those of these that have not started (`Returned`); leave the others alone.
    Retract {
        /// The attempts.
        attempts: Vec<AttemptId>,
    },
    /// Kill these, running or not, and give them back (`Returned`): they run again elsewhere.
    Evict {
        /// The attempts.
        attempts: Vec<AttemptId>,
        /// How.
        stop: Stop,
    },
    /// Send what this attempt has written, over streams of its own.
    Logs {
        /// Comes back in the answer and in the streams' headers.
        request: u64,
        /// The attempt, running here or ended here.
        attempt: AttemptId,
        /// Its encoded [`crate::model::job::JobSpec`].
        spec: Bytes,
        /// Its batch.
        context: Box<BatchContext>,
        /// What of it.
        wish: LogWish,
    },
    /// The answer to [`ToCoordinator::Renew`].
    Renewed {
        /// The certificate and what stands between it and the root, in PEM form; or why there is
        /// none.
        cert: Result<String, String>,
    },
    /// The answer to [`ToCoordinator::UserInventory`]: these are what the user's engines run, and
    /// the slots that each takes. Nothing else that they say to run is this host's.
    Known {
        /// Whose.
        user: String,
        /// The attempts.
        attempts: Vec<(AttemptId, u16)>,
    },
    /// The coordinator's store was restored from a copy. Comes before the `Welcome`, and only to
    /// agents of version 1.2 and later; without it the store is an original.
    Generation {
        /// Of that store. An agent that has met a newer one leaves.
        generation: Generation,
    },
}
