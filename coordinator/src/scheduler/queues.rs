//! Waiting jobs by user, width, priority, batch, required hosts and preferred hosts, with an index
//! by host name.
//!
//! ```text
//!  pass 1   jobs that prefer this host            `local`, by name
//!  pass 2   jobs that prefer none that is there   `free`: anywhere, or by required name
//!  pass 3   jobs that prefer another host         `elsewhere`: the same; only for slots that have been idle for long
//! ```
//!
//! To find the best job for a host, the first queue of each of its names and of the whole is
//! compared, for each user with waiting jobs and each number of slots that they take: the cost does
//! not grow with the number of jobs, hosts or sets. Of the jobs with the highest priority it is one
//! of the user who has the fewest running. The part of a priority above [`Queues::limit`] counts
//! only among the jobs of one user. A host that comes or goes touches only the queues that name it.

mod part;

use mezcal_common::message::client::Submission;
use mezcal_common::model::hosts;
use mezcal_common::model::ids::{BatchSerial, JobNumber};
use part::{Best, ELSEWHERE, Queue, Queued};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

/// Names of hosts, each once.
pub(super) type HostSet = Arc<[Arc<str>]>;

/// Jobs that wait for the same hosts. The order is the order of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct QueueKey {
    priority: Reverse<i32>,
    /// The number of the user whose jobs they are.
    pub(super) user: u32,
    pub(super) batch: BatchSerial,
    /// Jobs that take more slots go first: they are harder to place.
    wide: Reverse<u16>,
    /// Index into the batch's table of host sets; none: any host.
    pub(super) hosts: Option<u32>,
    /// Index of the preferred hosts in the same table, best first; none: no preference.
    pub(super) prefer: Option<u32>,
}

impl QueueKey {
    /// The queue for a job of this batch.
    pub(super) fn new(user: u32, batch: BatchSerial, job: &Submission) -> Self {
        let (priority, wide) = (Reverse(job.priority), Reverse(job.slots));
        Self {
            priority,
            user,
            batch,
            wide,
            hosts: job.hosts,
            prefer: job.prefer,
        }
    }

    /// How many slots each of its jobs takes.
    pub(super) fn slots(&self) -> u16 {
        self.wide.0
    }

    fn part(&self) -> Part {
        (self.user, self.wide.0)
    }
}

/// A user and a number of slots.
type Part = (u32, u16);

/// A queue in the order among users: the priority as far as it counts there, how many slots the
/// user has, the pass, and the user.
type First = (Reverse<i32>, u64, u8, u32, QueueKey);

/// The queue that a host serves next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Next {
    pub(super) key: QueueKey,
    /// Its jobs prefer other hosts that are connected.
    pub(super) elsewhere: bool,
}

#[derive(Debug, Default)]
pub(super) struct Queues {
    /// Only parts with waiting jobs.
    parts: BTreeMap<Part, Queued>,
    /// Names under which connected hosts serve.
    there: HashSet<Arc<str>>,
    /// The highest priority that counts before other users' jobs, and the users without this limit.
    most: i32,
    unlimited: HashSet<u32>,
    /// Queues that are new, gone, or whose required hosts have come or gone.
    changed: BTreeSet<QueueKey>,
}

/// Whether two names may belong to one host: they are the same, or one is the first label of the
/// other.
fn may_be_one(name: &str, other: &str) -> bool {
    let is_short_for = |a: &str, b: &str| hosts::short(b) == Some(a);
    name == other || is_short_for(name, other) || is_short_for(other, name)
}

impl Queues {
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Whether jobs wait that take several slots.
    pub(super) fn has_wide(&self) -> bool {
        self.parts.keys().any(|(_, slots)| *slots > 1)
    }

    /// Whether jobs wait that prefer a host that is connected.
    pub(super) fn any_elsewhere(&self) -> bool {
        self.parts
            .values()
            .any(|part| !part.elsewhere.anywhere.is_empty() || !part.elsewhere.by_name.is_empty())
    }

    /// The hosts that a queue's jobs prefer among those that they may use, best first.
    pub(super) fn preferred(&self, key: QueueKey) -> &[Arc<str>] {
        self.queue(key).map_or(&[], |queue| &queue.preferred)
    }

    /// Whether a queue prefers a host that is connected.
    pub(super) fn is_elsewhere(&self, key: QueueKey) -> bool {
        self.queue(key).is_some_and(|queue| queue.present > 0)
    }

    fn queue(&self, key: QueueKey) -> Option<&Queue> {
        self.parts.get(&key.part())?.queues.get(&key)
    }

    /// Appends a job; `required` and `prefer` are the sets that `key` stands for.
    pub(super) fn push(
        &mut self,
        key: QueueKey,
        job: JobNumber,
        required: Option<HostSet>,
        prefer: Option<HostSet>,
    ) {
        let part = self.parts.entry(key.part()).or_default();
        if let Some(queue) = part.queues.get_mut(&key) {
            queue.jobs.push_back(job);
            return;
        }
        // By either of its two names; whether the host may be used at all is checked when it asks.
        let allowed = |name: &&Arc<str>| {
            required
                .as_ref()
                .is_none_or(|set| set.iter().any(|other| may_be_one(name, other)))
        };
        let preferred: Vec<Arc<str>> = prefer
            .iter()
            .flat_map(|set| set.iter())
            .filter(allowed)
            .cloned()
            .collect();
        let present = preferred
            .iter()
            .filter(|name| self.there.contains(*name))
            .count();
        let required_present = required
            .iter()
            .flat_map(|set| set.iter())
            .filter(|name| self.there.contains(*name))
            .count();
        part.insert(
            key,
            Queue {
                jobs: VecDeque::from([job]),
                required,
                required_present,
                preferred,
                present,
            },
        );
        if key.hosts.is_some() || key.slots() > 1 {
            self.changed.insert(key);
        }
    }

    /// Priorities above `most` count no more than `most` before other users' jobs, except those of
    /// `unlimited` users.
    pub(super) fn limit(&mut self, most: i32, unlimited: HashSet<u32>) {
        (self.most, self.unlimited) = (most, unlimited);
    }

    /// The best queue for a host with these names: of each user the one with the highest priority,
    /// then by pass, then of the oldest batch; of these the one with the highest priority as far as
    /// that counts before others', then of the user who has the fewest `running`. Only queues whose
    /// jobs take at most `widest` slots, whose batch is not `barred` unless they require certain
    /// hosts, and for whose user `running` gives a count on that host. `steal`: the third pass,
    /// too.
    pub(super) fn best(
        &self,
        names: &[Arc<str>],
        steal: bool,
        widest: u16,
        barred: &[BatchSerial],
        running: impl Fn(u32) -> Option<u64>,
    ) -> Option<Next> {
        // The parts of one user follow each other.
        let (mut best, mut own) = (None, None::<(u32, u64, Best)>);
        for ((user, _), queues) in self.parts.iter().filter(|((_, slots), _)| *slots <= widest) {
            let (Some(running), Some(found)) = (running(*user), queues.best(names, steal, barred))
            else {
                continue;
            };
            match &mut own {
                Some((of, _, best)) if of == user => *best = (*best).min(found),
                own => best = self.better(best, own.replace((*user, running, found))),
            }
        }
        self.better(best, own).map(|(_, _, pass, _, key)| Next {
            key,
            elsewhere: pass == ELSEWHERE,
        })
    }

    /// The better one of two users' best queues.
    fn better(&self, best: Option<First>, other: Option<(u32, u64, Best)>) -> Option<First> {
        let other = other.map(|(user, running, (Reverse(priority), pass, key))| {
            let most = if self.unlimited.contains(&user) {
                i32::MAX
            } else {
                self.most
            };
            (Reverse(priority.min(most)), running, pass, user, key)
        });
        best.into_iter().chain(other).min()
    }

    /// Takes the first job of a queue.
    pub(super) fn pop(&mut self, key: QueueKey) -> Option<JobNumber> {
        let queue = self.parts.get_mut(&key.part())?.queues.get_mut(&key)?;
        let job = queue.jobs.pop_front()?;
        if queue.jobs.is_empty() {
            self.remove(key);
        }
        Some(job)
    }

    /// A host serves under this name from now on.
    pub(super) fn comes(&mut self, name: &Arc<str>) {
        if self.there.insert(name.clone()) {
            self.parts
                .values_mut()
                .for_each(|part| part.comes(name, &mut self.changed));
        }
    }

    /// No host serves under this name any more. True if more jobs may go anywhere now.
    pub(super) fn goes(&mut self, name: &Arc<str>) -> bool {
        let mut freed = false;
        if self.there.remove(name) {
            self.parts
                .values_mut()
                .for_each(|part| freed |= part.goes(name, &mut self.changed));
        }
        freed
    }

    /// Takes the queues for which it has to be checked whether any host may ever serve them.
    pub(super) fn take_changed(&mut self) -> BTreeSet<QueueKey> {
        std::mem::take(&mut self.changed)
    }

    /// Users who have jobs waiting.
    pub(super) fn users(&self) -> Vec<u32> {
        let mut users: Vec<u32> = self.parts.keys().map(|(user, _)| *user).collect();
        users.dedup();
        users
    }

    /// Has this queue checked.
    pub(super) fn look_at(&mut self, key: QueueKey) {
        self.changed.insert(key);
    }

    /// Has the queues checked that require this name: it belongs to another host now, or to none.
    pub(super) fn look_at_name(&mut self, name: &Arc<str>) {
        self.changed
            .extend(self.parts.values().flat_map(|part| part.requiring(name)));
    }

    /// Has all queues of this user checked: hosts that run their jobs have come or gone.
    pub(super) fn look_at_user(&mut self, user: u32) {
        let own = self.parts.iter().filter(|((of, _), _)| *of == user);
        self.changed
            .extend(own.flat_map(|(_, part)| part.queues.keys()));
    }

    /// Has the queues of jobs of several slots checked: hosts have come or gone.
    pub(super) fn look_at_wide(&mut self) {
        let wide = self.parts.iter().filter(|((_, slots), _)| *slots > 1);
        self.changed
            .extend(wide.flat_map(|(_, part)| part.queues.keys()));
    }

    /// Whether a queue requires hosts and none of them is connected.
    pub(super) fn is_homeless(&self, key: QueueKey) -> bool {
        self.queue(key)
            .is_some_and(|queue| queue.required.is_some() && queue.required_present == 0)
    }

    /// Empties a queue; returns its jobs.
    pub(super) fn take_all(&mut self, key: QueueKey) -> VecDeque<JobNumber> {
        self.remove(key).map(|queue| queue.jobs).unwrap_or_default()
    }

    /// Takes single jobs out of a queue.
    pub(super) fn take(&mut self, key: QueueKey, jobs: &HashSet<JobNumber>) {
        let Some(queue) = self
            .parts
            .get_mut(&key.part())
            .and_then(|part| part.queues.get_mut(&key))
        else {
            return;
        };
        queue.jobs.retain(|job| !jobs.contains(job));
        if queue.jobs.is_empty() {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: QueueKey) -> Option<Queue> {
        let part = self.parts.get_mut(&key.part())?;
        let queue = part.remove(key);
        if part.queues.is_empty() {
            self.parts.remove(&key.part());
        }
        if key.hosts.is_some() || key.slots() > 1 {
            self.changed.insert(key);
        }
        queue
    }

    /// The queues of a batch.
    pub(super) fn of_batch(&self, batch: BatchSerial) -> Vec<QueueKey> {
        let keys = self.parts.values().flat_map(|part| part.queues.keys());
        keys.filter(|k| k.batch == batch).copied().collect()
    }

    /// Jobs in a queue.
    pub(super) fn len_of(&self, key: QueueKey) -> usize {
        self.queue(key).map_or(0, |queue| queue.jobs.len())
    }

    /// Computes the indices anew from the queues and compares.
    #[cfg(test)]
    pub(super) fn check(&self) {
        for (part, queued) in &self.parts {
            assert!(!queued.queues.is_empty(), "{part:?} has nothing");
            queued.check(*part, &self.there);
        }
    }
}
