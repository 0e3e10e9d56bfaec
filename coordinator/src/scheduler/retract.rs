//! Taking back jobs that were sent in advance: a job must not wait behind a long one on a full host
//! while another host has an idle slot for it.
//!
//! An agent gives back the jobs that it has not started and keeps the others, so asking too often
//! costs messages and nothing else.

use super::queues::QueueKey;
use super::{Host, Job, Scheduler, Timer};
use mezcal_common::message::agent::ToAgent;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::AttemptId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long a slot is idle before jobs are taken back for it: short jobs that were sent in advance
/// have ended by then.
const FIRST: Duration = Duration::from_millis(50);
/// The time between two requests to the same hosts.
const AGAIN: Duration = Duration::from_secs(1);

impl Scheduler {
    /// Some host got fewer jobs than it has idle slots: sets the timer if others have too many.
    pub(super) fn look_for_prefetched(&mut self, now: BootInstant) {
        if self.hosts.has_overfull() && self.hosts.has_idle() {
            self.timers.begin(Timer::Retract, now + FIRST);
        }
    }

    /// Takes back jobs for the idle slots that have found nothing else.
    pub(super) fn retract_prefetched(&mut self, now: BootInstant) {
        let hosts = self.hosts.idle();
        let free = hosts.filter(|h| h.credit.is_left() && h.is_willing() && h.kept.is_none());
        let free: Vec<&Host> = free.collect();
        let mut idle: u64 = free.iter().map(|h| h.credit.idle() as u64).sum();
        if idle == 0 {
            return;
        }
        let mut has_a_slot: BTreeMap<QueueKey, bool> = BTreeMap::new();
        let mut taken: Vec<(Arc<str>, Vec<AttemptId>)> = Vec::new();
        for host in self.hosts.overfull() {
            let mut over = host
                .attempts
                .slots()
                .saturating_sub(u64::from(host.slots()))
                .min(idle);
            // The newest attempts are the last ones in its queue.
            let unstarted = host.attempts.unstarted().rev();
            let useful = unstarted.filter(|(attempt, _)| {
                self.batches
                    .job(attempt.key)
                    .is_some_and(|Job { queue, .. }| {
                        *has_a_slot.entry(*queue).or_insert_with(|| {
                            free.iter()
                                .any(|host| self.has_a_slot_for(host, *queue, now))
                        })
                    })
            });
            let attempts = useful.map_while(|(attempt, on)| {
                over = over.checked_sub(u64::from(on.slots))?;
                idle -= u64::from(on.slots);
                Some(attempt)
            });
            taken.push((host.name.clone(), attempts.collect()));
            if idle == 0 {
                break;
            }
        }
        for (name, attempts) in taken {
            self.retract(&name, attempts);
        }
        if self.hosts.has_overfull() {
            self.timers.set(Timer::Retract, now + AGAIN);
        }
    }

    /// Asks a host for these attempts; it gives back those that it has not started.
    pub(super) fn retract(&mut self, name: &str, attempts: Vec<AttemptId>) {
        if !attempts.is_empty() {
            self.tell_agent(name, ToAgent::Retract { attempts });
        }
    }

    /// Asks a host for these of the attempts that it has not started, as far as is known.
    pub(super) fn retract_unstarted(&mut self, name: &str, which: impl Fn(AttemptId) -> bool) {
        let host = self.hosts.get(name).into_iter();
        let unstarted = host.flat_map(|host| host.attempts.unstarted());
        let attempts = unstarted.map(|(attempt, _)| attempt);
        let attempts = attempts.filter(|attempt| which(*attempt)).collect();
        self.retract(name, attempts);
    }

    /// Whether a host with idle slots would get a job of this queue. Otherwise the job would only
    /// go back to where it waits now.
    fn has_a_slot_for(&self, host: &Host, key: QueueKey, now: BootInstant) -> bool {
        let required = self.batches.set_of(key);
        let preferred = self.batches.preferred_by(key).unwrap_or_default();
        let allows = |host: &Host| required.as_ref().is_none_or(|set| self.is_among(host, set));
        let mut better = preferred.iter().filter_map(|name| self.serving_under(name));
        let patient = host
            .credit
            .longest_idle()
            .is_some_and(|since| since + self.locality_wait <= now);
        self.could_take(host, key, now)
            && allows(host)
            && (patient || self.is_among(host, &preferred) || !better.any(allows))
    }
}
