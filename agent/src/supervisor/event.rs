//! The events of an agent, and the effects that its driver performs.

use mezcal_common::message::agent::{Load, ToAgent, ToCoordinator};
use mezcal_common::message::engine::{FromEngine, ToEngine, ToKeeper};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, EngineId, EngineIndex, StoreId};
use mezcal_common::model::outcome::{Containment, Ended};
use std::time::Duration;

/// The events of an agent.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The coordinator's `Welcome`, with the time at which our `Hello` left.
    Welcomed {
        /// The version of the protocol that both speak.
        version: u16,
        /// The coordinator's store. Attempts of another store are not wanted.
        store: StoreId,
        /// How long attempts may run without an acknowledged heartbeat.
        lease: Option<Duration>,
        /// Number of the first engine in the cluster.
        first_engine: EngineId,
        /// When our `Hello` was sent.
        hello_sent: BootInstant,
    },
    /// The connection is gone.
    Disconnected,
    /// Any later message of the coordinator.
    Coordinator(ToAgent),
    /// A message of an engine.
    Engine(EngineIndex, FromEngine),
    /// An engine says the version of its program, before anything else over a link.
    Runs(EngineIndex, String),
    /// The means by which the keeper holds attempts together.
    Containment(Containment),
    /// An engine died, and the processes that it left were killed.
    EngineEnded {
        /// The index of the engine.
        engine: EngineIndex,
        /// The engine's attempt, if the keeper knows it.
        attempt: Option<AttemptId>,
        /// Why the keeper killed the engine; `Lost` if it died by itself.
        ended: Ended,
        /// The number of processes killed.
        killed: u32,
        /// The number of processes still alive.
        survivors: u32,
    },
    /// Why an engine has died or could not be started, in the words of its keeper.
    EngineFails {
        /// The index of the engine.
        engine: EngineIndex,
        /// The reason.
        why: String,
    },
    /// There is a link to an engine: the first, or another one in the place of one that may not
    /// have ended yet.
    LinkMade(EngineIndex),
    /// The link to an engine has come to its end, either way.
    LinkLost(EngineIndex),
    /// Nothing more is to be heard from the keeper of a user, or from its engines.
    KeeperGone {
        /// The number of the user's set.
        set: usize,
        /// The reason, for those who ask why the user's jobs do not run here.
        why: String,
    },
    /// There is a keeper of this user, who may be new here.
    KeeperHere {
        /// The name of the user.
        user: String,
    },
    /// A new reading for heartbeats.
    Measured {
        /// Load and memory.
        load: Load,
        /// Seconds to add to our wall clock to get the coordinator's.
        clock_offset: Option<f64>,
    },
    /// The agent should stop: kill everything, report it, say goodbye.
    Stop,
    /// The agent should end, and running attempts go on in their users' engines: give back attempts
    /// that have not started.
    Leave,
}

/// The effects that the driver performs.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send this to the coordinator, in the present session.
    ToCoordinator(ToCoordinator),
    /// Send this to an engine.
    ToEngine(EngineIndex, ToEngine),
    /// Send this to the keeper of a set.
    ToKeeper(usize, ToKeeper),
    /// Everything is reported: end the process.
    Exit,
}
