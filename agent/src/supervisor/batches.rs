//! The batches that are known: whose they are, and what their jobs have in common.
//!
//! A coordinator says both before the first job of a batch that it sends in a session, and says
//! that the batch has ended only in a session in which it has said both. So the words of earlier
//! sessions are needed for jobs that wait, and for nothing else; only the user of a batch is
//! remembered, for requests for the output of its jobs.

use mezcal_common::model::ids::BatchSerial;
use mezcal_common::model::job::BatchContext;
use std::collections::{BTreeMap, HashSet};

/// Batches of earlier sessions whose users are remembered, the newest ones: a megabyte, and more
/// than a host has jobs of at a time.
const MAX_EARLIER: usize = 10_000;

#[derive(Debug, PartialEq)]
struct Known {
    user: String,
    /// None: the coordinator has to say it again.
    context: Option<BatchContext>,
}

/// All batches that a coordinator has spoken of.
#[derive(Debug, Default)]
pub(super) struct Batches {
    by_serial: BTreeMap<BatchSerial, Known>,
}

impl Batches {
    /// The coordinator has spoken of a batch. True if that is news.
    pub(super) fn learn(
        &mut self,
        batch: BatchSerial,
        context: BatchContext,
        user: String,
    ) -> bool {
        let known = Known {
            user,
            context: Some(context),
        };
        let is_news = self.by_serial.get(&batch) != Some(&known);
        self.by_serial.insert(batch, known);
        is_news
    }

    /// The batch's context, and its user.
    pub(super) fn context(&self, batch: BatchSerial) -> Option<(&BatchContext, &str)> {
        let known = self.by_serial.get(&batch)?;
        Some((known.context.as_ref()?, &known.user))
    }

    /// The user of a batch.
    pub(super) fn owner(&self, batch: BatchSerial) -> Option<&str> {
        self.by_serial.get(&batch).map(|known| known.user.as_str())
    }

    /// The batch has ended.
    pub(super) fn forget(&mut self, batch: BatchSerial) {
        self.by_serial.remove(&batch);
    }

    /// The batches were another coordinator's.
    pub(super) fn forget_all(&mut self) {
        self.by_serial.clear();
    }

    /// A session begins, and jobs of these batches wait.
    pub(super) fn session_begins(&mut self, waiting: &HashSet<BatchSerial>) {
        let mut too_many = self
            .by_serial
            .len()
            .saturating_sub(MAX_EARLIER + waiting.len());
        self.by_serial.retain(|batch, known| {
            if waiting.contains(batch) {
                return true;
            }
            known.context = None;
            let stays = too_many == 0;
            too_many = too_many.saturating_sub(1);
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mezcal_common::model::ids::BatchId;

    #[test]
    fn of_earlier_sessions_there_is_what_waits_and_a_bounded_memory_of_users() {
        let mut batches = Batches::default();
        let context = BatchContext::new(BatchId(uuid::Uuid::nil()), "/".into(), 0o22);
        let many = MAX_EARLIER as u32 + 5;
        for batch in 1..=many {
            assert!(batches.learn(BatchSerial(batch), context.clone(), format!("user{batch}")));
        }
        batches.session_begins(&HashSet::from([BatchSerial(1)]));
        assert_eq!(batches.by_serial.len(), MAX_EARLIER + 1);
        assert_eq!(
            batches
                .by_serial
                .values()
                .filter(|known| known.context.is_some())
                .count(),
            1
        );
        assert_eq!(batches.context(BatchSerial(1)), Some((&context, "user1")));
        assert_eq!(batches.owner(BatchSerial(2)), None);
        assert_eq!(
            batches.owner(BatchSerial(many)),
            Some(&*format!("user{many}"))
        );
        assert!(
            batches.learn(BatchSerial(many), context.clone(), format!("user{many}")),
            "its context was forgotten"
        );
        assert!(!batches.learn(BatchSerial(many), context, format!("user{many}")));
    }
}
