//! Jobs that take several slots: where narrower ones would keep a host full for ever, its idle
//! slots are kept for a wide one, for a while.
//!
//! A host keeps slots when a job that takes more than are idle there is next by the order of
//! service. Only as many hosts keep slots for a queue as it has jobs. A host that has kept slots in
//! vain gives them to others, and rests for as long as it has kept them; the next time slots are
//! kept for that queue twice as long, counted from the end of the rest. So a host's idle slots wait
//! for at most half of the time for which a wide job waits in vain.
//!
//! Hence a bound. Let no job that runs there take longer than T. The first slot falls idle within
//! T. Each time in vain was shorter than T, since otherwise all jobs that ran when it began would
//! have ended: with [`KEEP`] doubling, these times and their rests together are shorter than 4 T.
//! The last one takes T at most. So a wide job that is next starts within [`WIDE_WAIT`] × T, on any
//! host that fits and is there; where T is below [`KEEP`], within 2 T.

use super::queues::{Next, QueueKey};
use super::{Host, Mistake, Scheduler, Timer};
use mezcal_common::model::clock::BootInstant;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How long a host keeps idle slots for a wide job, the first time: worth it while jobs are short,
/// and little of the length of long ones.
pub(super) const KEEP: Duration = Duration::from_secs(60);
/// A wide job that is next by the order of service starts within so many times the longest run of
/// the jobs before it.
pub const WIDE_WAIT: u32 = 6;
/// How often the time for which slots are kept doubles at most: it is then two years, longer than
/// any job runs.
const MAX_DOUBLINGS: u32 = 20;

/// Idle slots that a host keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    /// The queue whose jobs the slots are kept for.
    pub(super) key: QueueKey,
    /// For how long they are kept at most.
    length: Duration,
    until: BootInstant,
}

/// Idle slots that hosts keep.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    /// Hosts that keep slots, by the queue that they keep them for.
    pub(super) hosts: BTreeMap<QueueKey, BTreeSet<u32>>,
    /// How often slots were kept in vain for a queue that still has jobs.
    in_vain: BTreeMap<QueueKey, u32>,
}

impl Keeping {
    /// How long slots are kept for these jobs the next time.
    fn length(&self, key: QueueKey) -> Duration {
        let doublings = self
            .in_vain
            .get(&key)
            .copied()
            .unwrap_or(0)
            .min(MAX_DOUBLINGS);
        KEEP * 2u32.pow(doublings)
    }
}

impl Scheduler {
    /// The queue that a host serves next, if it gets anything now.
    pub(super) fn next_queue(
        &mut self,
        name: &Arc<str>,
        names: &[Arc<str>],
        now: BootInstant,
    ) -> Option<Next> {
        let host = self.hosts.get(name)?;
        if !host.credit.is_left() {
            return None;
        }
        let steal = host
            .credit
            .longest_idle()
            .is_some_and(|since| since + self.locality_wait <= now);
        let widest_now = host.room().max(1);
        let running = |user: u32| self.serves(host, user).then(|| self.users.slots(user));
        let barred = self.barred(host, now);
        let best = self
            .queues
            .best(names, steal, host.slots(), &barred, running)?;
        if host.has_asked_for(best.key.slots()) {
            return Some(best);
        }
        if self.keeps(name, best.key, now) {
            return None;
        }
        let host = self.hosts.get(name)?;
        self.queues.best(names, steal, widest_now, &barred, |user| {
            self.serves(host, user).then(|| self.users.slots(user))
        })
    }

    /// P4, computed anew: a host whose slot has been idle for longer than `wait`, although it has
    /// asked for jobs and one is waiting that it could run.
    pub fn idle_in_vain(&self, wait: Duration, now: BootInstant) -> Option<String> {
        let idle = |host: &&Host| {
            host.is_willing()
                && host.kept.is_none()
                && host.credit.is_left()
                && host
                    .credit
                    .longest_idle()
                    .is_some_and(|since| since + wait < now)
        };
        self.hosts.values().filter(idle).find_map(|host| {
            let widest = host.room().max(1);
            let next = self.queues.best(
                &self.names_of(host),
                true,
                widest,
                &self.barred(host, now),
                |user| self.serves(host, user).then_some(0),
            )?;
            Some(format!(
                "{} has an idle slot, and {:?} waits",
                host.name, next.key
            ))
        })
    }

    /// Whether a host leaves its slots idle for these jobs.
    fn keeps(&mut self, name: &Arc<str>, key: QueueKey, now: BootInstant) -> bool {
        let jobs = self.queues.len_of(key);
        let Some(host) = self.hosts.get(name) else {
            return false;
        };
        match host.kept {
            Some(kept) if kept.until <= now => self.has_kept_in_vain(name, now),
            Some(kept) if kept.key == key => return true,
            Some(_) => self.keep_nothing(name),
            None => {}
        }
        let length = self.keeping.length(key);
        let Some(host) = self.hosts.get_mut(name) else {
            return false;
        };
        let keepers = self.keeping.hosts.get(&key).map_or(0, BTreeSet::len);
        if keepers >= jobs || host.no_more_before.is_some_and(|at| at > now) {
            return false;
        }
        let (index, until) = (host.index, now + length);
        host.kept = Some(Kept { key, length, until });
        self.keeping.hosts.entry(key).or_default().insert(index);
        self.timers.set(Timer::Kept(index), until);
        if host.is_overfull() {
            // Jobs that were sent in advance would take the slots that fall idle.
            self.retract_unstarted(name, |_| true);
        }
        true
    }

    /// Lets a host use its slots for any job.
    pub(super) fn keep_nothing(&mut self, name: &str) {
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        let (index, Some(Kept { key, .. })) = (host.index, host.kept.take()) else {
            return;
        };
        self.timers.clear(Timer::Kept(index));
        if let Some(hosts) = self.keeping.hosts.get_mut(&key) {
            hosts.remove(&index);
            if hosts.is_empty() {
                self.keeping.hosts.remove(&key);
            }
        }
    }

    /// A host has kept slots for as long as it may: it rests for as long, and the next host that
    /// keeps slots for these jobs does so for longer.
    fn has_kept_in_vain(&mut self, name: &str, now: BootInstant) {
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        let (index, Some(Kept { key, length, .. })) = (host.index, host.kept) else {
            return;
        };
        host.no_more_before = Some(now + length);
        self.timers.set(Timer::Rested(index), now + length);
        if self.mistake != Some(Mistake::KeepsNoLonger) {
            *self.keeping.in_vain.entry(key).or_default() += 1;
        }
        self.keep_nothing(name);
    }

    /// None of these jobs waits any more.
    pub(super) fn nothing_is_kept_for(&mut self, key: QueueKey) {
        self.keeping.in_vain.remove(&key);
        for index in self.keeping.hosts.get(&key).cloned().unwrap_or_default() {
            if let Some(name) = self.hosts.name_at(index) {
                self.keep_nothing(&name);
                self.unserved = true;
            }
        }
    }

    /// One of these jobs has been placed: one host fewer has to keep slots for them.
    pub(super) fn wide_is_placed(&mut self, name: &str, key: QueueKey) {
        if self
            .hosts
            .get(name)
            .is_some_and(|host| host.kept.is_some_and(|kept| kept.key == key))
        {
            self.keep_nothing(name);
        }
        let Some(hosts) = self.keeping.hosts.get(&key) else {
            return;
        };
        if hosts.len() > self.queues.len_of(key)
            && let Some(name) = hosts.last().and_then(|index| self.hosts.name_at(*index))
        {
            self.keep_nothing(&name);
            self.unserved = true;
        }
    }

    /// Lets a host that has kept slots for long enough give them to others.
    pub(super) fn keep_no_longer(&mut self, index: u32, now: BootInstant) {
        if let Some(name) = self.hosts.name_at(index) {
            self.has_kept_in_vain(&name, now);
            self.serve(&name, usize::MAX, now);
        }
    }

    /// A host that has rested begins to keep slots before one falls idle: the time counts from then
    /// on.
    pub(super) fn keep_after_a_rest(&mut self, index: u32, now: BootInstant) {
        let Some(host) = self
            .hosts
            .at(index)
            .filter(|host| host.is_willing() && host.kept.is_none())
        else {
            return;
        };
        let running = |user: u32| self.serves(host, user).then(|| self.users.slots(user));
        let next = self
            .queues
            .best(
                &self.names_of(host),
                true,
                host.slots(),
                &self.barred(host, now),
                running,
            )
            .map(|next| next.key);
        if let Some(key) = next.filter(|key| key.slots() > 1 && key.slots() > host.room()) {
            let name = host.name.clone();
            self.keeps(&name, key, now);
        }
    }

    /// A phrase that says which job a host keeps its idle slots for.
    pub(super) fn kept_in_words(&self, host: &Host) -> Option<String> {
        let kept = host.kept?;
        let batch = self.batches.get(&kept.key.batch)?;
        Some(format!(
            "its idle slots are kept for a job of batch {} that takes {}",
            batch.id,
            kept.key.slots()
        ))
    }
}
