//! Following batches, listing them, and forgetting them.

use crate::service::batch::Watch;
use crate::service::pages::paged;
use crate::service::peers::{ClientId, Follow};
use crate::service::state::Service;
use crate::store::BatchRow;
use mezcal_common::message::client::{Attachment, BatchStatus, COUNTS_APART, ToClient};
use mezcal_common::model::ids::BatchSerial;
use std::collections::HashMap;

impl Service {
    pub(super) fn wants_to_follow(
        &mut self,
        id: ClientId,
        request: u64,
        batch: String,
        wish: Attachment,
    ) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let asked = Follow {
            client: id,
            user: client.user.clone(),
            request,
            batch,
            wish,
            _in_hand: client.in_hand.take(),
        };
        self.attach(asked);
    }

    /// Lets a client follow a batch; one that is on its way to the store, when it is there.
    pub(in crate::service) fn attach(&mut self, asked: Follow) {
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

    pub(super) fn list_batches(&mut self, id: ClientId, user: &str, request: u64, all: bool) {
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

    pub(super) fn forget(&mut self, user: &str, name: &str) -> Result<(), String> {
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
