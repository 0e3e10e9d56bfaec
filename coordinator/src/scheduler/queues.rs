//! Waiting jobs by priority, batch, required hosts and preferred hosts, with an index by host name.
//!
//! ```text
//!  pass 1   jobs that prefer this host            `local`, by name
//!  pass 2   jobs that prefer none that is there   `free`: anywhere, or by required name
//!  pass 3   jobs that prefer another host         `elsewhere`: the same; only for slots that have been idle for long
//! ```
//!
//! Taking the best job for a host looks at the first queue of each of its names and of the whole: the cost does not grow with the number
//! of jobs, hosts or sets. A host that comes or goes touches the queues that prefer it, and no others.

use mezcal_common::ids::{BatchSerial, JobNumber};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

type Names = Arc<[Arc<str>]>;

/// Jobs that wait for the same thing. The order is the order of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct QueueKey {
    priority: Reverse<i32>,
    pub(super) batch: BatchSerial,
    /// Index into the batch's table of host sets; none: any host.
    pub(super) hosts: Option<u32>,
    /// The same for the hosts that it prefers, best first.
    pub(super) prefer: Option<u32>,
}

impl QueueKey {
    pub(super) fn new(priority: i32, batch: BatchSerial, hosts: Option<u32>, prefer: Option<u32>) -> Self {
        Self { priority: Reverse(priority), batch, hosts, prefer }
    }
}

/// A queue among those that prefer one host: how good the host is for it comes before its age.
type Ranked = (Reverse<i32>, usize, QueueKey);

#[derive(Debug, Default)]
pub(super) struct Queues {
    queues: BTreeMap<QueueKey, Queue>,
    local: HashMap<Arc<str>, BTreeSet<Ranked>>,
    free: Index,
    elsewhere: Index,
    /// Names of the hosts that are connected.
    there: HashSet<Arc<str>>,
}

#[derive(Debug)]
struct Queue {
    jobs: VecDeque<JobNumber>,
    /// None: any host.
    required: Option<Names>,
    /// What it prefers of those that it may use, best first.
    preferred: Vec<Arc<str>>,
    /// How many of those are connected.
    present: usize,
}

/// Queues by required host, and those that require none.
#[derive(Debug, Default)]
struct Index {
    anywhere: BTreeSet<QueueKey>,
    by_name: HashMap<Arc<str>, BTreeSet<QueueKey>>,
}

impl Index {
    fn insert(&mut self, key: QueueKey, required: Option<&Names>) {
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

    fn remove(&mut self, key: QueueKey, required: Option<&Names>) {
        let Some(names) = required else {
            self.anywhere.remove(&key);
            return;
        };
        for name in names.iter() {
            remove_from(&mut self.by_name, name, &key);
        }
    }

    /// The first one that a host with these names may serve; among equals, one that only some hosts may.
    fn first(&self, names: &[Arc<str>]) -> Option<QueueKey> {
        let own = names.iter().filter_map(|name| self.by_name.get(name)?.first());
        own.chain(self.anywhere.first()).min_by_key(|k| (k.priority, k.batch, k.hosts.is_none(), **k)).copied()
    }
}

/// Takes one entry out of the set of a name, and the set with its last entry.
fn remove_from<T: Ord>(sets: &mut HashMap<Arc<str>, BTreeSet<T>>, name: &Arc<str>, entry: &T) {
    if let Some(set) = sets.get_mut(name) {
        set.remove(entry);
        if set.is_empty() {
            sets.remove(name);
        }
    }
}

impl Queues {
    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Whether jobs wait that prefer a host that is connected.
    pub(super) fn any_elsewhere(&self) -> bool {
        !self.elsewhere.anywhere.is_empty() || !self.elsewhere.by_name.is_empty()
    }

    /// Whether a queue prefers a host that is connected.
    pub(super) fn is_elsewhere(&self, key: QueueKey) -> bool {
        self.queues.get(&key).is_some_and(|queue| queue.present > 0)
    }

    /// Appends a job; the sets are those that `key` stands for. True if nothing waited under this key before.
    pub(super) fn push(&mut self, key: QueueKey, job: JobNumber, required: Option<Names>, prefer: Option<Names>) -> bool {
        if let Some(queue) = self.queues.get_mut(&key) {
            queue.jobs.push_back(job);
            return false;
        }
        let allowed = |name: &&Arc<str>| required.as_ref().is_none_or(|set| set.contains(*name));
        let preferred: Vec<Arc<str>> = prefer.iter().flat_map(|set| set.iter()).filter(allowed).cloned().collect();
        for (rank, name) in preferred.iter().enumerate() {
            self.local.entry(name.clone()).or_default().insert((key.priority, rank, key));
        }
        let present = preferred.iter().filter(|name| self.there.contains(*name)).count();
        self.index(present).insert(key, required.as_ref());
        self.queues.insert(key, Queue { jobs: VecDeque::from([job]), required, preferred, present });
        true
    }

    fn index(&mut self, present: usize) -> &mut Index {
        if present == 0 { &mut self.free } else { &mut self.elsewhere }
    }

    /// The best job for a host with these names: highest priority, then by pass, then the oldest batch. `steal`: the third pass, too.
    pub(super) fn pop(&mut self, names: &[Arc<str>], steal: bool) -> Option<(QueueKey, JobNumber)> {
        let local = names.iter().filter_map(|name| self.local.get(name)?.first()).min().map(|(.., key)| (key.priority, 1, *key));
        let free = self.free.first(names).map(|key| (key.priority, 2, key));
        let other = self.elsewhere.first(names).filter(|_| steal).map(|key| (key.priority, 3, key));
        let (.., key) = [local, free, other].into_iter().flatten().min()?;
        let queue = self.queues.get_mut(&key)?;
        let job = queue.jobs.pop_front()?;
        if queue.jobs.is_empty() {
            self.remove(key);
        }
        Some((key, job))
    }

    /// These names are connected now, and no others. True if jobs may go anywhere now that could not before.
    pub(super) fn set_there(&mut self, there: HashSet<Arc<str>>) -> bool {
        let before = std::mem::replace(&mut self.there, there);
        let come: Vec<Arc<str>> = self.there.difference(&before).cloned().collect();
        let gone: Vec<Arc<str>> = before.difference(&self.there).cloned().collect();
        let mut freed = false;
        for (name, comes) in come.into_iter().map(|n| (n, true)).chain(gone.into_iter().map(|n| (n, false))) {
            let keys: Vec<QueueKey> = self.local.get(&name).into_iter().flatten().map(|(.., key)| *key).collect();
            for key in keys {
                let Some(queue) = self.queues.get_mut(&key) else { continue };
                let was = queue.present;
                queue.present = if comes { was + 1 } else { was - 1 };
                let (is, required) = (queue.present, queue.required.clone());
                freed |= is == 0;
                if (was == 0) != (is == 0) {
                    self.index(was).remove(key, required.as_ref());
                    self.index(is).insert(key, required.as_ref());
                }
            }
        }
        freed
    }

    /// Empties a queue.
    pub(super) fn take_all(&mut self, key: QueueKey) -> VecDeque<JobNumber> {
        self.remove(key).map(|queue| queue.jobs).unwrap_or_default()
    }

    /// Takes single jobs out of a queue.
    pub(super) fn take(&mut self, key: QueueKey, jobs: &HashSet<JobNumber>) {
        let Some(queue) = self.queues.get_mut(&key) else { return };
        queue.jobs.retain(|job| !jobs.contains(job));
        if queue.jobs.is_empty() {
            self.remove(key);
        }
    }

    /// The queues of a batch.
    pub(super) fn of_batch(&self, batch: BatchSerial) -> Vec<QueueKey> {
        self.queues.keys().filter(|k| k.batch == batch).copied().collect()
    }

    /// Jobs in a queue.
    #[cfg(test)]
    pub(super) fn len_of(&self, key: QueueKey) -> usize {
        self.queues.get(&key).map_or(0, |queue| queue.jobs.len())
    }

    /// Queues that require hosts, with their lengths.
    pub(super) fn with_hosts(&self) -> impl Iterator<Item = (QueueKey, usize)> {
        self.queues.iter().filter(|(key, _)| key.hosts.is_some()).map(|(key, queue)| (*key, queue.jobs.len()))
    }

    fn remove(&mut self, key: QueueKey) -> Option<Queue> {
        let queue = self.queues.remove(&key)?;
        for (rank, name) in queue.preferred.iter().enumerate() {
            remove_from(&mut self.local, name, &(key.priority, rank, key));
        }
        self.index(queue.present).remove(key, queue.required.as_ref());
        Some(queue)
    }

    /// Re-derives the indices from the queues.
    #[cfg(test)]
    pub(super) fn check(&self) {
        for (key, queue) in &self.queues {
            assert!(!queue.jobs.is_empty(), "{key:?} is empty");
            assert_eq!(queue.present, queue.preferred.iter().filter(|name| self.there.contains(*name)).count(), "{key:?}");
            let (index, other) = if queue.present == 0 { (&self.free, &self.elsewhere) } else { (&self.elsewhere, &self.free) };
            match &queue.required {
                None => assert!(index.anywhere.contains(key) && !other.anywhere.contains(key), "{key:?}"),
                Some(names) => names.iter().for_each(|name| {
                    assert!(
                        index.by_name[name].contains(key) && !other.by_name.get(name).is_some_and(|s| s.contains(key)),
                        "{key:?}"
                    );
                }),
            }
            for (rank, name) in queue.preferred.iter().enumerate() {
                assert!(self.local[name].contains(&(key.priority, rank, *key)), "{key:?} at {name}");
            }
        }
        let indexed: usize = self.local.values().map(BTreeSet::len).sum();
        assert_eq!(indexed, self.queues.values().map(|q| q.preferred.len()).sum::<usize>());
    }
}
