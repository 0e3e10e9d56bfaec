//! Attempts that engines say that they run or have run, and that this agent has not given them:
//! such a claim counts for jobs of the engine's own user, if the coordinator knows the attempt, and
//! for nothing else.

use super::Supervisor;
use super::slot::Slot;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, EngineIndex};

impl Supervisor {
    /// Whether another engine than this one, as far as is known here, has or had an attempt.
    pub(super) fn is_elsewhere(&self, attempt: AttemptId, index: EngineIndex) -> bool {
        let set = self.set_of_engine(index);
        let i = usize::from(index.0);
        self.shared
            && (self.has_queued(attempt)
                || self.reports.iter().any(|entry| {
                    entry.attempt() == attempt && entry.set() != Some(set) && !entry.is_claimed()
                })
                || self.engines.iter().enumerate().any(|(n, e)| {
                    n != i && e.slot.given().is_some_and(|(given, _)| given == attempt)
                }))
    }

    /// An attempt that an engine claims to run takes slots until the coordinator has answered for
    /// it, and it answers an inventory. If the inventory of its set has been sent, the next one
    /// comes when the set is served again.
    pub(super) fn look_at_claim(&mut self, index: EngineIndex, now: BootInstant) {
        let set = self.set_of_engine(index);
        let claims = matches!(
            self.engines[usize::from(index.0)].slot,
            Slot::Busy { claimed: true, .. }
        );
        if claims && self.session.is_some() && self.sets[set].is_told_served() {
            self.leave_out(
                set,
                "an engine of theirs runs a job that this agent has not given it".into(),
                now,
            );
        }
    }

    /// The coordinator's answer: those attempts that a user's engines claim and that it knows.
    pub(super) fn known(&mut self, user: &str, attempts: &[(AttemptId, u16)]) {
        let Some(set) = self.set_of(user) else { return };
        let most = self.slots as u16;
        for i in self.engines_of(set) {
            let slot = &mut self.engines[i].slot;
            if let Slot::Busy {
                attempt,
                slots,
                claimed: claimed @ true,
                ..
            } = slot
            {
                match attempts.iter().find(|(known, _)| known == attempt) {
                    Some((_, taken)) => (*slots, *claimed) = ((*taken).clamp(1, most), false),
                    None => *slot = Slot::Unfit,
                }
            }
        }
    }
}
