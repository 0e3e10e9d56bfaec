//! Jobs that take several slots: where narrower ones would keep a host full for ever, its idle slots are kept for a wide one, for a while.
//!
//! A host keeps slots when a job that takes more than are idle there is next by the order of service. Of the hosts, only as many keep slots
//! for a queue as it has jobs. After [`KEEP`] a host gives up and rests for as long: so at worst half of the time its idle slots wait.

use super::queues::QueueKey;
use super::{Host, Scheduler};
use mezcal_common::clock::BootInstant;
use mezcal_common::ids::AttemptId;
use mezcal_common::wire::agent::ToAgent;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How long a host keeps idle slots for a job that takes several: worth it while jobs are short, and little of the length of long ones.
pub(super) const KEEP: Duration = Duration::from_secs(60);

/// Idle slots that a host keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    /// For one of these jobs.
    pub(super) key: QueueKey,
    until: BootInstant,
}

impl Scheduler {
    /// The queue that a host serves next, if it gets anything now.
    pub(super) fn next_queue(&mut self, name: &Arc<str>, names: &[Arc<str>], now: BootInstant) -> Option<QueueKey> {
        let host = self.hosts.get(name)?;
        let room = host.credit.saturating_sub(host.sent);
        if room == 0 {
            return None;
        }
        let idle = host.idle_since.len() as u64;
        let fits = |key: QueueKey| key.slots() == 1 || u64::from(key.slots()) <= idle.min(room);
        let steal = host.idle_since.front().is_some_and(|since| *since + self.locality_wait <= now);
        let widest_now = idle.min(room).clamp(1, u64::from(u16::MAX)) as u16;
        let running = |user: u32| self.serves(host, user).then(|| self.running[user as usize]);
        let best = self.queues.best(names, steal, host.hello.slots, running)?;
        if fits(best) {
            return Some(best);
        }
        if self.keeps(name, best, now) {
            return None;
        }
        let host = self.hosts.get(name)?;
        self.queues.best(names, steal, widest_now, |user| self.serves(host, user).then(|| self.running[user as usize]))
    }

    /// P4, re-derived: a host whose slot has been idle for longer than `wait`, though it has asked for jobs and one is waiting that it could
    /// run.
    pub fn idle_in_vain(&self, wait: Duration, now: BootInstant) -> Option<String> {
        let idle = |host: &&Host| {
            let willing = host.known && host.record.until.is_none() && host.drained.is_none() && host.kept.is_none();
            willing && host.credit > host.sent && host.idle_since.front().is_some_and(|since| *since + wait < now)
        };
        self.hosts.values().filter(idle).find_map(|host| {
            let room = (host.credit - host.sent).min(host.idle_since.len() as u64).min(u64::from(u16::MAX)) as u16;
            let key = self.queues.best(&self.names_of(host), true, room, |user| self.serves(host, user).then_some(0))?;
            Some(format!("{} has an idle slot, and {key:?} waits", host.name))
        })
    }

    /// Whether a host leaves its slots idle for the sake of these jobs.
    fn keeps(&mut self, name: &Arc<str>, key: QueueKey, now: BootInstant) -> bool {
        let jobs = self.queues.len_of(key);
        let Some(host) = self.hosts.get_mut(name) else { return false };
        if let Some(kept) = host.kept {
            if kept.until > now && kept.key == key {
                return true;
            }
            if kept.until <= now {
                host.no_more_before = Some(now + KEEP);
            }
            self.keep_nothing(name);
        }
        let Some(host) = self.hosts.get_mut(name) else { return false };
        let keepers = self.keepers.get(&key).map_or(0, BTreeSet::len);
        if keepers >= jobs || host.no_more_before.is_some_and(|at| at > now) {
            return false;
        }
        let index = host.index;
        host.kept = Some(Kept { key, until: now + KEEP });
        self.keepers.entry(key).or_default().insert(index);
        self.keep_until.insert((now + KEEP, index));
        // What was handed out in advance would take the slots that fall idle.
        let unstarted = host.attempts.iter().filter(|(_, on)| !on.started).map(|(attempt, _)| *attempt);
        let attempts: Vec<AttemptId> = unstarted.collect();
        if host.is_overfull() && !attempts.is_empty() {
            self.tell_agent(name, ToAgent::Retract { attempts });
        }
        true
    }

    /// A host uses its slots for whatever comes.
    pub(super) fn keep_nothing(&mut self, name: &str) {
        let Some(host) = self.hosts.get_mut(name) else { return };
        let (index, Some(Kept { key, until })) = (host.index, host.kept.take()) else { return };
        self.keep_until.remove(&(until, index));
        if let Some(hosts) = self.keepers.get_mut(&key) {
            hosts.remove(&index);
            if hosts.is_empty() {
                self.keepers.remove(&key);
            }
        }
    }

    /// These jobs do not wait any more.
    pub(super) fn nothing_is_kept_for(&mut self, key: QueueKey) {
        for index in self.keepers.get(&key).cloned().unwrap_or_default() {
            if let Some(name) = self.name_at(index) {
                self.keep_nothing(&name);
                self.unserved = true;
            }
        }
    }

    /// One of these jobs has been placed: one host fewer has to keep slots for them.
    pub(super) fn wide_is_placed(&mut self, name: &str, key: QueueKey) {
        if self.hosts.get(name).is_some_and(|host| host.kept.is_some_and(|kept| kept.key == key)) {
            self.keep_nothing(name);
        }
        let Some(hosts) = self.keepers.get(&key) else { return };
        if hosts.len() > self.queues.len_of(key)
            && let Some(name) = hosts.last().and_then(|index| self.name_at(*index))
        {
            self.keep_nothing(&name);
            self.unserved = true;
        }
    }

    /// Hosts that have kept slots for long enough give them to others.
    pub(super) fn give_up_keeping(&mut self, now: BootInstant) {
        while let Some((at, index)) = self.keep_until.first().copied().filter(|(at, _)| *at <= now) {
            self.keep_until.remove(&(at, index));
            if let Some(name) = self.name_at(index) {
                self.serve(&name, usize::MAX, now);
                self.keep_nothing(&name);
            }
        }
    }

    /// What a host keeps its idle slots for, in words.
    pub(super) fn kept_in_words(&self, host: &Host) -> Option<String> {
        let kept = host.kept?;
        let batch = self.batches.get(&kept.key.batch)?;
        Some(format!("its idle slots are kept for a job of batch {} that takes {}", batch.id, kept.key.slots()))
    }
}
