//! The messages of engines and their keepers, as the agent's loop hears them.

use mezcal_common::message::engine::{FromEngine, ToEngine};
use mezcal_common::model::ids::{AttemptId, EngineIndex};
use mezcal_common::model::outcome::{Containment, Ended};
use rustix::fd::OwnedFd;
use tokio::sync::mpsc;

/// The messages of engines and their keepers.
#[expect(
    clippy::large_enum_variant,
    reason = "the largest is the most frequent one"
)]
pub enum EngineInput {
    /// A new link, over which an engine can be told things. The channel has no bound of its own: an
    /// engine has one attempt at a time, and the messages about it are bounded by its output window
    /// and the coordinator's requests. None of them may be dropped.
    Linked(EngineIndex, Link, mpsc::UnboundedSender<ToEngine>),
    /// A message of an engine.
    Said(EngineIndex, Link, FromEngine),
    /// A link has come to its end.
    Unlinked(EngineIndex, Link),
    /// The means by which a keeper holds attempts together.
    Containment(Containment),
    /// Why an engine died or could not be started.
    Fails(EngineIndex, String),
    /// An engine died.
    Ended {
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
    /// Nothing more is heard from the keeper of a set: it is gone, and its engines with it, or it
    /// has sent a message that it may not send.
    KeeperGone(usize, String),
    /// There is a keeper of a user.
    Found(String, OwnedFd),
}

/// The number of a link to an engine: messages over a link that has been replaced are passed over.
pub type Link = u32;
