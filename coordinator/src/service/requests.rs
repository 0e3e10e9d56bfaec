//! What clients ask for.

mod batches;
mod hosts;
mod names;
mod retry;
mod submit;

use super::pages::paged;
use super::peers::{Asked, ClientId, Follow};
use super::revocations::Request as Revocation;
use super::state::Service;
use crate::scheduler::{Event, Wanted};
use hosts::that_fit;
use mezcal_common::message::client::{HOSTS_IN_PAGES, HostStatus, Selector, ToClient, ToService};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::BatchId;

/// Cancels of a connection that have not been answered and questions for the output of jobs, whose
/// answers may go on: each is remembered.
const MAX_ASKED: usize = 16_384;

impl Service {
    pub(super) fn client_message(&mut self, id: ClientId, message: ToService, now: BootInstant) {
        // Whoever hears nothing of these goes on with the coordinator that comes next.
        let handing_over = matches!(
            message,
            ToService::Open { .. } | ToService::Submit { .. } | ToService::Close { .. }
        );
        if handing_over && self.has_a_successor() {
            return;
        }
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let user = client.user.clone();
        let named = match &message {
            ToService::Submit { batch, .. }
            | ToService::Close { batch }
            | ToService::Taken { batch, .. }
            | ToService::OutputTaken { batch, .. } => Some(*batch),
            _ => None,
        };
        // Only whoever follows a batch may take its results, and only whoever has opened it may
        // change it.
        let watch = named.map(|batch| client.watches.get(&batch).map(|watch| watch.owner));
        let reason = match (watch, &message) {
            (Some(None), _) => Some("there is no such batch of yours"),
            (
                Some(Some(false)),
                ToService::Submit { .. } | ToService::Close { .. } | ToService::OutputTaken { .. },
            ) => Some("only whoever opened a batch may add to it, close it or take its output"),
            (Some(Some(_)) | None, _) => None,
        };
        if let Some(reason) = reason {
            client.tell(ToClient::Refused {
                reason: reason.into(),
            });
            return;
        }
        let event = match message {
            ToService::Hello { .. } => return,
            ToService::Open { terms, have } => return self.open(id, user, terms, have, now),
            ToService::Submit {
                batch,
                host_sets,
                jobs,
            } => {
                let closed = self
                    .scheduler
                    .batch_so_far(batch)
                    .is_some_and(|(.., closed)| closed);
                let host_sets = if closed { Vec::new() } else { host_sets };
                if let Some(reason) = self
                    .is_stopping()
                    .or_else(|| self.too_much(batch, &host_sets, &jobs))
                {
                    return self.tell_client(id, ToClient::Refused { reason });
                }
                Event::Submit {
                    batch,
                    host_sets,
                    jobs,
                }
            }
            ToService::Close { batch } => Event::Close { batch },
            ToService::Taken { batch, results } => {
                let Some(watch) = client.watches.get_mut(&batch) else {
                    return;
                };
                watch.take(results);
                if self
                    .batches
                    .get(batch)
                    .is_some_and(|known| watch.is_over(known))
                {
                    client.watches.remove(&batch);
                    if self.batches.get(batch).is_some_and(|b| b.stored) {
                        self.let_go(batch);
                    } else {
                        self.batches.remove(batch);
                    }
                }
                return;
            }
            ToService::Cancel { .. } if client.asked >= MAX_ASKED => {
                let reason = format!(
                    "this connection waits for the answers to {MAX_ASKED} requests; wait for some of them"
                );
                return client.tell(ToClient::Refused { reason });
            }
            ToService::Logs { request, .. } if client.asked >= MAX_ASKED => {
                let streams = Err(format!(
                    "this connection has asked for output {MAX_ASKED} times; connect again"
                ));
                return client.tell(ToClient::LogsAnswer { request, streams });
            }
            ToService::Cancel {
                request,
                mut what,
                stop,
            } => {
                // What is named twice is cancelled once: a name can stand for many batches.
                let mut all = false;
                what.retain(|selector| {
                    *selector != Selector::Mine || !std::mem::replace(&mut all, true)
                });
                let own: Vec<BatchId> = client
                    .watches
                    .iter()
                    .filter(|(_, watch)| watch.owner)
                    .map(|(batch, _)| *batch)
                    .collect();
                match what
                    .iter()
                    .map(|selector| self.select(&user, selector))
                    .collect::<Result<Vec<_>, _>>()
                {
                    Ok(wanted) => {
                        let what: Vec<Wanted> = wanted.into_iter().flatten().collect();
                        let elsewhere = what.iter().any(|w| !own.contains(&w.batch));
                        let why = elsewhere.then(|| format!("cancelled by {user}").into());
                        let request = Some(self.ask(id, request));
                        Event::Cancel {
                            request,
                            what,
                            stop,
                            why,
                        }
                    }
                    // What it names may not have been taken any more.
                    Err(_) if self.has_a_successor() => return,
                    Err(reason) => return self.tell_client(id, ToClient::Refused { reason }),
                }
            }
            ToService::Logs {
                request,
                batch,
                job,
                wish,
            } => match self.find_batch(&user, &batch) {
                Ok(batch) => Event::Logs {
                    request: self.ask(id, request),
                    batch,
                    job,
                    wish,
                },
                Err(reason) => {
                    return self.tell_client(
                        id,
                        ToClient::LogsAnswer {
                            request,
                            streams: Err(reason),
                        },
                    );
                }
            },
            ToService::CancelWaits { request } => {
                let asked = self
                    .asked
                    .iter()
                    .find(|(_, asked)| asked.client == id && asked.request == request);
                let hosts = asked
                    .map(|(number, _)| self.scheduler.cancel_waits(*number, now))
                    .unwrap_or_default();
                return self.tell_client(id, ToClient::CancelWaits { request, hosts });
            }
            ToService::Unserved { request } => {
                let users = self.scheduler.unserved_users();
                return self.tell_client(id, ToClient::Unserved { request, users });
            }
            ToService::Failing { request } => {
                let hosts = self.scheduler.failing_hosts();
                return self.tell_client(id, ToClient::Failing { request, hosts });
            }
            ToService::Standings { request } => return self.ask_standings(id, request),
            ToService::Hosts if client.version < HOSTS_IN_PAGES => {
                return self.tell_client(id, ToClient::Hosts(that_fit(self.hosts(now))));
            }
            ToService::Hosts => {
                for message in paged(Ok(self.hosts(now)), HostStatus::clone, |page, more| {
                    ToClient::HostsPage {
                        hosts: page.unwrap_or_default(),
                        more,
                    }
                }) {
                    self.tell_client(id, message);
                }
                return;
            }
            ToService::Why {
                request,
                batch,
                job,
            } => {
                let reasons = self
                    .find_batch(&user, &batch)
                    .and_then(|batch| self.scheduler.why(batch, &job, now));
                return self.tell_client(id, ToClient::Why { request, reasons });
            }
            ToService::OutputTaken { batch, job, bytes } => {
                Event::OutputTaken { batch, job, bytes }
            }
            ToService::Attach {
                request,
                batch,
                wish,
            } => {
                let in_hand = client.in_hand.take();
                return self.attach(Follow {
                    client: id,
                    user,
                    request,
                    batch,
                    wish,
                    _in_hand: in_hand,
                });
            }
            ToService::Batches { request, all } => {
                return self.list_batches(id, &user, request, all);
            }
            ToService::Retry {
                request,
                batch,
                failed,
            } => {
                match self.retry(&user, &batch, failed, now) {
                    // They hear of it when it is safe.
                    Ok((new, jobs)) => drop(self.retried.insert(new, (id, request, jobs))),
                    Err(why) => self.tell_client(
                        id,
                        ToClient::Retried {
                            request,
                            batch: Err(why),
                        },
                    ),
                }
                return;
            }
            ToService::Forget { request, batch } => {
                let result = self.forget(&user, &batch);
                return self.tell_client(id, ToClient::Done { request, result });
            }
            ToService::CreateTokens { .. }
            | ToService::Tokens { .. }
            | ToService::DeleteToken { .. }
            | ToService::Certificates { .. } => return self.ask_members(id, &user, message),
            ToService::Revoke {
                request,
                member,
                names,
            } => {
                let (keep_batches, force, told, _in_hand) =
                    (false, false, false, client.in_hand.take());
                let asked = Revocation {
                    client: id,
                    request,
                    member,
                    names,
                    keep_batches,
                    force,
                    told,
                    _in_hand,
                };
                return self.revoke(&user, asked);
            }
            ToService::RevokeMembers {
                request,
                member,
                names,
                keep_batches,
                force,
            } => {
                let (told, _in_hand) = (true, client.in_hand.take());
                let asked = Revocation {
                    client: id,
                    request,
                    member,
                    names,
                    keep_batches,
                    force,
                    told,
                    _in_hand,
                };
                return self.revoke(&user, asked);
            }
            ToService::ForgetHosts { request, hosts } => {
                let result = self
                    .only_admins(&user, "do this")
                    .and_then(|()| self.forget_hosts(&hosts, now));
                return self.tell_client(id, ToClient::Done { request, result });
            }
            // Over the network it has been seen to before.
            ToService::Renew { request, .. } => {
                let cert =
                    Err("a client within the coordinator's own process has no certificate".into());
                return self.tell_client(id, ToClient::Renewed { request, cert });
            }
            ToService::ConfirmDead { request, host } => {
                let result = self
                    .only_admins(&user, "do this")
                    .and_then(|()| self.scheduler.confirm_dead(&host, now));
                return self.tell_client(id, ToClient::Done { request, result });
            }
            ToService::Drain {
                request,
                hosts,
                reason,
                deadline,
            } => {
                // Without room for it, it would be forgotten at the next start.
                let room = self.no_room().map_or(Ok(()), Err);
                let result = room
                    .and_then(|()| self.only_admins(&user, "do this"))
                    .and_then(|()| {
                        let drained =
                            self.scheduler
                                .drain(&hosts, reason.as_deref(), deadline, now);
                        drained.map_err(|unknown| {
                            unknown.join(
                                "
",
                            )
                        })
                    });
                return self.tell_client(id, ToClient::Done { request, result });
            }
        };
        self.scheduler.handle(event, now);
    }

    /// A number for the scheduler that leads back to a client's request.
    fn ask(&mut self, client: ClientId, request: u64) -> u64 {
        let number = self.next_request;
        self.next_request += 1;
        if let Some(client) = self.clients.get_mut(&client) {
            client.asked += 1;
        }
        self.asked.insert(
            number,
            Asked {
                client,
                request,
                session: None,
                answered: false,
            },
        );
        number
    }
}
