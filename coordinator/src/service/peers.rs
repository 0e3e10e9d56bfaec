//! Agents and clients that are connected, and messages that wait for a client to read them.

use super::batch::Following;
use super::intake::{InHand, Load};
use super::outlet::{Outlet, Weight};
use mezcal_common::message::agent::ToAgent;
use mezcal_common::message::client::{Attachment, ToClient};
use mezcal_common::model::ids::{BatchId, SessionId};
use mezcal_common::wire::endpoint::{Peer, close};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Messages to a client that wait in its channel before its outbox takes over.
pub(super) const CLIENT_DEPTH: usize = 256;
/// Bytes that wait for a client beside the answers that it has requested, mostly output of its
/// jobs, before its connection ends, because it does not read at all.
const MOST_WAITING: usize = 64 << 20;
/// Bytes of a refusal, which may name everything that a request has named, each with its reason,
/// and has to fit a frame with room to spare.
const MOST_WORDS: usize = 64 * 1024;

/// Cancels of a connection that have no answer yet, and questions for the output of jobs, whose
/// answers may go on: each is remembered.
pub(super) const MAX_ASKED: usize = 16_384;

/// A client, counted by the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ClientId(pub(super) u64);

pub(super) struct AgentConnection {
    pub(super) sender: mpsc::Sender<ToAgent>,
    pub(super) peer: Peer,
}

/// Cuts texts for people that are too long for a message.
fn shorten(message: &mut ToClient) {
    let cut = |text: &mut String| {
        if text.len() > MOST_WORDS {
            let left = text.len() - text.floor_char_boundary(MOST_WORDS);
            text.truncate(text.floor_char_boundary(MOST_WORDS));
            text.push_str(&format!(" ... and {left} bytes more"));
        }
    };
    match message {
        ToClient::Done {
            result: Err(text), ..
        }
        | ToClient::Refused { reason: text } => cut(text),
        ToClient::Why {
            reasons: Err(text), ..
        }
        | ToClient::LogsAnswer {
            streams: Err(text), ..
        } => cut(text),
        ToClient::Attached {
            batch: Err(text), ..
        }
        | ToClient::TokensCreated {
            tokens: Err(text), ..
        } => cut(text),
        ToClient::Why {
            reasons: Ok(lines), ..
        } => {
            let mut bytes = 0;
            let fit = lines.iter().take_while(|line| {
                bytes += line.len() + size_of::<String>();
                bytes <= MOST_WORDS * 8
            });
            let (fit, all) = (fit.count(), lines.len());
            if fit < all {
                lines.truncate(fit);
                lines.push(format!("... and {} lines more", all - fit));
            }
        }
        _ => {}
    }
}

pub(super) struct Client {
    outlet: Outlet<ToClient>,
    /// Messages that go there next, and how many bytes they have.
    outbox: VecDeque<ToClient>,
    waiting: usize,
    /// A task will say when there is room.
    told_of_room: bool,
    watches: BTreeMap<BatchId, Following>,
    user: String,
    /// None within this process.
    peer: Option<Peer>,
    version: u16,
    load: Arc<Load>,
    /// The request that is being handled, and requests whose answers are in the way of others.
    in_hand: Option<InHand>,
    unread: Vec<InHand>,
    /// Number of its requests that are remembered.
    asked: usize,
}

impl Client {
    pub(super) fn new(
        sender: mpsc::Sender<ToClient>,
        user: String,
        peer: Option<Peer>,
        load: Arc<Load>,
        version: u16,
    ) -> Self {
        Self {
            outlet: Outlet::new(sender, load.share()),
            outbox: VecDeque::new(),
            waiting: 0,
            told_of_room: false,
            watches: BTreeMap::new(),
            user,
            peer,
            version,
            load,
            in_hand: None,
            unread: Vec::new(),
            asked: 0,
        }
    }

    pub(super) fn tell(&mut self, mut message: ToClient) {
        shorten(&mut message);
        self.waiting += message.weight();
        self.outbox.push_back(message);
    }

    /// Only the newest of its kind matters to a client that is slow to read.
    pub(super) fn tell_newest(&mut self, message: ToClient) {
        let kind = std::mem::discriminant(&message);
        let waiting = &mut self.waiting;
        self.outbox.retain(|old| {
            let stays = std::mem::discriminant(old) != kind;
            *waiting -= if stays { 0 } else { old.weight() };
            stays
        });
        self.tell(message);
    }

    /// A request has been handled: it gives its place back, unless the client has not read the
    /// answers to earlier requests.
    pub(super) fn handled(&mut self, in_hand: Option<InHand>) {
        if self.waiting > self.load.share() {
            self.unread.extend(in_hand.map(InHand::without_jobs));
        }
    }

    /// Moves waiting messages to the channel, as far as there is room. True if none is left, so
    /// that more may follow.
    pub(super) fn pass_on(&mut self) -> bool {
        while let Some(message) = self.outbox.pop_front() {
            let weight = message.weight();
            if let Err(mpsc::error::TrySendError::Full(message)) = self.outlet.try_send(message) {
                self.outbox.push_front(message);
                return false;
            }
            self.waiting -= weight;
        }
        // The last large answer may have left much memory allocated.
        self.outbox.shrink_to(CLIENT_DEPTH);
        self.unread.clear();
        true
    }

    /// Whether a task has to say when there is room.
    fn must_be_told(&mut self) -> bool {
        !self.outlet.has_room() && !std::mem::replace(&mut self.told_of_room, true)
    }

    /// Resolves when there is room again, if there is none and no task has been asked to say so.
    pub(super) fn drained(&mut self) -> Option<impl Future<Output = ()> + Send + 'static> {
        self.must_be_told().then(|| self.outlet.drained())
    }

    /// The task says that there is room.
    pub(super) fn has_room(&mut self) {
        self.told_of_room = false;
    }

    /// The batches that it follows, with the outlet for messages that can be sent at once.
    pub(super) fn deliveries(
        &mut self,
    ) -> (
        impl Iterator<Item = (BatchId, &mut Following)>,
        &mut Outlet<ToClient>,
    ) {
        let watches = self.watches.iter_mut();
        (
            watches.map(|(batch, watch)| (*batch, watch)),
            &mut self.outlet,
        )
    }

    /// Ends the connection of a client that does not read at all.
    pub(super) fn give_up(&mut self) {
        let Some(peer) = self.peer.as_ref().filter(|_| self.waiting > MOST_WAITING) else {
            return;
        };
        let (user, from) = (&self.user, peer.remote_addr());
        tracing::warn!(user, %from, "a client of {user} does not read; closing its connection");
        peer.close(close::STALLED, "too much output of its jobs is unread");
        self.outbox.clear();
        self.waiting = 0;
    }

    pub(super) fn user(&self) -> &str {
        &self.user
    }

    /// None within this process.
    pub(super) fn peer(&self) -> Option<&Peer> {
        self.peer.as_ref()
    }

    /// The protocol version that both sides speak.
    pub(super) fn version(&self) -> u16 {
        self.version
    }

    pub(super) fn follow(&mut self, batch: BatchId, watch: Following) {
        self.watches.insert(batch, watch);
    }

    pub(super) fn unfollow(&mut self, batch: BatchId) {
        self.watches.remove(&batch);
    }

    pub(super) fn watch(&self, batch: BatchId) -> Option<&Following> {
        self.watches.get(&batch)
    }

    pub(super) fn watch_mut(&mut self, batch: BatchId) -> Option<&mut Following> {
        self.watches.get_mut(&batch)
    }

    /// Whether it has opened that batch, or opened it again.
    pub(super) fn owns(&self, batch: BatchId) -> bool {
        self.watch(batch).is_some_and(Following::is_owners)
    }

    pub(super) fn followed(&self) -> impl Iterator<Item = BatchId> {
        self.watches.keys().copied()
    }

    /// A request is being handled now.
    pub(super) fn begins(&mut self, request: InHand) {
        self.in_hand = Some(request);
    }

    /// Takes the request that is being handled, for a task that answers it later.
    pub(super) fn take_in_hand(&mut self) -> Option<InHand> {
        self.in_hand.take()
    }

    /// Whether as many of its requests are remembered as it may have.
    pub(super) fn has_asked_enough(&self) -> bool {
        self.asked >= MAX_ASKED
    }

    /// One more request is remembered.
    pub(super) fn asks(&mut self) {
        self.asked += 1;
    }

    /// A request is remembered no longer.
    pub(super) fn is_answered(&mut self) {
        self.asked -= 1;
    }
}

/// A request that waits for its answer, and its client.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) client: ClientId,
    /// The client's own number for it.
    pub(super) request: u64,
    /// The agent that has to answer it, if there is one.
    pub(super) session: Option<SessionId>,
    pub(super) answered: bool,
}

/// A client that waits for an answer.
pub(super) struct Asker {
    pub(super) client: ClientId,
    pub(super) user: String,
    /// The client's own number for the request.
    pub(super) request: u64,
    /// While it holds this, no other request of its connection is handled.
    pub(super) in_hand: Option<InHand>,
}

/// A client wants to follow a batch.
pub(super) struct Follow {
    pub(super) by: Asker,
    pub(super) batch: String,
    pub(super) wish: Attachment,
    /// The store did not have the batch although it should.
    pub(super) missed: bool,
}
