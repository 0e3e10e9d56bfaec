//! The queues of one user for jobs of one width, with their indices by host name.

use super::{HostSet, QueueKey};
use mezcal_common::model::ids::{BatchSerial, JobNumber};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

/// The passes, as [`super`] lists them.
const LOCAL: u8 = 1;
const FREE: u8 = 2;
pub(super) const ELSEWHERE: u8 = 3;

/// The best queue of a user: its priority, and by which pass it was found.
pub(super) type Best = (Reverse<i32>, u8, QueueKey);

/// A queue among those that prefer one host: that host's rank for it goes before its age.
type Ranked = (Reverse<i32>, usize, QueueKey);

/// The queues of one user for jobs of one width.
#[derive(Debug, Default)]
pub(super) struct Queued {
    pub(super) queues: BTreeMap<QueueKey, Queue>,
    pub(super) local: HashMap<Arc<str>, BTreeSet<Ranked>>,
    pub(super) free: Index,
    pub(super) elsewhere: Index,
}

#[derive(Debug)]
pub(super) struct Queue {
    pub(super) jobs: VecDeque<JobNumber>,
    /// None: any host.
    pub(super) required: Option<HostSet>,
    /// How many of the required hosts are connected.
    pub(super) required_present: usize,
    /// The hosts that it prefers among those that it may use, best first.
    pub(super) preferred: Vec<Arc<str>>,
    /// How many of the preferred hosts are connected.
    pub(super) present: usize,
}

/// Queues by required host, and those that require none.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) anywhere: BTreeSet<QueueKey>,
    pub(super) by_name: HashMap<Arc<str>, BTreeSet<QueueKey>>,
}

impl Index {
    pub(super) fn insert(&mut self, key: QueueKey, required: Option<&HostSet>) {
        match required {
            None => {
                self.anywhere.insert(key);
            }
            Some(names) => {
                for name in names.iter() {
                    self.by_name.entry(name.clone()).or_default().insert(key);
                }
            }
        }
    }

    pub(super) fn remove(&mut self, key: QueueKey, required: Option<&HostSet>) {
        let Some(names) = required else {
            self.anywhere.remove(&key);
            return;
        };
        for name in names.iter() {
            remove_from(&mut self.by_name, name, &key);
        }
    }

    /// The first queue that a host with these names may serve; among equals, a queue that requires
    /// hosts goes first.
    pub(super) fn first(&self, names: &[Arc<str>], barred: &[BatchSerial]) -> Option<QueueKey> {
        let own = names
            .iter()
            .filter_map(|name| self.by_name.get(name)?.first());
        own.chain(
            self.anywhere
                .iter()
                .find(|key| !barred.contains(&key.batch)),
        )
        .min_by_key(|k| (k.priority, k.batch, k.hosts.is_none(), **k))
        .copied()
    }
}

impl Queue {
    /// Whether its jobs may run on a host with these names.
    fn may_use(&self, names: &[Arc<str>]) -> bool {
        self.required
            .as_ref()
            .is_none_or(|set| names.iter().any(|name| set.contains(name)))
    }
}

/// Removes one entry from the set of a name, and the set with its last entry.
fn remove_from<T: Ord>(sets: &mut HashMap<Arc<str>, BTreeSet<T>>, name: &Arc<str>, entry: &T) {
    if let Some(set) = sets.get_mut(name) {
        set.remove(entry);
        if set.is_empty() {
            sets.remove(name);
        }
    }
}

impl Queued {
    pub(super) fn insert(&mut self, key: QueueKey, queue: Queue) {
        for (rank, name) in queue.preferred.iter().enumerate() {
            self.local
                .entry(name.clone())
                .or_default()
                .insert((key.priority, rank, key));
        }
        self.index(queue.present)
            .insert(key, queue.required.as_ref());
        self.queues.insert(key, queue);
    }

    pub(super) fn index(&mut self, present: usize) -> &mut Index {
        if present == 0 {
            &mut self.free
        } else {
            &mut self.elsewhere
        }
    }

    /// The first queue for a host with these names, with its pass.
    pub(super) fn best(
        &self,
        names: &[Arc<str>],
        steal: bool,
        barred: &[BatchSerial],
    ) -> Option<Best> {
        let allowed = |(.., key): &&Ranked| match key.hosts {
            None => !barred.contains(&key.batch),
            Some(_) => self
                .queues
                .get(key)
                .is_some_and(|queue| queue.may_use(names)),
        };
        let local = names
            .iter()
            .filter_map(|name| self.local.get(name)?.iter().find(allowed))
            .min();
        let local = local.map(|(.., key)| (key.priority, LOCAL, *key));
        let free = self
            .free
            .first(names, barred)
            .map(|key| (key.priority, FREE, key));
        let other = steal
            .then(|| self.elsewhere.first(names, barred))
            .flatten()
            .map(|key| (key.priority, ELSEWHERE, key));
        [local, free, other].into_iter().flatten().min()
    }

    fn preferring(&self, name: &Arc<str>) -> Vec<QueueKey> {
        self.local
            .get(name)
            .into_iter()
            .flatten()
            .map(|(.., key)| *key)
            .collect()
    }

    pub(super) fn requiring(&self, name: &Arc<str>) -> Vec<QueueKey> {
        [&self.free, &self.elsewhere]
            .into_iter()
            .filter_map(|index| index.by_name.get(name))
            .flatten()
            .copied()
            .collect()
    }

    pub(super) fn comes(&mut self, name: &Arc<str>, changed: &mut BTreeSet<QueueKey>) {
        for key in self.requiring(name) {
            self.queues
                .get_mut(&key)
                .into_iter()
                .for_each(|queue| queue.required_present += 1);
            changed.insert(key);
        }
        for key in self.preferring(name) {
            self.change(key, |present| present + 1);
        }
    }

    /// True if a queue is left that prefers no connected host any more.
    pub(super) fn goes(&mut self, name: &Arc<str>, changed: &mut BTreeSet<QueueKey>) -> bool {
        for key in self.requiring(name) {
            self.queues
                .get_mut(&key)
                .into_iter()
                .for_each(|queue| queue.required_present -= 1);
            changed.insert(key);
        }
        let mut freed = false;
        for key in self.preferring(name) {
            freed |= self.change(key, |present| present - 1) == 0;
        }
        freed
    }

    fn change(&mut self, key: QueueKey, to: impl Fn(usize) -> usize) -> usize {
        let Some(queue) = self.queues.get_mut(&key) else {
            return 0;
        };
        let (was, is) = (queue.present, to(queue.present));
        queue.present = is;
        let required = queue.required.clone();
        if (was == 0) != (is == 0) {
            self.index(was).remove(key, required.as_ref());
            self.index(is).insert(key, required.as_ref());
        }
        is
    }

    pub(super) fn remove(&mut self, key: QueueKey) -> Option<Queue> {
        let queue = self.queues.remove(&key)?;
        for (rank, name) in queue.preferred.iter().enumerate() {
            remove_from(&mut self.local, name, &(key.priority, rank, key));
        }
        self.index(queue.present)
            .remove(key, queue.required.as_ref());
        Some(queue)
    }

    #[cfg(test)]
    pub(super) fn check(&self, part: super::Part, there: &std::collections::HashSet<Arc<str>>) {
        for (key, queue) in &self.queues {
            assert!(!queue.jobs.is_empty() && key.part() == part, "{key:?}");
            let required = queue.required.iter().flat_map(|set| set.iter());
            assert_eq!(
                queue.required_present,
                required.filter(|name| there.contains(*name)).count(),
                "{key:?}"
            );
            assert_eq!(
                queue.present,
                queue
                    .preferred
                    .iter()
                    .filter(|name| there.contains(*name))
                    .count(),
                "{key:?}"
            );
            let (index, other) = if queue.present == 0 {
                (&self.free, &self.elsewhere)
            } else {
                (&self.elsewhere, &self.free)
            };
            match &queue.required {
                None => assert!(
                    index.anywhere.contains(key) && !other.anywhere.contains(key),
                    "{key:?}"
                ),
                Some(names) => names.iter().for_each(|name| {
                    assert!(
                        index.by_name[name].contains(key)
                            && !other.by_name.get(name).is_some_and(|s| s.contains(key)),
                        "{key:?}"
                    );
                }),
            }
            for (rank, name) in queue.preferred.iter().enumerate() {
                assert!(
                    self.local[name].contains(&(key.priority, rank, *key)),
                    "{key:?} at {name}"
                );
            }
        }
        let indexed: usize = self.local.values().map(BTreeSet::len).sum();
        assert_eq!(
            indexed,
            self.queues
                .values()
                .map(|q| q.preferred.len())
                .sum::<usize>()
        );
    }
}
