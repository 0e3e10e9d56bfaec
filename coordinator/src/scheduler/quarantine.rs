//! Hosts that fail whatever they get: a full disk, a missing mount or a broken library turns a host into the fastest one of the cluster, and it
//! eats the queue. Such a host gets nothing for a while.
//!
//! What counts are quick failures of different jobs that could have run anywhere, in a row, while other hosts succeed. Where everything
//! fails everywhere, the jobs are to blame, and nobody is quarantined.

use super::{Effect, Scheduler};
use mezcal_common::clock::BootInstant;
use mezcal_common::ids::JobKey;
use mezcal_common::outcome::{Ended, Outcome};
use mezcal_common::wire::client::Notice;
use std::time::Duration;

/// Failures in a row: few enough to save most of a queue, more than a bad spot in an input makes.
const STREAK: u32 = 10;
/// A failure that took longer has done some work: it may well be the job's own.
const QUICK: Duration = Duration::from_secs(1);
/// Successes of other hosts count for so long.
const RECENT: Duration = Duration::from_secs(60);
/// The first quarantine; each one that follows without a success between is twice as long.
const FIRST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);

/// What speaks against a host.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Quick failures in a row, of different jobs.
    streak: u32,
    last: Option<JobKey>,
    /// Quarantines without a success between them.
    times: u32,
    /// Nothing is placed there before then.
    pub(super) until: Option<BootInstant>,
}

/// The last successes of two different hosts.
#[derive(Debug, Default)]
pub(super) struct Successes([Option<(u32, BootInstant)>; 2]);

impl Successes {
    fn add(&mut self, host: u32, now: BootInstant) {
        if self.0[0].is_some_and(|(first, _)| first != host) {
            self.0[1] = self.0[0];
        }
        self.0[0] = Some((host, now));
    }

    fn elsewhere(&self, host: u32, now: BootInstant) -> bool {
        self.0.iter().flatten().any(|(other, at)| *other != host && now.since(*at) <= RECENT)
    }
}

impl Scheduler {
    /// An attempt has ended on a host by itself.
    pub(super) fn judge(&mut self, name: &str, key: JobKey, outcome: &Outcome, now: BootInstant) {
        let anywhere = self.job(key).is_some_and(|job| job.queue.hosts.is_none());
        let Some(host) = self.hosts.get_mut(name) else { return };
        if outcome.succeeded() {
            self.successes.add(host.index, now);
            host.record = Record::default();
            return;
        }
        let quick = outcome.span.is_none_or(|span| span.elapsed < QUICK);
        let failed = matches!(outcome.ended, Ended::Exited | Ended::Signaled | Ended::StartFailed);
        if !anywhere || !quick || !failed || host.record.last == Some(key) {
            return;
        }
        host.record.last = Some(key);
        host.record.streak += 1;
        if host.record.streak < STREAK || host.record.until.is_some() || !self.successes.elsewhere(host.index, now) {
            return;
        }
        let length = FIRST.saturating_mul(1 << host.record.times.min(10)).min(LONGEST);
        // After it, one more failure is enough.
        (host.record.times, host.record.streak) = (host.record.times + 1, STREAK - 1);
        host.record.until = Some(now + length);
        let host_name = host.name.to_string();
        tracing::warn!(host = host_name, ?length, "host quarantined: {REASON}");
        self.quarantines.insert((now + length, host.index));
        for batch in self.batches.values() {
            let notice = Notice::Quarantined { host: host_name.clone(), length, reason: REASON.into() };
            self.effects.push_back(Effect::Notice { batch: batch.id, notice });
        }
    }

    /// Ends the quarantines that are over.
    pub(super) fn release_quarantined(&mut self, now: BootInstant) {
        while let Some((at, index)) = self.quarantines.first().copied().filter(|(at, _)| *at <= now) {
            self.quarantines.remove(&(at, index));
            let Some(name) = self.name_at(index) else { continue };
            if let Some(host) = self.hosts.get_mut(&name) {
                host.record.until = None;
            }
            self.serve(&name, usize::MAX, now);
        }
    }
}

/// For the reader.
pub(super) const REASON: &str = "ten different jobs in a row failed there within a second each, while others succeed elsewhere";
