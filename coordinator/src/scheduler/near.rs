//! Locality on hosts that have been idle for long: such a host takes jobs that prefer another one
//! only if no slot there could take them now.

use super::queues::QueueKey;
use super::{Host, Mistake, Scheduler};
use mezcal_common::model::clock::BootInstant;
use std::sync::Arc;

/// Findings for a simulation.
#[derive(Debug, Default)]
pub(super) struct Findings {
    in_vain: Option<String>,
}

impl Scheduler {
    /// Serves first the idle slots that these jobs prefer, in the order of service there. True if
    /// one of them got a job.
    pub(super) fn serve_nearer(&mut self, key: QueueKey, now: BootInstant) -> bool {
        let preferred = match self.mistake {
            Some(Mistake::TakesFromNear) => Vec::new(),
            Some(Mistake::OverlooksReleased | Mistake::KeepsNoLonger) | None => self
                .queues
                .preferred(key)
                .iter()
                .filter_map(|name| self.near(name, key, now))
                .collect(),
        };
        // A host that has begun to keep its slots for a wider job gets nothing now.
        let served = preferred.iter().any(|name| self.serve(name, 1, now));
        if !served && self.findings.is_some() {
            let in_vain = self.is_far_in_vain(key, now);
            self.findings
                .as_mut()
                .into_iter()
                .for_each(|found| found.in_vain = found.in_vain.take().or(in_vain.clone()));
        }
        served
    }

    /// The host that serves under this name, if it could take one of these jobs now.
    fn near(&self, name: &str, key: QueueKey, now: BootInstant) -> Option<Arc<str>> {
        let host = self.serving_under(name)?;
        self.could_take(host, key, now).then(|| host.name.clone())
    }

    /// Whether idle slots of a host could take one of these jobs: it is connected and known, has
    /// asked for jobs, is neither avoided nor drained, serves their user, and does not keep those
    /// slots for other jobs.
    pub(super) fn could_take(&self, host: &Host, key: QueueKey, now: BootInstant) -> bool {
        host.session.is_some()
            && host.is_willing()
            && host.credit.idle() > 0
            && host.has_asked_for(key.slots())
            && host.kept.is_none_or(|kept| kept.key == key)
            && self.serves(host, key.user)
            && self.is_barred(host, key, now).is_none()
    }

    /// For simulations: from now on placements that break P4 are noted.
    #[doc(hidden)]
    #[must_use]
    pub fn watched(mut self) -> Self {
        self.findings = Some(Findings::default());
        self
    }

    /// P4: a job that was placed elsewhere, although a slot that it prefers was idle at that moment
    /// and could have taken it.
    #[doc(hidden)]
    pub fn placed_far_in_vain(&self) -> Option<&str> {
        self.findings.as_ref()?.in_vain.as_deref()
    }

    /// The same, computed anew from the batch and all hosts.
    fn is_far_in_vain(&self, key: QueueKey, now: BootInstant) -> Option<String> {
        let preferred = self.batches.preferred_by(key)?;
        let required = self.batches.set_of(key);
        let near = |host: &&Host| {
            let is_among = |set: &[Arc<str>]| self.is_among(host, set);
            is_among(&preferred) && required.as_deref().is_none_or(is_among)
        };
        let idle = self
            .hosts
            .values()
            .filter(near)
            .find(|host| self.could_take(host, key, now))?;
        Some(format!(
            "one of {key:?} goes elsewhere, though {} has an idle slot for it",
            idle.name
        ))
    }
}
