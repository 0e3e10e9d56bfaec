//! Waiting jobs by priority, batch and set of hosts, with an index by host name.
//!
//! Taking the best job for a host looks at the first queue of each of its names and the first queue without hosts: the cost does not
//! grow with the number of jobs, hosts or sets.

use mezcal_common::ids::{BatchSerial, JobNumber};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// Jobs that wait for the same thing. The order is the order of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct QueueKey {
    priority: Reverse<i32>,
    pub(super) batch: BatchSerial,
    /// Index into the batch's table of host sets; none: any host.
    pub(super) hosts: Option<u32>,
}

impl QueueKey {
    pub(super) fn new(priority: i32, batch: BatchSerial, hosts: Option<u32>) -> Self {
        Self { priority: Reverse(priority), batch, hosts }
    }
}

#[derive(Debug, Default)]
pub(super) struct Queues {
    queues: BTreeMap<QueueKey, Queue>,
    anywhere: BTreeSet<QueueKey>,
    by_name: HashMap<Arc<str>, BTreeSet<QueueKey>>,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<JobNumber>,
    names: Arc<[Arc<str>]>,
}

impl Queues {
    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Appends a job; `set` are the hosts that `key` stands for. True if nothing waited under this key before.
    pub(super) fn push(&mut self, key: QueueKey, job: JobNumber, set: Option<&[Arc<str>]>) -> bool {
        let queue = self.queues.entry(key).or_insert_with(|| match set {
            Some(names) => {
                for name in names {
                    self.by_name.entry(name.clone()).or_default().insert(key);
                }
                Queue { jobs: VecDeque::new(), names: names.into() }
            }
            None => {
                self.anywhere.insert(key);
                Queue::default()
            }
        });
        queue.jobs.push_back(job);
        queue.jobs.len() == 1
    }

    /// The best job for a host with these names: highest priority, then the oldest batch, then jobs that only some hosts may run.
    pub(super) fn pop(&mut self, names: &[Arc<str>]) -> Option<(QueueKey, JobNumber)> {
        let own = names.iter().filter_map(|name| self.by_name.get(name)?.first());
        let key = *own.chain(self.anywhere.first()).min_by_key(|k| (k.priority, k.batch, k.hosts.is_none(), k.hosts))?;
        let queue = self.queues.get_mut(&key)?;
        let job = queue.jobs.pop_front()?;
        if queue.jobs.is_empty() {
            self.remove(key);
        }
        Some((key, job))
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

    /// Queues that name hosts, with their lengths.
    pub(super) fn with_hosts(&self) -> impl Iterator<Item = (QueueKey, usize)> {
        self.queues.iter().filter(|(key, _)| key.hosts.is_some()).map(|(key, queue)| (*key, queue.jobs.len()))
    }

    fn remove(&mut self, key: QueueKey) -> Option<Queue> {
        let queue = self.queues.remove(&key)?;
        if key.hosts.is_none() {
            self.anywhere.remove(&key);
        }
        for name in queue.names.iter() {
            if let Some(keys) = self.by_name.get_mut(name) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.by_name.remove(name);
                }
            }
        }
        Some(queue)
    }
}
