//! What the store says: what is safe now, or why nothing is.

use super::durable::not_stored;
use super::state::Service;
use crate::scheduler::Effect;
use crate::store::FromStore;
use mezcal_common::message::client::{Notice, ToClient};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::BatchId;
use std::collections::BTreeSet;
use std::time::Duration;

/// A store that cannot be written for longer than this refuses what has just come and has not
/// begun; until then it waits, too.
const PASSING: Duration = Duration::from_secs(8);
/// After this those who wait are told why.
const SAID_AFTER: Duration = Duration::from_secs(1);

impl Service {
    /// False if the service has to end.
    pub(super) fn store_said(&mut self, said: FromStore) -> bool {
        let Some(kept) = &mut self.kept else {
            return true;
        };
        match said {
            FromStore::Committed { through, specs } => {
                let told = kept.since.take().is_some_and(|(_, told)| told);
                if kept.trouble.take().is_some() {
                    tracing::info!("the store can be written again");
                }
                kept.committed(through);
                for (key, text) in specs {
                    kept.specs.entry(key).or_insert((text, 0)).1 += 1;
                }
                if told {
                    self.tell_all_who_wait(&Notice::StoreTrouble { why: None });
                }
                std::mem::take(&mut self.too_early)
                    .into_iter()
                    .for_each(|asked| self.attach(asked));
            }
            FromStore::Trouble(why) => {
                if kept.trouble.as_ref() != Some(&why) {
                    tracing::error!(
                        why,
                        "the store cannot be written; running jobs go on, and nothing new is accepted"
                    );
                }
                kept.trouble = Some(why.clone());
                let now = BootInstant::now();
                let (since, told) = kept.since.get_or_insert((now, false));
                let lasted = now.since(*since);
                if lasted >= SAID_AFTER && !std::mem::replace(told, true) {
                    self.tell_all_who_wait(&Notice::StoreTrouble {
                        why: Some(why.clone()),
                    });
                }
                if lasted >= PASSING {
                    self.refuse_what_is_new(&not_stored(&why), now);
                }
            }
            FromStore::Broken(why) => {
                tracing::error!(
                    why,
                    "the store is of no more use; the coordinator ends, and running jobs go on"
                );
                return false;
            }
        }
        true
    }

    /// Everybody who waits for results hears why they do not come, or that they do again.
    fn tell_all_who_wait(&mut self, notice: &Notice) {
        for client in self.clients.values_mut() {
            let batches = client
                .watches
                .keys()
                .filter(|batch| self.batches.get(**batch).is_some_and(|known| !known.done));
            for batch in batches.copied().collect::<Vec<_>>() {
                client.tell(ToClient::Notice {
                    batch,
                    notice: notice.clone(),
                });
            }
        }
    }

    /// Whoever waits for the word that a new batch is safe hears that it is not, and nothing of it
    /// runs. A batch that is known goes on waiting.
    fn refuse_what_is_new(&mut self, reason: &str, now: BootInstant) {
        let Some(kept) = &mut self.kept else { return };
        let mut new: BTreeSet<BatchId> = kept.opening.drain(..).map(|(_, batch)| batch).collect();
        // A batch that ends with its client is in no record.
        let held = kept.held.iter().filter_map(|(_, held)| match held {
            Effect::Accepted {
                batch,
                closed: false,
                ..
            } => Some(*batch),
            _ => None,
        });
        new.extend(held.filter(|batch| {
            self.batches
                .get(*batch)
                .is_some_and(|known| !known.stored && !known.begun)
        }));
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
