//! On one host, over unix sockets: agent ↔ keeper (datagram-like packets that may carry a
//! descriptor) and agent ↔ engine (frames).

use crate::message::agent::Stream;
use crate::model::clock::BootInstant;
use crate::model::ids::{AttemptId, EngineId, EngineIndex};
use crate::model::job::{BatchContext, Stop};
use crate::model::outcome::{Containment, Ended, Outcome};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Streamed output that may be on its way from one engine before the far end has taken it. Bounds
/// what `exec` can put before other messages on a connection: slots × this.
pub const OUTPUT_WINDOW: u32 = 64 * 1024;

/// The request of a [`FromEngine::Shown`] that nobody has made: its bytes are an encoded
/// [`crate::model::outcome::Written`], of the outcome that follows it. Links to engines have no
/// version, and agents that do not know this pass over what nobody has asked for.
pub const COUNTS: u64 = u64::MAX;

/// The request of a [`FromEngine::Shown`] that nobody has made, and that comes first on a link: its
/// bytes are the version of the engine's program.
pub const PROGRAM: u64 = u64::MAX - 1;

/// No engine has this number. An agent that understands [`FromKeeper::EngineFails`] says so by
/// asking for a link to it, of which keepers of earlier versions make nothing: links to keepers
/// have no version.
pub const TELL_FAILURES: EngineIndex = EngineIndex(u16::MAX);

/// From agent to engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToEngine {
    /// Run this. Only sent to an idle engine.
    Run {
        /// The attempt.
        attempt: AttemptId,
        /// An encoded [`crate::model::job::JobSpec`].
        spec: Bytes,
        /// The batch's context; none: the same as in the last `Run` that had one.
        context: Option<BatchContext>,
        /// The engine's cluster-wide number, for the job's environment.
        engine: EngineId,
        /// Slots that it takes, for the agent after this one.
        slots: u16,
    },
    /// Kill it.
    Cancel {
        /// The attempt.
        attempt: AttemptId,
        /// How.
        stop: Stop,
    },
    /// The coordinator has kept these outcomes; forget them.
    Acknowledge {
        /// The attempts.
        attempts: Vec<AttemptId>,
    },
    /// Permission to run ends then, unless renewed.
    Lease {
        /// On this host's CLOCK_BOOTTIME; none: no end.
        until: Option<BootInstant>,
    },
    /// The far end has taken this much streamed output.
    OutputTaken {
        /// The attempt.
        attempt: AttemptId,
        /// Bytes; `u32::MAX`: whatever is on its way.
        bytes: u32,
    },
    /// Answer with what is kept of the output that no file takes ([`FromEngine::Shown`],
    /// [`FromEngine::ShownAll`]).
    Show {
        /// Comes back in the answers.
        request: u64,
        /// The attempt.
        attempt: AttemptId,
        /// Go on with what it writes from now on, to its end.
        follow: bool,
    },
    /// Nobody follows that any more.
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
    /// Ends the greeting on a new link, after the unacknowledged outcomes; and says that a held
    /// slot is free again.
    Ready {
        /// What runs, and how many slots it takes.
        running: Option<(AttemptId, u16)>,
    },
    /// An attempt is over, and nothing of it is alive unless it says so.
    Finished {
        /// The attempt.
        attempt: AttemptId,
        /// How.
        outcome: Outcome,
    },
    /// Output of a streaming job.
    Output {
        /// The attempt.
        attempt: AttemptId,
        /// Which stream.
        stream: Stream,
        /// The bytes.
        data: Bytes,
    },
    /// Output for whoever asked to be shown it. A reader that is too slow misses some; the job
    /// never waits for it.
    Shown {
        /// The request.
        request: u64,
        /// Which stream.
        stream: Stream,
        /// The bytes.
        data: Bytes,
    },
    /// The last of [`FromEngine::Shown`].
    ShownAll {
        /// The request.
        request: u64,
    },
}

/// From agent to keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToKeeper {
    /// Have this many engines and connect me to each.
    Engines {
        /// How many.
        count: u16,
        /// The host's name, for jobs: engines that are started from now on tell it.
        host: String,
    },
    /// Kill everything, engines too, and end.
    Stop,
    /// Permission to run ends then, unless renewed.
    Lease {
        /// On this host's CLOCK_BOOTTIME; none: no end.
        until: Option<BootInstant>,
    },
    /// An engine is being told to kill an attempt. Sent before the engine is told.
    Cancelled {
        /// Which engine.
        engine: EngineIndex,
        /// Which attempt.
        attempt: AttemptId,
        /// When its grace is over.
        by: BootInstant,
    },
    /// The coordinator has kept the end of this attempt, which [`FromKeeper::EngineEnded`] told.
    EndSeen {
        /// The attempt.
        attempt: AttemptId,
    },
    /// My link to an engine has come to its end: connect me to it again. One whose links do not
    /// last is killed.
    Relink {
        /// Which.
        engine: EngineIndex,
    },
}

/// From keeper to agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromKeeper {
    /// A link to an engine: the descriptor comes with this packet.
    Link {
        /// Which engine.
        engine: EngineIndex,
    },
    /// What holds the processes of attempts together here. The first message on a connection.
    Containment(Containment),
    /// An engine died. What it left has been killed; a new one takes its place, unless something
    /// survives.
    EngineEnded {
        /// Which engine.
        engine: EngineIndex,
        /// What it ran, if it had been at it long enough for the keeper to know.
        attempt: Option<AttemptId>,
        /// Why the keeper killed it; `Lost` if it died by itself.
        ended: Ended,
        /// Processes killed.
        killed: u32,
        /// Processes that did not die.
        survivors: u32,
    },
    /// An engine has died, or could not be started, as the one before it: why. Precedes its
    /// [`FromKeeper::EngineEnded`].
    EngineFails {
        /// Which engine.
        engine: EngineIndex,
        /// For people.
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
    /// This attempt is here. If it still is a while after `until`, end me and what I run. Replaces
    /// what was said before.
    Watch {
        /// The attempt.
        attempt: AttemptId,
        /// None: it may take as long as it likes, within the lease.
        until: Option<BootInstant>,
        /// What it has ended by then.
        ended: Ended,
        /// It is being killed.
        killing: bool,
    },
    /// This attempt is not here, or not any more.
    Over {
        /// The attempt.
        attempt: AttemptId,
    },
}
