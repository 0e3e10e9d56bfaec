//! Leases of hosts: when what is on them is surely over though nobody says so.

use super::{Host, Scheduler};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::AttemptId;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Added to a lease before its attempts are placed elsewhere: 10 s for the engine to be killed and
/// swept by its keeper if it does not do so itself, plus drift between two CLOCK_BOOTTIME of 500
/// ppm (NTP's bound, RFC 5905 §11) over a lease of ten minutes (0.3 s), rounded up.
pub const FENCE_MARGIN: Duration = Duration::from_secs(12);

impl Scheduler {
    /// Attempts may be on a host from now on.
    pub(super) fn lease_begins(&mut self, now: BootInstant) {
        if let Some(lease) = self.lease {
            self.look_at_leases
                .get_or_insert(now + lease + FENCE_MARGIN);
        }
    }

    /// When attempts on `host` are surely dead though nobody said so; `None` if there is nothing to
    /// fence.
    pub(super) fn fence(&self, host: &Host) -> Option<BootInstant> {
        let lease = self.lease?;
        (host.session.is_some() || !host.attempts.is_empty())
            .then(|| host.heard + lease + FENCE_MARGIN)
    }

    /// Attempts of users of whom nothing has been heard on a host for longer than a lease.
    pub(super) fn lose_fenced(&mut self, now: BootInstant) {
        let mut over: Vec<(Arc<str>, u32)> = Vec::new();
        for host in self.hosts.values_mut() {
            let name = host.name.clone();
            over.extend(
                host.fenced
                    .extract_if(.., |_, until| *until <= now)
                    .map(|(user, _)| (name.clone(), user)),
            );
        }
        over.sort();
        for (name, user) in over {
            let Some(host) = self.hosts.get(&name) else {
                continue;
            };
            let theirs: BTreeSet<AttemptId> = host
                .attempts
                .iter()
                .filter(|(_, on)| on.user == user)
                .map(|(a, _)| *a)
                .collect();
            let why = "its user's engines were not heard there for longer than the lease";
            self.lose_attempts(&name, |attempt| theirs.contains(&attempt), why, now);
        }
    }
}
