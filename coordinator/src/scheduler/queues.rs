//! Waiting jobs by user, priority, batch, required hosts and preferred hosts, with an index by host name.
//!
//! ```text
//!  pass 1   jobs that prefer this host            `local`, by name
//!  pass 2   jobs that prefer none that is there   `free`: anywhere, or by required name
//!  pass 3   jobs that prefer another host         `elsewhere`: the same; only for slots that have been idle for long
//! ```
//!
//! Taking the best job for a host looks, for each user who has jobs waiting, at the first queue of each of its names and of the whole: the
//! cost does not grow with the number of jobs, hosts or sets. Of the jobs with the highest priority it takes one of the user who has least
//! running. A host that comes or goes touches the queues that prefer it, and no others.

use mezcal_common::ids::{BatchSerial, JobNumber};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

type Names = Arc<[Arc<str>]>;

/// Jobs that wait for the same thing. The order is the order of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct QueueKey {
    priority: Reverse<i32>,
    /// Whose it is.
    pub(super) user: u32,
    pub(super) batch: BatchSerial,
    /// Index into the batch's table of host sets; none: any host.
    pub(super) hosts: Option<u32>,
    /// The same for the hosts that it prefers, best first.
    pub(super) prefer: Option<u32>,
}

impl QueueKey {
    pub(super) fn new(priority: i32, user: u32, batch: BatchSerial, hosts: Option<u32>, prefer: Option<u32>) -> Self {
        Self { priority: Reverse(priority), user, batch, hosts, prefer }
    }
}

/// A queue among those that prefer one host: how good the host is for it comes before its age.
type Ranked = (Reverse<i32>, usize, QueueKey);

#[derive(Debug, Default)]
pub(super) struct Queues {
    /// Only users who have jobs waiting.
    users: BTreeMap<u32, OfUser>,
    /// Names of the hosts that are connected.
    there: HashSet<Arc<str>>,
}

/// The queues of one user.
#[derive(Debug, Default)]
struct OfUser {
    queues: BTreeMap<QueueKey, Queue>,
    local: HashMap<Arc<str>, BTreeSet<Ranked>>,
    free: Index,
    elsewhere: Index,
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
        self.users.is_empty()
    }

    /// Whether jobs wait that prefer a host that is connected.
    pub(super) fn any_elsewhere(&self) -> bool {
        self.users.values().any(|user| !user.elsewhere.anywhere.is_empty() || !user.elsewhere.by_name.is_empty())
    }

    /// Whether a queue prefers a host that is connected.
    pub(super) fn is_elsewhere(&self, key: QueueKey) -> bool {
        self.queue(key).is_some_and(|queue| queue.present > 0)
    }

    fn queue(&self, key: QueueKey) -> Option<&Queue> {
        self.users.get(&key.user)?.queues.get(&key)
    }

    /// Appends a job; the sets are those that `key` stands for. True if nothing waited under this key before.
    pub(super) fn push(&mut self, key: QueueKey, job: JobNumber, required: Option<Names>, prefer: Option<Names>) -> bool {
        let user = self.users.entry(key.user).or_default();
        if let Some(queue) = user.queues.get_mut(&key) {
            queue.jobs.push_back(job);
            return false;
        }
        let allowed = |name: &&Arc<str>| required.as_ref().is_none_or(|set| set.contains(*name));
        let preferred: Vec<Arc<str>> = prefer.iter().flat_map(|set| set.iter()).filter(allowed).cloned().collect();
        let present = preferred.iter().filter(|name| self.there.contains(*name)).count();
        user.insert(key, Queue { jobs: VecDeque::from([job]), required, preferred, present });
        true
    }

    /// The best job for a host with these names: highest priority, then of the user who has least `running`, then by pass, then the oldest
    /// batch. `steal`: the third pass, too.
    pub(super) fn pop(&mut self, names: &[Arc<str>], steal: bool, running: impl Fn(u32) -> u64) -> Option<(QueueKey, JobNumber)> {
        let best = self.users.iter().filter_map(|(user, queues)| {
            let (priority, pass, key) = queues.best(names, steal)?;
            Some((priority, running(*user), pass, key))
        });
        let (.., key) = best.min()?;
        let queue = self.users.get_mut(&key.user)?.queues.get_mut(&key)?;
        let job = queue.jobs.pop_front()?;
        if queue.jobs.is_empty() {
            self.remove(key);
        }
        Some((key, job))
    }

    /// These names are connected now, and no others. True if jobs may go anywhere now that could not before.
    pub(super) fn set_there(&mut self, there: HashSet<Arc<str>>) -> bool {
        let before = std::mem::replace(&mut self.there, there);
        let mut freed = false;
        for user in self.users.values_mut() {
            self.there.difference(&before).for_each(|name| user.comes(name));
            before.difference(&self.there).for_each(|name| freed |= user.goes(name));
        }
        freed
    }

    /// Empties a queue.
    pub(super) fn take_all(&mut self, key: QueueKey) -> VecDeque<JobNumber> {
        self.remove(key).map(|queue| queue.jobs).unwrap_or_default()
    }

    /// Takes single jobs out of a queue.
    pub(super) fn take(&mut self, key: QueueKey, jobs: &HashSet<JobNumber>) {
        let Some(queue) = self.users.get_mut(&key.user).and_then(|user| user.queues.get_mut(&key)) else { return };
        queue.jobs.retain(|job| !jobs.contains(job));
        if queue.jobs.is_empty() {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: QueueKey) -> Option<Queue> {
        let user = self.users.get_mut(&key.user)?;
        let queue = user.remove(key);
        if user.queues.is_empty() {
            self.users.remove(&key.user);
        }
        queue
    }

    /// The queues of a batch.
    pub(super) fn of_batch(&self, batch: BatchSerial) -> Vec<QueueKey> {
        let keys = self.users.values().flat_map(|user| user.queues.keys());
        keys.filter(|k| k.batch == batch).copied().collect()
    }

    /// Jobs in a queue.
    #[cfg(test)]
    pub(super) fn len_of(&self, key: QueueKey) -> usize {
        self.queue(key).map_or(0, |queue| queue.jobs.len())
    }

    /// Queues that require hosts, with their lengths.
    pub(super) fn with_hosts(&self) -> impl Iterator<Item = (QueueKey, usize)> {
        let queues = self.users.values().flat_map(|user| &user.queues);
        queues.filter(|(key, _)| key.hosts.is_some()).map(|(key, queue)| (*key, queue.jobs.len()))
    }

    /// Re-derives the indices from the queues.
    #[cfg(test)]
    pub(super) fn check(&self) {
        for (user, of_user) in &self.users {
            assert!(!of_user.queues.is_empty(), "user {user} has nothing");
            of_user.check(*user, &self.there);
        }
    }
}

impl OfUser {
    fn insert(&mut self, key: QueueKey, queue: Queue) {
        for (rank, name) in queue.preferred.iter().enumerate() {
            self.local.entry(name.clone()).or_default().insert((key.priority, rank, key));
        }
        self.index(queue.present).insert(key, queue.required.as_ref());
        self.queues.insert(key, queue);
    }

    fn index(&mut self, present: usize) -> &mut Index {
        if present == 0 { &mut self.free } else { &mut self.elsewhere }
    }

    /// The first queue for a host with these names, with its pass.
    fn best(&self, names: &[Arc<str>], steal: bool) -> Option<(Reverse<i32>, u8, QueueKey)> {
        let local = names.iter().filter_map(|name| self.local.get(name)?.first()).min().map(|(.., key)| (key.priority, 1, *key));
        let free = self.free.first(names).map(|key| (key.priority, 2, key));
        let other = self.elsewhere.first(names).filter(|_| steal).map(|key| (key.priority, 3, key));
        [local, free, other].into_iter().flatten().min()
    }

    fn preferring(&self, name: &Arc<str>) -> Vec<QueueKey> {
        self.local.get(name).into_iter().flatten().map(|(.., key)| *key).collect()
    }

    fn comes(&mut self, name: &Arc<str>) {
        for key in self.preferring(name) {
            self.change(key, |present| present + 1);
        }
    }

    /// True if queues are left that prefer nobody who is there.
    fn goes(&mut self, name: &Arc<str>) -> bool {
        let mut freed = false;
        for key in self.preferring(name) {
            freed |= self.change(key, |present| present - 1) == 0;
        }
        freed
    }

    fn change(&mut self, key: QueueKey, to: impl Fn(usize) -> usize) -> usize {
        let Some(queue) = self.queues.get_mut(&key) else { return 0 };
        let (was, is) = (queue.present, to(queue.present));
        queue.present = is;
        let required = queue.required.clone();
        if (was == 0) != (is == 0) {
            self.index(was).remove(key, required.as_ref());
            self.index(is).insert(key, required.as_ref());
        }
        is
    }

    fn remove(&mut self, key: QueueKey) -> Option<Queue> {
        let queue = self.queues.remove(&key)?;
        for (rank, name) in queue.preferred.iter().enumerate() {
            remove_from(&mut self.local, name, &(key.priority, rank, key));
        }
        self.index(queue.present).remove(key, queue.required.as_ref());
        Some(queue)
    }

    #[cfg(test)]
    fn check(&self, user: u32, there: &HashSet<Arc<str>>) {
        for (key, queue) in &self.queues {
            assert!(!queue.jobs.is_empty() && key.user == user, "{key:?}");
            assert_eq!(queue.present, queue.preferred.iter().filter(|name| there.contains(*name)).count(), "{key:?}");
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
