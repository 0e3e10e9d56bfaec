//! What an agent hears of, and what it has its driver do.

use mezcal_common::message::agent::{Load, ToAgent, ToCoordinator};
use mezcal_common::message::engine::{FromEngine, ToEngine, ToKeeper};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, EngineId, EngineIndex, StoreId};
use mezcal_common::model::outcome::{Containment, Ended};
use std::time::Duration;

/// What happens to an agent.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The coordinator's `Welcome`, with the time at which our `Hello` left.
    Welcomed {
        /// The version of the protocol that both speak.
        version: u16,
        /// The coordinator's store. Nothing that another one knows is wanted.
        store: StoreId,
        /// How long attempts may run without an acknowledged heartbeat.
        lease: Option<Duration>,
        /// Number of the first engine.
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
    /// An engine says which version of the program it runs, before it says anything else over a
    /// link.
    Runs(EngineIndex, String),
    /// What the keeper has to hold attempts together.
    Containment(Containment),
    /// An engine died and what it left was killed.
    EngineEnded {
        /// Which.
        engine: EngineIndex,
        /// What it ran, if the keeper knows.
        attempt: Option<AttemptId>,
        /// Why the keeper killed it; `Lost` if it died by itself.
        ended: Ended,
        /// Processes killed.
        killed: u32,
        /// Processes still alive.
        survivors: u32,
    },
    /// Why an engine has died or could not be started, in the words of its keeper.
    EngineFails {
        /// Which.
        engine: EngineIndex,
        /// Why.
        why: String,
    },
    /// There is a link to an engine: the first, or another one in the place of one that may not
    /// have ended yet.
    LinkMade(EngineIndex),
    /// The link to an engine has come to its end, either way.
    LinkLost(EngineIndex),
    /// Nothing is to be heard any more from the keeper of a user, nor from its engines.
    KeeperGone {
        /// Which of the users.
        set: usize,
        /// Why, for those who ask why the user's jobs do not run here.
        why: String,
    },
    /// There is a keeper of this user, who may be new here.
    KeeperHere {
        /// Whose.
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
    /// The agent should end, and what runs goes on in its users' engines: give back what has not
    /// started.
    Leave,
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Tell the coordinator, in the present session.
    ToCoordinator(ToCoordinator),
    /// Tell an engine.
    ToEngine(EngineIndex, ToEngine),
    /// Tell the keeper of a set.
    ToKeeper(usize, ToKeeper),
    /// Everything is reported: end the process.
    Exit,
}
