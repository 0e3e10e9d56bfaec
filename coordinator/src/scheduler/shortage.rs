//! Hosts that lack the resources to start anything: processes, descriptors, memory. The job is not
//! at fault, and the shortage may pass, so the attempt goes back to the queue. The job ends only if
//! nothing of its batch was started there for the host timeout and no other host may take it.

use super::{Host, Scheduler};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::duration::format_duration;
use mezcal_common::model::ids::AttemptId;
use mezcal_common::model::outcome::{Ended, Outcome, Place};
use std::collections::BTreeMap;
use std::time::Duration;

/// Hosts, by index, that could not start jobs of a batch, and since when.
#[derive(Debug, Default)]
pub(super) struct Shortages(BTreeMap<u32, BootInstant>);

impl Shortages {
    /// A job of the batch has been started on this host.
    pub(super) fn is_over(&mut self, host: u32) {
        self.0.remove(&host);
    }

    fn lasts(&self, host: u32, time: Duration, now: BootInstant) -> bool {
        self.0.get(&host).is_some_and(|since| *since + time <= now)
    }
}

impl Scheduler {
    /// A host gave an attempt back that it could not start for lack of a resource.
    pub(super) fn host_was_short(
        &mut self,
        host: u32,
        attempt: AttemptId,
        place: Option<Place>,
        mut outcome: Outcome,
        now: BootInstant,
    ) {
        if self.is_superseded(attempt) {
            return;
        }
        let asked = self.cancels.has(attempt.key);
        let Some(batch) = self.batches.get_mut(&attempt.key.batch) else {
            return;
        };
        batch.short.0.entry(host).or_insert(now);
        let (wanted, once, patience) = (
            !asked && !batch.is_given_up(),
            batch.once,
            batch.host_timeout,
        );
        if !wanted
            || !once
                && (!batch.short.lasts(host, patience, now)
                    || self.may_start_elsewhere(host, attempt, now))
        {
            return self.returned(attempt, now);
        }
        outcome.ended = Ended::StartFailed;
        if !once {
            let why = outcome.error.take().unwrap_or_default();
            let time = format_duration(patience);
            outcome.error = Some(format!(
                "{why}; no job of its batch could be started there within the host timeout of \
                 {time}"
            ));
        }
        self.finish(attempt.key, place, outcome, now);
    }

    /// Whether another host may take the job, and has not been short for the host timeout.
    fn may_start_elsewhere(&self, short: u32, attempt: AttemptId, now: BootInstant) -> bool {
        let Some((job, batch)) = self
            .batches
            .job(attempt.key)
            .zip(self.batches.get(&attempt.key.batch))
        else {
            return false;
        };
        let key = job.queue;
        let may = |host: &Host| {
            let fits = host.is_known()
                && host.drain.reason().is_none()
                && host.slots() >= key.slots()
                && self.serves(host, key.user);
            fits && host.index != short && !batch.short.lasts(host.index, batch.host_timeout, now)
        };
        match self.batches.set_of(key) {
            None => self.hosts.values().any(may),
            Some(set) => set
                .iter()
                .filter_map(|name| self.serving_under(name))
                .any(may),
        }
    }
}
