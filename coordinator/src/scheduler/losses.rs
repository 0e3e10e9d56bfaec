//! Hosts whose agents have gone: people are told of a loss only when it lasts.
//!
//! An agent that renews its certificate, is upgraded or has its configuration reread leaves and
//! comes again at once. Nobody has to be told of that, and a cancel that its host is about to prove
//! is not out of reach. Fences and their ends do not depend on it.

use super::Scheduler;
use mezcal_common::message::client::Notice;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::BatchSerial;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long an agent may be away before people are told: twice the longest pause that an agent
/// makes before it tries again.
pub(super) const LOSS_GRACE: Duration = Duration::from_secs(2);

impl Scheduler {
    /// Reports a host whose agent has stayed away as lost, to the clients that have jobs there or
    /// wait for a cancel.
    pub(super) fn say_loss(&mut self, index: u32, now: BootInstant) {
        let host = self.hosts.at(index);
        let Some(host) = host.filter(|host| host.session.is_none()) else {
            return;
        };
        let name = host.name.clone();
        let fenced_for = self.fenced_for(host, now).unwrap_or_default();
        let mut held: BTreeMap<BatchSerial, u64> = BTreeMap::new();
        for attempt in host.attempts.ids() {
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
        self.abandon_cancelled(&name, now);
    }
}
