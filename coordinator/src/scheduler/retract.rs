//! Taking back what was handed out in advance: a job must not wait behind a long one on a full host while another host has an idle slot.
//!
//! An agent gives back what it has not started and leaves the rest alone, so asking too often costs messages and nothing else.

use super::Scheduler;
use mezcal_common::clock::BootInstant;
use mezcal_common::ids::AttemptId;
use mezcal_common::wire::agent::ToAgent;
use std::time::Duration;

/// A slot is idle for so long before work is looked for elsewhere: short jobs that were handed out in advance have ended by then.
const FIRST: Duration = Duration::from_millis(50);
/// Between two times that the same hosts are asked.
const AGAIN: Duration = Duration::from_secs(1);

impl Scheduler {
    /// A host has got less than it has idle slots: others may have more than they can run.
    pub(super) fn look_for_prefetched(&mut self, now: BootInstant) {
        if !self.overfull.is_empty() && !self.idle.is_empty() {
            self.retract_at.get_or_insert(now + FIRST);
        }
    }

    /// Takes back as much as there are idle slots that have found nothing else.
    pub(super) fn retract_prefetched(&mut self, now: BootInstant) {
        if self.retract_at.is_none_or(|at| at > now) {
            return;
        }
        self.retract_at = None;
        let hosts = self.idle.iter().filter_map(|(_, index)| self.host_at(*index));
        let free = hosts.filter(|h| h.credit > h.sent && h.record.until.is_none() && h.kept.is_none() && h.drained.is_none());
        let mut idle: u64 = free.map(|h| h.idle_since.len() as u64).sum();
        if idle == 0 {
            return;
        }
        for index in self.overfull.iter().copied().collect::<Vec<_>>() {
            let Some(host) = self.host_at(index) else { continue };
            let mut over = host.taken.saturating_sub(u64::from(host.hello.slots)).min(idle);
            // The newest ones are the last in its queue.
            let unstarted = host.attempts.iter().rev().filter(|(_, on)| !on.started);
            let taken = unstarted.map_while(|(attempt, on)| {
                over = over.checked_sub(u64::from(on.slots))?;
                idle -= u64::from(on.slots);
                Some(*attempt)
            });
            let attempts: Vec<AttemptId> = taken.collect();
            if !attempts.is_empty() {
                let name = host.name.clone();
                self.tell_agent(&name, ToAgent::Retract { attempts });
            }
            if idle == 0 {
                break;
            }
        }
        if !self.overfull.is_empty() {
            self.retract_at = Some(now + AGAIN);
        }
    }
}
