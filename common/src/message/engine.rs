//! On one host, over unix sockets: agent ↔ keeper (datagram-like packets that may carry a
//! descriptor) and agent ↔ engine (frames).

use crate::message::agent::Stream;
use crate::model::clock::BootInstant;
use crate::model::ids::{AttemptId, EngineId, EngineIndex};
use crate::model::job::{BatchContext, Stop};
use crate::model::outcome::{Containment, Ended, Outcome};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Bytes of streamed output that may be in transit from one engine before the far end has taken
/// them. Slots × this bounds the output of `exec` ahead of other messages on a connection.
pub const OUTPUT_WINDOW: u32 = 64 * 1024;

/// Reserved `request` of a [`FromEngine::Shown`] whose bytes are an encoded
/// [`crate::model::outcome::Written`], of the outcome that follows it. Links to engines have no
/// version, and agents that do not know this number ignore output that was not requested.
pub const COUNTS: u64 = u64::MAX;

/// Reserved `request` of a [`FromEngine::Shown`] that comes first on a link and whose bytes are the
/// version of the engine's program.
pub const PROGRAM: u64 = u64::MAX - 1;

/// A number that no engine has. An agent that understands [`FromKeeper::EngineFails`] requests a
/// link to this engine, which keepers of earlier versions ignore: links to keepers have no version.
pub const TELL_FAILURES: EngineIndex = EngineIndex(u16::MAX);

/// From agent to engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToEngine {
    /// Run this attempt. Only sent to an idle engine.
    Run {
        /// Id of the attempt.
        attempt: AttemptId,
        /// An encoded [`crate::model::job::JobSpec`].
        spec: Bytes,
        /// The batch's context; none: the same as in the last `Run` that had one.
        context: Option<BatchContext>,
        /// The engine's cluster-wide number, for the job's environment.
        engine: EngineId,
        /// Slots that it takes, for a later agent of this engine.
        slots: u16,
    },
    /// Kill this attempt.
    Cancel {
        /// Id of the attempt.
        attempt: AttemptId,
        /// Signal and grace.
        stop: Stop,
    },
    /// The coordinator has kept these outcomes; forget them.
    Acknowledge {
        /// The attempts that have ended.
        attempts: Vec<AttemptId>,
    },
    /// The lease ends at this time, unless renewed.
    Lease {
        /// On this host's CLOCK_BOOTTIME; none: no end.
        until: Option<BootInstant>,
    },
    /// The far end has taken this much streamed output.
    OutputTaken {
        /// The attempt that wrote it.
        attempt: AttemptId,
        /// Number of bytes; `u32::MAX`: all that are in transit.
        bytes: u32,
    },
    /// Answer with the kept output that is not written to a file ([`FromEngine::Shown`],
    /// [`FromEngine::ShownAll`]).
    Show {
        /// Repeated in the answers.
        request: u64,
        /// Id of the attempt.
        attempt: AttemptId,
        /// Continue with its further output, to its end.
        follow: bool,
    },
    /// No client follows that output any more.
    Hide {
        /// The request of [`ToEngine::Show`].
        request: u64,
    },
}

/// From engine to agent.
#[expect(
    clippy::large_enum_variant,
    reason = "most of them are ends of attempts"
)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromEngine {
    /// Ends the greeting on a new link, after the unacknowledged outcomes; and reports that a held
    /// slot is free again.
    Ready {
        /// The attempt that runs, and the slots that it takes.
        running: Option<(AttemptId, u16)>,
    },
    /// An attempt has ended, and none of its processes is alive unless the outcome says so.
    Finished {
        /// Id of the attempt.
        attempt: AttemptId,
        /// How it ended.
        outcome: Outcome,
    },
    /// Output of a streaming job.
    Output {
        /// The attempt that wrote it.
        attempt: AttemptId,
        /// Standard output or error.
        stream: Stream,
        /// The bytes, as the job wrote them.
        data: Bytes,
    },
    /// Output that was requested with [`ToEngine::Show`]. A reader that is too slow misses some;
    /// the job never waits for it.
    Shown {
        /// Number of the request.
        request: u64,
        /// Standard output or error.
        stream: Stream,
        /// The bytes, as the job wrote them.
        data: Bytes,
    },
    /// The last of [`FromEngine::Shown`].
    ShownAll {
        /// Number of the request.
        request: u64,
    },
}

/// From agent to keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToKeeper {
    /// Start engines up to this number and connect me to each.
    Engines {
        /// Number of engines.
        count: u16,
        /// The host's name, which engines that are started from now on give to their jobs.
        host: String,
    },
    /// Kill everything, engines too, and exit.
    Stop,
    /// The lease ends at this time, unless renewed.
    Lease {
        /// On this host's CLOCK_BOOTTIME; none: no end.
        until: Option<BootInstant>,
    },
    /// An engine is about to be told to kill an attempt; sent before the engine is told.
    Cancelled {
        /// The engine that has the attempt.
        engine: EngineIndex,
        /// Id of the attempt.
        attempt: AttemptId,
        /// When its grace ends.
        by: BootInstant,
    },
    /// The coordinator has kept the end of this attempt, which [`FromKeeper::EngineEnded`] told.
    EndSeen {
        /// Id of the attempt.
        attempt: AttemptId,
    },
    /// My link to an engine has ended: connect me to it again. An engine whose links do not last is
    /// killed.
    Relink {
        /// The engine to connect to.
        engine: EngineIndex,
    },
}

/// From keeper to agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromKeeper {
    /// A link to an engine: the descriptor comes with this packet.
    Link {
        /// The engine that it leads to.
        engine: EngineIndex,
    },
    /// How the processes of an attempt are kept together here. The first message on a connection.
    Containment(Containment),
    /// An engine died. Its remaining processes were killed; a new engine takes its place, unless a
    /// process survives.
    EngineEnded {
        /// The engine that died.
        engine: EngineIndex,
        /// The attempt that it ran, if it had run long enough for the keeper to know.
        attempt: Option<AttemptId>,
        /// Why the keeper killed it; `Lost` if it died by itself.
        ended: Ended,
        /// Number of processes killed.
        killed: u32,
        /// Number of processes that did not die.
        survivors: u32,
    },
    /// An engine has died, or could not be started, like the one before it. Precedes its
    /// [`FromKeeper::EngineEnded`].
    EngineFails {
        /// The engine that failed.
        engine: EngineIndex,
        /// The reason, for people.
        why: String,
    },
}

/// From keeper to engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeeperToEngine {
    /// Talk to the agent over the descriptor that comes with this packet, and over no other.
    Link,
}

/// From engine to keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EngineToKeeper {
    /// This attempt is here. If it still is a while after `until`, kill me and my job. Replaces any
    /// earlier `Watch`.
    Watch {
        /// Id of the attempt.
        attempt: AttemptId,
        /// Deadline; none: only the lease limits it.
        until: Option<BootInstant>,
        /// How it counts as ended by then.
        ended: Ended,
        /// It is being killed.
        killing: bool,
    },
    /// This attempt is not here, or not any more.
    Over {
        /// Id of the attempt.
        attempt: AttemptId,
    },
}
