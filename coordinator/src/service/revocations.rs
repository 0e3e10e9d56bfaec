//! Revocations that are under way, and the clients whose certificates were revoked.

use super::intake::InHand;
use super::peers::ClientId;
use mezcal_common::message::client::{Member, RevokedMember};
use mezcal_common::wire::endpoint::Peer;
use std::collections::{HashMap, HashSet};

/// A request to revoke.
pub(super) struct Request {
    pub(super) client: ClientId,
    pub(super) request: u64,
    pub(super) member: Member,
    pub(super) names: Vec<String>,
    /// Whether the batches of the users go on.
    pub(super) keep_batches: bool,
    /// Whether to revoke even if nobody is left who could undo it.
    pub(super) force: bool,
    /// Whether the answer has a row for each name, or says only that it is done.
    pub(super) told: bool,
    /// Until it is answered, its connection has less room for other requests.
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

    /// A request of a client that understands no other answer than that it is done.
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

    /// A request without names that can be answered in the place of this one.
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

/// A revocation that is under way.
pub(super) struct Revoking {
    pub(super) asked: Request,
    pub(super) rows: Vec<RevokedMember>,
    /// Number of cancels that have not ended.
    pub(super) waiting: usize,
    /// The connection of a user who revokes their own certificate: it has to last for the answer.
    pub(super) own: Option<Peer>,
}

/// The answer of the list of certificates: the members whose access has ended, or why nothing has.
pub(super) struct Listed(pub(super) Result<Revoking, (Request, String)>);

#[derive(Default)]
pub(super) struct Revocations {
    pub(super) under_way: HashMap<u64, Revoking>,
    /// The revocation that a cancel belongs to, by the scheduler's request, and the row in it.
    pub(super) cancels: HashMap<u64, (u64, usize)>,
    pub(super) next: u64,
    /// Clients whose certificates were revoked: their requests are not carried out.
    pub(super) out: HashSet<ClientId>,
}

impl Revocations {
    pub(super) fn is_out(&self, client: ClientId) -> bool {
        self.out.contains(&client)
    }

    /// How many revocations the list has made.
    pub(super) fn done(&self) -> u64 {
        self.next
    }

    pub(super) fn client_gone(&mut self, client: ClientId) {
        self.out.remove(&client);
    }
}
