//! How batches are opened, and how large they may be.

use crate::jobs::too_large;
use crate::scheduler::Event;
use crate::service::batch::{Batch, Following};
use crate::service::peers::ClientId;
use crate::service::state::Service;
use mezcal_common::message::client::{BatchTerms, Submission, ToClient};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::BatchId;

/// Batches of a user that have jobs which are not over: as many as commands that a user can have
/// left running. Each costs its table of queues, and time in every loop over all of them.
const MAX_RUNNING: usize = 1000;
/// Sets of hosts and names in them that a batch may have: a thousand sets of two thousand hosts, or
/// two hundred thousand of ten. Each takes some thirty bytes of memory for as long as the batch
/// runs.
const MAX_NAMED: usize = 2_000_000;
/// Jobs of a batch that is not stored, and bytes of their texts: more than one job for each host of
/// a large cluster. They stay in memory.
const MAX_ONCE: usize = 65_536;
const MAX_ONCE_BYTES: usize = 32 << 20;

impl Service {
    /// Why a user cannot have another batch at present.
    pub(super) fn too_many(&self, user: &str) -> Option<String> {
        (self.batches.running(user).len() >= MAX_RUNNING).then(|| {
            format!(
                "{user} has {MAX_RUNNING} batches that have not ended, and may not have more; wait for some of them, or cancel them"
            )
        })
    }

    /// Why a batch cannot have these sets and jobs, too. If it can, they count from now on.
    pub(super) fn too_much(
        &mut self,
        batch: BatchId,
        host_sets: &[Vec<String>],
        jobs: &[Submission],
    ) -> Option<String> {
        let stores = self.durable.is_some();
        let batch = self.batches.get_mut(batch)?;
        let size = batch.size_with(host_sets, jobs);
        if size.host_names > MAX_NAMED {
            return Some(format!(
                "its jobs name more than {MAX_NAMED} hosts; split the batch, or name fewer for each \
                 job"
            ));
        }
        let once = stores && !batch.is_stored();
        if once && (size.jobs > MAX_ONCE || size.texts > MAX_ONCE_BYTES) {
            return Some(format!(
                "a batch that ends with its client may have {MAX_ONCE} jobs and {MAX_ONCE_BYTES} bytes of them; use `coordinator run`"
            ));
        }
        batch.grows_to(size);
        None
    }

    pub(super) fn submit(
        &mut self,
        id: ClientId,
        batch: BatchId,
        host_sets: Vec<Vec<String>>,
        jobs: Vec<Submission>,
        now: BootInstant,
    ) {
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
        let event = Event::Submit {
            batch,
            host_sets,
            jobs,
        };
        self.scheduler.handle(event, now);
    }

    /// A client has so many results of a batch.
    pub(super) fn taken(&mut self, id: ClientId, batch: BatchId, results: u64) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let Some(watch) = client.watch_mut(batch) else {
            return;
        };
        watch.take(results);
        if self
            .batches
            .get(batch)
            .is_some_and(|known| watch.is_over(known))
        {
            client.unfollow(batch);
            if self.batches.get(batch).is_some_and(Batch::is_stored) {
                self.let_go(batch);
            } else {
                self.batches.remove(batch);
            }
        }
    }

    pub(super) fn open(
        &mut self,
        id: ClientId,
        user: &str,
        terms: BatchTerms,
        have: u64,
        now: BootInstant,
    ) {
        let batch = terms.context.batch;
        let refused = match self.batches.get(batch) {
            Some(known) if known.owner() == user && self.durable.is_some() && !known.is_stored() => Some(
                "that batch ends with the connection that has opened it, and is not available over \
                 another one"
                    .into(),
            ),
            Some(known) if known.owner() == user && self.durable.is_some() => {
                let have = have.min(known.results());
                self.watch(id, batch, Following::of_owner(have));
                self.scheduler.handle(Event::Attended { batch }, now);
                None
            }
            Some(_) => Some("that batch exists already".into()),
            None => self.open_new(id, user, terms, now).err(),
        };
        if let Some(reason) = refused {
            return self.tell_client(id, ToClient::Refused { reason });
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

    /// Opens a batch that is not known.
    fn open_new(
        &mut self,
        id: ClientId,
        user: &str,
        terms: BatchTerms,
        now: BootInstant,
    ) -> Result<(), String> {
        let batch = terms.context.batch;
        if let Some(reason) = self
            .no_room()
            .or_else(|| self.too_many(user))
            .or_else(|| too_large(&terms.context))
        {
            return Err(reason);
        }
        // A batch whose client has gone is still its owner's until it has ended.
        if self.scheduler.batch_so_far(batch).is_some() {
            return Err("that batch exists already, and is ending".into());
        }
        self.begin(user.to_owned(), terms, now)?;
        self.watch(id, batch, Following::of_owner(0));
        Ok(())
    }

    /// Opens a batch with the scheduler, as that user's.
    pub(super) fn begin(
        &mut self,
        owner: String,
        terms: BatchTerms,
        now: BootInstant,
    ) -> Result<(), String> {
        // A command that runs once on each host ends with its client.
        let stored = self.durable.is_some() && !terms.once;
        let (batch, name) = (terms.context.batch, terms.name.clone());
        let open = Event::Open {
            user: owner.clone(),
            terms: Box::new(terms),
        };
        self.scheduler.handle(open, now);
        let opened = self.scheduler.batch_so_far(batch);
        let (serial, ..) = opened.ok_or("the batch cannot be opened")?;
        let new = Batch::new(serial, owner, stored).named(name);
        self.batches.insert(batch, new);
        Ok(())
    }

    pub(super) fn watch(&mut self, id: ClientId, batch: BatchId, watch: Following) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.follow(batch, watch);
        }
    }
}
