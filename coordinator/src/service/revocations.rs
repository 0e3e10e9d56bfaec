//! Revocations that are under way, and the clients whose certificates count no more.

use super::intake::InHand;
use super::peers::ClientId;
use mezcal_common::message::client::{Member, RevokedMember};
use mezcal_common::wire::endpoint::Peer;
use std::collections::{HashMap, HashSet};

/// What somebody asks for.
pub(super) struct Request {
    pub(super) client: ClientId,
    pub(super) request: u64,
    pub(super) member: Member,
    pub(super) names: Vec<String>,
    /// The batches of users go on.
    pub(super) keep_batches: bool,
    /// Even if nobody is left who could undo it.
    pub(super) force: bool,
    /// The answer is a list of what has ended; else only that it is done.
    pub(super) told: bool,
    /// Its connection has so much less room for other requests until it is answered.
    pub(super) _in_hand: Option<InHand>,
}

impl Request {
    pub(super) fn new(client: ClientId, request: u64, member: Member, names: Vec<String>) -> Self {
        Self {
            client,
            request,
            member,
            names,
            keep_batches: false,
            force: false,
            told: true,
            _in_hand: None,
        }
    }

    /// Of a client that knows no other answer than that it is done.
    pub(super) fn of_an_earlier_client(
        client: ClientId,
        request: u64,
        member: Member,
        names: Vec<String>,
    ) -> Self {
        Self {
            told: false,
            ..Self::new(client, request, member, names)
        }
    }

    /// One that can be answered in its place.
    pub(super) fn nameless(&self) -> Self {
        Self {
            told: self.told,
            ..Self::new(self.client, self.request, self.member, Vec::new())
        }
    }

    pub(super) fn which(self, keep_batches: bool, force: bool) -> Self {
        Self {
            keep_batches,
            force,
            ..self
        }
    }
}

/// One that is under way.
pub(super) struct Revoking {
    pub(super) asked: Request,
    pub(super) rows: Vec<RevokedMember>,
    /// Cancels that are not done.
    pub(super) waiting: usize,
    /// The asker's own connection, which has to last for the answer.
    pub(super) own: Option<Peer>,
}

/// What the list of certificates has to say: what has ended, or why nothing has.
pub(super) struct Listed(pub(super) Result<Revoking, (Request, String)>);

#[derive(Default)]
pub(super) struct Revocations {
    pub(super) under_way: HashMap<u64, Revoking>,
    /// Which of those a cancel belongs to, by the scheduler's request, and which row.
    pub(super) cancels: HashMap<u64, (u64, usize)>,
    pub(super) next: u64,
    /// Clients whose certificate counts no more: nothing that they ask for is done.
    pub(super) out: HashSet<ClientId>,
}

impl Revocations {
    pub(super) fn is_out(&self, client: ClientId) -> bool {
        self.out.contains(&client)
    }

    /// How many revocations have been done.
    pub(super) fn done(&self) -> u64 {
        self.next
    }

    pub(super) fn client_gone(&mut self, client: ClientId) {
        self.out.remove(&client);
    }
}
