//! How a supervisor begins, and the things that it leaves to the one that comes next in the same
//! process: the attempts that wait, and the ends that no engine can repeat.

use super::Supervisor;
use super::batches::Batches;
use super::pace::Pace;
use super::programs::{Programs, Replacing};
use super::queue::Queue;
use super::reports::{Entry, Reports};
use super::sets::Set;
use super::shortage::Shortage;
use super::slot::Engine;
use mezcal_common::message::agent::{Load, Report};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, StoreId};
use mezcal_common::model::outcome::Containment;
use std::collections::{HashMap, HashSet, VecDeque};

/// The things that a supervisor leaves to its successor in the same process.
#[derive(Debug, Default)]
pub struct Carried {
    /// Attempts that wait go on waiting, for as long as their lease allows.
    queue: Queue,
    batches: Batches,
    store: Option<StoreId>,
    lease_until: Option<BootInstant>,
    /// Ends that no engine can repeat, each with the user if that is known.
    ends: Vec<(AttemptId, Report, Option<String>)>,
    /// Users whose engines have been replaced by those of another version.
    replaced: Vec<String>,
}

impl Supervisor {
    /// Begins with the things that its predecessor has left to it.
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
            .filter(|set| replaced.iter().any(|user| user == set.user()))
        {
            set.set_replacing(Replacing::Done);
        }
        (self.queue, self.batches, self.store, self.lease_until) =
            (queue, batches, store, lease_until);
        for (attempt, report, user) in ends {
            let set = user.and_then(|user| self.set_of(&user));
            self.reports.push(attempt, report, set, false);
        }
        self
    }

    /// The things with which its successor goes on. No waiting attempt starts here any more.
    pub fn leave(&mut self) -> Carried {
        // Engines and keepers repeat the other ends.
        let own = |report: &Report| {
            matches!(
                report,
                Report::Returned | Report::Finished { engine: None, .. }
            )
        };
        let user = |entry: &Entry| entry.set().map(|set| self.sets[set].user().to_owned());
        let left = self.reports.iter().filter(|entry| own(entry.report()));
        let ends = left
            .map(|entry| (entry.attempt(), entry.report().clone(), user(entry)))
            .collect();
        let (queue, batches) = (
            std::mem::take(&mut self.queue),
            std::mem::take(&mut self.batches),
        );
        let replaced = self
            .sets
            .iter()
            .filter(|set| matches!(set.replacing(), Replacing::Ending { .. } | Replacing::Done));
        let replaced = replaced.map(|set| set.user().to_owned()).collect();
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

impl Supervisor {
    /// A supervisor of `slots` engines, none of which has been heard yet; with `users`, of `slots`
    /// engines for each of them.
    pub fn new(slots: u16, users: Option<Vec<String>>) -> Self {
        let slots = usize::from(slots);
        let shared = users.is_some();
        let sets: Vec<Set> = users
            .unwrap_or_else(|| vec![String::new()])
            .into_iter()
            .map(Set::new)
            .collect();
        Self {
            slots,
            shared,
            engines: (0..slots * sets.len()).map(|_| Engine::new()).collect(),
            sets,
            queue: Queue::default(),
            batches: Batches::default(),
            reports: Reports::new(),
            acknowledge_at: None,
            session: None,
            store: None,
            lease_until: None,
            pace: Pace::default(),
            load: Load::default(),
            clock_offset: None,
            containment: Containment::Subreaper,
            shortage: Shortage::default(),
            programs: Programs::default(),
            evicted: HashSet::new(),
            ends: HashMap::new(),
            stopping: false,
            leaving: false,
            effects: VecDeque::new(),
        }
    }
}
