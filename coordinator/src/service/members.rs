//! Requests of admins about tokens and certificates, and hosts that were taken away.

use super::pages::paged;
use super::peers::ClientId;
use super::state::Service;
use crate::exit::chain;
use crate::scheduler::Standing;
use crate::service::enrol::Enrolment;
use crate::store::{CertificateRow, TokenRow};
use mezcal_common::message::client::{
    CertificateStatus, HostStanding, Member, ToClient, ToService, TokenStatus,
};
use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::model::identity::Role;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Names in one request.
const NAMES: usize = 5000;
/// Longest life of a token: longer ones are passwords.
const MAX_TTL: Duration = Duration::from_secs(30 * 86_400);

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

impl Service {
    /// Forgets hosts that were taken away: each on its own, so that the others are forgotten even
    /// if one is still there.
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
                        // Many hosts have a certificate that is on no list.
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

    /// Facts about hosts beside their status: the list of certificates says which were revoked.
    pub(super) fn ask_standings(&mut self, id: ClientId, request: u64) {
        let hosts = self.scheduler.standings();
        let enrolment = self.enrolment.clone();
        self.answer_beside(id, move || {
            let revoked = enrolment.map_or_else(
                || Ok(HashMap::new()),
                |e| e.registry.revoked_hosts().map_err(|e| chain(&e)),
            );
            let (hosts, revoked) = match revoked {
                Ok(revoked) => (Ok(hosts), revoked),
                Err(why) => (Err(why), HashMap::new()),
            };
            let standing = |host: &Standing| HostStanding {
                name: host.name.clone(),
                seen: host.seen,
                revoked: revoked.get(&host.name).copied().map(WallTime::of_seconds),
                engines: host.engines.clone(),
            };
            paged(hosts, standing, |hosts, more| ToClient::Standings {
                request,
                hosts,
                more,
            })
        });
    }

    /// Answers a request from the list of certificates.
    pub(super) fn ask_members(&mut self, id: ClientId, user: &str, message: ToService) {
        let (allowed, by) = (self.list_for(user), user.to_owned());
        self.answer_beside(id, move || answers(allowed, &by, message));
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
        expires: WallTime::of_seconds(expires),
        used: used.map(WallTime::of_seconds),
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
        expires: WallTime::of_seconds(expires),
        revoked: revoked.map(WallTime::of_seconds),
    }
}
