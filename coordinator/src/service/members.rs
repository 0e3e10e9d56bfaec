//! Whose certificates count, and what admins ask about tokens and certificates.

use super::state::Service;
use super::{ClientId, Input};
use crate::exit::chain;
use crate::service::enrol::Enrolment;
use crate::store::{CertificateRow, Refusal, TokenRow};
use mezcal_common::message::client::{
    CertificateStatus, HostStanding, Member, ToClient, ToService, TokenStatus,
};
use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::model::identity::{self, Role};
use mezcal_common::wire::codec;
use mezcal_common::wire::endpoint::{Peer, close};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Longest wait between two looks at the clock, which may have been set.
const LOOK: Duration = Duration::from_secs(60);
/// Between two looks at whether somebody who has revoked their own certificate has heard the
/// answer.
const LEAVING_LOOK: Duration = Duration::from_millis(100);
/// Tokens, certificates, batches or hosts in one message, a few hundred bytes each; and their
/// bytes, for those that somebody has given long names.
const ROWS_PER_MESSAGE: usize = 1000;
const BYTES_PER_MESSAGE: usize = 256 * 1024;
/// Names in one request.
const NAMES: usize = 5000;
/// Longest life of a token: longer ones are passwords.
const MAX_TTL: Duration = Duration::from_secs(30 * 86_400);

/// Lets in whose certificate counts. Whoever comes while the list cannot be read may come again.
pub(super) fn admit(enrolment: Option<&Arc<Enrolment>>, peer: &Peer) -> Result<(), String> {
    let Some(enrolment) = enrolment else {
        return Ok(());
    };
    enrolment
        .registry
        .admits(peer.certificate(), peer.identity())
        .map_err(|refusal| {
            let code = if matches!(refusal, Refusal::Store(_)) {
                close::GOING
            } else {
                close::REFUSED
            };
            let reason = chain(&refusal);
            peer.close(code, &reason);
            let (enrolment, peer) = (enrolment.clone(), peer.clone());
            // One that is not remembered comes again.
            tokio::task::spawn_blocking(move || {
                drop(
                    enrolment
                        .registry
                        .was_refused(peer.certificate(), peer.identity()),
                )
            });
            reason
        })
}

/// Another certificate for a peer, beside the loop.
pub(super) async fn renew(
    enrolment: Option<Arc<Enrolment>>,
    peer: Peer,
    request: bytes::Bytes,
) -> Result<String, String> {
    let enrolment = enrolment.ok_or("this coordinator issues no certificates")?;
    let renewing = tokio::task::spawn_blocking(move || {
        let cert = enrolment.renew(peer.certificate(), peer.identity(), &request);
        match &cert {
            Ok(_) => tracing::info!("a new certificate for the {}", peer.identity()),
            Err(why) => tracing::warn!("no new certificate for the {}: {why}", peer.identity()),
        }
        cert
    });
    renewing.await.map_err(|e| e.to_string())?
}

/// A certificate is in use. Whatever it replaces counts no more.
pub(super) async fn used(enrolment: Option<Arc<Enrolment>>, peer: Peer) {
    let Some(enrolment) = enrolment else { return };
    let told =
        tokio::task::spawn_blocking(move || enrolment.registry.used(peer.certificate())).await;
    if let Ok(Err(e)) = told {
        tracing::error!(
            "a replaced certificate counts for longer than it should: {}",
            chain(&e)
        );
    }
}

/// Ends a connection as soon as its certificate is over or does not count any more.
pub(super) async fn guard(enrolment: Option<Arc<Enrolment>>, peer: Peer) {
    let until = identity::validity(peer.certificate()).map_or(0, |(_, until)| until);
    let serial = crate::store::serial(peer.certificate()).unwrap_or_default();
    let mut ended = enrolment.as_ref().map(|e| e.registry.ended());
    // It may have been revoked since it was admitted.
    ended
        .iter_mut()
        .for_each(tokio::sync::watch::Receiver::mark_changed);
    loop {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let left = Duration::from_secs(until.max(0) as u64).saturating_sub(now);
        if left.is_zero() {
            let reason = format!("the certificate of the {} has expired", peer.identity());
            tracing::warn!(from = %peer.remote_addr(), "{reason}");
            return peer.close(close::REFUSED, &reason);
        }
        // Each connection has one of these, on the coordinator's thread: it must not look into the
        // store.
        let has_ended = async {
            if let Some(ended) = &mut ended
                && ended.changed().await.is_ok()
            {
                return ended.borrow_and_update().contains(&serial);
            }
            std::future::pending().await
        };
        tokio::select! {
            _ = peer.closed() => return,
            () = tokio::time::sleep(left.min(LOOK)) => {}
            has_ended = has_ended => {
                if has_ended {
                    // Whoever revokes their own hears what has come of it.
                    while enrolment.as_ref().is_some_and(|e| e.registry.is_leaving(peer.certificate())) {
                        tokio::select! {
                            _ = peer.closed() => return,
                            () = tokio::time::sleep(LEAVING_LOOK) => {}
                        }
                    }
                    let reason = format!("the certificate of the {} was revoked or replaced", peer.identity());
                    tracing::warn!(from = %peer.remote_addr(), "{reason}");
                    return peer.close(close::REFUSED, &reason);
                }
            }
        }
    }
}

pub(super) fn role(member: Member) -> Role {
    match member {
        Member::Host => Role::Agent,
        Member::User => Role::User,
    }
}

fn member(role: Role) -> Member {
    match role {
        Role::User => Member::User,
        Role::Agent | Role::Coordinator => Member::Host,
    }
}

fn wall(seconds: i64) -> WallTime {
    WallTime(seconds.saturating_mul(1_000_000))
}

impl Service {
    /// Hosts that were taken away: each on its own, so that one that is still there does not save
    /// the others.
    pub(super) fn forget_hosts(
        &mut self,
        hosts: &[String],
        now: BootInstant,
    ) -> Result<(), String> {
        let mut failed = Vec::new();
        for host in hosts {
            match self.scheduler.forget_host(host, now) {
                Err(why) => failed.push(why),
                Ok(name) => {
                    tracing::info!(host = &*name, "{name} is forgotten");
                    self.arrivals.forget(&name);
                    if let Some(enrolment) = self.enrolment.clone() {
                        // Many have a certificate that is on no list.
                        tokio::task::spawn_blocking(move || {
                            drop(enrolment.registry.revoke(Role::Agent, &name, None))
                        });
                    }
                }
            }
        }
        if failed.is_empty() {
            Ok(())
        } else {
            Err(failed.join("\n"))
        }
    }

    /// What is known of hosts beside their status: the list of certificates says of it which were
    /// revoked, beside the loop.
    pub(super) fn ask_standings(&mut self, id: ClientId, request: u64) {
        let hosts = self.scheduler.host_standings();
        let enrolment = self.enrolment.clone();
        let (inputs, in_hand) = (
            self.inputs.clone(),
            self.clients
                .get_mut(&id)
                .and_then(|client| client.in_hand.take()),
        );
        tokio::spawn(async move {
            let answers = tokio::task::spawn_blocking(move || {
                let revoked = enrolment.map_or_else(
                    || Ok(HashMap::new()),
                    |e| e.registry.revoked_hosts().map_err(|e| chain(&e)),
                );
                let (hosts, revoked) = match revoked {
                    Ok(revoked) => (Ok(hosts), revoked),
                    Err(why) => (Err(why), HashMap::new()),
                };
                let standing = |host: &HostStanding| HostStanding {
                    revoked: revoked.get(&host.name).copied().map(wall),
                    ..host.clone()
                };
                paged(hosts, standing, |hosts, more| ToClient::Standings {
                    request,
                    hosts,
                    more,
                })
            });
            // A service that has ended has nobody to answer.
            if let (Ok(answers), Some(inputs)) = (answers.await, inputs.upgrade()) {
                let _ = inputs.send(Input::Answer(id, answers, in_hand)).await;
            }
        });
    }

    /// Answers from the store, beside the loop.
    pub(super) fn ask_members(&mut self, id: ClientId, user: &str, message: ToService) {
        let allowed = self.list_for(user);
        let (inputs, by) = (self.inputs.clone(), user.to_owned());
        let in_hand = self
            .clients
            .get_mut(&id)
            .and_then(|client| client.in_hand.take());
        let Ok(enrolment) = allowed else {
            for answer in answers(allowed, user, message) {
                self.tell_client(id, answer);
            }
            return;
        };
        tokio::spawn(async move {
            let answers = tokio::task::spawn_blocking(move || answers(Ok(enrolment), &by, message))
                .await
                .unwrap_or_default();
            let Some(inputs) = inputs.upgrade() else {
                return;
            };
            // A service that has ended has nobody to answer.
            let _ = inputs.send(Input::Answer(id, answers, in_hand)).await;
        });
    }
}

fn answers(allowed: Result<Arc<Enrolment>, String>, by: &str, message: ToService) -> Vec<ToClient> {
    match message {
        ToService::CreateTokens {
            request,
            member,
            names,
            ttl,
            replace,
        } => {
            let tokens = allowed.and_then(|enrolment| {
                if names.len() > NAMES || ttl > MAX_TTL {
                    return Err(format!(
                        "at most {NAMES} names at once, and tokens for at most 30 days"
                    ));
                }
                let tokens = enrolment.create_tokens(role(member), &names, ttl, replace)?;
                tracing::info!(by, tokens = tokens.len(), "join tokens made");
                Ok(tokens)
            });
            vec![ToClient::TokensCreated { request, tokens }]
        }
        ToService::Tokens { request } => {
            let rows = allowed.and_then(|e| e.registry.tokens().map_err(|e| chain(&e)));
            paged(rows, token_status, |tokens, more| ToClient::Tokens {
                request,
                tokens,
                more,
            })
        }
        ToService::DeleteToken { request, id } => {
            let result = allowed.and_then(|e| e.registry.delete_token(&id).map_err(|e| chain(&e)));
            vec![ToClient::Done { request, result }]
        }
        ToService::Certificates { request } => {
            let rows = allowed.and_then(|e| e.registry.certificates().map_err(|e| chain(&e)));
            paged(rows, certificate_status, |certificates, more| {
                ToClient::Certificates {
                    request,
                    certificates,
                    more,
                }
            })
        }
        _ => Vec::new(),
    }
}

/// Rows in messages that fit a frame. A row that is too long alone is left out: it would end the
/// connection.
pub(super) fn paged<R, S: serde::Serialize>(
    rows: Result<Vec<R>, String>,
    status: impl Fn(&R) -> S,
    message: impl Fn(Result<Vec<S>, String>, bool) -> ToClient,
) -> Vec<ToClient> {
    let rows = match rows {
        Err(why) => return vec![message(Err(why), false)],
        Ok(rows) => rows,
    };
    let (mut pages, mut page, mut bytes) = (Vec::new(), Vec::new(), 0);
    for row in rows.iter().map(status) {
        let Ok(size) = codec::encode_body(&row).map(|body| body.len()) else {
            continue;
        };
        bytes += size;
        if !page.is_empty() && (page.len() == ROWS_PER_MESSAGE || bytes > BYTES_PER_MESSAGE) {
            bytes = size;
            pages.push(message(Ok(std::mem::take(&mut page)), true));
        }
        page.push(row);
    }
    pages.push(message(Ok(page), false));
    pages
}

fn token_status(row: &TokenRow) -> TokenStatus {
    let TokenRow {
        id,
        role,
        name,
        expires,
        used,
        replace,
    } = row.clone();
    TokenStatus {
        id,
        member: member(role),
        name,
        expires: wall(expires),
        used: used.map(wall),
        replace,
    }
}

fn certificate_status(row: &CertificateRow) -> CertificateStatus {
    let CertificateRow {
        serial,
        role,
        name,
        expires,
        revoked,
    } = row.clone();
    CertificateStatus {
        serial,
        member: member(role),
        name,
        expires: wall(expires),
        revoked: revoked.map(wall),
    }
}
