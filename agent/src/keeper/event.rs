//! The events of a keeper, and the effects that its driver performs.

use mezcal_common::message::engine::{EngineToKeeper, FromKeeper, ToKeeper};
use mezcal_common::model::ids::EngineIndex;

/// The events of a keeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message of the agent.
    Agent(ToKeeper),
    /// The agent is gone.
    AgentGone,
    /// A message of an engine.
    Engine(EngineIndex, EngineToKeeper),
    /// A signal has stopped an engine.
    EngineStopped(EngineIndex),
    /// An engine has ended and is reaped; its children are ours now.
    EngineDied(EngineIndex),
    /// An engine could not be started: there may be no room for another process just now.
    NotStarted(EngineIndex),
    /// The answer to [`Effect::Sweep`].
    Swept {
        /// Processes that died by our KILL in this sweep.
        killed: u32,
        /// Processes still alive.
        alive: u32,
    },
}

/// The effects that the driver performs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Start an engine.
    Start(EngineIndex),
    /// Make a link between the agent and an engine.
    Link(EngineIndex),
    /// Send KILL to an engine.
    Kill(EngineIndex),
    /// Send CONT to an engine.
    Continue(EngineIndex),
    /// Send KILL to every child that is not an engine, and to the processes in the leaves of these
    /// dead engines; reap them, and answer with [`Event::Swept`].
    Sweep {
        /// The dead engines.
        engines: Vec<EngineIndex>,
    },
    /// Send this message to the agent.
    Tell(FromKeeper),
    /// End this process.
    Exit,
}
