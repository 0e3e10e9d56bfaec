//! Leases of hosts: when their attempts are surely over though nobody reports it.

use super::{Host, Scheduler, Timer};
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
    /// Attempts may be on some host from now on: sets the timer.
    pub(super) fn lease_begins(&mut self, now: BootInstant) {
        if let Some(lease) = self.lease {
            self.timers.begin(Timer::Leases, now + lease + FENCE_MARGIN);
        }
    }

    /// When attempts on `host` are surely dead without a report; `None` if there is nothing to
    /// fence.
    pub(super) fn fence(&self, host: &Host) -> Option<BootInstant> {
        let lease = self.lease?;
        (host.session.is_some() || !host.attempts.is_empty())
            .then(|| host.heard + lease + FENCE_MARGIN)
    }

    /// For how long attempts on `host` may still run without a report; see [`Scheduler::fence`].
    pub(super) fn fenced_for(&self, host: &Host, now: BootInstant) -> Option<Duration> {
        self.fence(host).map(|until| until.since(now))
    }

    /// Gives up the attempts on hosts whose leases are over.
    pub(super) fn look_at_leases(&mut self, now: BootInstant) {
        let is_over = |host: &&Host| self.fence(host).is_some_and(|until| until <= now);
        let over = self.hosts.values().filter(is_over);
        let mut over: Vec<Arc<str>> = over.map(|h| h.name.clone()).collect();
        over.sort();
        for name in over {
            if let Some(session) = self.hosts.get(&name).and_then(|h| h.session) {
                let reason = "no heartbeat for longer than the lease".to_owned();
                self.end_session(session, reason);
                self.hosts.session_ends(session);
                self.agent_gone(&name, false, now);
            }
            self.lose_attempts(
                &name,
                |_| true,
                "its host was out of reach for longer than the lease",
                now,
            );
        }
        self.lose_fenced(now);
        let users = self.hosts.values().filter_map(Host::first_fence);
        let hosts = self.hosts.values().filter_map(|h| self.fence(h));
        let next = hosts.chain(users).min();
        self.timers.set_or_clear(Timer::Leases, next);
    }

    /// Loses attempts of users of whom nothing was heard on a host for longer than a lease.
    fn lose_fenced(&mut self, now: BootInstant) {
        let mut over: Vec<(Arc<str>, u32)> = Vec::new();
        for host in self.hosts.values_mut() {
            let name = host.name.clone();
            let users = host.end_fences(now).into_iter();
            over.extend(users.map(|user| (name.clone(), user)));
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
                .map(|(a, _)| a)
                .collect();
            let why = "its user's engines there were not heard from for longer than the lease";
            self.lose_attempts(&name, |attempt| theirs.contains(&attempt), why, now);
        }
    }
}
