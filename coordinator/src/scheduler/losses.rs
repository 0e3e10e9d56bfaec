//! Hosts whose agents have gone: it counts as a loss for people only when it lasts.
//!
//! An agent that renews its certificate, is upgraded or has its configuration reread leaves and
//! comes again at once. Nobody has to hear of that, and a cancel that its host is about to prove is
//! no cancel out of reach. What is fenced, and until when, does not depend on it.

use super::Scheduler;
use mezcal_common::message::client::Notice;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::BatchSerial;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How long an agent may be away before anybody hears of it: twice the longest pause that an agent
/// makes before it tries again.
pub(super) const LOSS_GRACE: Duration = Duration::from_secs(2);

/// Agents that have gone and may come again at once: until when, and the host's index.
#[derive(Debug, Default)]
pub(super) struct Losses(BTreeSet<(BootInstant, u32)>);

impl Losses {
    /// When the next of them counts as lost.
    pub(super) fn next(&self) -> Option<BootInstant> {
        self.0.first().map(|(at, _)| *at)
    }

    /// Its agent has gone, at `since`, which is what the host keeps until it is there again.
    pub(super) fn begins(&mut self, host: u32, since: BootInstant) {
        self.0.insert((since + LOSS_GRACE, host));
    }

    /// Its agent is there again, which had gone at `since`.
    pub(super) fn ends(&mut self, host: u32, since: BootInstant) {
        self.0.remove(&(since + LOSS_GRACE, host));
    }

    /// Whether its agent, which has gone at `since`, may be there again in a moment.
    pub(super) fn is_new(&self, host: u32, since: BootInstant) -> bool {
        self.0.contains(&(since + LOSS_GRACE, host))
    }
}

impl Scheduler {
    /// Says of the hosts whose agents have stayed away that they are lost, to whoever has jobs
    /// there or waits for a cancel.
    pub(super) fn say_losses(&mut self, now: BootInstant) {
        while let Some((at, index)) = self.losses.0.first().copied().filter(|(at, _)| *at <= now) {
            self.losses.0.remove(&(at, index));
            if let Some(name) = self.name_at(index) {
                self.say_loss(&name, now);
            }
        }
    }

    fn say_loss(&mut self, name: &Arc<str>, now: BootInstant) {
        let Some(host) = self.hosts.get(name).filter(|host| host.session.is_none()) else {
            return;
        };
        let fenced_for = self
            .fence(host)
            .map_or(Duration::ZERO, |until| until.since(now));
        let mut held: BTreeMap<BatchSerial, u64> = BTreeMap::new();
        for attempt in host.attempts.keys() {
            *held.entry(attempt.key.batch).or_default() += 1;
        }
        for (serial, jobs) in held {
            if let Some(batch) = self.batches.get(&serial) {
                let notice = Notice::AgentLost {
                    host: name.to_string(),
                    jobs,
                    fenced_for,
                };
                self.effects.push_back(super::Effect::Notice {
                    batch: batch.id,
                    notice,
                });
            }
        }
        self.abandon_cancelled(name, now);
    }
}
