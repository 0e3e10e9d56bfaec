//! Hosts and users who do not belong to the cluster any more: their certificates, connections,
//! tokens and batches end, and the admin who revokes them gets a list of them.
//!
//! ```text
//!  one transaction: certificates, tokens, and the word in the store that the batches are stopped
//!  └▶ every guard ends its connection; the loop cancels running and waiting jobs
//!     └▶ when that is proven, the answer
//! ```
//! A coordinator that is killed in between finds the batches stopped when it comes back.

use super::input::Input;
use super::members::role;
use super::revocations::{Listed, Request, Revoking};
use super::state::Service;
use crate::exit::chain;
use crate::scheduler::{Event, Wanted};
use crate::service::enrol::Enrolment;
use mezcal_common::message::client::{CancelSummary, Member, RevokedMember, ToClient};
use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::model::identity::Role;
use mezcal_common::model::ids::BatchId;
use mezcal_common::model::job::Stop;
use mezcal_common::wire::endpoint::Peer;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Names in one request: the answer for that many of the longest names fits one message.
pub(crate) const NAMES: usize = 1000;
/// Time between TERM and KILL for attempts that still run: as for a client that is gone.
pub(crate) const GRACE: Duration = Duration::from_secs(2);
/// How long users who have revoked their own certificate may take to read the answer.
const PARTING: Duration = Duration::from_secs(5);

impl Service {
    /// Revokes; answers when it is done.
    pub(super) fn revoke(&mut self, user: &str, mut asked: Request) {
        if let Some(client) = self.clients.get_mut(&asked.client) {
            asked._in_hand = client.take_in_hand();
        }
        let enrolment = match self.list_for(user) {
            Ok(list) => list,
            Err(why) => return self.refuse_revocation(&asked, why),
        };
        if asked.names.len() > NAMES {
            return self.refuse_revocation(&asked, format!("at most {NAMES} names at once"));
        }
        let client = self.clients.get(&asked.client);
        let own = client
            .and_then(|client| client.peer().cloned())
            .filter(|_| {
                asked.member == Member::User && asked.names.iter().any(|name| name == user)
            });
        let revocation = Revocation {
            connections: self.connections(asked.member),
            admins: self.admins.clone(),
            by: user.to_owned(),
            enrolment,
        };
        self.beside(async move {
            let nameless = asked.nameless();
            let listed = tokio::task::spawn_blocking(move || revocation.list(asked, own));
            let listed = listed.await;
            let listed = listed.unwrap_or_else(|e| Err((nameless, e.to_string())));
            Input::Revoked(Box::new(Listed(listed)))
        });
    }

    /// How many connections each host or user has.
    fn connections(&self, member: Member) -> HashMap<String, u64> {
        let mut connections = HashMap::new();
        let mut count = |name: &str| *connections.entry(name.to_owned()).or_default() += 1;
        match member {
            Member::Host => self
                .agents
                .values()
                .for_each(|link| count(&link.peer.identity().name)),
            Member::User => self
                .clients
                .values()
                .filter(|client| client.peer().is_some())
                .for_each(|client| count(client.user())),
        }
        connections
    }

    /// The list has decided: carries that out for running and waiting jobs.
    pub(super) fn listed(&mut self, listed: Listed, now: BootInstant) {
        let mut revoking = match listed.0 {
            Ok(revoking) => revoking,
            Err((asked, why)) => return self.refuse_revocation(&asked, why),
        };
        let number = self.revocations.next;
        self.revocations.next += 1;
        let why: Option<Arc<str>> = Some("its user's certificates were revoked".into());
        let mut cancels = Vec::new();
        for (row, revoked) in revoking
            .rows
            .iter_mut()
            .enumerate()
            .filter(|(_, row)| row.failed.is_none())
        {
            match revoking.asked.member {
                Member::Host => {
                    (revoked.held, revoked.held_for) =
                        self.scheduler.attempts_on(&revoked.name, now)
                }
                Member::User => {
                    let own = self.clients.iter().filter(|(_, client)| {
                        client.peer().is_some() && client.user() == revoked.name
                    });
                    self.revocations.out.extend(own.map(|(id, _)| *id));
                    let batches: Vec<BatchId> = self.batches.running(&revoked.name).collect();
                    revoked.batches = batches.len() as u64;
                    for (running, waiting) in batches
                        .iter()
                        .filter_map(|batch| self.scheduler.left_of(*batch))
                    {
                        (revoked.running, revoked.waiting) =
                            (revoked.running + running, revoked.waiting + waiting);
                    }
                    if !revoking.asked.keep_batches && !batches.is_empty() {
                        cancels.push((row, batches));
                    }
                }
            }
        }
        revoking.waiting = cancels.len();
        self.revocations.under_way.insert(number, revoking);
        for (row, batches) in cancels {
            let request = self.next_request;
            self.next_request += 1;
            self.revocations.cancels.insert(request, (number, row));
            let what = batches
                .iter()
                .map(|batch| Wanted {
                    batch: *batch,
                    job: None,
                })
                .collect();
            let stop = Stop::after(GRACE);
            self.scheduler.handle(
                Event::Cancel {
                    request: Some(request),
                    what,
                    stop,
                    why: why.clone(),
                },
                now,
            );
            for batch in batches {
                self.scheduler.handle(Event::Close { batch }, now);
            }
        }
        self.answer_if_revoked(number);
    }

    /// A cancel has ended. True if it belongs to a revocation.
    pub(super) fn revocation_cancelled(
        &mut self,
        request: u64,
        result: &Result<CancelSummary, String>,
    ) -> bool {
        let Some((number, row)) = self.revocations.cancels.remove(&request) else {
            return false;
        };
        if let Some(revoking) = self.revocations.under_way.get_mut(&number) {
            revoking.waiting -= 1;
            match (revoking.rows.get_mut(row), result) {
                (Some(revoked), Ok(summary)) => revoked.cancel.clone_from(summary),
                (Some(revoked), Err(why)) => revoked.failed = Some(why.clone()),
                (None, _) => {}
            }
        }
        self.answer_if_revoked(number);
        true
    }

    fn answer_if_revoked(&mut self, number: u64) {
        if self
            .revocations
            .under_way
            .get(&number)
            .is_none_or(|revoking| revoking.waiting > 0)
        {
            return;
        }
        let Some(Revoking {
            asked, rows, own, ..
        }) = self.revocations.under_way.remove(&number)
        else {
            return;
        };
        self.tell_client(asked.client, answer(&asked, Ok(rows)));
        if let Some((peer, enrolment)) = own.zip(self.enrolment.clone()) {
            tokio::spawn(async move {
                // The client leaves when it has read the answer.
                let _ = tokio::time::timeout(PARTING, peer.closed()).await;
                enrolment.registry.finished(peer.certificate());
            });
        }
    }

    fn refuse_revocation(&mut self, asked: &Request, why: String) {
        self.tell_client(asked.client, answer(asked, Err(why)));
    }
}

fn empty(name: &str) -> RevokedMember {
    RevokedMember {
        name: name.to_owned(),
        certificates: 0,
        tokens: 0,
        before: None,
        connections: 0,
        batches: 0,
        running: 0,
        waiting: 0,
        cancel: CancelSummary::default(),
        held: 0,
        held_for: Duration::ZERO,
        failed: None,
    }
}

/// A revocation as it is given to the list of certificates.
struct Revocation {
    enrolment: Arc<Enrolment>,
    by: String,
    admins: Vec<String>,
    connections: HashMap<String, u64>,
}

impl Revocation {
    /// Revokes, or says why not. `own`: of users who revoke their own certificate.
    fn list(&self, mut asked: Request, own: Option<Peer>) -> Result<Revoking, (Request, String)> {
        let mut unclear = vec![None; asked.names.len()];
        if asked.member == Member::Host {
            let meant = self.enrolment.registry.hosts_meant(&asked.names);
            for ((name, unclear), meant) in asked.names.iter_mut().zip(&mut unclear).zip(meant) {
                match meant {
                    Ok(meant) => *name = meant,
                    Err(why) => *unclear = Some(why),
                }
            }
        }
        if let Some(why) = self.nobody_would_be_left(&asked) {
            return Err((asked, why));
        }
        if let Some(peer) = &own {
            self.enrolment.registry.let_finish(peer.certificate());
        }
        let named = asked.names.iter().zip(unclear);
        let mut rows: Vec<RevokedMember> = named
            .map(|(name, failed)| RevokedMember {
                connections: self.connections.get(name).copied().unwrap_or(0),
                failed,
                ..empty(name)
            })
            .collect();
        // Each on its own: an unknown name does not keep the others from being revoked.
        for row in rows.iter_mut().filter(|row| row.failed.is_none()) {
            self.revoke(&asked, row);
        }
        Ok(Revoking {
            asked,
            rows,
            waiting: 0,
            own,
        })
    }

    /// Why no admin would be left who could let anybody in.
    fn nobody_would_be_left(&self, asked: &Request) -> Option<String> {
        let goes = |admin: &String| asked.names.contains(admin);
        if asked.force || asked.member != Member::User || !self.admins.iter().any(goes) {
            return None;
        }
        let registry = &self.enrolment.registry;
        // If the list cannot be read, the revocation itself reports that.
        let stays =
            |admin: &String| !goes(admin) && registry.is_member(Role::User, admin).unwrap_or(true);
        if self.admins.iter().any(stays) {
            return None;
        }
        Some(
            "after that no admin would have a valid certificate, and new ones could only be \
             admitted on the coordinator's own host; `--force` revokes all the same"
                .into(),
        )
    }

    fn revoke(&self, asked: &Request, row: &mut RevokedMember) {
        let stops = asked.member == Member::User && !asked.keep_batches;
        let stop = stops.then(|| (Stop::after(GRACE), "its user's certificates were revoked"));
        let registry = &self.enrolment.registry;
        match registry.revoke(role(asked.member), &row.name, stop) {
            Ok(revoked) => {
                (row.certificates, row.tokens) = (revoked.certificates, revoked.tokens);
                row.before = revoked.before.map(WallTime::of_seconds);
                tracing::warn!(
                    by = self.by,
                    name = row.name,
                    certificates = row.certificates,
                    tokens = row.tokens,
                    "revoked"
                );
            }
            Err(e) => row.failed = Some(chain(&e)),
        }
    }
}

fn answer(asked: &Request, result: Result<Vec<RevokedMember>, String>) -> ToClient {
    let request = asked.request;
    if asked.told {
        return ToClient::Revoked {
            request,
            members: result,
        };
    }
    let result = result.and_then(|rows| {
        let failed: Vec<String> = rows.into_iter().filter_map(|row| row.failed).collect();
        if failed.is_empty() {
            Ok(())
        } else {
            Err(failed.join("\n"))
        }
    });
    ToClient::Done { request, result }
}
