//! Inputs of the loop.

use super::found::Found;
use super::intake::{InHand, Load};
use super::peers::ClientId;
use super::reading::{NotRead, Page, Reading};
use super::revocations::Listed;
use super::settings::Adjustable;
use super::view::View;
use mezcal_common::message::agent::{Hello, LogHeader, ToAgent, ToCoordinator};
use mezcal_common::message::client::{ToClient, ToService};
use mezcal_common::model::ids::SessionId;
use mezcal_common::wire::bulk::BulkReceiver;
use mezcal_common::wire::endpoint::Peer;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

pub(super) enum Input {
    AgentHello {
        session: SessionId,
        name: String,
        hello: Box<Hello>,
        sender: mpsc::Sender<ToAgent>,
        peer: Peer,
    },
    Agent(SessionId, ToCoordinator),
    /// The agent's connection has ended, with the reason.
    AgentGone(SessionId, String),
    LogStream(SessionId, LogHeader, BulkReceiver),
    /// Results that were read for clients.
    Read(Reading, Result<Page, NotRead>),
    ClientConnected {
        client: ClientId,
        user: String,
        sender: mpsc::Sender<ToClient>,
        peer: Option<Peer>,
        load: Arc<Load>,
        /// The protocol version that both sides speak.
        version: u16,
    },
    Client(ClientId, ToService, InHand),
    /// A client has read some of its messages.
    Room(ClientId),
    ClientGone(ClientId),
    /// Answers that were found beside the loop, for the client that asked.
    Answer(ClientId, Vec<ToClient>, Option<InHand>),
    Found(Box<Found>),
    /// The answer of the list of certificates to a revocation.
    Revoked(Box<Listed>),
    /// A request for a picture, with ends of attempts after this number.
    View(u64, oneshot::Sender<View>),
    Metrics(oneshot::Sender<String>),
    Trouble(oneshot::Sender<Option<String>>),
    /// The settings that may change while it runs have changed.
    Reload(Adjustable),
    Stop,
}
