//! Messages of the store: which records are safe now, or why nothing can be written.

use super::durable::not_stored;
use super::state::Service;
use crate::store::FromStore;
use mezcal_common::message::client::{Notice, ToClient};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::BatchId;
use std::collections::BTreeSet;

impl Service {
    /// False if the service has to end.
    pub(super) fn store_said(&mut self, said: FromStore) -> bool {
        let Some(durable) = &mut self.durable else {
            return true;
        };
        match said {
            FromStore::Committed { through, specs } => {
                if durable.committed(through, specs) {
                    self.tell_all_who_wait(&Notice::StoreTrouble { why: None });
                }
                std::mem::take(&mut self.too_early)
                    .into_iter()
                    .for_each(|asked| self.attach(asked));
            }
            FromStore::Trouble(why) => {
                let now = BootInstant::now();
                let trouble = durable.failed(why.clone(), now);
                if trouble.is_said {
                    let why = Some(why.clone());
                    self.tell_all_who_wait(&Notice::StoreTrouble { why });
                }
                if trouble.lasts {
                    self.refuse_what_is_new(&not_stored(&why), now);
                }
            }
            FromStore::Broken(why) => {
                tracing::error!(
                    why,
                    "the store cannot be used any more; the coordinator ends, and running jobs go \
                     on"
                );
                return false;
            }
        }
        true
    }

    /// Tells all clients that wait for results why they do not come, or that they do again.
    fn tell_all_who_wait(&mut self, notice: &Notice) {
        for client in self.clients.values_mut() {
            let followed = client.followed();
            let waits = |batch: &BatchId| self.batches.get(*batch).is_some_and(|b| !b.is_done());
            for batch in followed.filter(waits).collect::<Vec<_>>() {
                client.tell(ToClient::Notice {
                    batch,
                    notice: notice.clone(),
                });
            }
        }
    }

    /// Tells clients that wait for the word that a new batch is safe that it is not, and nothing of
    /// it runs. A known batch goes on waiting.
    fn refuse_what_is_new(&mut self, reason: &str, now: BootInstant) {
        let Some(durable) = &mut self.durable else {
            return;
        };
        let (opening, accepted) = durable.not_begun();
        let mut new: BTreeSet<BatchId> = opening.into_iter().collect();
        // A batch that ends with its client is in no record.
        let ends_with_it = |batch: &BatchId| {
            let known = self.batches.get(*batch);
            known.is_some_and(|known| !known.is_stored() && !known.has_begun())
        };
        new.extend(accepted.into_iter().filter(ends_with_it));
        for asked in std::mem::take(&mut self.too_early) {
            self.not_attached(asked, reason.to_owned());
        }
        for batch in new {
            self.tell_watchers(
                batch,
                &ToClient::Refused {
                    reason: reason.to_owned(),
                },
            );
            self.is_retried(batch, Err(reason.to_owned()));
            self.end_batch(batch, Some(reason.into()), now);
        }
    }
}
