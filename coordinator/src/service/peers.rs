//! Agents and clients that are connected, and what waits for a client to read it.

use super::batch::Watch;
use super::intake::{InHand, Load};
use super::outlet::{Outlet, Weight};
use mezcal_common::message::agent::ToAgent;
use mezcal_common::message::client::{Attachment, ToClient};
use mezcal_common::model::ids::{BatchId, SessionId};
use mezcal_common::wire::endpoint::Peer;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Messages to a client that wait in its channel before its outbox takes over.
pub(super) const CLIENT_DEPTH: usize = 256;
/// Bytes that wait for a client beside what it has asked for, mostly output of its jobs, before it
/// is given up: it does not read at all.
pub(super) const MOST_WAITING: usize = 64 << 20;
/// Bytes of a refusal: it may name everything that a request has named, each with why, and has to
/// fit a frame with room to spare.
const MOST_WORDS: usize = 64 * 1024;

/// A client, counted by the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ClientId(pub(super) u64);

pub(super) struct AgentLink {
    pub(super) sender: mpsc::Sender<ToAgent>,
    pub(super) peer: Peer,
}

/// Cuts words for people that are too long for a message.
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
    pub(super) outlet: Outlet<ToClient>,
    /// What goes there next, and how many bytes that is.
    pub(super) outbox: VecDeque<ToClient>,
    pub(super) waiting: usize,
    /// Somebody will say when there is room.
    pub(super) told_of_room: bool,
    pub(super) watches: BTreeMap<BatchId, Watch>,
    pub(super) user: String,
    /// None within this process.
    pub(super) peer: Option<Peer>,
    pub(super) version: u16,
    load: Arc<Load>,
    /// The request that is being handled, and those whose answers are in the way of others.
    pub(super) in_hand: Option<InHand>,
    unread: Vec<InHand>,
    /// Its requests that are still known.
    pub(super) asked: usize,
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
    /// answers to earlier ones.
    pub(super) fn handled(&mut self, in_hand: Option<InHand>) {
        if self.waiting > self.load.share() {
            self.unread.extend(in_hand.map(InHand::without_jobs));
        }
    }

    /// Moves what waits to where it is read, as far as there is room. True if nothing is left, so
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
        // The last large answer has left much behind.
        self.outbox.shrink_to(CLIENT_DEPTH);
        self.unread.clear();
        true
    }

    /// Whether somebody has to say when there is room.
    pub(super) fn must_be_told(&mut self) -> bool {
        !self.outlet.has_room() && !std::mem::replace(&mut self.told_of_room, true)
    }
}

/// A request that waits for its answer, and who made it.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) client: ClientId,
    /// The client's own number for it.
    pub(super) request: u64,
    /// The agent that has to answer it, if one has.
    pub(super) session: Option<SessionId>,
    pub(super) answered: bool,
}

/// Somebody who waits for an answer.
pub(super) struct Asker {
    pub(super) client: ClientId,
    pub(super) user: String,
    /// The client's own number for the request.
    pub(super) request: u64,
    /// Nothing else of its connection is handled before, if that is so.
    pub(super) in_hand: Option<InHand>,
}

/// Somebody wants to follow a batch.
pub(super) struct Follow {
    pub(super) by: Asker,
    pub(super) batch: String,
    pub(super) wish: Attachment,
    /// The store had nothing of it although it should.
    pub(super) missed: bool,
}
