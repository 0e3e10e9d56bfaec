//! What an agent leaves to the one that comes next in the same process: what waits, and the ends
//! that no engine can repeat.

use super::Supervisor;
use super::batches::Batches;
use super::programs::Replacing;
use super::queue::Queue;
use super::reports::Entry;
use mezcal_common::message::agent::Report;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, StoreId};

/// What a supervisor leaves to its successor in the same process.
#[derive(Debug, Default)]
pub struct Carried {
    /// What waits goes on waiting, for as long as its lease allows.
    queue: Queue,
    batches: Batches,
    store: Option<StoreId>,
    lease_until: Option<BootInstant>,
    /// Ends that no engine can repeat, each with the user if that is known.
    ends: Vec<(AttemptId, Report, Option<String>)>,
    /// Whose engines have been replaced by those of another version.
    replaced: Vec<String>,
}

impl Supervisor {
    /// Begins with what its predecessor has left to it.
    #[must_use]
    pub fn carrying(mut self, carried: Carried) -> Self {
        let Carried {
            queue,
            batches,
            store,
            lease_until,
            ends,
            replaced,
        } = carried;
        for set in self
            .sets
            .iter_mut()
            .filter(|set| replaced.contains(&set.user))
        {
            set.replacing = Replacing::Done;
        }
        (self.queue, self.batches, self.store, self.lease_until) =
            (queue, batches, store, lease_until);
        for (attempt, report, user) in ends {
            let set = user.and_then(|user| self.set_of(&user));
            self.push(attempt, report, set, false);
        }
        self
    }

    /// What its successor goes on with. Nothing that waits starts here any more.
    pub fn leave(&mut self) -> Carried {
        // Engines and keepers repeat the other ends.
        let own = |report: &Report| {
            matches!(
                report,
                Report::Returned | Report::Finished { engine: None, .. }
            )
        };
        let user = |entry: &Entry| entry.set.map(|set| self.sets[set].user.clone());
        let left = self
            .reports
            .iter()
            .filter(|entry| own(&entry.report.report));
        let ends = left
            .map(|entry| {
                (
                    entry.report.attempt,
                    entry.report.report.clone(),
                    user(entry),
                )
            })
            .collect();
        let (queue, batches) = (
            std::mem::take(&mut self.queue),
            std::mem::take(&mut self.batches),
        );
        let replaced = self
            .sets
            .iter()
            .filter(|set| matches!(set.replacing, Replacing::Ending { .. } | Replacing::Done));
        let replaced = replaced.map(|set| set.user.clone()).collect();
        Carried {
            queue,
            batches,
            store: self.store,
            lease_until: self.lease_until,
            ends,
            replaced,
        }
    }
}
