//! Requests of clients: which part of the service answers each.

mod batches;
mod hosts;
mod jobs;
mod names;
mod retry;
mod submit;

use super::peers::ClientId;
use super::revocations::Request as Revocation;
use super::state::Service;
use crate::scheduler::Event;
use mezcal_common::message::client::{ToClient, ToService};
use mezcal_common::model::clock::BootInstant;

impl Service {
    // Long: a table with a row for each message, so that none is forgotten.
    pub(super) fn client_message(&mut self, id: ClientId, message: ToService, now: BootInstant) {
        // A client that gets no answer to these goes on with the coordinator that comes next.
        let handing_over = matches!(
            message,
            ToService::Open { .. } | ToService::Submit { .. } | ToService::Close { .. }
        );
        if handing_over && self.has_a_successor() {
            return;
        }
        if let Some(reason) = self.is_not_its_own(id, &message) {
            let reason = reason.into();
            return self.tell_client(id, ToClient::Refused { reason });
        }
        let Some(client) = self.clients.get(&id) else {
            return;
        };
        let user = &*client.user().to_owned();
        let answer = match message {
            ToService::Hello { .. } => return,
            ToService::Open { terms, have } => return self.open(id, user, terms, have, now),
            ToService::Submit {
                batch,
                host_sets,
                jobs,
            } => return self.submit(id, batch, host_sets, jobs, now),
            ToService::Close { batch } => {
                return self.scheduler.handle(Event::Close { batch }, now);
            }
            ToService::Taken { batch, results } => return self.taken(id, batch, results),
            ToService::OutputTaken { batch, job, bytes } => {
                let event = Event::OutputTaken { batch, job, bytes };
                return self.scheduler.handle(event, now);
            }
            ToService::Cancel {
                request,
                what,
                stop,
            } => return self.cancel(id, request, what, stop, now),
            ToService::Logs {
                request,
                batch,
                job,
                wish,
            } => return self.logs(id, request, &batch, job, wish, now),
            ToService::CancelWaits { request } => self.cancel_waits(id, request, now),
            ToService::Why {
                request,
                batch,
                job,
            } => self.why(user, request, &batch, &job, now),
            ToService::Attach {
                request,
                batch,
                wish,
            } => return self.wants_to_follow(id, request, batch, wish),
            ToService::Batches { request, all } => {
                return self.list_batches(id, request, all);
            }
            ToService::Retry {
                request,
                batch,
                failed,
            } => return self.wants_again(id, request, &batch, failed),
            ToService::Forget { request, batch } => {
                let result = self.forget(user, &batch);
                ToClient::Done { request, result }
            }
            ToService::Hosts => return self.show_hosts(id, now),
            ToService::Standings { request } => return self.ask_standings(id, request),
            ToService::Unserved { request } => {
                let users = self.scheduler.unserved_users();
                ToClient::Unserved { request, users }
            }
            ToService::Failing { request } => {
                let hosts = self.scheduler.failing_hosts();
                ToClient::Failing { request, hosts }
            }
            ToService::Drain {
                request,
                hosts,
                reason,
                deadline,
            } => {
                let result = self.drain(user, &hosts, reason.as_deref(), deadline, now);
                ToClient::Done { request, result }
            }
            ToService::ConfirmDead { request, host } => {
                let allowed = self.only_admins(user, "do this");
                let result = allowed.and_then(|()| self.scheduler.confirm_dead(&host, now));
                ToClient::Done { request, result }
            }
            ToService::ForgetHosts { request, hosts } => {
                let allowed = self.only_admins(user, "do this");
                let result = allowed.and_then(|()| self.forget_hosts(&hosts, now));
                ToClient::Done { request, result }
            }
            ToService::CreateTokens { .. }
            | ToService::Tokens { .. }
            | ToService::DeleteToken { .. }
            | ToService::Certificates { .. } => return self.ask_members(id, user, message),
            ToService::Revoke {
                request,
                member,
                names,
            } => {
                let asked = Revocation::of_an_earlier_client(id, request, member, names);
                return self.revoke(user, asked);
            }
            ToService::RevokeMembers {
                request,
                member,
                names,
                keep_batches,
                force,
            } => {
                let asked = Revocation::new(id, request, member, names);
                return self.revoke(user, asked.which(keep_batches, force));
            }
            // Requests over the network were answered before.
            ToService::Renew { request, .. } => {
                let cert =
                    Err("a client within the coordinator's own process has no certificate".into());
                ToClient::Renewed { request, cert }
            }
        };
        self.tell_client(id, answer);
    }

    /// Why a client may not send this about that batch: only a client that follows a batch may take
    /// its results, and only a client that has opened it may change it.
    fn is_not_its_own(&self, id: ClientId, message: &ToService) -> Option<&'static str> {
        let (batch, changes) = match message {
            ToService::Submit { batch, .. }
            | ToService::Close { batch }
            | ToService::OutputTaken { batch, .. } => (batch, true),
            ToService::Taken { batch, .. } => (batch, false),
            _ => return None,
        };
        match self.clients.get(&id)?.watch(*batch) {
            None => Some("you have no such batch"),
            Some(watch) if changes && !watch.is_owners() => Some(
                "only the client that opened a batch may add to it, close it or take its \
                    output",
            ),
            Some(_) => None,
        }
    }
}
