//! Hosts that lack what it takes to start anything: processes, descriptors, memory. That is no
//! fault of the job's, and it may pass, so the attempt goes back to the queue. It ends only if
//! nothing of its batch has been started there for the host timeout, and nobody else may take it.

use super::{Host, Scheduler};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::duration::format_duration;
use mezcal_common::model::ids::AttemptId;
use mezcal_common::model::outcome::{Ended, Outcome, Place};
use std::collections::BTreeMap;
use std::time::Duration;

/// Hosts that could not start what they have got of a batch, by their index, and since when.
#[derive(Debug, Default)]
pub(super) struct Shortages(BTreeMap<u32, BootInstant>);

impl Shortages {
    /// Something has been started there.
    pub(super) fn is_over(&mut self, host: u32) {
        self.0.remove(&host);
    }

    fn lasts(&self, host: u32, time: Duration, now: BootInstant) -> bool {
        self.0.get(&host).is_some_and(|since| *since + time <= now)
    }
}

impl Scheduler {
    /// An attempt comes back that its host could not start for want of something.
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
                "{why}; nothing of its batch could be started there within the host timeout of {time}"
            ));
        }
        self.finish(attempt.key, place, outcome, now);
    }

    /// Whether another host may take it that is not known to be as short of something.
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
            let fits = host.known
                && host.drain.reason().is_none()
                && host.slots() >= key.slots()
                && self.serves(host, key.user);
            fits && host.index != short && !batch.short.lasts(host.index, batch.host_timeout, now)
        };
        match self.batches.set_of(key) {
            None => self.hosts.values().any(may),
            Some(set) => set
                .iter()
                .filter_map(|name| self.hosts.at(self.names.host(name)?))
                .any(may),
        }
    }
}
