//! The events of an engine, and the effects that its driver performs.

use bytes::Bytes;
use mezcal_common::message::engine::{EngineToKeeper, FromEngine};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, EngineId};
use mezcal_common::model::job::{BatchContext, JobSpec, Stop};
use mezcal_common::model::outcome::{Span, Usage, WaitStatus, Written};
use std::sync::Arc;

/// The reasons why a spawn has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotStarted {
    /// The job is at fault: it would fail on any host, as far as is known.
    Job(String),
    /// The host lacks something just now; the text names the limit.
    Short(String),
}

impl From<String> for NotStarted {
    fn from(why: String) -> Self {
        NotStarted::Job(why)
    }
}

/// The events of an engine.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Event {
    /// The agent wants an attempt to run.
    Run {
        /// The id of the attempt.
        attempt: AttemptId,
        /// The job, or why it cannot be read.
        spec: Result<Box<JobSpec>, String>,
        /// The things that the jobs of its batch have in common.
        context: Arc<BatchContext>,
        /// The engine's cluster-wide number.
        engine: EngineId,
        /// Slots that the attempt takes.
        slots: u16,
    },
    /// The agent wants an attempt killed.
    Cancel {
        /// The id of the attempt.
        attempt: AttemptId,
        /// The signal and the grace.
        stop: Stop,
    },
    /// The coordinator has stored outcomes.
    Acknowledge {
        /// The attempts of these outcomes.
        attempts: Vec<AttemptId>,
    },
    /// The time at which the lease ends.
    Lease {
        /// None: the lease has no end.
        until: Option<BootInstant>,
    },
    /// There is a new agent to talk to.
    Linked,
    /// The agent is gone.
    Unlinked,
    /// The spawn has succeeded or failed.
    Spawned(Result<(), NotStarted>),
    /// The attempt has been here for a while: it is not a short job, or its spawn takes long.
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
    /// The answer to the sweep comes later: nothing is alive, but the far end is still taking
    /// output.
    Held,
    /// The keeper is gone, or wants this engine to end: kill, then exit.
    Quit,
    /// The engine is asked to end, as all processes are when the host shuts down: kill with grace,
    /// and send no report that would bring the next job here. The process that takes over is the
    /// proof.
    Stop,
}

/// The findings of a sweep.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Swept {
    /// The end of the first process, once it has been reaped.
    pub exit: Option<Exit>,
    /// The time that the whole attempt ran, once nothing of it is alive.
    pub whole: Option<Span>,
    /// Processes of the attempt that died by our KILL, in all sweeps so far.
    pub killed: u32,
    /// Processes still alive after this sweep.
    pub alive: u32,
    /// The processes that have been alive for long: their pids, names and states (proc(5)).
    pub names: String,
    /// CPU time and memory used so far.
    pub usage: Usage,
    /// Whether the kernel's out-of-memory killer has killed something.
    pub out_of_memory: OutOfMemory,
    /// Tails of standard output and error, when nothing is alive and they were kept.
    pub tails: (Option<Bytes>, Option<Bytes>),
    /// The number of bytes read, when nothing is alive.
    pub written: Written,
}

/// The signs of the kernel's out-of-memory killer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutOfMemory {
    /// No sign of it.
    #[default]
    No,
    /// It killed a process on this host while the attempt ran; the kernel does not say here whether
    /// that was a process of this attempt.
    OnThisHost,
    /// It killed a process of this attempt (`memory.events` of its control group).
    Killed,
}

/// The end of the first process.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    /// The status that wait4(2) gave.
    pub status: WaitStatus,
    /// The time that it ran; with the other processes, if those were waited for.
    pub span: Span,
}

/// The effects that the driver performs.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "there are few at a time, and most are ends of attempts"
)]
pub enum Effect {
    /// Start the attempt and answer with [`Event::Spawned`].
    Spawn {
        /// The id of the attempt.
        attempt: AttemptId,
        /// The job.
        spec: Box<JobSpec>,
        /// The things that the jobs of its batch have in common.
        context: Arc<BatchContext>,
        /// The engine's cluster-wide number.
        engine: EngineId,
    },
    /// Try again to start an attempt that could not be started before; answer in the same way.
    SpawnAgain {
        /// The id of the attempt.
        attempt: AttemptId,
    },
    /// Send this signal, then CONT, to the first process's group.
    Terminate {
        /// The number of the signal.
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
    /// Send this message to the agent.
    Send(FromEngine),
    /// Send this message to the keeper.
    ToKeeper(EngineToKeeper),
    /// End this process.
    Exit,
}
