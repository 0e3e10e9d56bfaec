//! Following batches, listing them, and forgetting them.

use crate::exit::chain;
use crate::service::batch::Following;
use crate::service::found::{Found, Listing};
use crate::service::pages::paged;
use crate::service::peers::{ClientId, Follow};
use crate::service::permit::FORGOTTEN;
use crate::service::state::Service;
use crate::store::BatchRow;
use mezcal_common::message::client::{Attachment, BatchStatus, COUNTS_APART, ToClient};
use mezcal_common::model::ids::{BatchId, BatchSerial};
use std::collections::HashMap;

impl Service {
    pub(super) fn wants_to_follow(
        &mut self,
        id: ClientId,
        request: u64,
        batch: String,
        wish: Attachment,
    ) {
        if let Some(by) = self.asker(id, request) {
            self.attach(Follow {
                by,
                batch,
                wish,
                missed: false,
            });
        }
    }

    /// Lets a client follow a batch; if the batch is on its way to the store, once it is there.
    pub(in crate::service) fn attach(&mut self, asked: Follow) {
        if !self.is_there(&asked.by) {
            return;
        }
        let found = self.find_batch(&asked.by.user, &asked.batch);
        match found.and_then(|batch| Ok((batch, self.reads()?))) {
            Err(why) => self.not_attached(asked, why),
            Ok((batch, _))
                if self
                    .batches
                    .get(batch)
                    .is_none_or(|known| !known.is_stored()) =>
            {
                self.not_attached(
                    asked,
                    "that batch is not kept: it ends with its client".into(),
                );
            }
            Ok((batch, _)) if self.is_opening(batch) => self.too_early.push(asked),
            Ok((batch, reads)) => self.find(async move {
                let row = reads.read(move |reader| reader.batch(batch)).await;
                Found::Batch(asked, batch, row.and_then(|row| row.map_err(|e| chain(&e))))
            }),
        }
    }

    fn is_opening(&self, batch: BatchId) -> bool {
        self.durable
            .as_ref()
            .is_some_and(|durable| durable.is_opening(batch))
    }

    pub(in crate::service) fn batch_found(
        &mut self,
        asked: Follow,
        batch: BatchId,
        row: Result<Option<BatchRow>, String>,
    ) {
        let Some(client) = self.clients.get(&asked.by.client) else {
            return;
        };
        match row {
            // Perhaps it could not be read for that.
            _ if self.batches.get(batch).is_none() => self.not_attached(asked, FORGOTTEN.into()),
            Err(why) => self.not_attached(asked, why),
            Ok(None) if self.is_opening(batch) => self.too_early.push(asked),
            // The batch has come there since it was read.
            Ok(None) if !asked.missed => self.attach(Follow {
                missed: true,
                ..asked
            }),
            Ok(None) => self.not_attached(asked, "the store does not have that batch".into()),
            Ok(Some(_)) if client.watch(batch).is_some() => {
                self.not_attached(asked, "this connection follows that batch already".into());
            }
            Ok(Some(row)) => {
                let Follow { by, wish, .. } = asked;
                self.watch(by.client, batch, Following::attached(wish));
                let row = with_running(row, &self.scheduler.running_by_batch());
                let (request, batch) = (by.request, Ok(Box::new(row)));
                self.answer(by, [ToClient::Attached { request, batch }]);
            }
        }
    }

    pub(in crate::service) fn not_attached(&mut self, asked: Follow, why: String) {
        let (request, batch) = (asked.by.request, Err(why));
        self.answer(asked.by, [ToClient::Attached { request, batch }]);
    }

    pub(super) fn list_batches(&mut self, id: ClientId, request: u64, all: bool) {
        let Some(by) = self.asker(id, request) else {
            return;
        };
        let allowed = match all {
            true => self.only_admins(&by.user, "see everybody's batches"),
            false => Ok(()),
        };
        let asked = Listing { by, all };
        match allowed.and_then(|()| self.reads()) {
            Err(why) => self.batches_found(asked, Err(why)),
            Ok(reads) => self.find(async move {
                let rows = reads.read(|reader| reader.batches()).await;
                Found::Batches(asked, rows.and_then(|rows| rows.map_err(|e| chain(&e))))
            }),
        }
    }

    pub(in crate::service) fn batches_found(
        &mut self,
        Listing { by, all }: Listing,
        rows: Result<Vec<BatchRow>, String>,
    ) {
        let Some(client) = self.clients.get(&by.client) else {
            return;
        };
        let batches = rows.map(|rows| -> Vec<BatchStatus> {
            let running = self.scheduler.running_by_batch();
            // A batch that was just forgotten may still be in the store for a moment.
            let shown = |row: &BatchRow| {
                (all || row.status.user == by.user) && self.batches.get(row.status.id).is_some()
            };
            rows.into_iter()
                .filter(shown)
                .map(|row| with_running(row, &running))
                .collect()
        });
        let (request, apart) = (by.request, client.version() >= COUNTS_APART);
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
        self.answer(by, paged(batches, BatchStatus::clone, message));
    }

    pub(super) fn forget(&mut self, user: &str, name: &str) -> Result<(), String> {
        let batch = self.find_batch(user, name)?;
        self.reads()?;
        let known = self.batches.get(batch).ok_or("there is no such batch")?;
        if !known.is_done() {
            return Err("that batch has not ended; cancel it first".into());
        }
        if let Some(durable) = &self.durable {
            durable.forget(known.serial());
        }
        self.batches.remove(batch);
        for client in self.clients.values_mut() {
            client.unfollow(batch);
        }
        Ok(())
    }
}

/// The store's row of a batch, with how many of its jobs run.
fn with_running(
    BatchRow { serial, status }: BatchRow,
    running: &HashMap<BatchSerial, u64>,
) -> BatchStatus {
    BatchStatus {
        placed: running.get(&serial).copied().unwrap_or(0),
        ..status
    }
}
