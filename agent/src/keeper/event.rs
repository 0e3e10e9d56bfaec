//! What a keeper hears of, and what it has its driver do.

use mezcal_common::message::engine::{EngineToKeeper, FromKeeper, ToKeeper};
use mezcal_common::model::ids::EngineIndex;

/// What happens to a keeper.
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

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Start an engine.
    Start(EngineIndex),
    /// Connect the agent with an engine.
    Link(EngineIndex),
    /// KILL an engine.
    Kill(EngineIndex),
    /// CONT to an engine.
    Continue(EngineIndex),
    /// KILL and reap every child that is no engine, and what is in the leaves of these dead ones;
    /// answer with [`Event::Swept`].
    Sweep {
        /// The dead ones.
        engines: Vec<EngineIndex>,
    },
    /// Tell the agent.
    Tell(FromKeeper),
    /// End this process.
    Exit,
}
