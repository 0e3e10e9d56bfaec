//! What clients ask for.

use super::ClientId;
use super::delivery::{Batch, RESULT_BYTES, Watch};
use super::intake::InHand;
use super::members::paged;
use super::revoke::Request as Revocation;
use super::state::{Asked, Service};
use crate::jobs::too_large;
use crate::scheduler::{Event, Wanted, WantedJob};
use crate::service::enrol::Enrolment;
use crate::store::{BatchRow, Described};
use mezcal_common::message::client::{
    Attachment, BatchStatus, BatchTerms, COUNTS_APART, HOSTS_IN_PAGES, HostStatus, Selector,
    Submission, ToClient, ToService,
};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::identity::Role;
use mezcal_common::model::ids::{BatchId, BatchSerial, JobNumber};
use mezcal_common::wire::codec;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Batches that a message names.
const MANY: usize = 10;
/// Batches of a user that have jobs which are not over: as many as commands that somebody can have
/// left running. Each costs its table of queues, and a place in whatever looks at all of them.
const MAX_RUNNING: usize = 1000;
/// Sets of hosts and names in them that a batch may have: a thousand sets of two thousand hosts, or
/// two hundred thousand of ten. Each takes some thirty bytes of memory for as long as the batch
/// runs.
const MAX_NAMED: usize = 2_000_000;
/// Jobs of a batch that is not stored, and bytes of their texts: more than one for each host of a
/// large cluster. They stay in memory.
const MAX_ONCE: usize = 65_536;
const MAX_ONCE_BYTES: usize = 32 << 20;
/// Cancels of a connection that have not been answered and questions for the output of jobs, whose
/// answers may go on: each is remembered.
const MAX_ASKED: usize = 16_384;

/// Somebody wants to follow a batch.
pub(super) struct Follow {
    pub(super) client: ClientId,
    user: String,
    pub(super) request: u64,
    batch: String,
    wish: Attachment,
    /// Nothing else of its connection is handled before.
    _in_hand: Option<InHand>,
}

/// For whoever wants something kept while nothing can be.
pub(super) fn not_stored(why: &str) -> String {
    format!(
        "the coordinator's store cannot be written ({why}); running jobs go on, and nothing new is accepted until it can"
    )
}

/// What a coordinator without a store answers.
const KEEPS_NOTHING: &str =
    "this coordinator keeps nothing: it is a run's own (`coordinator serve` has a store)";

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

    /// Another coordinator will go on with what is stored: this one is stopping.
    pub(super) fn has_a_successor(&self) -> bool {
        self.stopping && self.kept.is_some()
    }

    /// Why not even what belongs to a known batch can be accepted: that waits when the store cannot
    /// be written.
    fn is_stopping(&self) -> Option<String> {
        self.stopping.then(|| "the coordinator is stopping".into())
    }

    /// Why nothing new can be accepted at present.
    fn no_room(&self) -> Option<String> {
        if let Some(stopping) = self.is_stopping() {
            return Some(stopping);
        }
        self.kept
            .as_ref()
            .and_then(|kept| kept.trouble.as_deref())
            .map(not_stored)
    }

    /// Why a user cannot have another batch at present.
    fn too_many(&self, user: &str) -> Option<String> {
        (self.batches.running(user).len() >= MAX_RUNNING).then(|| {
            format!(
                "{user} has {MAX_RUNNING} batches that have not ended, and may not have more; wait for some of them, or cancel them"
            )
        })
    }

    /// Why a batch cannot have these, too. If it can, they count from now on.
    fn too_much(
        &mut self,
        batch: BatchId,
        host_sets: &[Vec<String>],
        jobs: &[Submission],
    ) -> Option<String> {
        let in_memory = self.kept.is_some();
        let batch = self.batches.get_mut(batch)?;
        let named = batch.host_names + host_sets.iter().map(|set| 1 + set.len()).sum::<usize>();
        if named > MAX_NAMED {
            return Some(format!(
                "the hosts that its jobs name are more than {MAX_NAMED}; split the batch, or name fewer for each job"
            ));
        }
        let (count, texts) = (
            batch.jobs + jobs.len(),
            batch.texts + jobs.iter().map(|job| job.spec.len()).sum::<usize>(),
        );
        if in_memory && !batch.stored && (count > MAX_ONCE || texts > MAX_ONCE_BYTES) {
            return Some(format!(
                "a batch that ends with its client may have {MAX_ONCE} jobs and {MAX_ONCE_BYTES} bytes of them; use `coordinator run`"
            ));
        }
        (batch.host_names, batch.jobs, batch.texts) = (named, count, texts);
        None
    }

    fn open(&mut self, id: ClientId, user: String, terms: BatchTerms, have: u64, now: BootInstant) {
        let batch = terms.context.batch;
        match self
            .batches
            .get(batch)
            .map(|known| (known.owner == user, known.results))
        {
            Some((true, _))
                if self.kept.is_some()
                    && !self.batches.get(batch).is_some_and(|known| known.stored) =>
            {
                let reason = "that batch ends with the connection that has opened it: nothing of it can be had over another one";
                return self.tell_client(
                    id,
                    ToClient::Refused {
                        reason: reason.into(),
                    },
                );
            }
            Some((true, results)) if self.kept.is_some() => {
                self.watch(id, batch, Watch::of_owner(have.min(results)));
                self.scheduler.handle(Event::Attended { batch }, now);
            }
            Some(_) => {
                return self.tell_client(
                    id,
                    ToClient::Refused {
                        reason: "that batch exists already".into(),
                    },
                );
            }
            None => {
                if let Some(reason) = self
                    .no_room()
                    .or_else(|| self.too_many(&user))
                    .or_else(|| too_large(&terms.context))
                {
                    return self.tell_client(id, ToClient::Refused { reason });
                }
                // What is left of a batch whose client has gone is its owner's, until it has ended.
                if self.scheduler.batch_so_far(batch).is_some() {
                    return self.tell_client(
                        id,
                        ToClient::Refused {
                            reason: "that batch exists already, and is ending".into(),
                        },
                    );
                }
                // A command that runs once on each host is nobody's after its client.
                let (stored, name) = (self.kept.is_some() && !terms.once, terms.name.clone());
                self.scheduler.handle(
                    Event::Open {
                        user: user.clone(),
                        terms: Box::new(terms),
                    },
                    now,
                );
                let Some((serial, ..)) = self.scheduler.batch_so_far(batch) else {
                    return;
                };
                self.batches
                    .insert(batch, Batch::new(serial, user, stored).named(name));
                self.watch(id, batch, Watch::of_owner(0));
            }
        }
        let opened = match self.scheduler.batch_so_far(batch) {
            Some((_, host_sets, jobs, closed)) => ToClient::Opened {
                batch,
                host_sets,
                jobs,
                closed,
            },
            // It has ended: all its jobs are known.
            None => ToClient::Opened {
                batch,
                host_sets: u64::MAX,
                jobs: u64::MAX,
                closed: true,
            },
        };
        self.tell_client(id, opened);
    }

    fn watch(&mut self, id: ClientId, batch: BatchId, watch: Watch) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.watches.insert(batch, watch);
        }
    }

    /// Lets a client follow a batch; one that is on its way to the store, when it is there.
    pub(super) fn attach(&mut self, asked: Follow) {
        let found = self
            .find_batch(&asked.user, &asked.batch)
            .and_then(|batch| {
                let row = self
                    .reader()?
                    .batch(batch)
                    .map_err(|e| crate::exit::chain(&e))?;
                Ok((batch, row))
            });
        let follows = |batch| {
            self.clients
                .get(&asked.client)
                .is_some_and(|client| client.watches.contains_key(batch))
        };
        let found = match found {
            Ok((batch, None)) if self.batches.get(batch).is_some_and(|known| known.stored) => {
                return self.too_early.push(asked);
            }
            Ok((_, None)) => Err("that batch is not kept: it ends with its client".into()),
            Ok((batch, Some(_))) if follows(&batch) => {
                Err("this connection follows that batch already".into())
            }
            Ok((batch, Some(row))) => Ok((batch, row)),
            Err(why) => Err(why),
        };
        let batch = found.map(|(batch, row)| {
            self.watch(asked.client, batch, Watch::attached(asked.wish));
            Box::new(with_running(row, &self.scheduler.running_by_batch()))
        });
        self.tell_client(
            asked.client,
            ToClient::Attached {
                request: asked.request,
                batch,
            },
        );
    }

    fn reader(&self) -> Result<&crate::store::Reader, String> {
        self.kept
            .as_ref()
            .map(|kept| &kept.reader)
            .ok_or_else(|| KEEPS_NOTHING.into())
    }

    fn list_batches(&mut self, id: ClientId, user: &str, request: u64, all: bool) {
        let allowed = match all {
            true => self.only_admins(user, "see everybody's batches"),
            false => Ok(()),
        };
        let rows =
            allowed.and_then(|()| self.reader()?.batches().map_err(|e| crate::exit::chain(&e)));
        let batches = rows.map(|rows| -> Vec<BatchStatus> {
            let running = self.scheduler.running_by_batch();
            // One that is forgotten may be in the store for a moment yet.
            let shown = |row: &BatchRow| {
                (all || row.status.user == user) && self.batches.get(row.status.id).is_some()
            };
            rows.into_iter()
                .filter(shown)
                .map(|row| with_running(row, &running))
                .collect()
        });
        let apart = self
            .clients
            .get(&id)
            .is_some_and(|client| client.version >= COUNTS_APART);
        let message = |batches, more| match apart {
            true => ToClient::BatchesApart {
                request,
                batches,
                more,
            },
            false => ToClient::Batches {
                request,
                batches,
                more,
            },
        };
        for message in paged(batches, BatchStatus::clone, message) {
            self.tell_client(id, message);
        }
    }

    /// Opens a new batch with jobs of an ended one, as its owner's, whoever asks for it.
    fn retry(
        &mut self,
        user: &str,
        wanted: &str,
        failed: bool,
        now: BootInstant,
    ) -> Result<(BatchId, u64), String> {
        let old = self.find_batch(user, wanted)?;
        let known = self
            .batches
            .get(old)
            .filter(|batch| batch.done)
            .ok_or("that batch has not ended; wait for it, or cancel it first")?;
        let (serial, owner, reader) = (known.serial, known.owner.clone(), self.reader()?.clone());
        if let Some(why) = self.no_room().or_else(|| self.too_many(&owner)) {
            return Err(why);
        }
        if owner != user {
            self.is_still_a_user(&owner)?;
            tracing::info!(by = user, owner, batch = %old, "batch {old} of {owner} is retried by {user}, an admin");
        }
        let in_words = |e: crate::store::StoreError| crate::exit::chain(&e);
        let mut terms = reader.terms(serial).map_err(in_words)?;
        let id = BatchId::random();
        terms.context.batch = id;
        terms.detached = true;
        if let Some(why) = too_large(&terms.context) {
            return Err(why);
        }
        let name = terms.name.clone();
        let mut again = Again::default();
        if failed {
            let mut after = 0;
            loop {
                let jobs = reader
                    .ended(serial, after, true, RESULT_BYTES)
                    .map_err(in_words)?;
                let Some(last) = jobs.last().and_then(|job| job.ended.as_ref()) else {
                    break;
                };
                after = last.0;
                again.add(jobs);
            }
        } else {
            let mut after = JobNumber(0);
            loop {
                let jobs = reader.jobs(serial, after, RESULT_BYTES).map_err(in_words)?;
                let Some(last) = jobs.last() else { break };
                after = last.submission.job;
                again.add(jobs);
            }
        }
        let (host_sets, jobs) = again.finish();
        let count = jobs.len() as u64;
        if count == 0 {
            return Err("every job of that batch has succeeded".into());
        }
        self.scheduler.handle(
            Event::Open {
                user: owner.clone(),
                terms: Box::new(terms),
            },
            now,
        );
        let (serial, ..) = self
            .scheduler
            .batch_so_far(id)
            .ok_or("the new batch cannot be opened")?;
        self.batches
            .insert(id, Batch::new(serial, owner, true).named(name));
        self.scheduler.handle(
            Event::Submit {
                batch: id,
                host_sets,
                jobs,
            },
            now,
        );
        self.scheduler.handle(Event::Close { batch: id }, now);
        Ok((id, count))
    }

    /// Nothing is begun in the name of somebody who could not begin it.
    fn is_still_a_user(&self, owner: &str) -> Result<(), String> {
        let Some(enrolment) = &self.enrolment else {
            return Ok(());
        };
        match enrolment.registry.is_member(Role::User, owner) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!(
                "that batch is {owner}'s, of whom no certificate counts any more, so nothing is started in that name; `coordinator results` \
                 gives its jobs to whoever wants to run them"
            )),
            Err(e) => Err(crate::exit::chain(&e)),
        }
    }

    fn forget(&mut self, user: &str, name: &str) -> Result<(), String> {
        let batch = self.find_batch(user, name)?;
        self.reader()?;
        let known = self.batches.get(batch).ok_or("there is no such batch")?;
        if !known.done {
            return Err("that batch has not ended; cancel it first".into());
        }
        if let Some(kept) = &self.kept {
            kept.forget(known.serial);
        }
        self.batches.remove(batch);
        for client in self.clients.values_mut() {
            client.watches.remove(&batch);
        }
        Ok(())
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

    /// What a user means. Others' batches do not exist for them.
    fn select(&self, user: &str, selector: &Selector) -> Result<Vec<Wanted>, String> {
        Ok(match selector {
            Selector::Mine => self
                .batches
                .running(user)
                .map(|batch| Wanted { batch, job: None })
                .collect(),
            Selector::Batch(text) => self.wanted(self.find_batch(user, text)?, None),
            Selector::Job { batch, job } => self.wanted(
                self.find_batch(user, batch)?,
                Some(WantedJob::Named(job.clone())),
            ),
            Selector::Number { batch, job } => {
                self.wanted(self.find_batch(user, batch)?, Some(WantedJob::Number(*job)))
            }
        })
    }

    /// Of a batch whose jobs have all ended nothing can be cancelled.
    fn wanted(&self, batch: BatchId, job: Option<WantedJob>) -> Vec<Wanted> {
        if self.batches.get(batch).is_some_and(|b| b.done) {
            Vec::new()
        } else {
            vec![Wanted { batch, job }]
        }
    }

    /// All hosts ever seen, with what is known of the way to them.
    fn hosts(&self, now: BootInstant) -> Vec<HostStatus> {
        let mut hosts = self.scheduler.host_status(now);
        let ways: HashMap<&str, u16> = self
            .agents
            .values()
            .map(|link| (link.peer.identity().name.as_str(), link.peer.path().1))
            .collect();
        for host in hosts.iter_mut().filter(|host| host.connected) {
            host.datagram = ways.get(host.name.as_str()).copied();
        }
        hosts
    }

    pub(super) fn is_admin(&self, user: &str) -> bool {
        self.admins.iter().any(|admin| admin == user)
    }

    /// Why a user cannot do what only admins can.
    pub(super) fn only_admins(&self, user: &str, what: &str) -> Result<(), String> {
        if self.is_admin(user) {
            return Ok(());
        }
        Err(format!(
            "only an admin can {what}, and {user} is not one (see `admins` in coordinator.toml)"
        ))
    }

    /// The list of certificates, for an admin.
    pub(super) fn list_for(&self, user: &str) -> Result<Arc<Enrolment>, String> {
        self.only_admins(user, "do this")?;
        self.enrolment.clone().ok_or_else(|| KEEPS_NOTHING.into())
    }

    fn find_batch(&self, user: &str, text: &str) -> Result<BatchId, String> {
        // Without a name it is the only one that they have running themselves.
        let found: Vec<BatchId> = match text {
            "" => self.batches.running(user).collect(),
            text => self
                .batches
                .beginning_with(text, (!self.is_admin(user)).then_some(user)),
        };
        match (found.as_slice(), text) {
            ([only], _) => Ok(*only),
            ([], _) => {
                let own: Vec<String> = self
                    .batches
                    .running(user)
                    .take(MANY)
                    .map(|b| b.to_string())
                    .collect();
                Err(match (own.as_slice(), text) {
                    ([], "") => "no batch of yours is running; `coordinator batches` lists those that have ended".into(),
                    (own, "") => format!("yours are {}", own.join(", ")),
                    ([], _) => format!("no batch of yours begins with {text:?}; `coordinator batches` lists those that there are"),
                    (own, _) => {
                        format!("no batch of yours begins with {text:?}; of those that have not ended yours are {}", own.join(", "))
                    }
                })
            }
            (several, "") => Err(format!(
                "you have {} batches; name one of them (`coordinator batches` lists them)",
                several.len()
            )),
            (several, _) => Err(format!(
                "{} batches begin with {text:?}; give more characters of its id",
                several.len()
            )),
        }
    }
}

/// What the store says of a batch, with how many of its jobs run.
fn with_running(
    BatchRow { serial, status }: BatchRow,
    running: &HashMap<BatchSerial, u64>,
) -> BatchStatus {
    BatchStatus {
        placed: running.get(&serial).copied().unwrap_or(0),
        ..status
    }
}

/// Those of the hosts that one message has room for. A client of an earlier version knows no other
/// answer than one.
fn that_fit(mut hosts: Vec<HostStatus>) -> Vec<HostStatus> {
    let all = hosts.len();
    let mut bytes = 0;
    let fits = |host: &&HostStatus| {
        bytes += codec::encode_body(*host).map_or(codec::MAX_FRAME, |body| body.len());
        bytes < codec::MAX_FRAME / 2
    };
    let fit = hosts.iter().take_while(fits).count();
    if fit < all {
        tracing::warn!(
            "a client of an earlier version is shown {fit} of {all} hosts; more do not fit its one message"
        );
        hosts.truncate(fit);
    }
    hosts
}

/// Jobs of one batch as they are submitted to another.
#[derive(Default)]
struct Again {
    jobs: BTreeMap<JobNumber, Described>,
}

impl Again {
    fn add(&mut self, jobs: Vec<Described>) {
        self.jobs
            .extend(jobs.into_iter().map(|job| (job.submission.job, job)));
    }

    /// Numbers them anew, in their old order. What came after a job that is not among them does not
    /// wait: that one has succeeded.
    fn finish(self) -> (Vec<Vec<String>>, Vec<Submission>) {
        let numbers: HashMap<JobNumber, JobNumber> = self
            .jobs
            .keys()
            .copied()
            .zip((1..).map(JobNumber))
            .collect();
        let (mut sets, mut index): (Vec<Vec<String>>, HashMap<Vec<String>, u32>) =
            (Vec::new(), HashMap::new());
        let mut place = |set: Option<Vec<String>>| {
            set.map(|set| {
                *index.entry(set).or_insert_with_key(|set| {
                    sets.push(set.clone());
                    sets.len() as u32 - 1
                })
            })
        };
        let jobs = self.jobs.into_iter().map(
            |(
                number,
                Described {
                    submission, hosts, ..
                },
            )| {
                let after = submission
                    .after
                    .iter()
                    .filter_map(|before| numbers.get(before).copied())
                    .collect();
                Submission {
                    job: numbers[&number],
                    hosts: place(hosts.0),
                    prefer: place(hosts.1),
                    after,
                    ..submission
                }
            },
        );
        let jobs = jobs.collect();
        (sets, jobs)
    }
}
