//! The connection to the coordinator: a task makes it and makes it again, and the agent's loop
//! speaks and hears over it.

use crate::supervisor::generations::Generations;
use crate::supervisor::pauses::Pauses;
use mezcal_common::message::agent::{Hello, ToAgent, ToCoordinator};
use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::model::escape::chain;
use mezcal_common::model::ids::{EngineId, Generation, StoreId};
use mezcal_common::system::random;
use mezcal_common::wire::endpoint::{Channel, ConnectError, Connector, Peer, close};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Messages of the coordinator that may wait; beyond this number the connection is not read.
const INPUTS: usize = 1024;
/// How long a goodbye may take.
pub(super) const GOODBYE: Duration = Duration::from_secs(5);

/// The things that the loop hears of the coordinator.
pub(super) enum Input {
    Connected(Welcome),
    Message(ToAgent),
    Disconnected,
}

/// The coordinator's first message, and the way to answer.
pub(super) struct Welcome {
    sender: mpsc::Sender<ToCoordinator>,
    peer: Peer,
    pub(super) version: u16,
    pub(super) store: StoreId,
    pub(super) lease: Option<Duration>,
    pub(super) first_engine: EngineId,
    pub(super) clock: WallTime,
    /// When our hello left, by both clocks.
    pub(super) hello: (WallTime, BootInstant),
}

/// How to get to a coordinator.
pub(super) struct Way {
    /// `HOST:PORT` of the coordinator.
    pub(super) address: String,
    pub(super) connector: Connector,
    /// How long to wait for a first answer.
    pub(super) patience: Duration,
    pub(super) generations: Generations,
}

/// The loop's end of the connection, whether there is one at present or not.
pub(super) struct Connection {
    heard: mpsc::Receiver<Input>,
    to: Option<mpsc::Sender<ToCoordinator>>,
    peer: Option<Peer>,
    /// Messages that the channel has not taken.
    outgoing: VecDeque<ToCoordinator>,
    leave: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Connection {
    /// Connects from now on, and sends `hello` as it is then.
    pub(super) fn keep(way: Way, hello: watch::Receiver<Hello>) -> Self {
        let (inputs, heard) = mpsc::channel(INPUTS);
        let (leave, leaving) = watch::channel(false);
        let keeper = KeepConnected {
            way,
            hello,
            inputs,
            leaving,
            pauses: Pauses::default(),
        };
        Self {
            heard,
            to: None,
            peer: None,
            outgoing: VecDeque::new(),
            leave,
            task: tokio::spawn(keeper.run()),
        }
    }

    pub(super) fn is_there(&self) -> bool {
        self.to.is_some()
    }

    /// The way back for a request that takes streams of its own.
    pub(super) fn streams(&self) -> Option<(Peer, mpsc::Sender<ToCoordinator>)> {
        self.peer.clone().zip(self.to.clone())
    }

    /// The coordinator's welcome has been heard.
    pub(super) fn begins(&mut self, welcome: Welcome) {
        (self.to, self.peer) = (Some(welcome.sender), Some(welcome.peer));
        self.outgoing.clear();
    }

    /// The connection is gone.
    pub(super) fn ended(&mut self) {
        (self.to, self.peer) = (None, None);
        self.outgoing.clear();
    }

    /// Sends a message, as soon as there is room.
    pub(super) fn say(&mut self, message: ToCoordinator) {
        self.outgoing.push_back(message);
    }

    /// Hands over the messages that the channel takes without waiting.
    pub(super) fn send_what_fits(&mut self) {
        let Some(to) = &self.to else { return };
        while !self.outgoing.is_empty() {
            let Ok(permit) = to.try_reserve() else { return };
            if let Some(message) = self.outgoing.pop_front() {
                permit.send(message);
            }
        }
    }

    /// The next thing that is heard. None: a message that had waited for room has been handed over.
    /// Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Input> {
        let (to, outgoing) = (&mut self.to, &mut self.outgoing);
        let waits = to.is_some() && !outgoing.is_empty();
        tokio::select! {
            biased;
            Some(input) = self.heard.recv() => Some(input),
            () = send_first(to, outgoing), if waits => None,
            else => std::future::pending().await,
        }
    }

    /// Leaves, after a last message if there was one.
    pub(super) async fn leave(mut self) {
        (self.to, self.peer) = (None, None);
        let _ = self.leave.send(true);
        let _ = tokio::time::timeout(GOODBYE, self.task).await;
    }
}

async fn send_first(
    to: &mut Option<mpsc::Sender<ToCoordinator>>,
    outgoing: &mut VecDeque<ToCoordinator>,
) {
    let Some(sender) = to else { return };
    if let Ok(permit) = sender.reserve().await {
        if let Some(message) = outgoing.pop_front() {
            permit.send(message);
        }
    } else {
        // The connection is ending; `Disconnected` is on its way.
        *to = None;
    }
}

/// The task: connects, says hello, forwards messages, and begins again when the connection ends.
struct KeepConnected {
    way: Way,
    hello: watch::Receiver<Hello>,
    inputs: mpsc::Sender<Input>,
    leaving: watch::Receiver<bool>,
    pauses: Pauses,
}

/// A connection was not made or has ended: the reason, if we are not leaving.
type Ended = Option<ConnectError>;

impl KeepConnected {
    async fn run(mut self) {
        let mut last_complaint = String::new();
        loop {
            let Some(error) = self.one_connection().await else {
                return;
            };
            if self.pauses.are_new() {
                // There was a connection.
                last_complaint.clear();
            }
            let text = chain(&error);
            // The same complaint is logged once: an agent may wait for its coordinator for weeks.
            if text != last_complaint {
                if error.needs_a_person() {
                    tracing::error!("{text}; trying again")
                } else {
                    tracing::info!("{text}; trying again")
                }
                last_complaint = text;
            }
            let ceiling = self.pauses.failed(error.needs_a_person());
            let share = f64::from(random::number() as u32) / f64::from(u32::MAX);
            // Time spent waiting for an answer counts as pause.
            let spent = if matches!(error, ConnectError::NoAnswer(_)) {
                self.way.patience
            } else {
                Duration::ZERO
            };
            let pause = ceiling.mul_f64(share).saturating_sub(spent);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = left(&mut self.leaving) => return,
            }
        }
    }

    /// One connection from hello to its end.
    async fn one_connection(&mut self) -> Ended {
        let hello = self.hello.borrow().clone();
        let Way {
            address,
            connector,
            patience,
            ..
        } = &self.way;
        let connected = tokio::select! {
            connected = connector.connect(address, *patience) => connected,
            () = left(&mut self.leaving) => return None,
        };
        let peer = match connected {
            Ok(peer) => peer,
            Err(e) => return Some(e),
        };
        let (welcome, receiver) = match self.greet(&peer, hello).await {
            Ok(greeted) => greeted,
            Err(ended) => return ended,
        };
        tracing::info!(coordinator = self.way.address, "connected");
        self.pauses.worked();
        if self.inputs.send(Input::Connected(welcome)).await.is_err() {
            peer.leave(close::DONE, "").await;
            return None;
        }
        self.forward(&peer, receiver).await
    }

    /// Says hello and waits for the welcome.
    async fn greet(
        &mut self,
        peer: &Peer,
        hello: Hello,
    ) -> Result<(Welcome, mpsc::Receiver<ToAgent>), Ended> {
        let Way {
            address, connector, ..
        } = &self.way;
        let Ok(mut channel) = peer.open::<ToCoordinator, ToAgent>().await else {
            return Err(Some(connector.why_lost(address, peer).await));
        };
        let sent = (WallTime::now(), BootInstant::now());
        let _ = channel.sender.send(ToCoordinator::Hello(hello)).await;
        let mut first = first_message(&self.way, peer, &mut channel).await?;
        let mut generation = Generation::default();
        if let ToAgent::Generation { generation: said } = first {
            generation = said;
            first = first_message(&self.way, peer, &mut channel).await?;
        }
        let ToAgent::Welcome {
            version,
            store,
            lease,
            first_engine,
            clock,
            ..
        } = first
        else {
            peer.close(close::PROTOCOL, "the first message must be a welcome");
            return Err(Some(connector.why_lost(address, peer).await));
        };
        // Before any of its messages counts: about a lease, jobs, or attempts to kill.
        if let Err(why) = self.way.generations.meet(store, generation) {
            peer.leave(close::REFUSED, &why).await;
            let address = self.way.address.clone();
            return Err(Some(ConnectError::Unfit { address, why }));
        }
        let welcome = Welcome {
            sender: channel.sender,
            peer: peer.clone(),
            version,
            store,
            lease,
            first_engine,
            clock,
            hello: sent,
        };
        Ok((welcome, channel.receiver))
    }

    /// Forwards the messages both ways, until the connection ends.
    async fn forward(&mut self, peer: &Peer, mut receiver: mpsc::Receiver<ToAgent>) -> Ended {
        loop {
            tokio::select! {
                message = receiver.recv() => match message {
                    Some(message) => {
                        if self.inputs.send(Input::Message(message)).await.is_err() {
                            peer.leave(close::DONE, "").await;
                            return None;
                        }
                    }
                    None => {
                        let _ = self.inputs.send(Input::Disconnected).await;
                        peer.close(close::DONE, "");
                        return Some(self.way.connector.why_lost(&self.way.address, peer).await);
                    }
                },
                () = left(&mut self.leaving) => {
                    // The coordinator closes once it has our goodbye; it is the receiver of the
                    // last message.
                    let _ = tokio::time::timeout(Duration::from_secs(1), peer.closed()).await;
                    peer.leave(close::DONE, "agent stopped").await;
                    return None;
                }
            }
        }
    }
}

async fn first_message(
    way: &Way,
    peer: &Peer,
    channel: &mut Channel<ToCoordinator, ToAgent>,
) -> Result<ToAgent, Ended> {
    let first = way.connector.first_message(&way.address, peer, channel);
    first.await.map_err(Some)
}

/// Completes when the agent is leaving.
async fn left(leaving: &mut watch::Receiver<bool>) {
    // The sender lives as long as the loop that sends; its loss means the same.
    let _ = leaving.wait_for(|left| *left).await;
}
