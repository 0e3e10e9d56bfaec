//! The batches and jobs that users mean.

use crate::scheduler::{Wanted, WantedJob};
use crate::service::batch::Batch;
use crate::service::state::Service;
use mezcal_common::message::client::Selector;
use mezcal_common::model::ids::BatchId;

/// Batches that a message names at most.
const MANY: usize = 10;

impl Service {
    /// The batches and jobs that a user means. Other users' batches do not exist for them.
    pub(super) fn select(&self, user: &str, selector: &Selector) -> Result<Vec<Wanted>, String> {
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

    /// Nothing, if all jobs of the batch have ended: then none can be cancelled.
    fn wanted(&self, batch: BatchId, job: Option<WantedJob>) -> Vec<Wanted> {
        if self.batches.get(batch).is_some_and(Batch::is_done) {
            Vec::new()
        } else {
            vec![Wanted { batch, job }]
        }
    }

    pub(super) fn find_batch(&self, user: &str, text: &str) -> Result<BatchId, String> {
        // Without a name it is the only batch that the user has running.
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
                    (own, "") => format!("your batches that have not ended: {}", own.join(", ")),
                    ([], _) => format!("no batch of yours begins with {text:?}; `coordinator \
                        batches` lists yours"),
                    (own, _) => {
                        format!("no batch of yours begins with {text:?}; your batches that have not \
                            ended: {}", own.join(", \
                            "))
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
