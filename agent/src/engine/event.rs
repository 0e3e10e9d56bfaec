//! What an engine hears of, and what it has its driver do.

use bytes::Bytes;
use mezcal_common::message::engine::{EngineToKeeper, FromEngine};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, EngineId};
use mezcal_common::model::job::{BatchContext, JobSpec, Stop};
use mezcal_common::model::outcome::{Span, Usage, WaitStatus, Written};
use std::sync::Arc;

/// Why a spawn has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotStarted {
    /// It would anywhere, as far as is known.
    Job(String),
    /// The host lacks something just now; which limit that is.
    Short(String),
}

impl From<String> for NotStarted {
    fn from(why: String) -> Self {
        NotStarted::Job(why)
    }
}

/// What happens to an engine.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Event {
    /// The agent wants an attempt run.
    Run {
        /// Its id.
        attempt: AttemptId,
        /// What to run, or why it cannot be read.
        spec: Result<Box<JobSpec>, String>,
        /// What its batch has in common.
        context: Arc<BatchContext>,
        /// The engine's cluster-wide number.
        engine: EngineId,
        /// Slots that it takes.
        slots: u16,
    },
    /// The agent wants it killed.
    Cancel {
        /// Which.
        attempt: AttemptId,
        /// How.
        stop: Stop,
    },
    /// The coordinator has kept outcomes.
    Acknowledge {
        /// Whose.
        attempts: Vec<AttemptId>,
    },
    /// Permission to run ends then.
    Lease {
        /// None: no end.
        until: Option<BootInstant>,
    },
    /// A new agent is there to talk to.
    Linked,
    /// The agent is gone.
    Unlinked,
    /// The spawn has ended, well or not.
    Spawned(Result<(), NotStarted>),
    /// The attempt has been here for a while: it is no short job, or its spawn takes long.
    Lasts,
    /// The first process has ended; it is still unreaped.
    FirstEnded,
    /// A child that is not the first process has changed.
    OtherChanged,
    /// The answer to [`Effect::Probe`].
    Probed {
        /// Whether any process but the first is alive.
        others: bool,
    },
    /// The answer to [`Effect::Sweep`].
    Swept(Swept),
    /// That answer comes later: nothing is alive, but the far end is still taking what was written.
    Held,
    /// The keeper is gone or wants an end: kill, then exit.
    Quit,
    /// It is asked to end, as everything is when the host shuts down: the same with grace, and
    /// without a report that would bring the next job here. Whoever comes after it is the proof.
    Stop,
}

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Swept {
    /// The first process, once it has been reaped.
    pub exit: Option<Exit>,
    /// When the attempt ran as a whole, once nothing of it is alive.
    pub whole: Option<Span>,
    /// Processes of the attempt that died by our KILL, in all sweeps so far.
    pub killed: u32,
    /// Processes still alive after this sweep.
    pub alive: u32,
    /// Who they are, when they have been alive for long: pids, names and states (proc(5)).
    pub names: String,
    /// What it has used so far.
    pub usage: Usage,
    /// Whether the kernel's out-of-memory killer was here.
    pub out_of_memory: OutOfMemory,
    /// Tails of standard output and error, when nothing is alive and they were kept.
    pub tails: (Option<Bytes>, Option<Bytes>),
    /// How much was read, when nothing is alive.
    pub written: Written,
}

/// What is known of the kernel's out-of-memory killer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutOfMemory {
    /// Nothing.
    #[default]
    No,
    /// It killed something on this host while the attempt ran; whether that was of this attempt,
    /// the kernel does not say here.
    OnThisHost,
    /// It killed a process of this attempt (`memory.events` of its control group).
    Killed,
}

/// The end of the first process.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    /// How.
    pub status: WaitStatus,
    /// When it ran; with those that were waited for.
    pub span: Span,
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "there are few at a time, and most are ends of attempts"
)]
pub enum Effect {
    /// Start it and answer with [`Event::Spawned`].
    Spawn {
        /// The attempt.
        attempt: AttemptId,
        /// What.
        spec: Box<JobSpec>,
        /// In which surroundings.
        context: Arc<BatchContext>,
        /// The engine's cluster-wide number.
        engine: EngineId,
    },
    /// Start what could not be started before, and answer in the same way.
    SpawnAgain {
        /// The attempt.
        attempt: AttemptId,
    },
    /// This signal, then CONT, to the first process's group.
    Terminate {
        /// Which.
        signal: i32,
    },
    /// Look whether any process but the first is alive; answer with [`Event::Probed`].
    Probe,
    /// KILL the group, reap the first process, KILL and reap all other children; answer with
    /// [`Event::Swept`].
    Sweep {
        /// Whether output that the far end has not taken may be dropped.
        discard_output: bool,
    },
    /// Tell the agent.
    Send(FromEngine),
    /// Tell the keeper.
    ToKeeper(EngineToKeeper),
    /// End this process.
    Exit,
}
